"""Balance: pictures of one person in a generic role, each painted as one group of an axis, by the shares asked for.

A prompt is asked the gates once. Every axis that no gate holds back is balanced: the quota says which group each
picture is, and all tokens of its row move by what that group adds. What a gate holds back keeps every bit; where every
axis is held back, the very same conditioning comes out. Gates look at the embedding, and at the text too where the door
has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..core import geometry
from ..core.conditioning import Conditioning
from ..core.detector import Panel
from ..core.direction import Direction
from ..core.errors import BalanceError
from ..core.movers import HalfSpaces
from ..core.quota import Quota, Shares
from ..learn.balance import Set, gate_name, group_name
from ..learn.people import AxisRecipe, GateRecipe
from .balance_text import TextGates

Tensor = torch.Tensor

STRONGEST = 3.0
STATED = "the prompt says it already"


@dataclass(frozen=True)
class Wanted:
    """What a user asks of one axis: its name, and shares by group or in order (None: even)."""

    axis: str
    shares: Mapping[str, float] | Sequence[float] | None = None


@dataclass(frozen=True)
class Held:
    """A gate that left a prompt, or one axis of it, as it was. ``by``: ``embedding`` or ``text``."""

    gate: str
    title: str
    by: str


@dataclass(frozen=True)
class BalanceReport:
    """What was done with the pictures of one prompt.

    Attributes:
        titles: of the axes, by name. shares: as people read them, by name.
        held: by axis, the gates that held it back; none: it was balanced.
        groups: of each picture, the group of each axis that was balanced, by name.
    """

    titles: Mapping[str, str]
    shares: Mapping[str, str]
    held: Mapping[str, tuple[Held, ...]]
    groups: tuple[Mapping[str, str], ...]

    @property
    def balanced(self) -> tuple[str, ...]:
        """Axes that were balanced."""
        return tuple(a for a, held in self.held.items() if not held)

    def text(self) -> str:
        """Some lines for people."""
        lines = []
        whole = set.intersection(*(set(h) for h in self.held.values()))
        if not self.balanced and whole:
            names = ", ".join(dict.fromkeys(h.title for h in next(iter(self.held.values())) if h in whole))
            return f"Balance left the prompt as it is: {names}."
        for axis, held in self.held.items():
            if held:
                lines.append(f"{self.titles[axis]}: left as it is ({', '.join(dict.fromkeys(h.title for h in held))})")
                continue
            by: dict[str, list[int]] = {}
            for i, groups in enumerate(self.groups, 1):
                by.setdefault(groups[axis], []).append(i)
            counts = ", ".join(f"{g} {len(n)} (picture{'s' * (len(n) > 1)} {_runs(n)})" for g, n in by.items())
            lines.append(f"{self.titles[axis]}: {counts}; asked for {self.shares[axis]}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "shares": dict(self.shares),
            "held": {a: [{"gate": h.gate, "why": h.title, "by": h.by} for h in held] for a, held in self.held.items()},
            "groups": [dict(g) for g in self.groups],
        }


def _vectors(direction: Direction) -> dict[str, Tensor]:
    """By space: what a token moves by, [D]."""
    return {s: m.displacement[0] for s, m in direction.movers.items() if isinstance(m, HalfSpaces)}


def _runs(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return shown + (" …" if len(numbers) > 12 else "")


class Balance:
    """Axes on one encoder, with their gates and wanted shares.

    Args:
        recipes: the set that was compiled. directions: its directions, in the order of its names.
        wanted: which axes to balance, and how; at least one.
        strength: 0 to 3; how far a picture is moved to its group, 1 as calibrated.

    Raises:
        BalanceError: an axis or group that is unknown, shares that make no sense, a strength out of range.
    """

    def __init__(
        self, recipes: Set, directions: Sequence[Direction], wanted: Sequence[Wanted], strength: float = 1.0
    ) -> None:
        if not 0 <= strength <= STRONGEST:
            raise BalanceError(f"The strength of balance is a number from 0 to {STRONGEST:g}; got {strength:g}.")
        self.quota = self.check(recipes, wanted)
        self.shares = self.quota.axes
        known = {a.name: a for a in recipes.axes}
        self.axes: tuple[AxisRecipe, ...] = tuple(known[w.axis] for w in wanted)
        self.strength = strength
        by = {d.concept: d for d in directions}
        self.encoder = directions[0].encoder
        self._gates: list[GateRecipe] = [*recipes.gates, *(a.stated for a in self.axes)]
        names = [*(g.name for g in recipes.gates), *(f"{a.name} stated" for a in self.axes)]
        self._stated = len(recipes.gates)
        detectors = [by[gate_name(n)].detector for n in names]
        self._panel = Panel([d for d in detectors if d is not None])
        self._moves = {(a.name, g): _vectors(by[group_name(a.name, g)]) for a in self.axes for g in a.names}
        self._text = TextGates.of(self._gates)

    @staticmethod
    def check(recipes: Set, wanted: Sequence[Wanted]) -> Quota:
        """The quota of what is wanted. Raises BalanceError: it makes no sense."""
        known = {a.name: a for a in recipes.axes}
        if unknown := [w.axis for w in wanted if w.axis not in known]:
            raise BalanceError(f"There is no axis '{unknown[0]}' to balance; there are {', '.join(known)}.")
        return Quota(tuple(Shares.of(w.axis, known[w.axis].names, w.shares) for w in wanted))

    # -- gates -------------------------------------------------------------------------------------------------------

    def held(self, c: Conditioning, text: str | None = None) -> dict[str, tuple[Held, ...]]:
        """By axis, the gates that hold it back for the one prompt of ``c``."""
        if self.encoder is not None and c.encoder is not None:
            self.encoder.require(c.encoder, "Balance")
        seen = self._panel.read(c[:1])
        far = self._panel.distances(self._panel.scores(seen))[0].tolist()
        read = None if text is None else self._text(text)
        found: dict[str, tuple[Held, ...]] = {}
        for j, axis in enumerate(self.axes):
            holds = []
            for i, gate in enumerate(self._gates):
                elsewhere = i >= self._stated and i != self._stated + j  # another axis' own
                if elsewhere or (gate.axes and axis.name not in gate.axes):
                    continue
                title = STATED if i == self._stated + j else gate.title
                unsure = not (far[i] > 0 if gate.opens else far[i] <= 0)  # NaN holds too
                if unsure:
                    holds.append(Held(gate.name, title, "embedding"))
                elif read is not None and i in read:
                    holds.append(Held(gate.name, title, "text"))
            found[axis.name] = tuple(holds)
        return found

    def held_in_parts(
        self, parts: Sequence[Conditioning], text: str | None = None
    ) -> list[dict[str, tuple[Held, ...]]]:
        """As :meth:`held`, for each part of a prompt that is encoded in several; ``text``: of the whole prompt.

        What one part says holds the others back too, except that nobody is in it.
        """
        each = [self.held(c, text) for c in parts]
        opening = {g.name for g in self._gates if g.opens}
        found: list[dict[str, tuple[Held, ...]]] = [{} for _ in parts]
        for axis in (a.name for a in self.axes):
            empty = [any(h.gate in opening for h in held[axis]) for held in each]
            said = [h for held, nobody in zip(each, empty, strict=True) for h in held[axis] if not nobody]
            for own, held, nobody in zip(found, each, empty, strict=True):
                own[axis] = tuple(dict.fromkeys((*(held[axis] if nobody else ()), *said)))
        return found

    # -- groups ------------------------------------------------------------------------------------------------------

    def apply(
        self,
        c: Conditioning,
        numbers: Sequence[int],
        text: str | None = None,
        fixed: Sequence[Mapping[str, str]] | None = None,
    ) -> tuple[Conditioning, BalanceReport]:
        """Balance the pictures of one prompt.

        Args:
            c: one row (of several the first is asked and all must be the same prompt).
            numbers: of each picture, its seed (or the seed of the batch plus its place in it).
            text: of the prompt, where it is known.
            fixed: groups of each picture by axis, as they were recorded; axes that are left out follow the quota.

        Returns:
            A row for each picture, and what was done; ``c`` itself where nothing was balanced.

        Raises:
            BalanceError: no picture, or a fixed group that is unknown.
            EncoderMismatchError: ``c`` is of another encoder.
        """
        if not numbers:
            raise BalanceError("Balance needs at least one picture.")
        held = self.held(c, text)
        groups = self.groups(numbers, fixed)
        report = self.report(held, groups)
        if not report.balanced:
            return c, report
        rows = c if len(c.tokens) == len(numbers) else c[:1].expand(len(numbers))
        return self.moved(rows, report.groups), report

    def report(self, held: Mapping[str, tuple[Held, ...]], groups: Sequence[Mapping[str, str]]) -> BalanceReport:
        """What is done with pictures of ``groups``, of whose prompt the gates ``held`` back some axes."""
        balanced = [a for a, by in held.items() if not by]
        kept = tuple({a: g[a] for a in balanced} for g in groups)
        titles, shares = {a.name: a.title for a in self.axes}, {s.axis: str(s) for s in self.shares}
        return BalanceReport(titles, shares, held, kept)

    def groups(self, numbers: Sequence[int], fixed: Sequence[Mapping[str, str]] | None = None) -> list[dict[str, str]]:
        """The group of each axis that each picture is, whatever its prompt says; arguments as :meth:`apply`."""
        names = [a.name for a in self.axes]
        found = [dict(zip(names, self.quota.names(cell), strict=True)) for cell in self.quota.batch(numbers)]
        for own, recorded in zip(found, fixed or (), strict=False):
            for axis, group in recorded.items():
                if axis in own and (axis, group) not in self._moves:
                    known = next(a.names for a in self.axes if a.name == axis)
                    raise BalanceError(f"'{axis}' has no group '{group}'; its groups are {', '.join(known)}.")
                own.update({axis: group} if axis in own else {})
        return found

    def moved(self, c: Conditioning, groups: Sequence[Mapping[str, str]]) -> Conditioning:
        """Row i of ``c`` as a picture of ``groups[i]``; a row without a group keeps every bit."""
        new = {}
        with geometry.exact(c.tokens.device):
            for view in c.views():
                if view.space not in self.spaces:
                    raise BalanceError(
                        f"Balance has nothing for space '{view.space}' of this prompt, so it stays away."
                    )
                step = torch.stack([self._step(view.space, g) for g in groups]).to(view.rows.device).unsqueeze(1)
                moved = (view.rows.float() + step).to(view.rows.dtype)
                may = torch.tensor([bool(g) for g in groups], device=moved.device).view(-1, 1, 1)
                may = may if view.mask is None else may & view.mask.unsqueeze(-1)
                new[view.space] = torch.where(may, moved, view.rows)
        return c.with_views(new)

    def _step(self, space: str, groups: Mapping[str, str]) -> Tensor:
        found = torch.zeros_like(next(iter(self._moves.values()))[space])
        for pair in groups.items():
            found = found + self.strength * self._moves[pair][space]
        return found

    @cached_property
    def spaces(self) -> frozenset[str]:
        """Names of the spaces that are moved."""
        return frozenset(s for moves in self._moves.values() for s in moves)
