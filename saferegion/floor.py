"""The floor that no dial lowers: beside a child, the whole sexual theme is kept out, whatever is switched on.

It is made of recipes that know nothing of each other: the age axis, of harmless everyday sentences, and the sexual
theme, of adults. A prompt on the child side of the axis is held to the theme at full strength and to borders that lie
only :data:`TIGHT` of the way from benign prompts to the usual ones. Prompts on the adult side, and harmless prompts
about children, keep every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .conditioning import Conditioning
from .directions import ConceptDirections, Direction
from .errors import SafeRegionError
from .region import SafeRegion
from .report import Report

AGE = "age"
"""The axis; its positive side is the child side."""
SEXUAL = ("nudity", "sexual-acts", "suggestive")
"""The whole theme."""
NAMES = (AGE, *SEXUAL)
YOUNG = 0.4
"""Part of the way from benign prompts to the age axis' border from which a prompt counts as on the child side:
.91 of the axis' own held-out prompts of children and .05 of those of adults (language benchmark's encoder)."""
TIGHT = 0.8
"""The same of the theme's borders, at which such a prompt is outside: no harmless prompt about children was there."""


@dataclass(frozen=True, eq=False)
class Floor:
    """What acts after all that is switched on. Both regions belong to one text encoder.

    Attributes:
        age: outside of it is the child side.
        theme: the sexual theme with its tighter borders.
    """

    age: SafeRegion
    theme: SafeRegion

    @classmethod
    def of(cls, directions: Sequence[ConceptDirections]) -> Floor:
        """From compiled directions of the age axis and of at least one concept of the theme.

        Raises:
            SafeRegionError: one is missing, has no border, or belongs to another encoder.
        """
        known = {d.concept: d for d in directions}
        theme = [known[n] for n in SEXUAL if n in known]
        if AGE not in known or not theme:
            raise SafeRegionError(
                f"The floor beside children needs the concepts {', '.join(NAMES)}; install Safe Region again."
            )
        age = replace(tightened(known[AGE], YOUNG), kind="exclude")
        named = [replace(tightened(d, TIGHT), title=f"{d.title or d.concept}, beside a child") for d in theme]
        return cls(SafeRegion([age]), SafeRegion(named))

    def young(self, c: Conditioning) -> torch.Tensor:
        """Bool ``[B]`` on the CPU: the prompts on the child side of the age axis. Raises ConditioningError."""
        return self.age.score(c)[:, 0].cpu() > 0

    def apply(self, c: Conditioning, young: torch.Tensor) -> tuple[Conditioning, Report | None]:
        """Hold the prompts in ``young`` (bool ``[B]``) to the theme; ``c`` itself where nothing had to move.

        The report is None where no prompt is young; it tells of the others nothing. Raises ConditioningError.
        """
        if not bool(young.any()):
            return c, None
        after, report = self.theme.apply(c)
        for space in report.spaces:
            space.movable = space.movable & young.unsqueeze(1)
            space.moved = space.moved & young.unsqueeze(1)
        if after is c or not report.moved:
            return c, report
        tokens, pooled = _rows(young, after.tokens, c.tokens), c.pooled
        if pooled is not None and after.pooled is not None and after.pooled is not pooled:
            pooled = _rows(young, after.pooled, pooled)
        return c.replace(tokens, pooled), report


def _rows(which: torch.Tensor, some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    if some is others:
        return others
    return torch.where(which.to(others.device).reshape(-1, *[1] * (others.ndim - 1)), some, others)


def tightened(directions: ConceptDirections, part: float) -> ConceptDirections:
    """The same with every border moved to ``part`` of its way from the benign mean, where prompts outside are taken.

    Raises:
        SafeRegionError: a direction has no border.
    """
    spaces: Mapping[str, Direction] = {name: _tightened(directions, d, part) for name, d in directions.spaces.items()}
    return replace(directions, spaces=spaces)


def _tightened(directions: ConceptDirections, d: Direction, part: float) -> Direction:
    if d.threshold is None or d.mean is None:
        raise SafeRegionError(
            f"'{directions.concept}' has no calibrated border, which the floor beside children needs."
        )
    threshold = d.mean + part * (d.threshold - d.mean)
    inner = torch.minimum(d.mean if d.inner is None else d.inner, threshold)
    return replace(d, threshold=threshold, inner=inner, together=None if d.together is None else part * d.together)
