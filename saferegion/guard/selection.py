"""What a user switched on: concepts with a strength and a mode each, and the guard that this becomes on an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.conditioning import MEAN, Conditioning
from ..core.direction import Direction
from ..core.errors import SafeRegionError
from ..learn.compile import BATCH, Encode, Progress
from ..floor import Floor
from ..learn.recipes import Concept
from ..core.region import MODES, STRONGEST, SafeRegion
from ..core.report import Finding, Report
from .library import Library

ORDER = ("steer", "erase", "project")
"""Modes in the order in which they act: project last, so that what comes out is inside."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One concept that is switched on.

    Args:
        concept: a name the library knows, a recipe, or directions.
        strength: from 0 (off) to 10, as :class:`~saferegion.SafeRegion` takes it.
        mode: ``project``, ``steer`` or ``erase``.
    """

    concept: str | Concept | Direction
    strength: float = 1.0
    mode: str = "project"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SafeRegionError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}.")
        s = self.strength
        if not isinstance(s, int | float) or isinstance(s, bool) or not 0 <= s <= STRONGEST:
            raise SafeRegionError(
                f"The strength of '{self.name}' must be a number from 0 to {STRONGEST:g}; got {self.strength!r}."
            )

    @property
    def name(self) -> str:
        if isinstance(self.concept, str):
            return self.concept
        return self.concept.name if isinstance(self.concept, Concept) else self.concept.concept


@dataclass(frozen=True, eq=False)
class Selection:
    """All that is switched on. A concept chosen again in the same mode takes the later choice."""

    choices: tuple[Choice, ...] = ()

    def add(self, *choices: Choice) -> Selection:
        chosen = {(c.name, c.mode): c for c in self.choices}
        for choice in choices:
            chosen[choice.name, choice.mode] = choice
        return Selection(tuple(chosen.values()))

    def __str__(self) -> str:
        def text(c: Choice) -> str:
            return c.name + (f" x{c.strength:g}" if c.strength != 1 else "") + (f" ({c.mode})" * (c.mode != "project"))

        return ", ".join(map(text, self.choices)) or "nothing"

    def guard(
        self,
        encode: Encode,
        library: Library | None = None,
        progress: Progress | None = None,
        *,
        batch_size: int = BATCH,
        family: str = "",
    ) -> Guard:
        """Find or compile the directions of every choice for the encoder behind ``encode``.

        Raises:
            SafeRegionError: nothing is switched on, or a concept cannot be used on this encoder or in its mode; no
                guard is made of the others then.
        """
        if not self.choices:
            raise SafeRegionError("Nothing is switched on: choose at least one concept.")
        library = Library() if library is None else library
        found = library.directions(
            [c.concept for c in self.choices], encode, progress=progress, batch_size=batch_size, family=family
        )
        floor = library.floor(encode, progress, batch_size=batch_size, family=family)
        return Guard.of(self, found, floor)


@dataclass(frozen=True, eq=False)
class Guard:
    """One region a mode, applied one after another, and the floor; what an adapter holds on to."""

    regions: tuple[SafeRegion, ...]
    floor: Floor | None

    @classmethod
    def of(cls, selection: Selection, directions: Sequence[Direction], floor: Floor | None) -> Guard:
        """From the directions of the selection's choices, in their order, and :meth:`Library.floor`."""
        regions = []
        for mode in ORDER:
            both = [(d, c) for d, c in zip(directions, selection.choices, strict=True) if c.mode == mode]
            if both:
                named = [replace(d, concept=c.name) for d, c in both]
                regions.append(SafeRegion(named, {c.name: c.strength for _, c in both}, mode))
        return cls(tuple(regions), floor)

    def apply(self, c: Conditioning) -> tuple[Conditioning, GuardReport]:
        """As :meth:`SafeRegion.apply`, of every region in turn; ``c`` itself where nothing had to move. Prompts that
        come in on the child side of the age axis are held to the floor last."""
        young = None if self.floor is None else self.floor.young(c)
        reports = []
        for region in self.regions:
            c, report = region.apply(c)
            reports.append(report)
        if self.floor is not None and young is not None:
            c, last = self.floor.apply(c, young)
            reports += [last] if last is not None and last.moved else []
        return c, GuardReport(tuple(reports), self.floor is not None)

    def at(self, fraction: float) -> Guard:
        """The part whose step windows hold ``fraction`` of the sampling; it may hold no region. The floor stays."""
        inside = tuple(r for region in self.regions if (r := region.at(fraction)) is not None)
        return self if inside == self.regions else Guard(inside, self.floor)

    def windows(self) -> list[tuple[float, float]]:
        """The parts of the sampling in which always the same concepts act, from 0 to 1."""
        ends = {0.0, 1.0, *(w for r in self.regions for d in r.directions for w in d.window)}
        cuts = sorted(ends)
        return list(zip(cuts, cuts[1:], strict=False))

    def spaces(self) -> frozenset[str]:
        """Names of the encoder's spaces that every region guards."""
        known = [{s.removesuffix(MEAN) for d in r.directions for s in d.spaces} for r in self.regions]
        return frozenset(set.intersection(*known)) if known else frozenset()


NO_FLOOR = "no floor beside children: this text encoder does not know its words"
"""What is said where :meth:`Library.floor` has nothing to be made of."""


@dataclass(frozen=True, eq=False)
class GuardReport:
    """What each region of a guard did, in the order in which they acted; whether there was a floor."""

    reports: tuple[Report, ...]
    floor: bool = True

    @property
    def moved(self) -> bool:
        """Whether any token was moved."""
        return any(r.moved for r in self.reports)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(f for r in self.reports for f in r.findings)

    def text(self, token_strings: Sequence[Sequence[str]] | None = None) -> str:
        """Some lines for people; see :meth:`Report.text`."""
        lines = [r.text(token_strings) for r in self.reports]
        if len(lines) > 1:
            lines = [f"[{r.mode}]\n{text}" for r, text in zip(self.reports, lines, strict=True)]
        return "\n".join(lines if self.floor else [*lines, NO_FLOOR])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"moved": self.moved, "floor": self.floor, "regions": [r.to_dict() for r in self.reports]}
