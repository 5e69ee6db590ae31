"""Who is in which picture: shares of groups as whole numbers of pictures, decided by the seeds alone.

A picture's *number* is its seed (where a host draws a whole batch from one seed, the seed plus the place in the batch).
The numbers run through a fixed round of groups in which each comes up as often as its share says, as evenly as can be
(the chairman assignment, Tijdeman 1980); for even shares of K groups that is number mod K, so K numbers in a row are
exactly even. A batch takes the groups of its numbers; where these are not the largest remainder of the shares
(Hamilton's method), as few pictures as can be change their group, which ones is drawn from the first number. So a batch
is never further than one picture from what is asked for, and with even shares a seed has the same group alone and in
any batch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from .errors import BalanceError

FEWEST_GROUPS, MOST_GROUPS = 2, 8
MOST_CELLS = 512
"""Most combinations of groups of several axes."""
NO_AXIS = "Choose at least one axis to balance."
LONGEST_ROUND = 4096
"""Numbers after which a round of groups begins again at the latest; shares that need more are rounded for single
pictures, never for a batch."""
WHOLE = (1, 100)
"""What shares may add up to."""
CLOSE = Fraction(1, 1000)
"""Part of the whole by which shares may miss it (three thirds written as 33.3)."""

Cell = tuple[int, ...]
"""A group of each axis, by its place."""


@dataclass(frozen=True)
class Shares:
    """What part of the pictures each group of one axis is to have.

    Attributes:
        axis: name. groups: their names, 2 to 8. parts: at least 0 each, together 1.
    """

    axis: str
    groups: tuple[str, ...]
    parts: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        if not FEWEST_GROUPS <= len(self.groups) <= MOST_GROUPS:
            raise BalanceError(
                f"'{self.axis}' has {len(self.groups)} groups; an axis has {FEWEST_GROUPS} to {MOST_GROUPS}."
            )
        if len(set(self.groups)) < len(self.groups):
            raise BalanceError(f"'{self.axis}' has two groups of one name; give each its own.")
        if len(self.parts) != len(self.groups) or min(self.parts) < 0 or sum(self.parts) != 1:
            raise BalanceError(f"'{self.axis}' needs a share of at least 0 for each group, together 1.")

    @classmethod
    def even(cls, axis: str, groups: Sequence[str]) -> Shares:
        """As much of each group as of any other."""
        return cls(axis, tuple(groups), (Fraction(1, max(1, len(groups))),) * len(groups))

    @classmethod
    def of(
        cls, axis: str, groups: Sequence[str], wanted: Mapping[str, float] | Sequence[float] | None = None
    ) -> Shares:
        """From numbers that add up to 1 or to 100.

        Args:
            axis: name. groups: names, in order.
            wanted: by name, groups that are left out get nothing; or one number for each group, in order; or None for
                even shares.

        Raises:
            BalanceError: a group that is unknown, a share that is negative or no number, shares that add up to nothing
                or to anything but 1 or 100, or a number of groups that cannot be balanced.
        """
        if wanted is None:
            return cls.even(axis, groups)
        if isinstance(wanted, Mapping):
            if unknown := [g for g in wanted if g not in groups]:
                raise BalanceError(f"'{axis}' has no group '{unknown[0]}'; its groups are {', '.join(groups)}.")
            numbers = [wanted.get(g, 0) for g in groups]
        else:
            numbers = list(wanted)
            if len(numbers) != len(groups):
                raise BalanceError(
                    f"'{axis}' has {len(groups)} groups ({', '.join(groups)}) and got {len(numbers)} shares; give one "
                    "for each."
                )
        parts = [_part(axis, g, n) for g, n in zip(groups, numbers, strict=True)]
        total = sum(parts)
        if total == 0:
            raise BalanceError(f"All shares of '{axis}' are 0, so no group could be painted; give at least one more.")
        if not any(abs(total - whole) <= whole * CLOSE for whole in WHOLE):
            raise BalanceError(f"The shares of '{axis}' add up to {float(total):g}; make them add up to 100 (or to 1).")
        return cls(axis, tuple(groups), tuple(p / total for p in parts))

    def __str__(self) -> str:
        """``woman 50 %, man 50 %``."""
        return ", ".join(f"{g} {float(100 * p):.4g} %" for g, p in zip(self.groups, self.parts, strict=True))


def _part(axis: str, group: str, value: object) -> Fraction:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not math.isfinite(value):
            raise ValueError
        found = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, OverflowError):
        raise BalanceError(f"The share of '{group}' in '{axis}' must be a number; got {value!r}.") from None
    if found < 0:
        raise BalanceError(f"The share of '{group}' in '{axis}' is {float(found):g}; a share is 0 or more.")
    return found


def largest_remainder(parts: Sequence[Fraction], count: int, favour: Sequence[int] | None = None) -> list[int]:
    """``count`` as whole numbers in proportion to ``parts`` (which add up to 1), each less than 1 away from its part.

    ``favour``: of equal remainders, the largest of these come first (None: the first ones).
    """
    exact = [p * count for p in parts]
    found = [math.floor(e) for e in exact]
    favour = [0] * len(parts) if favour is None else favour
    order = sorted(range(len(parts)), key=lambda k: (found[k] - exact[k], -favour[k], k))
    for k in order[: count - sum(found)]:
        found[k] += 1
    return found


@dataclass(frozen=True)
class Quota:
    """The groups of pictures, for one axis or the combinations ("cells") of several.

    Raises:
        BalanceError: no axis, an axis twice, or more than :data:`MOST_CELLS` combinations.
    """

    axes: tuple[Shares, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise BalanceError(NO_AXIS)
        names = [a.axis for a in self.axes]
        if twice := [n for n in names if names.count(n) > 1]:
            raise BalanceError(f"'{twice[0]}' is chosen twice; keep one.")
        count = math.prod(len(a.groups) for a in self.axes)
        if count > MOST_CELLS:
            raise BalanceError(
                f"These axes have {count:,} combinations of groups, at most {MOST_CELLS} can be shared out: balance "
                "fewer axes at once."
            )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every combination of groups that is wanted at all."""
        wanted = ([k for k, p in enumerate(a.parts) if p > 0] for a in self.axes)
        return tuple(itertools.product(*wanted))

    @cached_property
    def parts(self) -> tuple[Fraction, ...]:
        """The share of each of :attr:`cells`."""
        own = ([a.parts[k] for a, k in zip(self.axes, c, strict=True)] for c in self.cells)
        return tuple(math.prod(parts, start=Fraction(1)) for parts in own)

    @cached_property
    def round(self) -> tuple[int, ...]:
        """Places in :attr:`cells` that the numbers run through, again and again."""
        whole = math.lcm(*(p.denominator for p in self.parts))
        return _round(self, largest_remainder(self.parts, min(whole, LONGEST_ROUND)))

    def alone(self, number: int) -> Cell:
        """The groups of the picture with this number."""
        return self.cells[self.round[number % len(self.round)]]

    def batch(self, numbers: Sequence[int]) -> list[Cell]:
        """The groups of the pictures with these numbers, made together.

        One axis: the counts are the largest remainder of its shares. Several: of every axis each group is within one
        picture of its share, and no combination is left out that another has twice for no reason of the shares.
        """
        found = [list(self.alone(n)) for n in numbers]
        if not found:
            return []
        order = sorted(range(len(found)), key=lambda i: _drawn(numbers[0], i))
        for j, axis in enumerate(self.axes):
            _mend(found, j, axis, order, strict=len(self.axes) == 1)
        if len(self.axes) > 1:
            _spread(found, self, order)
        return [tuple(c) for c in found]

    def names(self, cell: Cell) -> tuple[str, ...]:
        """The groups of a cell, by name."""
        return tuple(a.groups[k] for a, k in zip(self.axes, cell, strict=True))


