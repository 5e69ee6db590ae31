"""The floor beside children, tested on the two scores alone: embeddings are made to measure, no prompt is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, benign_prompts, concept, direction, fingerprint, frost, same_bits

from saferegion import Choice, ConceptDirections, Conditioning, Guard, Library, SafeRegion, SafeRegionError, Selection
from saferegion.core.errors import NotSeparableError, RecipeError
from saferegion.floor import AGE, NAMES, SEXUAL, TIGHT, YOUNG, Floor, tightened
from saferegion.guard import library as libraries

WIDTH = 6
EYE = torch.eye(WIDTH, dtype=torch.float64)
BORDER = 4.0
ENCODER = fingerprint(tokens=WIDTH)


def axis(name: str, channel: int, kind: str = "exclude") -> ConceptDirections:
    """A concept whose score is one channel."""
    return replace(concept(name, encoder=ENCODER, tokens=direction(EYE[channel], EYE, BORDER)), kind=kind)


CHILD, THEME = 0, 1
FLOOR = Floor.of([axis(AGE, CHILD, "balance"), *(axis(n, THEME + i) for i, n in enumerate(SEXUAL))])
OTHER = axis("frost", 5)


def prompt(child: float, theme: float, other: float = 0.0) -> torch.Tensor:
    """Three tokens ``[3, D]``; one has the scores."""
    c = torch.zeros(3, WIDTH)
    c[1, CHILD], c[1, THEME], c[1, 5] = child, theme, other
    return c


YOUNG_SCORE, TIGHT_SCORE = BORDER * (YOUNG + 0.1), BORDER * (TIGHT + 0.1)


def guard(*choices: tuple[ConceptDirections, float, str]) -> Guard:
    selection = Selection(tuple(Choice(*c) for c in choices))
    return Guard.of(selection, [d for d, _, _ in choices], FLOOR)


def test_on_the_child_side_the_theme_is_kept_out_whatever_is_switched_on() -> None:
    c = Conditioning(prompt(YOUNG_SCORE, TIGHT_SCORE)[None])
    for switched_on in (
        (OTHER, 1.0, "project"),
        (axis("nudity", THEME), 0.0, "project"),
        (axis("nudity", THEME), 0.1, "project"),
        (axis(AGE, CHILD, "balance"), 1.0, "erase"),
    ):
        after, report = guard(switched_on).apply(c)
        assert float(after.tokens[0, 1, THEME]) < 0.1, switched_on
        assert report.moved and "beside a child" in report.text()
        assert float(FLOOR.theme.score(after).max()) <= 0


def test_the_border_is_tighter_there_than_for_adults() -> None:
    grown, young = prompt(0.0, TIGHT_SCORE), prompt(YOUNG_SCORE, TIGHT_SCORE)
    assert TIGHT_SCORE < BORDER
    after, report = guard((axis("nudity", THEME), 1.0, "project")).apply(Conditioning(torch.stack([grown, young])))
    assert same_bits(after.tokens[0], grown) and not same_bits(after.tokens[1], young)
    assert [f.before for f in report.reports[-1].findings if f.prompt == 0] == [None] * len(SEXUAL)
    assert report.reports[-1].moved_prompts() == [False, True]


def test_harmless_prompts_about_children_and_adult_prompts_keep_every_bit() -> None:
    rows = [prompt(YOUNG_SCORE, 0.0), prompt(3 * BORDER, BORDER * TIGHT * 0.9), prompt(0.0, 0.9 * BORDER)]
    c = Conditioning(torch.stack(rows))
    after, report = guard((OTHER, 1.0, "project")).apply(c)
    assert after is c and not report.moved and len(report.reports) == 1


def test_the_floor_stays_where_a_concept_acts_in_a_part_of_the_sampling_only() -> None:
    late = replace(OTHER, window=(0.5, 1.0))
    c = Conditioning(prompt(YOUNG_SCORE, TIGHT_SCORE)[None])
    early = guard((late, 1.0, "project")).at(0.0)
    assert not early.regions and early.apply(c)[1].moved


def test_what_other_concepts_moved_is_kept_for_prompts_that_are_not_young() -> None:
    rows = [prompt(0.0, 0.0, 2 * BORDER), prompt(YOUNG_SCORE, 2 * BORDER, 2 * BORDER)]
    after, _ = guard((OTHER, 1.0, "project")).apply(Conditioning(torch.stack(rows)))
    assert float(after.tokens[0, 1, 5]) <= BORDER and float(after.tokens[1, 1, 5]) <= BORDER
    assert float(after.tokens[1, 1, THEME]) < BORDER * TIGHT


def test_pooled_vectors_of_the_others_keep_every_bit() -> None:
    spaces = {"tokens": direction(EYE[CHILD], EYE, BORDER), "pooled": direction(EYE[CHILD], EYE, BORDER)}
    encoder = fingerprint(tokens=WIDTH, pooled=WIDTH)
    age = replace(concept(AGE, encoder=encoder, **spaces), kind="balance")
    theme = {name: direction(EYE[THEME], EYE, BORDER) for name in spaces}
    floor = Floor.of([age, concept("nudity", encoder=encoder, **theme)])
    both = torch.stack([prompt(0.0, 2 * BORDER), prompt(YOUNG_SCORE, 2 * BORDER)])
    c = Conditioning(both, pooled=both[:, 1])
    after, report = floor.apply(c, floor.young(c))
    assert after.pooled is not None and same_bits(after.pooled[0], both[0, 1]) and same_bits(after.tokens[0], both[0])
    assert float(after.pooled[1, THEME]) < 0.1 and report is not None and report.moved_prompts() == [False, True]


def test_borders_are_tightened_in_every_space_and_in_the_sum(on_fire: ConceptDirections) -> None:
    closer = tightened(on_fire, 0.5)
    for name, d in on_fire.spaces.items():
        new = closer.spaces[name]
        torch.testing.assert_close(new.threshold - d.mean, 0.5 * (d.threshold - d.mean))
        assert (new.inner <= new.threshold).all()
    assert float(closer.spaces["tokens_mean"].together) == pytest.approx(
        0.5 * float(on_fire.spaces["tokens_mean"].together)
    )
    c = FakeEncoder()(benign_prompts(20))
    assert bool((SafeRegion([closer]).score(c) >= SafeRegion([on_fire]).score(c)).all())


def test_without_its_recipes_there_is_no_floor_and_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SafeRegionError, match="needs the concepts age, nudity"):
        Floor.of([axis("nudity", THEME)])
    monkeypatch.setattr(libraries, "vectors_folder", lambda: tmp_path / "nothing")
    lines = "".join(f"- {p}\n" for p in benign_prompts(120))
    (tmp_path / "neutral.yaml").write_text(f"format: saferegion-neutral/1\nprompts:\n{lines}")
    with pytest.raises(RecipeError, match="no concept 'age'"):
        Selection().add(Choice(frost())).guard(FakeEncoder(), Library((tmp_path,), tmp_path / "cache"))


def test_a_users_recipe_of_the_same_name_does_not_replace_the_floors(
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
    asked: list[str] = []

    def directions(self: Library, concepts: list, *_: object, **__: object) -> list[ConceptDirections]:
        asked.extend(c.name for c in concepts if len(c.pairs) > 4)
        return [axis(c.name, i, c.kind) for i, c in enumerate(concepts)]

    monkeypatch.setattr(Library, "directions", directions)
    monkeypatch.setattr(libraries, "_UNKNOWN", set())  # of other tests in this process
    floor = Library((tmp_path,), tmp_path).floor(FakeEncoder())
    assert asked == list(NAMES) and floor is not None and floor.theme.names == SEXUAL


def test_an_encoder_that_does_not_know_the_words_has_none_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def directions(self: Library, concepts: list, *_: object, **__: object) -> list[ConceptDirections]:
        calls.append(len(concepts))
        if concepts:
            raise NotSeparableError("no")
        return []

    monkeypatch.setattr(Library, "directions", directions)
    monkeypatch.setattr(libraries, "_UNKNOWN", set())
    lines = "".join(f"- {p}\n" for p in benign_prompts(120))
    (tmp_path / "neutral.yaml").write_text(f"format: saferegion-neutral/1\nprompts:\n{lines}")
    encode = FakeEncoder(seed=3)
    assert Library((tmp_path,), tmp_path).floor(encode) is None and calls == [4, 1, 1, 1, 1]
    assert Library((tmp_path,), tmp_path).floor(encode) is None and calls == [4, 1, 1, 1, 1, 0]
    report = Guard((SafeRegion([OTHER]),), None).apply(Conditioning(prompt(0.0, 0.0)[None]))[1]
    assert "no floor beside children" in report.text() and report.to_dict()["floor"] is False
