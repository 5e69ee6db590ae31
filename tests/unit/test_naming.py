"""What a text names: its words lower the borders of their concept, and of no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import fire, frost, made, same_bits

from saferegion import Choice, Concept, Conditioning, Guard, Library, Selection
from saferegion.guard.minors import TIGHT, minors_of
from saferegion.guard.naming import NOTHING, Names, names_in, names_of
from saferegion.guard.presets import NAMED

BORDER = 4.0
BETWEEN = BORDER * (NAMED + 0.1)
"""A score that only a nearer border reaches."""


@pytest.fixture(scope="module")
def names() -> Names:
    weapons = replace(fire(), name="weapons", words=("gun", "knife fight", "🔫"), senses=("hot glue gun", "gun dog"))
    return names_of((weapons, replace(frost(), words=("ice",)), fire()))


@pytest.mark.parametrize(
    "text",
    ["gun", "two Guns on a wall", "best quality, a_(gun:1.3), night", "knife_fight, 8k", "a hot glue gun and a gun",
     "[gun|lamp]", "a 🔫", "knife  fights"],
)  # fmt: skip
def test_a_listed_word_names_its_concept(names: Names, text: str) -> None:
    assert names(text) == {"weapons"}


@pytest.mark.parametrize(
    "text",
    ["", "a gunmetal car", "a hot glue gun", "two gun dogs", "hot_glue_gun, craft", "a knife", "begun", "on fire"],
)
def test_other_words_and_listed_senses_name_nothing(names: Names, text: str) -> None:
    assert names(text) == NOTHING


def test_a_text_may_name_several(names: Names) -> None:
    assert names("a gun made of ice") == {"weapons", "frost"}


def test_words_of_the_users_own_name_their_concept() -> None:
    clown = Concept.from_words("clowns", ["clown"], ["baker"])
    chosen = Selection().add(Choice(clown), Choice(made("nowhere-listed")))
    assert names_in(chosen, Library())("three clowns") == {"clowns"}


@pytest.fixture
def guard() -> Guard:
    return Guard.of(
        Selection().add(
            Choice(made("fire", threshold=BORDER)), Choice(made("frost", torch.eye(6)[1], threshold=BORDER))
        ),
        [made("fire", threshold=BORDER), made("frost", torch.eye(6)[1], threshold=BORDER)],
    )


def conditioning(fire: float, frost: float) -> Conditioning:
    tokens = torch.zeros(1, 3, 6)
    tokens[0, 1, 0], tokens[0, 1, 1] = fire, frost
    return Conditioning(tokens)


def test_what_is_named_is_held_to_a_nearer_border(guard: Guard) -> None:
    c = conditioning(BETWEEN, 0.0)
    assert guard.apply(c)[0] is c
    after, report = guard.naming(frozenset({"fire"})).apply(c)
    assert report.moved and not report.unresolved and report.opened() == {"fire"}
    assert float(after.tokens[0, :, 0].max()) < NAMED * BORDER
    assert "the text names fire" in report.text() and report.to_dict()["named"] == ["fire"]


def test_a_word_alone_decides_nothing(guard: Guard) -> None:
    c = conditioning(BORDER * (NAMED - 0.1), 0.0)
    after, report = guard.naming(frozenset({"fire"})).apply(c)
    assert after is c and "names" not in report.text()


def test_what_is_not_named_keeps_its_border(guard: Guard) -> None:
    c = conditioning(BETWEEN, BETWEEN)
    _, report = guard.naming(frozenset({"fire"})).apply(c)
    assert report.opened() == {"fire"}


def test_the_whole_guard_goes_where_a_text_names_nothing_that_is_on(guard: Guard) -> None:
    assert guard.naming(NOTHING) is guard and guard.naming(frozenset({"weapons"})) is guard
    named = guard.naming(frozenset({"fire"}))
    assert guard.naming(frozenset({"fire", "weapons"})) is named
    assert guard.naming(frozenset({"fire"})).at(0.5).named == {"fire"}


def test_prompts_over_the_usual_border_come_out_no_less_inside(guard: Guard) -> None:
    c = conditioning(2 * BORDER, 0.0)
    usual, named = guard.apply(c)[0], guard.naming(frozenset({"fire"})).apply(c)[0]
    assert float(named.tokens[0, 1, 0]) <= float(usual.tokens[0, 1, 0])
    assert same_bits(named.tokens[0, 1, 1:], usual.tokens[0, 1, 1:])


def test_the_theme_beside_a_child_is_named_whatever_is_on() -> None:
    names = names_in(Selection().add(Choice("weapons")), Library())
    assert names("two nude statues") == {"nudity-beside-a-child"} and names("a gun") == {"weapons"}


def test_the_baseline_is_held_to_a_nearer_border_too() -> None:
    age, nude = made("age", torch.eye(6)[2], threshold=BORDER, kind="balance"), made("nudity", threshold=BORDER)
    guard = Guard.of(
        Selection().add(Choice(made("frost", torch.eye(6)[1]))),
        [made("frost", torch.eye(6)[1])],
        minors_of([age, nude]),
    )
    tokens = torch.zeros(1, 3, 6)
    tokens[0, 1, 0], tokens[0, 1, 2] = BORDER * TIGHT * (NAMED + 0.1), BORDER
    c = Conditioning(tokens)
    assert guard.apply(c)[0] is c
    report = guard.naming(frozenset({"nudity-beside-a-child"})).apply(c)[1]
    assert report.moved and "the text names nudity" in report.text()
