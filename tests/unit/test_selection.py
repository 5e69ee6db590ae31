from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, benign_prompts, fire, frost, imported, made, same_bits

from saferegion import (
    PRESETS,
    Choice,
    Concept,
    Conditioning,
    Direction,
    Guard,
    HalfSpaces,
    Library,
    Offset,
    SafeRegion,
    SafeRegionError,
    Selection,
)
from saferegion.core.errors import RecipeError, UnresolvedError
from saferegion.guard.selection import NO_MINORS
from saferegion.learn.bundled import neutral_prompts

BURNING, PLAIN = "a burning house in a field", "a quiet house in a field"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The fake encoder's own neutral prompts, and directions kept in a folder of its own."""
    folder = tmp_path_factory.mktemp("concepts")
    lines = "".join(f"- {p}\n" for p in benign_prompts(120))
    (folder / "neutral.yaml").write_text(f"format: saferegion-neutral/1\nprompts:\n{lines}")
    return Library((folder,), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def guard(library: Library) -> Guard:
    return Selection().add(Choice(fire()), Choice(frost())).guard(FakeEncoder(), library)


def test_a_guard_of_one_mode_does_what_the_region_of_its_concepts_does(library: Library, guard: Guard) -> None:
    encode = FakeEncoder()
    region = SafeRegion(library.directions([fire(), frost()], encode))
    c = encode([BURNING, PLAIN])
    ours, theirs = guard.apply(c)[0], region.apply(c)[0]
    assert same_bits(ours.tokens, theirs.tokens) and same_bits(ours.pooled, theirs.pooled)
    assert not same_bits(ours.tokens, c.tokens)


def test_what_is_inside_comes_back_as_it_is(guard: Guard) -> None:
    c = FakeEncoder()([PLAIN])
    after, report = guard.apply(c)
    assert after is c and not report.moved
    assert "nothing was changed" in report.text()


def test_a_concept_chosen_again_takes_the_later_choice_and_other_modes_stay() -> None:
    chosen = (
        Selection()
        .add(Choice("nudity"), Choice("violence", 2))
        .add(Choice("nudity", 0.5), Choice("nudity", 1, "erase"))
    )
    assert [(c.name, c.strength, c.mode) for c in chosen.choices] == [
        ("nudity", 0.5, "project"),
        ("violence", 2, "project"),
        ("nudity", 1, "erase"),
    ]
    assert str(chosen) == "nudity x0.5, violence x2, nudity (erase)" and str(Selection()) == "nothing"


def test_modes_act_one_after_another_and_projecting_has_the_last_word(library: Library) -> None:
    encode = FakeEncoder()
    mixed = Selection().add(Choice(fire()), Choice(frost(), 1, "steer"), Choice(fire(), 1, "erase"))
    guard = mixed.guard(encode, library)
    assert [r.mode for r in guard.regions] == ["steer", "erase", "project"]
    c = encode([BURNING])
    after, report = guard.apply(c)
    assert report.moved and len(report.reports) == 3 and "[erase]" in report.text()
    assert float(guard.regions[-1].score(after).max()) <= 0
    assert report.to_dict()["regions"][0]["mode"] == "steer" and len(report.findings) == 3


def test_strengths_reach_their_concepts(library: Library) -> None:
    encode = FakeEncoder()
    off = Selection().add(Choice(fire(), 0), Choice(frost(), 2)).guard(encode, library)
    assert off.apply(encode([BURNING]))[1].moved is False
    assert off.regions[0].strengths == (0.0, 2.0)


def windowed_direction(window: tuple[float, float]) -> Direction:
    """A direction with a detector and an offset."""
    d = made()
    return replace(d, movers={"tokens": Offset(torch.full((1,), -4.0), d.movers["tokens"].unit[0], window)})


def test_windows_split_the_sampling(guard: Guard) -> None:
    late = replace(windowed_direction((0.2, 1.0)), concept="late")
    early = replace(windowed_direction((0.0, 0.5)), concept="early")
    chosen = Selection().add(Choice(late), Choice(early))
    windowed = Guard.of(chosen, [late, early])
    assert windowed.windows() == [(0.0, 0.2), (0.2, 0.5), (0.5, 1.0)]
    names = [[r.names for r in windowed.at((a + b) / 2).regions] for a, b in windowed.windows()]
    assert names == [[("early",)], [("late", "early")], [("late",)]]
    assert guard.windows() == [(0.0, 1.0)] and guard.at(0.4) is guard
    assert guard.spaces() == {"tokens", "pooled"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Choice("fire", float("nan")), "number from 0 to 10"),
        (lambda: Choice("fire", 1e9), "number from 0 to 10"),
        (lambda: Choice("fire", True), "number from 0 to 10"),
        (lambda: Choice("fire", 1, "burn"), "mode must be one of"),
        (lambda: Selection().guard(FakeEncoder()), "Nothing is switched on"),
        (lambda: Selection().add(Choice("no-such-concept")).guard(FakeEncoder()), "There is no concept"),
    ],
)
def test_what_cannot_be_switched_on_is_refused(make, says: str) -> None:
    with pytest.raises(SafeRegionError, match=says):
        make()