def _drawn(seed: int, place: int) -> bytes:
    return hashlib.sha256(f"{seed}:{place}".encode()).digest()


def _round(quota: Quota, counts: Sequence[int]) -> tuple[int, ...]:
    """Each cell as often as ``counts`` says. Of cells that are equally urgent, the one whose groups came up least."""
    kept = [c for c in range(len(counts)) if counts[c]]
    if len(kept) == 1:
        return (kept[0],)
    period, wide = sum(counts), 2 * len(kept) - 2
    often = np.array([counts[c] for c in kept], dtype=np.int64)
    groups = [np.array([quota.cells[c][j] for c in kept]) for j in range(len(quota.axes))]
    shares = [np.array([float(p) for p in a.parts]) for a in quota.axes]
    seen = [np.zeros(len(a.groups)) for a in quota.axes]
    had = np.zeros(len(kept), dtype=np.int64)
    found = []
    for step in range(1, period + 1):
        late = wide * (often * step - had * period) >= period
        urgent = np.where(late, (wide - 1 + wide * had) / often, np.inf)
        excess = sum((s[g] - step * p[g] for s, p, g in zip(seen, shares, groups, strict=True)), np.zeros(len(kept)))
        best = np.lexsort((excess.round(9), urgent))[0]  # stable: of equals the first
        had[best] += 1
        for s, g in zip(seen, groups, strict=True):
            s[g[best]] += 1
        found.append(kept[int(best)])
    return tuple(found)


