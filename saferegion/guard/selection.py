"""What a user switched on: concepts with a strength and a mode each, and the guard that this becomes on an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..core.conditioning import Conditioning
from ..core.direction import Direction
from ..core.errors import SafeRegionError
from ..core.region import MODES, STRONGEST, SafeRegion
from ..core.report import Finding, Report, Words
from ..learn.recipes import Concept
from ..learn.settings import CompileSettings, Encode, Progress
from .library import Library
from .minors import BESIDE, NO_MINORS
from .presets import NORMAL, at_preset, check_preset, nearer

ORDER = ("steer", "erase", "project")
"""Modes in the order in which they act: project last, so that what comes out is inside."""
MOST_NAMED = 64
"""Sets of named concepts for which a guard keeps its regions."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One concept that is switched on.

    Args:
        concept: a name the library knows, a recipe, or directions.
        strength: from 0 (off) to 10, as :class:`~saferegion.SafeRegion` takes it.
        mode: ``project``, ``steer`` or ``erase``.
        preset: its own, in place of the selection's.
        first: whether it also acts before modes that come before its own, on prompts as they came in.
    """

    concept: str | Concept | Direction
    strength: float = 1.0
    mode: str = "project"
    preset: str | None = None
    first: bool = False

    def __post_init__(self) -> None:
        if self.preset is not None:
            check_preset(self.preset)
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
    """All that is switched on. A concept chosen again in the same mode takes the later choice.

    Args:
        choices: what is switched on.
        preset: ``gentle``, ``normal`` or ``strict``: where every border lies; see :mod:`saferegion.guard.presets`.
    """

    choices: tuple[Choice, ...] = ()
    preset: str = NORMAL

    def __post_init__(self) -> None:
        check_preset(self.preset)
        chosen = {(c.name, c.mode): c for c in self.choices}
        object.__setattr__(self, "choices", tuple(chosen.values()))

    def add(self, *choices: Choice) -> Selection:
        return replace(self, choices=(*self.choices, *choices))

    def __str__(self) -> str:
        def text(c: Choice) -> str:
            return c.name + (f" x{c.strength:g}" if c.strength != 1 else "") + (f" ({c.mode})" * (c.mode != "project"))

        named = ", ".join(map(text, self.choices)) or "nothing"
        return named if self.preset == NORMAL else f"{named} [{self.preset}]"

    def guard(
        self,
        encode: Encode,
        library: Library | None = None,
        progress: Progress | None = None,
        settings: CompileSettings | None = None,
    ) -> Guard:
        """Find or compile the directions of every choice for the encoder behind ``encode``, and the minors baseline.

        Raises:
            SafeRegionError: nothing is switched on, or a concept cannot be used on this encoder or in its mode; no
                guard is made of the others then.
        """
        if not self.choices:
            raise SafeRegionError("Nothing is switched on: choose at least one concept.")
        library = Library() if library is None else library
        found, minors = library.guarding([c.concept for c in self.choices], encode, progress, settings)
        return Guard.of(self, found, minors)


@dataclass(frozen=True, eq=False)
class Guard:
    """What an adapter holds on to.

    Attributes:
        regions: one a mode, in the order in which they act. minors: the baseline, which is part of the last of them.
        entry: the baseline and choices that are ``first``, which act first where regions of other modes come before
            the last: it judges prompts as they came in.
        named: concepts that the text names; their borders lie nearer (see :mod:`saferegion.guard.naming`).
    """

    regions: tuple[SafeRegion, ...]
    minors: tuple[Direction, ...] = ()
    entry: SafeRegion | None = None
    named: frozenset[str] = frozenset()
    _naming: dict[frozenset[str], Guard] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, selection: Selection, directions: Sequence[Direction], minors: Sequence[Direction] = ()) -> Guard:
        """From the directions of the selection's choices, in their order, and :meth:`Library.minors`.

        Raises:
            SafeRegionError: a choice that cannot be used in its mode, or that has a name of the minors baseline.
        """
        both = list(zip(directions, selection.choices, strict=True))
        for choice in selection.choices:
            if choice.name.endswith(BESIDE):
                raise SafeRegionError(f"Names that end in '{BESIDE}' are reserved; call '{choice.name}' otherwise.")
        regions = []
        for mode in ORDER:
            named, strength = _named(selection, [(d, c) for d, c in both if c.mode == mode])
            if mode == "project":
                named += minors
            if named:
                regions.append(SafeRegion(named, strength, mode))
        entry = None
        if any(r.mode != "project" for r in regions):
            named, strength = _named(selection, [(d, c) for d, c in both if c.first and c.mode == "project"])
            entry = SafeRegion([*named, *minors], strength) if named or minors else None
        return cls(tuple(regions), tuple(minors), entry)

    def apply(self, c: Conditioning) -> tuple[Conditioning, GuardReport]:
        """As :meth:`SafeRegion.apply`, of every region in turn; ``c`` itself where nothing had to move."""
        reports = []
        if self.entry is not None:
            c, report = self.entry.apply(c)
            reports += [report] if report.moved else []
        for region in self.regions:
            c, report = region.apply(c)
            reports.append(report)
        return c, GuardReport(tuple(reports), bool(self.minors), named=self.named)

    def naming(self, names: frozenset[str]) -> Guard:
        """The guard for texts that name these concepts; this one where none of them is switched on."""
        known = {d.concept for r in self.regions for d in r.directions}
        names = names & known
        if names == self.named:
            return self
        if names not in self._naming:
            if len(self._naming) >= MOST_NAMED:
                self._naming.clear()
            regions = tuple(_nearer(r, names - self.named) for r in self.regions)
            entry = None if self.entry is None else _nearer(self.entry, names - self.named)
            self._naming[names] = replace(self, regions=regions, entry=entry, named=names, _naming={})
        return self._naming[names]

    def at(self, fraction: float) -> Guard:
        """The part whose step windows hold ``fraction`` of the sampling; it may hold no region. The minors baseline
        acts in all of it.
        """
        inside = tuple(r for region in self.regions if (r := region.at(fraction)) is not None)
        return self if inside == self.regions else replace(self, regions=inside, _naming={})

    def windows(self) -> list[tuple[float, float]]:
        """The parts of the sampling in which always the same concepts act, from 0 to 1."""
        ends = {0.0, 1.0, *(w for r in self.regions for d in r.directions for w in d.window)}
        cuts = sorted(ends)
        return list(pairwise(cuts))

    def spaces(self) -> frozenset[str]:
        """Names of the encoder's spaces that every region guards."""
        known = [{s for d in r.directions for s in d.movers} for r in self.regions]
        return frozenset(set.intersection(*known)) if known else frozenset()