def test_a_choice_made_twice_in_one_selection_takes_the_later() -> None:
    assert Selection((Choice("a", 1), Choice("a", 2))).choices[0].strength == 2
    with pytest.raises(ValueError):
        Guard.of(Selection((Choice("a"),)), [])


def test_what_stays_open_is_said_and_can_be_refused() -> None:
    """A concept whose benign mean the tokens cannot reach: its detector asks where nothing moves."""
    d = made(threshold=2.0)
    stuck = replace(d, rest={"tokens": torch.tensor([[9.0, 0, 0, 0, 0, 0]])}, movers={"tokens": HalfSpaces(
        torch.tensor([[0.0, 1, 0, 0, 0, 0]]), torch.zeros(1, 1), torch.ones(1), torch.zeros(1))})  # fmt: skip
    guard = Guard.of(Selection((Choice(stuck),)), [stuck])
    c = Conditioning(torch.tensor([[[5.0, 0, 0, 0, 0, 0]], [[0.0] * 6]]))
    _, report = guard.apply(c)
    assert report.unresolved == ((0, "fire"),) and "STILL OPEN" in report.text()
    assert report.to_dict()["unresolved"] == [{"prompt": 0, "concept": "fire"}]
    with pytest.raises(UnresolvedError, match="The fire stayed open"):
        report.require_resolved()
    good = Guard.of(Selection((Choice(d),)), [d])
    after, report = good.apply(c)
    report.require_resolved()
    assert report.moved and report.unresolved == () and same_bits(after.tokens[1], c.tokens[1])


def test_a_report_is_never_changed_and_says_where_there_is_no_baseline() -> None:
    d = made()
    _, report = Guard.of(Selection((Choice(d),)), [d]).apply(Conditioning(torch.zeros(1, 2, 6)))
    assert report.text().endswith(NO_MINORS) and report.to_dict()["minors"] is False
    for part, name in ((report, "minors"), (report.reports[0], "touched")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)


def test_threads_that_share_a_guard_give_the_same_bits() -> None:
    d = made(readouts=("token", "pair"), joint=[(0, 1)])
    guard = Guard.of(Selection((Choice(d),)), [d])
    inputs = [torch.full((1, n, 6), 9.0) for n in range(1, 90)]
    expected = [SafeRegion([d]).apply(Conditioning(x))[0].tokens for x in inputs]

    def run(order: list[int]) -> list[bool]:
        return [same_bits(guard.apply(Conditioning(inputs[i]))[0].tokens, expected[i]) for i in order]

    orders = [list(range(89)), list(range(88, -1, -1)), [*range(40, 89), *range(40)]]
    with ThreadPoolExecutor(3) as pool:
        assert all(all(same) for same in pool.map(run, orders))


