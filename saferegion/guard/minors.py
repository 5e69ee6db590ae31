"""The minors baseline that no dial lowers: beside a child, the whole sexual theme is kept out, whatever is switched on.

It is no special case: directions of the theme whose detector asks a second one, that of the age axis. It is made of
recipes that know nothing of each other: the axis, of harmless everyday sentences, and the theme, of adults. A prompt on
the child side of the axis is held to the theme at full strength and to borders that lie only :data:`TIGHT` of the way
from benign prompts to the usual ones. Prompts on the adult side, and harmless prompts about children, keep every bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..core.direction import Direction
from ..core.errors import SafeRegionError
from ..learn.prompts import spread
from ..learn.recipes import Concept

AGE = "age"
"""The axis; its positive side is the child side."""
SEXUAL = ("nudity", "sexual-acts", "suggestive")
"""The whole theme."""
NAMES = (AGE, *SEXUAL)
BESIDE = "-beside-a-child"
YOUNG = 0.33
"""Part of the way from benign prompts to the age axis' border from which a prompt counts as on the child side:
.89 of the axis' own held-out prompts of children and .11 of those of adults (language benchmark's encoder)."""
TIGHT = 0.6
"""The same of the theme's borders, at which such a prompt is outside: no harmless prompt about children was there."""

PAIRS, OWN = 40, 8
"""Most pairs and near neighbours of each recipe that the baseline is made of: it comes with every concept, and one
concept alone is not to cost more than it must."""

NO_MINORS = "no baseline for minors: this text encoder does not know its words"
"""What is said where there is none."""


def trimmed(recipe: Concept) -> Concept:
    """A recipe with no more than the baseline needs."""
    return replace(recipe, pairs=tuple(spread(recipe.pairs, PAIRS)), neutral=tuple(spread(recipe.neutral, OWN)))


def minors_of(directions: Iterable[Direction]) -> list[Direction]:
    """From compiled directions of the age axis and of at least one concept of the theme.

    Raises:
        SafeRegionError: one is missing or has no detector.
    """
    known = {d.concept: d for d in directions}
    age, theme = known.get(AGE), [known[n] for n in SEXUAL if n in known]
    if age is None or not theme:
        raise SafeRegionError(
            f"The baseline for minors needs the concepts {', '.join(NAMES)}; install Safe Region again."
        )
    return [_beside(d, age) for d in theme]


def _beside(d: Direction, age: Direction) -> Direction:
    if d.detector is None or age.detector is None:
        raise SafeRegionError(f"'{d.concept}' or '{AGE}' has no border, which the baseline for minors needs.")
    given = replace(age.detector.tightened(YOUNG), given=None)
    return replace(
        d,
        concept=d.concept + BESIDE,
        detector=replace(d.detector.tightened(TIGHT), given=given),
        witness=None if d.witness is None else d.witness.tightened(TIGHT),
        meta=replace(d.meta, title=f"{d.title}, beside a child"),
    )
