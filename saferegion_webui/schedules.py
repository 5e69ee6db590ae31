"""Walks the host's scheduled conditionings and builds guarded ones beside them.

The host's objects are not changed: a conditioning that had to move gets new objects around it, one that had not
stays the very object it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from saferegion.guard import second_look
from saferegion.guard.naming import NOTHING as NO_NAMES
from saferegion.guard.selection import Guard, GuardReport

from .layout import Layout, tokens_of, vector_of


class Moved(NamedTuple):
    """What was seen in one conditioning: ``report`` holds it in row ``row``; ``cond`` is the guarded one, of ``text``
    where the prompt was in disguise and is painted without."""

    cond: Any
    report: GuardReport
    row: int
    moved: bool
    text: str | None = None


class Plain(NamedTuple):
    """The host's conditioning of a text without disguise, the text, and what was undone."""

    cond: Any
    text: str
    undone: tuple[str, ...]


NOTHING = GuardReport(())
"""Of a conditioning that was not looked at."""
Looks = Mapping[int, Sequence[Moved]]
"""By ``id`` of a conditioning, what was seen in each window of the guard."""


@dataclass(frozen=True)
class Signs:
    """Which rows push the picture towards their text: guidance x AND-weight above 0, and what the negative
    prompt keeps of it.

    Attributes:
        guidance: the CFG scale. weights: of the AND-parts of each prompt. always: guard every row.
        unguided: some steps may run without guidance, where every AND-part counts by its own weight.
    """

    guidance: float
    weights: tuple[tuple[float, ...], ...]
    always: bool = False
    unguided: bool = False

    def positive(self, weight: float) -> bool:
        return self.always or self.guidance * weight >= 0 or (self.unguided and weight > 0)

    def negative(self, row: int) -> bool:
        if not self.weights:
            return self.always or self.guidance < 1
        return self.always or self.guidance * sum(self.weights[row % len(self.weights)]) < 1


def rows(conds: Any, signs: Signs) -> list[tuple[Any, bool]]:
    """Every schedule of the host's object, in order, and whether it is to be guarded."""
    if hasattr(conds, "batch"):
        return [(part.schedules, signs.positive(part.weight)) for parts in conds.batch for part in parts]
    return [(schedule, signs.negative(i)) for i, schedule in enumerate(conds)]


def rebuilt(conds: Any, schedules: Sequence[Any]) -> Any:
    """An object like ``conds`` with other schedules; ``conds`` itself where all are its own."""
    wanted = iter(schedules)
    if not hasattr(conds, "batch"):
        new = list(wanted)
        return conds if all(a is b for a, b in zip(new, conds, strict=True)) else new
    changed = False
    batch = []
    for parts in conds.batch:
        row = []
        for part in parts:
            schedule = next(wanted)
            changed |= schedule is not part.schedules
            row.append(part if schedule is part.schedules else type(part)(schedule, part.weight))
        batch.append(row)
    return type(conds)(conds.shape, batch) if changed else conds


def guarded(schedule: Any, end: int, windows: Sequence[tuple[float, float]], looks: Looks) -> Any:
    """``schedule`` with every conditioning replaced by what ``looks`` has for it; itself where none moved.

    Args:
        schedule: entries ``(end_at_step, cond)``, in order. end: steps in all. windows: of the guard.
    """
    new, start = [], -1
    for entry in schedule:
        for (_, until), look in zip(windows, looks[id(entry.cond)], strict=True):
            last = entry.end_at_step if until >= 1 else min(entry.end_at_step, _last_step(until, end))
            if last > start or len(windows) == 1:
                new.append(_like(entry, last, look.cond))
                start = last
    kept = {id(entry.cond) for entry in schedule}
    return schedule if all(id(entry.cond) in kept for entry in new) else new


def _last_step(fraction: float, end: int) -> int:
    """The last of ``end`` steps that begins before ``fraction`` of them is over."""
    return -int(-fraction * end // 1) - 1


def _like(entry: Any, end_at_step: int, cond: Any) -> Any:
    if cond is entry.cond and end_at_step == entry.end_at_step:
        return entry
    return entry._replace(end_at_step=end_at_step, cond=cond)


@torch.no_grad()
def apply(guard: Guard, layout: Layout, conds: Sequence[Any], names: Mapping[int, frozenset[str]]) -> Looks:
    """Guard conditionings, those of one shape that name the same concepts at once.

    ``names``: by ``id`` of a conditioning, concepts that its text names. A conditioning inside the region stays itself;
    one of zeros (SDXL's empty negative prompt) is not looked at.

    Raises:
        UnresolvedError: a prompt that could not be brought inside.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    parts = [guard.at(begin) for begin, _ in guard.windows()]
    looks: dict[int, list[Moved]] = {}
    for cond in {id(c): c for c in conds}.values():
        tokens, vector = tokens_of(cond), vector_of(cond)
        if vector is not None and not tokens.any():
            looks[id(cond)] = [Moved(cond, NOTHING, 0, False)] * len(parts)
            continue
        key = (
            names.get(id(cond), NO_NAMES),
            tokens.shape,
            tokens.dtype,
            tokens.device,
            None if vector is None else vector.shape,
        )
        groups.setdefault(key, []).append(cond)
    for (named, *_), group in groups.items():
        tokens = torch.stack([tokens_of(c) for c in group])
        vectors = None if vector_of(group[0]) is None else torch.stack([c["vector"] for c in group])
        c = layout.conditioning(tokens, vectors)
        for part in parts:
            new, report = part.naming(named).apply(c)
            report.require_resolved()
            touched = [r.moved_prompts() for r in report.reports]
            for i, cond in enumerate(group):
                value, moved = cond, any(prompts[i] for prompts in touched)
                if moved:
                    pooled = None if new.pooled is None or new.pooled is c.pooled else new.pooled[i]
                    value = layout.with_values(cond, new.tokens[i], pooled)
                looks.setdefault(id(cond), []).append(Moved(value, report, i, moved))
    return looks


def second(looks: Looks, plain: Mapping[int, Plain]) -> Looks:
    """``looks`` with those of texts without disguise in place of those that they find more in.

    Args:
        looks: of conditionings in disguise and of those without. plain: by ``id`` of one in disguise, that without.
    """
    found = dict(looks)
    for key, other in plain.items():
        found[key] = [
            _seen(first, again, other) for first, again in zip(looks[key], looks[id(other.cond)], strict=True)
        ]
    return found


def _seen(first: Moved, again: Moved, plain: Plain) -> Moved:
    if not second_look.finds_more(first.report, again.report, first.row, again.row):
        return first
    return again._replace(report=second_look.without_disguise(again.report, plain.undone), moved=True, text=plain.text)