def test_an_imported_vector_can_only_steer() -> None:
    d = imported()
    with pytest.raises(SafeRegionError, match="can only steer"):
        Guard.of(Selection((Choice(d),)), [d])
    guard = Guard.of(Selection((Choice(d, 1, "steer"),)), [d])
    assert guard.apply(Conditioning(torch.zeros(1, 77, 6)))[1].moved


def test_neutral_prompts_of_the_users_folder_come_before_those_bundled(library: Library, tmp_path: Path) -> None:
    assert len(library.neutral()) == 120
    assert Library((tmp_path,)).neutral() == neutral_prompts()
    (tmp_path / "neutral.yml").write_text("format: saferegion-recipe/1\n")
    with pytest.raises(RecipeError, match="no neutral prompts"):
        Library((tmp_path,)).neutral()


# -- concepts from words -----------------------------------------------------------------------------------------------


def test_words_are_put_into_every_sentence_and_what_stands_instead_takes_turns() -> None:
    c = Concept.from_words(
        "My Fire", ["fire", " fire ", "flames", ""], ["water", "fog"], ["a {} by a lake", "{}, at night"]
    )
    assert c.name == "my-fire" and c.title == "My Fire"
    assert c.pairs == (
        ("a fire by a lake", "a water by a lake"),
        ("fire, at night", "fog, at night"),
        ("a flames by a lake", "a fog by a lake"),
        ("flames, at night", "water, at night"),
    )


def test_without_anything_instead_the_sentence_goes_without() -> None:
    c = Concept.from_words("x", ["fire"])
    assert ("a portrait, fire, highly detailed", "a portrait, highly detailed") in c.pairs
    assert ("a photo, fire", "a photo") in c.pairs and ("fire", "a picture") in c.pairs
    assert all("{}" not in p and ", ," not in p for pair in c.pairs for p in pair)


def test_a_concept_from_words_finds_what_it_is_about(library: Library) -> None:
    encode = FakeEncoder()
    words = Concept.from_words(
        "fire", ["burning", "blazing"], ["quiet", "old"], [f"a {{}} {n}" for n in ("house", "car", "tree")]
    )
    guard = Selection().add(Choice(words)).guard(encode, library)
    assert guard.apply(encode([BURNING]))[1].moved and not guard.apply(encode([PLAIN]))[1].moved


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x", ["", "  "]), "at least one word"),
        (("x", ["fire"], [], ["a house"]), "exactly once"),
        (("x", ["fire"], [], ["{} and {}"]), "exactly once"),
        (("!!!", ["fire"]), "letter or a digit"),
        (("x", ["fire"], ["fire"]), "no contrast"),
    ],
)
def test_words_that_describe_no_concept_are_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Concept.from_words(*arguments)


def test_a_preset_moves_every_border_and_normal_none(library: Library, guard: Guard) -> None:
    encode = FakeEncoder()
    chosen = Selection().add(Choice(fire()), Choice(frost()))
    far = {}
    for preset in PRESETS:
        of = replace(chosen, preset=preset).guard(encode, library)
        _, report = of.apply(encode([BURNING]))
        far[preset] = float(report.reports[0].before.far[0, 0])
        assert report.moved and not report.unresolved
    assert far["gentle"] < far["normal"] < far["strict"]
    assert far["normal"] == float(guard.apply(encode([BURNING]))[1].reports[0].before.far[0, 0])
    assert str(replace(chosen, preset="strict")) == f"{chosen} [strict]"


def test_a_preset_outlives_a_choice_that_is_added(library: Library) -> None:
    assert replace(Selection(), preset="strict").add(Choice(fire())).preset == "strict"


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(SafeRegionError, match=r"must be one of gentle, normal, strict; got 'harsh'"):
        Selection(preset="harsh")
