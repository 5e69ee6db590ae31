"""The report: which concept was found where and by what, how far, what moved, and what could not be brought inside."""

from __future__ import annotations

import json

import pytest
import torch

from saferegion import Conditioning, Detector, Direction, Fingerprint, HalfSpaces, Meta, Readout, SafeRegion, Term
from saferegion.core.errors import UnresolvedError
from saferegion.core.report import describe

WIDTH, BORDER = 16, 2.0
NAMES = ("fire", "frost")


def direction(name: str, channel: int, **terms: str) -> Direction:
    """A concept along one channel, told by ``space=reduce`` at the border."""
    terms = terms or {"tokens": "token"}
    along = torch.zeros(1, WIDTH)
    along[0, channel] = 1
    found = tuple(Term(Readout(s, r), along.clone(), torch.zeros(1, 1)) for s, r in terms.items())
    mover = HalfSpaces(along, torch.zeros(1, 1), torch.ones(1), torch.zeros(1))
    spaces = tuple(dict.fromkeys(("tokens", *terms)))
    mark = Fingerprint(tuple((s, WIDTH) for s in spaces), (0.5,) * 32 * len(spaces))
    detector = Detector(found, torch.full((len(found),), BORDER))
    rest = {s: torch.zeros(1, WIDTH) for s in spaces}
    return Direction(name, mark, detector, {s: mover for s in spaces}, rest, meta=Meta(title=f"The {name}"))


@pytest.fixture
def pushed() -> tuple[SafeRegion, Conditioning]:
    """Two concepts at right angles; in the second of two prompts tokens 2 and 4 are outside "fire", by 3 and 1."""
    c = 0.1 * torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    c[1, 2, 0], c[1, 4, 0] = BORDER + 3, BORDER + 1
    c[:, 0, 0] += 50
    return SafeRegion([direction(n, i) for i, n in enumerate(NAMES)]), Conditioning(c, mask)


def test_it_says_which_concept_where_and_how_far(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    out, report = region.apply(c)
    assert report.moved and report.moved_prompts() == [False, True]
    assert [(f.prompt, f.concept) for f in report.findings] == [(0, "fire"), (0, "frost"), (1, "fire"), (1, "frost")]
    quiet, _, fire, frost = report.findings
    assert fire.open and fire.tokens == {"tokens": (2, 4)} and fire.how == ("token",)
    assert fire.before == pytest.approx(3, abs=1e-3) and -BORDER - 1e-3 < fire.after <= 0
    assert not frost.open and not frost.tokens and not quiet.tokens
    assert frost.before < 0 and frost.after < 0 and quiet.before == quiet.after
    score = region.score(out)
    for f in report.findings:
        assert f.after == pytest.approx(float(score[f.prompt, region.names.index(f.concept)]), abs=1e-3)


def test_tokens_that_may_not_move_do_not_count(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    _, report = region.apply(c)
    held = report.before.held()["tokens"]
    assert held.shape == (2, 5, 2) and bool(held[:, 0].isnan().all()) and not bool(held[:, 1:].isnan().any())
    assert held[1, 2, 0] == pytest.approx(3, abs=1e-3)
    _, all_move = region.apply(Conditioning(c.tokens))
    assert all_move.findings[0].tokens == {"tokens": (0,)} and all_move.findings[2].tokens == {"tokens": (0, 2, 4)}


def test_plain_data(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    data = json.loads(json.dumps(region.apply(c)[1].to_dict(), allow_nan=False))
    assert data["mode"] == "project" and data["moved"] is True and data["unresolved"] == []
    assert data["concepts"] == [{"concept": "fire", "strength": 1.0}, {"concept": "frost", "strength": 1.0}]
    told = data["findings"][2]
    assert told["tokens"] == {"tokens": [2, 4]} and told["concept"] == "fire" and told["told_by"] == ["token"]


def test_lines_for_people(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    _, report = region.apply(c)
    lines = report.text().splitlines()
    assert lines[0] == "prompt 1: inside the safe region; nothing was changed"
    assert lines[1].startswith("prompt 2: The fire: +3.0 -> -") and lines[1].endswith("(told by a word)")
    assert len(lines) == 2
    words = [["<s>", "a", "quiet", "house", ""], ["<s>", "a", "burning", "house", "burning"]]
    assert report.text(words).splitlines()[1].endswith("(told by a word: burning)")
    one = region.apply(Conditioning(c.tokens[1:], c.mask[1:]))[1]
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
            assert f.after == pytest.approx(-BORDER, abs=1e-3)
    assert "nothing was changed" not in report.text() and len(report.text().splitlines()) == 4


def test_what_told_it_is_said() -> None:
    region = SafeRegion([direction("fire", 0, tokens="mean", pooled="pooled")])
    tokens, pooled = torch.zeros(3, 4, WIDTH), torch.zeros(3, WIDTH)
    tokens[0, :, 0] = pooled[1, 0] = 9
    report = region.apply(Conditioning(tokens, pooled=pooled))[1]
    assert [f.how for f in report.findings] == [("mean",), ("pooled",), ()]
    assert not any(f.tokens for f in report.findings)
    first, second, third = report.text().splitlines()
    assert first.endswith("(told by the prompt as a whole)") and second.endswith("(told by the pooled vector)")
    assert third.endswith("nothing was changed")


def test_a_concept_that_is_switched_off_is_told_and_not_moved(pushed: tuple[SafeRegion, Conditioning]) -> None:
    region, c = pushed
    out, report = SafeRegion(region.directions, {"fire": 0}).apply(c)
    assert out is c and not report.moved and report.findings[2].open
    assert report.to_dict()["concepts"][0] == {"concept": "fire", "strength": 0.0}
    report.require_resolved()


def test_a_prompt_that_stays_outside_is_refused() -> None:
    """The detector looks where the mover cannot go, and rest is outside too."""
    part = direction("fire", 0)
    looks = direction("fire", 1).detector
    stuck = Direction(
        "fire", part.encoder, looks, part.movers, {"tokens": torch.full((1, WIDTH), 9.0)}, meta=Meta(title="The fire")
    )
    c = torch.zeros(2, 3, WIDTH)
    c[1, 1, 1] = 9
    _, report = SafeRegion([stuck]).apply(Conditioning(c))
    assert report.unresolved == ((1, "fire"),) and report.to_dict()["unresolved"] == [{"prompt": 1, "concept": "fire"}]
    assert "STILL OPEN" in describe(report.findings[1]) and "STILL OPEN" not in describe(report.findings[0])
    with pytest.raises(UnresolvedError, match="The fire stayed open"):
        report.require_resolved()


def test_directions_that_can_only_steer_tell_no_distance() -> None:
    part = direction("vector", 0)
    only = Direction("vector", part.encoder, None, part.movers)
    _, report = SafeRegion([only], mode="steer").apply(Conditioning(torch.zeros(1, 3, WIDTH)))
    (found,) = report.findings
    assert report.moved and found.before is None and found.after is None and report.text() == "vector"


def test_the_report_keeps_what_was_before(pushed: tuple[SafeRegion, Conditioning]) -> None:
    """It is computed when it is asked for, but from the scores of the moment of guarding."""
    region, c = pushed
    _, report = region.apply(c)
    c.tokens.zero_()
    assert report.findings[2].before == pytest.approx(3, abs=1e-3)
    assert report.findings[2].tokens == {"tokens": (2, 4)}
