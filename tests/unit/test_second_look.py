"""The second look: words that are known, whether the text without disguise finds more, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import concepts

import saferegion as sr
from saferegion.core.errors import SafeRegionError
from saferegion.guard.second_look import finds_more, normaliser, undisguised, without_disguise
from saferegion.guard.selection import Choice, Guard, GuardReport, Selection


@pytest.fixture
def reports() -> tuple[GuardReport, GuardReport]:
    """Of two prompts each: inside of everything and outside of one; outside of the other and of both."""
    directions = concepts(2, 6)
    guard = Guard.of(Selection(tuple(Choice(d) for d in directions)), directions)
    u = torch.stack([d.movers["tokens"].displacement[0] for d in directions])  # type: ignore[union-attr]
    rows = torch.stack([torch.zeros(6), 4 * u[0], 4 * u[1], 4 * u[0] + 4 * u[1]]).unsqueeze(1)
    return guard.apply(sr.Conditioning(rows[:2]))[1], guard.apply(sr.Conditioning(rows[2:]))[1]


def test_more_is_a_concept_that_the_prompt_as_written_is_inside_of(reports: tuple[GuardReport, GuardReport]) -> None:
    first, second = reports
    assert [first.opened(0), first.opened(1), second.opened(1)] == [set(), {"c0"}, {"c0", "c1"}]
    assert finds_more(first, second, 0, 0) and finds_more(first, second, 1, 0) and finds_more(first, second, 1, 1)
    assert not finds_more(second, first, 1, 1) and not finds_more(second, first, 0, 0)
    assert finds_more(GuardReport(()), second) and not finds_more(first, GuardReport(()))


def test_a_concept_that_is_switched_off_is_not_more() -> None:
    directions = concepts(2, 6)
    choices = tuple(Choice(d, s) for d, s in zip(directions, (1.0, 0.0), strict=True))
    u = directions[1].movers["tokens"].displacement[0]  # type: ignore[union-attr]
    report = Guard.of(Selection(choices), directions).apply(sr.Conditioning((4 * u)[None, None]))[1]
    assert report.opened() == set()


def test_what_was_undone_is_told(reports: tuple[GuardReport, GuardReport]) -> None:
    report = without_disguise(reports[1], ("spaced letters", "look-alike letters"))
    assert "found after undoing: spaced letters, look-alike letters" in report.text().splitlines()
    assert report.to_dict()["undone"] == ["spaced letters", "look-alike letters"]
    assert "undone" not in reports[1].to_dict() and "undoing" not in reports[1].text()


def test_words_are_those_of_the_bundled_recipes_and_of_the_users_own() -> None:
    bundled = normaliser()
    assert bundled("a n.u.d.e woman, n4k3d").text == "a nude woman, naked"
    assert undisguised(bundled, "a nude woman with (long hair:1.2), 8k") is None
    own = sr.Concept.from_words("clowns", ["clown", "harlequin"], [], [])
    assert bundled("a cl*wn").text == "a cl*wn"
    assert normaliser((), (own,))("a cl*wn").text == "a clown"
    assert normaliser((), (own,)) is normaliser((), (own,))


def test_a_vocabulary_keeps_what_it_knows() -> None:
    assert normaliser()("nuude").text == "nude"
    assert normaliser(("nuude",))("nuude").text == "nuude"


def test_what_cannot_be_read_is_refused() -> None:
    def broken(text: str) -> Any:
        raise RecursionError("too deep")

    with pytest.raises(SafeRegionError, match="could not be read for disguises .RecursionError: too deep."):
        undisguised(broken, "a house")  # type: ignore[arg-type]