def _mend(found: list[list[int]], j: int, axis: Shares, order: Sequence[int], strict: bool) -> None:
    """Bring the counts of axis ``j`` to its shares, in place, with as few changes as can be. ``strict``: to the largest
    remainder; else only where a group is further than one picture from its share."""
    have = [sum(c[j] == k for c in found) for k in range(len(axis.groups))]
    want = largest_remainder(axis.parts, len(found), have)
    if not strict and all(abs(h - p * len(found)) <= 1 for h, p in zip(have, axis.parts, strict=True)):
        return
    lacking = [k for k in range(len(want)) for _ in range(want[k] - have[k])]
    for i in order:
        k = found[i][j]
        if lacking and have[k] > want[k]:
            have[k] -= 1
            found[i][j] = lacking.pop()


def _spread(found: list[list[int]], quota: Quota, order: Sequence[int]) -> None:
    """Where a combination has more pictures than its share rounded up while another has fewer than its share rounded
    down, swap groups of one axis between two pictures; the counts of every axis stay."""
    exact = dict(zip(quota.cells, (p * len(found) for p in quota.parts), strict=True))
    low, high = ({c: f(e) for c, e in exact.items()} for f in (math.floor, math.ceil))
    have = dict.fromkeys(exact, 0)
    for c in found:
        have[tuple(c)] += 1

    def off(cells: set[Cell]) -> int:
        return sum(max(0, have[c] - high[c]) + max(0, low[c] - have[c]) for c in cells)

    def swap(a: int, b: int, j: int) -> set[Cell]:
        before = [tuple(found[a]), tuple(found[b])]
        found[a][j], found[b][j] = found[b][j], found[a][j]
        after = [tuple(found[a]), tuple(found[b])]
        for c in before:
            have[c] -= 1
        for c in after:
            have[c] += 1
        return {*before, *after}

    def better(a: int) -> bool:
        for b, j in itertools.product(order, range(len(quota.axes))):
            if found[a][j] == found[b][j] or a == b:
                continue
            cells = swap(a, b, j)
            now = off(cells)
            swap(a, b, j)
            if off(cells) > now:
                swap(a, b, j)
                return True
        return False

    while any(have[c] > high[c] or have[c] < low[c] for c in exact):
        if not any(better(i) for i in order):
            return


__all__ = ["Cell", "Quota", "Shares", "largest_remainder"]
