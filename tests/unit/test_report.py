from __future__ import annotations

import json

import pytest
import torch
from fakes import concept, concepts, direction, metric, normals, tokens

from saferegion import Conditioning, SafeRegion

WIDTH = 32


@pytest.fixture
def pushed() -> tuple[SafeRegion, Conditioning]:
    """Two concepts at right angles; in the second of two prompts tokens 2 and 4 are outside "fire", by 3 and 1."""
    s = metric(WIDTH, 0)
    rows = torch.linalg.solve(torch.linalg.cholesky(s).T, torch.eye(WIDTH, dtype=torch.float64)).T[:2]
    parts = [concept(n, tokens=direction(v, s)) for n, v in zip(("fire", "frost"), rows, strict=True)]
    c = tokens(s, 2, 5, 0, 0.1)
    movable = torch.ones(2, 5, dtype=torch.bool)
    movable[:, 0] = False
    d = parts[0].spaces["tokens"]
    for token, far in ((2, 3.0), (4, 1.0)):
        c[1, token] += (2 + far - c[1, token] @ d.normal[0]) * d.shift[0]
    c[:, 0] += 50 * d.shift[0]
    return SafeRegion(parts), Conditioning(c, movable)


def test_it_says_which_concept_where_and_how_far(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    out, report = region.apply(c)
    assert report.moved and report.moved_prompts() == [False, True]
    assert [(f.prompt, f.concept) for f in report.findings] == [(0, "fire"), (0, "frost"), (1, "fire"), (1, "frost")]
    quiet, _, fire, frost = report.findings
    assert fire.tokens == (2, 4) and fire.before == pytest.approx(3, abs=1e-3)
    assert -1e-3 < fire.after <= 0
    assert frost.tokens == quiet.tokens == () and frost.before < 0 and frost.after < 0 and quiet.before == quiet.after
    score = region.score(out)
    for f in report.findings:
        assert f.after == pytest.approx(float(score[f.prompt, region.names.index(f.concept)]), abs=1e-3)


def test_tokens_that_may_not_move_do_not_count(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    _, report = region.apply(c)
    assert all(0 not in f.tokens for f in report.findings)
    assert bool(report.spaces[0].before(2)[:, 0].isnan().all())
    _, all_move = region.apply(Conditioning(c.tokens))
    assert all_move.findings[0].tokens == (0,) and all_move.findings[2].tokens == (0, 2, 4)


def test_plain_data(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    data = json.loads(json.dumps(region.apply(c)[1].to_dict(), allow_nan=False))
    assert data["mode"] == "project" and data["moved"] is True
    assert data["concepts"] == [{"concept": "fire", "strength": 1.0}, {"concept": "frost", "strength": 1.0}]
    assert data["findings"][2]["tokens"] == [2, 4] and data["findings"][2]["concept"] == "fire"
    json.dumps(region.apply(Conditioning(c.tokens[:, :0]))[1].to_dict(), allow_nan=False)


def test_lines_for_people(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    _, report = region.apply(c)
    lines = report.text().splitlines()
    assert lines[0] == "prompt 1: inside the safe region; nothing was changed"
    assert lines[1].startswith("prompt 2: The fire: +3.0 -> ") and lines[1].endswith("2 of 5 tokens outside")
    assert len(lines) == 2
    words = [["<s>", "a", "quiet", "house", ""], ["<s>", "a", "burning", "house", "burning"]]
    assert report.text(words).splitlines()[1].endswith("2 of 5 tokens outside (burning)")
    one = region.apply(Conditioning(c.tokens[1:], c.movable[1:]))[1]
    assert one.text().startswith("The fire: ")


@pytest.mark.parametrize("mode", ["steer", "erase"])
def test_the_other_modes(pushed: tuple[SafeRegion, Conditioning], mode: str) -> None:
    region, c = pushed
    region = SafeRegion(region.directions, mode=mode)
    out, report = region.apply(c)
    assert report.mode == mode and report.moved_prompts() == [True, True]
    score = region.score(out)
    for f in report.findings:
        assert f.after == pytest.approx(float(score[f.prompt, region.names.index(f.concept)]), abs=1e-3)
        if mode == "erase":
            assert f.after == pytest.approx(-2, abs=1e-3)
    assert "nothing was changed" not in report.text() and len(report.text().splitlines()) == 4


def test_pooled_and_tokens_are_told_apart() -> None:
    s = metric(WIDTH, 1)
    d = direction(normals(1, WIDTH, 1)[0], s)
    region = SafeRegion([concept("fire", tokens=d, pooled=d)])
    c = Conditioning(tokens(s, 1, 3, 1, 0.1), pooled=tokens(s, 1, 1, 2, 0.1)[0] + 9 * d.shift)
    _, report = region.apply(c)
    assert [(f.space, bool(f.tokens)) for f in report.findings] == [("tokens", False), ("pooled", True)]
    assert report.text().endswith("(pooled)") and len(report.text().splitlines()) == 1


def test_a_concept_that_is_switched_off() -> None:
    parts, s = concepts(2, WIDTH, 2)
    _, report = SafeRegion(parts, {"c1": 0}).apply(Conditioning(tokens(s, 1, 3, 2, 9.0)))
    assert report.findings[1].before is None and report.findings[1].after is None
    assert report.to_dict()["concepts"][1] == {"concept": "c1", "strength": 0.0}
    _, none = SafeRegion(parts, 0).apply(Conditioning(tokens(s, 1, 3, 2, 9.0)))
    assert not none.moved and none.moved_prompts() == [] and none.findings == () and none.text() == ""


def test_the_report_keeps_what_was_before(pushed: tuple[SafeRegion, Conditioning]) -> None:
    """It is computed when it is asked for, but from the scores of the moment of guarding."""
    region, c = pushed
    _, report = region.apply(c)
    c.tokens.zero_()
    assert report.findings[2].before == pytest.approx(3, abs=1e-3) and report.findings[2].tokens == (2, 4)
