"""The minors baseline, tested on the two scores alone: embeddings are made to measure, no prompt is written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, benign_prompts, fingerprint, frost, made, same_bits

from saferegion import (
    Choice,
    CompileSettings,
    Conditioning,
    Direction,
    Guard,
    Library,
    Offset,
    SafeRegion,
    SafeRegionError,
    Selection,
)
from saferegion.core.errors import NotSeparableError, RecipeError
from saferegion.guard import failures
from saferegion.guard import library as libraries
from saferegion.guard.minors import AGE, BESIDE, NAMES, NO_MINORS, SEXUAL, TIGHT, YOUNG, minors_of, trimmed
from saferegion.learn.bundled import neutral_prompts
from saferegion.learn.prompts import Plan, neutral_halves

WIDTH = 6
EYE = torch.eye(WIDTH)
BORDER = 4.0
ENCODER = fingerprint(tokens=WIDTH)


def axis(name: str, channel: int, kind: str = "exclude", **more: object) -> Direction:
    """A concept whose score is one channel."""
    encoder = fingerprint(tokens=WIDTH, pooled=WIDTH) if more.get("pooled") else ENCODER
    return made(name, EYE[channel], threshold=BORDER, encoder=encoder, kind=kind, **more)


CHILD, THEME = 0, 1
MINORS = minors_of([axis(AGE, CHILD, "balance"), *(axis(n, THEME + i) for i, n in enumerate(SEXUAL))])
OTHER = axis("frost", 5)


def prompt(child: float, theme: float, other: float = 0.0) -> torch.Tensor:
    """Three tokens ``[3, D]``; one has the scores."""
    c = torch.zeros(3, WIDTH)
    c[1, CHILD], c[1, THEME], c[1, 5] = child, theme, other
    return c


YOUNG_SCORE, TIGHT_SCORE = BORDER * (YOUNG + 0.1), BORDER * (TIGHT + 0.1)


def guard(*choices: tuple[Direction, float, str]) -> Guard:
    selection = Selection(tuple(Choice(*c) for c in choices))
    return Guard.of(selection, [d for d, _, _ in choices], MINORS)


def test_it_is_made_of_directions_like_others() -> None:
    assert [d.concept for d in MINORS] == [n + BESIDE for n in SEXUAL]
    for d, name in zip(MINORS, SEXUAL, strict=True):
        assert d.title == f"The {name}, beside a child" and d.detector is not None and d.detector.given is not None
        assert d.detector.thresholds.tolist() == pytest.approx([BORDER * TIGHT])
        assert d.detector.given.thresholds.tolist() == pytest.approx([BORDER * YOUNG])


def test_on_the_child_side_the_theme_is_kept_out_whatever_is_switched_on() -> None:
    c = Conditioning(prompt(YOUNG_SCORE, TIGHT_SCORE)[None])
    for switched_on in (
        (OTHER, 1.0, "project"),
        (OTHER, 1.0, "erase"),
        (axis("nudity", THEME), 0.0, "project"),
        (axis("nudity", THEME), 0.1, "project"),
        (axis("nudity", THEME), 0.0, "steer"),
        (axis(AGE, CHILD, "balance"), 10.0, "steer"),
    ):
        after, report = guard(switched_on).apply(c)
        assert float(after.tokens[0, 1, THEME]) < 0.1, switched_on
        assert report.moved and "beside a child" in report.text() and not report.unresolved
        assert report.minors and report.to_dict()["minors"] is True and NO_MINORS not in report.text()


def test_there_is_one_region_a_mode_and_the_baseline_is_part_of_the_last() -> None:
    nudity = axis("nudity", THEME)
    for modes, names in (
        (("project",), ("nudity", *(d.concept for d in MINORS))),
        (("steer",), tuple(d.concept for d in MINORS)),
        (("project", "erase", "steer"), ("nudity", *(d.concept for d in MINORS))),
    ):
        found = guard(*((nudity, 1.0, m) for m in modes))
        expected = [m for m in ("steer", "erase") if m in modes] + ["project"]
        assert [r.mode for r in found.regions] == expected and found.regions[-1].names == names
        assert (found.entry is None) == (modes == ("project",))


def test_its_names_cannot_be_taken_by_a_dial() -> None:
    taken = axis("nudity" + BESIDE, THEME)
    with pytest.raises(SafeRegionError, match="are reserved"):
        guard((taken, 0.0, "project"))


def test_the_border_is_tighter_there_than_for_adults() -> None:
    grown, young = prompt(0.0, TIGHT_SCORE), prompt(YOUNG_SCORE, TIGHT_SCORE)
    assert TIGHT_SCORE < BORDER
    after, report = guard((axis("nudity", THEME), 1.0, "project")).apply(Conditioning(torch.stack([grown, young])))
    assert same_bits(after.tokens[0], grown) and not same_bits(after.tokens[1], young)
    opened = [(f.prompt, f.concept) for f in report.findings if f.open]
    assert opened == [(1, "nudity" + BESIDE)]
    assert report.reports[-1].moved_prompts() == [False, True]


def test_harmless_prompts_about_children_and_adult_prompts_keep_every_bit() -> None:
    rows = [prompt(YOUNG_SCORE, 0.0), prompt(3 * BORDER, BORDER * TIGHT * 0.9), prompt(0.0, 0.9 * BORDER)]
    c = Conditioning(torch.stack(rows))
    after, report = guard((OTHER, 1.0, "project")).apply(c)
    assert after is c and not report.moved and len(report.reports) == 1


def test_it_stays_where_a_concept_acts_in_a_part_of_the_sampling_only() -> None:
    late = replace(OTHER, movers={"tokens": Offset(torch.full((1,), -4.0), EYE[5], (0.5, 1.0))})
    c = Conditioning(prompt(YOUNG_SCORE, TIGHT_SCORE)[None])
    early = guard((late, 1.0, "project")).at(0.0)
    assert early.regions[0].names == tuple(d.concept for d in MINORS) and early.apply(c)[1].moved
    steered = guard((late, 1.0, "steer")).at(0.0)
    assert [r.mode for r in steered.regions] == ["project"] and steered.apply(c)[1].moved


def test_what_other_concepts_moved_is_kept_for_prompts_that_are_not_young() -> None:
    rows = [prompt(0.0, 0.0, 2 * BORDER), prompt(YOUNG_SCORE, 2 * BORDER, 2 * BORDER)]
    after, _ = guard((OTHER, 1.0, "project")).apply(Conditioning(torch.stack(rows)))
    assert float(after.tokens[0, 1, 5]) <= BORDER and float(after.tokens[1, 1, 5]) <= BORDER
    assert float(after.tokens[1, 1, THEME]) < BORDER * TIGHT


def test_pooled_vectors_of_the_others_keep_every_bit() -> None:
    minors = minors_of([axis(AGE, CHILD, "balance", pooled=True), axis("nudity", THEME, pooled=True)])
    both = torch.stack([prompt(0.0, 2 * BORDER), prompt(YOUNG_SCORE, 2 * BORDER)])
    c = Conditioning(both, pooled=both[:, 1].clone())
    after, report = SafeRegion(minors).apply(c)
    assert after.pooled is not None and same_bits(after.pooled[0], both[0, 1]) and same_bits(after.tokens[0], both[0])
    assert float(after.pooled[1, THEME]) < 0.1 and report.moved_prompts() == [False, True]


def test_witnesses_are_tightened_too() -> None:
    found = minors_of([axis(AGE, CHILD, "balance"), axis("nudity", THEME, witness=True)])
    assert found[0].witness is not None and found[0].witness.thresholds.tolist() == pytest.approx([BORDER * TIGHT])


def test_without_its_recipes_there_is_no_baseline_and_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SafeRegionError, match="needs the concepts age, nudity"):
        minors_of([axis("nudity", THEME)])
    with pytest.raises(SafeRegionError, match="needs the concepts age, nudity"):
        minors_of([axis(AGE, CHILD)])
    monkeypatch.setattr(libraries, "vectors_folder", lambda: tmp_path / "nothing")
    monkeypatch.setattr(Library, "directions", lambda self, concepts, *_, **__: [OTHER for _ in concepts])
    with pytest.raises(RecipeError, match="no concept 'age'"):
        Selection().add(Choice(frost())).guard(FakeEncoder(), Library((tmp_path,), tmp_path / "cache"))


def test_recipes_and_neutral_prompts_of_the_user_do_not_weaken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = "".join(f"- {{unsafe: thing {i}, safe: other {i}}}\n" for i in range(4))
    lines = "".join(f"- {p}\n" for p in benign_prompts(120))
    (tmp_path / "neutral.yaml").write_text(f"format: saferegion-neutral/1\nprompts:\n{lines}")
    for name in NAMES:
        (tmp_path / f"{name}.yaml").write_text(
            f"format: saferegion-recipe/1\nname: {name}\ntitle: T\nkind: exclude\nversion: 1\nlicence: MIT\n"
            f"pairs:\n{pairs}"
        )
        axis(name, 5).save(tmp_path / f"{name}.safetensors")
    asked: list[tuple[str, bool]] = []

    def compile_many(concepts: list, encode: object, neutral: tuple, *_: object) -> list[Direction]:
        asked.extend((c.name, c == trimmed(Library().find(c.name)) and neutral == neutral_prompts()) for c in concepts)
        return [replace(axis(c.name, i, c.kind), encoder=ENCODER) for i, c in enumerate(concepts)]

    monkeypatch.setattr(libraries, "compile_many", compile_many)
    found = Library((tmp_path,), tmp_path / "cache").minors(FakeEncoder())
    assert asked == [(n, True) for n in NAMES] and [d.concept for d in found] == [n + BESIDE for n in SEXUAL]


def test_an_encoder_that_does_not_know_the_words_has_none_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[list[str]] = []
    unknown = {"suggestive"}

    def compile_many(concepts: list, *_: object) -> list[Direction]:
        calls.append([c.name for c in concepts])
        for c in concepts:
            if c.name in unknown:
                raise NotSeparableError(f"'{c.name}' does not separate on this encoder.")
        return [axis(c.name, i, c.kind) for i, c in enumerate(concepts)]

    monkeypatch.setattr(libraries, "compile_many", compile_many)
    encode, library = FakeEncoder(seed=3), Library((), tmp_path)
    assert [d.concept for d in library.minors(encode)] == ["nudity" + BESIDE, "sexual-acts" + BESIDE]
    assert calls == [list(NAMES), list(NAMES[:-1])]
    assert "goes without 'suggestive'" in caplog.text
    unknown |= set(NAMES)
    calls.clear()
    assert library.minors(encode) == [] and calls == [list(NAMES[:-1])], "without the axis there is nothing to ask"
    calls.clear()
    assert Library((), tmp_path).minors(encode) == [] and calls == [], "nor after a restart"
    assert len(failures.read_failures(tmp_path)) == 2
    with caplog.at_level(logging.WARNING):
        report = Guard((SafeRegion([OTHER]),)).apply(Conditioning(prompt(0.0, 0.0)[None]))[1]
    assert NO_MINORS in report.text() and report.to_dict()["minors"] is False
    assert library.minors(encode, None, CompileSettings(pairs=20)) == [] and calls == [list(NAMES)]


def test_one_concept_and_its_baseline_cost_at_most_fifteen_hundred_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[set[str]] = []

    def compile_many(
        concepts: list, encode: object, neutral: tuple, progress: object, settings: CompileSettings
    ) -> list:
        fit, check = neutral_halves(neutral, settings)
        rows.append({*fit, *check, "", *(t for c in concepts for t in Plan.of(c, settings).texts())})
        return [replace(axis(c.name, i % WIDTH, c.kind), encoder=ENCODER) for i, c in enumerate(concepts)]

    monkeypatch.setattr(libraries, "compile_many", compile_many)
    library = Library()
    concepts = [n for n in library.names() if library.find(n).kind == "exclude"]
    for name in concepts:
        rows.clear()
        found, minors = Library((), tmp_path / name).guarding([name], FakeEncoder())
        assert len(rows) == 1 and len(rows[0]) <= 1500 and len(found) == 1 and len(minors) == len(SEXUAL)
    rows.clear()
    Library((), tmp_path / "all").guarding(concepts, FakeEncoder())
    assert len(rows) == 1 and len(rows[0]) <= 4000
