"""Balance of one generation: every picture of a prompt is moved to its own group, before the guard looks at it.

All pictures of one job that have the same prompt are shared out together, however many batches they are painted in. A
picture is known by its seed (its variation's, where there is one), so it is the same group alone, in the hires pass and
in what a detailer paints of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saferegion.guard.balance import Balance, BalanceReport, Held
from saferegion.guard.second_look import undisguised

from . import host, schedules
from .arguments import GROUPS, LEFT, joined
from .encoder import HostEncoder
from .generation import Generation, guards
from .layout import Layout, tokens_of, vector_of
from .settings import option

DISGUISED = Held("disguise", "words in disguise", "text")
Group = Mapping[str, str]
"""Of one picture, by axis."""


def balanced(p: Any, generation: Generation, conds: Any, texts: Sequence[Sequence[str]], data: Any, hires: bool) -> Any:
    """``conds`` of the positive prompts of one batch with each picture moved to its group; ``conds`` itself where every
    prompt is left as it is.

    Args:
        texts: of every entry of every schedule, in order. data: extra networks that are on.

    Raises:
        SafeRegionError: an axis that is unknown or not told apart on this encoder, shares that make no sense.
    """
    from modules import shared

    made, encoder = guards.balance(shared.sd_model, generation.arguments, host.networks_of(p, data))
    numbers, prompts, first = _pictures(p, len(conds.batch))
    groups = _shared_out(made, generation, p, numbers, prompts)
    wanted = iter(texts)
    rows: list[list[Any]] = []
    reports: list[BalanceReport] = []
    known: dict[Any, Any] = {}
    mover = _Mover(made, encoder.layout)
    for i, parts in enumerate(conds.batch):
        said = [next(wanted) for _ in parts]
        key = tuple((id(part.schedules), part.weight) for part in parts)
        if key not in known:
            known[key] = _held(made, encoder, generation, parts, said)
        held = known[key]
        own = groups[first + i]
        rows.append([mover.schedule(part.schedules, own, held) for part in parts])
        whole = _together(held.values(), [a.name for a in made.axes])
        mine = [groups[j] for j, text in enumerate(prompts) if text == prompts[first + i]]
        generation.balanced[("hires prompt" if hires else "prompt", prompts[first + i])] = made.report(whole, mine)
        reports.append(made.report(whole, [own]))
    _tell(p, generation, reports, hires)
    return schedules.rebuilt(conds, [schedule for row in rows for schedule in row])


def _pictures(p: Any, count: int) -> tuple[list[int], list[str], int]:
    """Of every picture of the job: the number that decides its group, and its prompt; and which is the first of the
    batch of ``count`` that is painted now."""
    varied = bool(getattr(p, "subseed_strength", 0))
    numbers = [int(n) for n in getattr(p, "all_subseeds" if varied else "all_seeds", None) or ()]
    prompts = [str(t) for t in getattr(p, "all_prompts", None) or ()]
    first = int(getattr(p, "iteration", 0) or 0) * int(getattr(p, "batch_size", count) or count)
    if len(numbers) >= first + count and len(prompts) >= first + count:
        return numbers, prompts, first
    seed = getattr(p, "subseed" if varied else "seed", 0)
    own = [str(t) for t in getattr(p, "prompts", None) or [""] * count]
    return [int(seed if seed is not None else 0) + i for i in range(count)], (own * count)[:count], 0


def _shared_out(
    made: Balance, generation: Generation, p: Any, numbers: Sequence[int], prompts: Sequence[str]
) -> list[Group]:
    """The group of every picture: as it was recorded, or the quota of all that have its prompt."""
    recorded: dict[int, Group] = {n: dict(g) for n, g in generation.arguments.groups}
    mine = generation.process is None or generation.process() is p
    known = recorded if mine else {**generation.groups, **recorded}
    found: list[Group] = [{}] * len(numbers)
    for prompt in dict.fromkeys(prompts):
        places = [i for i, text in enumerate(prompts[: len(numbers)]) if text == prompt]
        each = [numbers[i] for i in places]
        for i, group in zip(places, made.groups(each, [known.get(n, {}) for n in each]), strict=True):
            found[i] = group
    if mine:
        generation.groups = dict(zip(numbers, found, strict=True))
    return found


Holds = Mapping[int, Mapping[str, tuple[Held, ...]]]
"""By ``id`` of a conditioning, the gates that hold each axis back."""


def _held(
    made: Balance, encoder: HostEncoder, generation: Generation, parts: Sequence[Any], texts: Sequence[Sequence[str]]
) -> Holds:
    """What holds a prompt back, with all that it says in its parts, one after another or at once."""
    listed = [entry.cond for part in parts if part.weight > 0 for entry in part.schedules]
    whole = ", ".join(dict.fromkeys(text for part in texts for text in part))
    each = made.held_in_parts([_one(encoder.layout, cond) for cond in listed], whole)
    if generation.arguments.enabled:  # the guard may paint it without disguise
        normalise = guards.normaliser(encoder, generation.arguments)
        if any(undisguised(normalise, text) is not None for part in texts for text in part):
            each = [{axis: (*held, DISGUISED) for axis, held in own.items()} for own in each]
    return {id(cond): own for cond, own in zip(listed, each, strict=True)}


def _together(each: Any, axes: Sequence[str]) -> dict[str, tuple[Held, ...]]:
    """What holds back each axis of a whole prompt: an axis is balanced where it is in one part."""
    found: dict[str, tuple[Held, ...]] = {}
    for axis in axes:
        held = [own[axis] for own in each]
        found[axis] = () if not all(held) else tuple(dict.fromkeys(h for own in held for h in own))
    return found


class _Mover:
    """Moves conditionings, each for a group once: pictures of one prompt and group keep one object."""

    def __init__(self, made: Balance, layout: Layout) -> None:
        self._made, self._layout = made, layout
        self._known: dict[Any, Any] = {}

    def schedule(self, schedule: Any, group: Group, held: Holds) -> Any:
        """``schedule`` as a picture of ``group``; itself where nothing of it is balanced."""
        new = [self._entry(entry, group, held.get(id(entry.cond))) for entry in schedule]
        return schedule if all(a is b for a, b in zip(new, schedule, strict=True)) else new

    def _entry(self, entry: Any, group: Group, held: Mapping[str, tuple[Held, ...]] | None) -> Any:
        own = () if held is None else tuple((a, g) for a, g in group.items() if not held[a])
        if not own:
            return entry
        key = (id(entry.cond), own)
        if key not in self._known:
            self._known[key] = self._moved(entry.cond, dict(own))
        return entry._replace(cond=self._known[key])

    @torch.no_grad()
    def _moved(self, cond: Any, group: Group) -> Any:
        c = _one(self._layout, cond)
        new = self._made.moved(c, [group])
        pooled = None if new.pooled is None or new.pooled is c.pooled else new.pooled[0]
        return self._layout.with_values(cond, new.tokens[0], pooled)


def _one(layout: Layout, cond: Any) -> Any:
    vector = vector_of(cond)
    return layout.conditioning(tokens_of(cond).unsqueeze(0), None if vector is None else vector.unsqueeze(0))


def _tell(p: Any, generation: Generation, reports: Sequence[BalanceReport], hires: bool) -> None:
    """In each picture's parameters its groups, or why it has none; under the pictures how they were shared out."""
    if not hires:
        for key, texts in (
            (GROUPS, [joined(f"{a}: {g}" for a, g in r.groups[0].items()) for r in reports]),
            (LEFT, [joined(_left(r)) for r in reports]),
        ):
            p.extra_generation_params.pop(key, None)
            if any(texts):
                p.extra_generation_params[key] = [text or None for text in texts]
    if option("report", True):
        for (where, _), report in generation.balanced.items():
            said = report.text().replace("\n", "; ").removeprefix("Balance ")
            p.comment(f"Safe Region, balance of the {where}: {said}")


def _left(report: BalanceReport) -> list[str]:
    return [f"{axis} ({'; '.join(dict.fromkeys(h.title for h in held))})" for axis, held in report.held.items() if held]