@dataclass(frozen=True, eq=False)
class GuardReport:
    """What each region of a guard did, in the order in which they acted; whether there was a minors baseline.

    ``undone``: of a prompt in disguise that was guarded and painted without it, what was undone, in plain words.
    ``named``: concepts that the text names.
    """

    reports: tuple[Report, ...]
    minors: bool = True
    undone: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()

    @property
    def moved(self) -> bool:
        """Whether any token was moved."""
        return any(r.moved for r in self.reports)

    @property
    def unresolved(self) -> tuple[tuple[int, str], ...]:
        """(prompt, concept) of each concept that stayed open; see :attr:`Report.unresolved`."""
        return tuple(dict.fromkeys(u for r in self.reports for u in r.unresolved))

    def require_resolved(self) -> None:
        """Raise UnresolvedError where a concept stayed open."""
        for report in self.reports:
            report.require_resolved()

    def opened(self, row: int = 0) -> frozenset[str]:
        """Concepts that are switched on and that prompt ``row`` of the batch was outside of."""
        return frozenset(
            concept
            for r in self.reports
            for concept, strength, far in zip(r.concepts, r.strengths, r.before.far[row].tolist(), strict=True)
            if strength > 0 and far > 0
        )

    @property
    def found_after(self) -> str:
        """What people are told of a disguise; nothing where there was none."""
        return f"found after undoing: {', '.join(self.undone)}" if self.undone else ""

    @property
    def names(self) -> str:
        """What people are told of words that the text says; nothing where it names no concept."""
        return f"the text names {', '.join(sorted({n.removesuffix(BESIDE) for n in self.named}))}" if self.named else ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of every region."""
        return tuple(f for r in self.reports for f in r.findings)

    def text(self, token_strings: Sequence[Words] | None = None) -> str:
        """Some lines for people; see :meth:`Report.text`."""
        lines = [r.text(token_strings) for r in self.reports]
        if len(lines) > 1:
            lines = [f"[{r.mode}]\n{text}" for r, text in zip(self.reports, lines, strict=True)]
        lines += [self.found_after] if self.undone else []
        lines += [self.names] if self.named and self.moved else []
        return "\n".join(lines if self.minors else [*lines, NO_MINORS])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "moved": self.moved,
            "minors": self.minors,
            **({"undone": list(self.undone)} if self.undone else {}),
            **({"named": sorted(self.named)} if self.named else {}),
            "unresolved": [{"prompt": b, "concept": k} for b, k in self.unresolved],
            "regions": [r.to_dict() for r in self.reports],
        }


def _named(selection: Selection, both: Sequence[tuple[Direction, Choice]]) -> tuple[list[Direction], dict[str, float]]:
    """Directions under the names of their choices and at their presets, and the strength of each."""
    named = [at_preset(replace(d, concept=c.name), c.preset or selection.preset) for d, c in both]
    return named, {c.name: c.strength for _, c in both}


def _nearer(region: SafeRegion, names: frozenset[str]) -> SafeRegion:
    if not names & set(region.names):
        return region
    directions = [nearer(d) if d.concept in names else d for d in region.directions]
    return SafeRegion(directions, dict(zip(region.names, region.strengths, strict=True)), region.mode)


__all__ = ["NO_MINORS", "ORDER", "Choice", "Guard", "GuardReport", "Selection"]
