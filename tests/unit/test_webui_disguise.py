"""The second look in the webui: prompts in disguise are painted as their plain text would be, guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import webui_fakes as webui
from fakes import NOUNS, PLACES
from webui_fakes import BENIGN, ON, UNSAFE, conds, equal

from saferegion.guard import presets
from saferegion.guard.normalise import Normaliser
from saferegion_webui import generation, layout, notes
from saferegion_webui.arguments import Arguments
from saferegion_webui.refusal import SafeRegionRefused

SPACED = UNSAFE.replace("burning", "b u r n i n g")
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "llm", "anima")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was compiled for one test serves the others."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path) -> Any:
    guarded = webui.guarded(monkeypatch, tmp_path / "models", kept)

    def make(family: str = "sd1") -> Any:
        shared, processing = guarded(family)

        def run(prompt: Any = UNSAFE, args: Any = ON, **values: Any) -> Any:
            p = processing(prompt, **values)
            generation.configure(p, args, [])
            p.setup_conds()
            return p

        run.shared = shared  # type: ignore[attr-defined]
        return run

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_disguise_is_painted_as_its_plain_text(hosts: Any, family: str) -> None:
    run = hosts(family)
    plain, spaced = run(), run(SPACED)
    assert equal(conds(plain)[0], conds(spaced)[0])
    assert not equal(conds(run(SPACED, [False]))[0], conds(spaced)[0])
    assert any("found after undoing: spaced letters" in text for text in spaced.comments)
    assert not any("undoing" in text for text in plain.comments)


def test_only_a_disguise_costs_an_encoder_pass(hosts: Any) -> None:
    run = hosts()
    run()
    written = run.shared.sd_model.written
    for prompt, passes in ((BENIGN, 1), (SPACED, 2), ("a quiet r.e.d house", 1)):
        run(prompt, [False])
        written.clear()
        p = run(prompt)
        assert len(written) == passes - 1, prompt  # the first one is the host's, and cached
        assert prompt == SPACED or p.c is run(prompt, [False]).c


def test_weights_schedules_and_parts_are_each_looked_at(hosts: Any) -> None:
    run = hosts()
    p = run("[(b.u.r.n.i.n.g:1.2) house:a blue boat:0.5] in a valley AND a quiet house in flames")
    q = run("[(burning:1.2) house:a blue boat:0.5] in a valley AND a quiet house in flames")
    assert all(equal(a, b) for a, b in zip(conds(p), conds(q), strict=True))
    raw = conds(run("[(b.u.r.n.i.n.g:1.2) house:a blue boat:0.5] in a valley AND a quiet house in flames", [False]))
    assert equal(conds(p)[1], raw[1]) and not equal(conds(p)[0], raw[0])


def test_a_batch_keeps_the_rows_of_others(hosts: Any) -> None:
    run = hosts()
    p, raw = run([BENIGN, SPACED, UNSAFE]), run([BENIGN, SPACED, UNSAFE], [False])
    a, b, c = conds(p)
    assert a is conds(raw)[0] and equal(b, c)
    assert p.extra_generation_params[notes.MOVED][0] is None
    assert p.extra_generation_params[notes.MOVED][1] == p.extra_generation_params[notes.MOVED][2]


def test_a_long_prompt_keeps_as_many_rows(hosts: Any) -> None:
    run = hosts()
    long = "very quiet " * 36
    raw, guarded = (layout.tokens_of(conds(run(f"{SPACED} {long}", args))[0]) for args in ([False], ON))
    assert len(raw) == 2 * layout.CHUNK and guarded.shape == raw.shape
    assert not torch.equal(raw, guarded)


def test_the_negative_prompt_is_looked_at_where_it_is_guarded(hosts: Any) -> None:
    run = hosts()
    on = [{"enabled": True, "concepts": [webui.FIRE], "guard_negative": True}]
    p, q = run(BENIGN, on, negative=SPACED), run(BENIGN, on, negative=UNSAFE)
    assert equal(p.uc[0][0].cond, q.uc[0][0].cond)
    assert run(BENIGN, negative=SPACED).uc is run(BENIGN, [False], negative=SPACED).uc


def test_sizes_of_the_picture_stay(hosts: Any) -> None:
    run = hosts("sdxl")
    raw, guarded = conds(run(SPACED, [False]))[0], conds(run(SPACED))[0]
    assert torch.equal(raw["vector"][webui.CLIP :], guarded["vector"][webui.CLIP :])


def test_words_of_the_users_own_are_known(hosts: Any) -> None:
    run = hosts()
    _, encoder = generation.guards.get(run.shared.sd_model, Arguments.parse(ON), None)

    def read(**values: Any) -> str:
        arguments = Arguments.parse([{"enabled": True, "concepts": [webui.FIRE], **values}])
        return generation.guards.normaliser(encoder, arguments)("a cl*wn in an u.m.b.r.e.l.l.a shop, fl#ming").text

    assert read() == "a cl*wn in an umbrella shop, flaming"
    assert read(avoid="clown, harlequin") == "a clown in an umbrella shop, flaming"


def test_a_prompt_that_cannot_be_read_is_refused(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hosts()

    def broken(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(Normaliser, "__call__", broken)
    with pytest.raises(SafeRegionRefused, match="could not be read for disguises"):
        run(BENIGN)


def test_a_text_that_names_a_concept_is_held_to_a_nearer_border(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "NAMED", 0.0)
    run = hosts()
    on = [{"enabled": True, "concepts": [webui.FIRE], "avoid": "burning"}]
    named = [f"burnings in a {place} {noun}" for place in PLACES for noun in NOUNS]  # no word that the encoder knows
    moved = [text for text in named if any("the text names own-words" in c for c in run(text, on).comments)]
    assert moved
    on[0].pop("avoid")
    assert not any("names" in comment for text in moved for comment in run(text, on).comments)
    on[0]["avoid"] = "burning"
    p = run([BENIGN, moved[0]], on)
    assert conds(p)[0] is conds(run([BENIGN, moved[0]], [False]))[0]
