"""What the host encoded of the prompts of a generation, guarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferegion.guard.minors import NO_MINORS
from saferegion.guard.naming import Names
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import undisguised

from . import balancing, host, notes, schedules
from .arguments import Arguments
from .encoder import HostEncoder
from .extensions import watching
from .generation import Generation, generation_of, guards, now
from .layout import tokens_of
from .refusal import SafeRegionRefused


def guard_conditionings(
    p: Any, conds: Any, prompts: Any, steps: int, extra_network_data: Any, hires_steps: int | None
) -> Any:
    """What the host's ``get_conds_with_caching`` returned, balanced, then guarded: new objects where something moved,
    else ``conds``.

    Raises:
        SafeRegionRefused: whatever went wrong; the generation ends without a picture.
    """
    generation = generation_of(p)
    if generation is None or conds is None:
        return conds
    now(generation)
    if generation.refusal is not None:
        raise generation.refusal
    arguments = generation.arguments
    try:
        if arguments.balance and hasattr(conds, "batch"):
            texts = _texts(prompts, steps, hires_steps, False)
            conds = balancing.balanced(p, generation, conds, texts, extra_network_data, hires_steps is not None)
        if not arguments.enabled:
            return conds
        return _guarded(p, generation, conds, prompts, steps, extra_network_data, hires_steps)
    except Exception as error:
        refusal = SafeRegionRefused.of(error)
        raise refusal from (None if refusal is error else error)


def _guarded(
    p: Any, generation: Generation, conds: Any, prompts: Any, steps: int, data: Any, hires_steps: int | None
) -> Any:
    from modules import shared

    arguments = generation.arguments
    hires, negative = hires_steps is not None, not hasattr(conds, "batch")
    if not hires and not negative:  # the prompts of a new batch
        generation.far = []
        p.extra_generation_params.pop(notes.MOVED, None)
        notes.beside(p, generation)
    watching(generation)
    listed = schedules.rows(conds, _signs(p, arguments, hires))
    wanted = {id(schedule): schedule for schedule, guarded in listed if guarded}
    if not wanted:
        return _allowed(generation, conds, negative, listed)
    guard, encoder = guards.get(shared.sd_model, arguments, host.networks_of(p, data))
    if not guard.minors:
        p.comment(f"Safe Region: {NO_MINORS}.")
    texts = _texts(prompts, steps, hires_steps, negative)
    plain = _undisguised(encoder, guards.normaliser(encoder, arguments), listed, texts, prompts)
    every = [*(entry.cond for s in wanted.values() for entry in s), *(other.cond for other in plain.values())]
    names = _named(guards.names(arguments), listed, texts, plain)
    looks = schedules.second(schedules.apply(guard, encoder.layout, every, names), plain)
    end = hires_steps if hires_steps is not None else steps
    made = {key: schedules.guarded(s, end, guard.windows(), looks) for key, s in wanted.items()}
    if any(look.moved for each in looks.values() for look in each) or arguments.heat_map:
        where = ("negative " if negative else "") + ("hires prompt" if hires else "prompt")
        notes.tell(p, generation, encoder, where, notes.looked_at(listed, texts, looks))
        if not negative:
            notes.moved(p, generation, conds, looks, hires)
    new = [(made[id(s)] if guarded else s, guarded) for s, guarded in listed]
    return _allowed(generation, schedules.rebuilt(conds, [s for s, _ in new]), negative, new)


def _allowed(generation: Generation, conds: Any, negative: bool, listed: Sequence[tuple[Any, bool]]) -> Any:
    """``conds``, of which from now on may be painted: all of a prompt, of a negative one what was guarded."""
    for schedule, guarded in listed:
        for entry in schedule if generation.seen_by is not None else ():
            allow = generation.seen_by.allow if guarded or not negative else generation.seen_by.allow_away
            allow(tokens_of(entry.cond))
    return conds


def _signs(p: Any, arguments: Arguments, hires: bool) -> schedules.Signs:
    from modules import prompt_parser, shared

    guidance = getattr(p, "hr_cfg", None) if hires else None
    prompts = getattr(p, "hr_prompts", None) if hires else None
    prompts = prompts or getattr(p, "prompts", None) or []
    weights: tuple[tuple[float, ...], ...] = ()
    if any("AND" in prompt for prompt in prompts):
        indexes = prompt_parser.get_multicond_prompt_list(prompts)[0]
        weights = tuple(tuple(weight for _, weight in row) for row in indexes)
    unguided = bool(getattr(p, "s_min_uncond", 0) or getattr(shared.opts, "skip_early_cond", 0))
    unguided |= guidance is not None and guidance < 0  # reForge: a hires pass without guidance
    return schedules.Signs(float(guidance or p.cfg_scale), weights, arguments.guard_negative, unguided)


def _texts(prompts: Any, steps: int, hires_steps: int | None, negative: bool) -> list[list[str]]:
    """The text of every entry of every schedule, as the host parses the prompts."""
    from modules import prompt_parser, shared

    flat, index = prompts, [[(i, 1.0)] for i in range(len(prompts))]
    if not negative:
        index, flat, _ = prompt_parser.get_multicond_prompt_list(prompts)
    parsed = prompt_parser.get_learned_conditioning_prompt_schedules(
        flat, steps, hires_steps, shared.opts.use_old_scheduling
    )
    return [[text for _, text in parsed[i]] for row in index for i, _ in row]


def _undisguised(
    encoder: HostEncoder,
    normalise: Normaliser,
    listed: Sequence[tuple[Any, bool]],
    texts: Sequence[Sequence[str]],
    prompts: Any,
) -> dict[int, schedules.Plain]:
    """By ``id`` of the conditioning of a guarded text in disguise: that of the text without. Others cost nothing."""
    found: dict[int, schedules.Plain] = {}
    known: dict[str, schedules.Plain] = {}
    for (schedule, guarded), parts in zip(listed, texts, strict=True):
        for entry, text in zip(schedule, parts, strict=True) if guarded else ():
            if id(entry.cond) in found or (plain := undisguised(normalise, text)) is None:
                continue
            if text not in known:
                cond = encoder.like(entry.cond, plain.text, text, prompts)
                known[text] = schedules.Plain(cond, plain.text, plain.undone)
            found[id(entry.cond)] = known[text]
    return found


def _named(
    names: Names,
    listed: Sequence[tuple[Any, bool]],
    texts: Sequence[Sequence[str]],
    plain: Mapping[int, schedules.Plain],
) -> dict[int, frozenset[str]]:
    """By ``id`` of a conditioning, the concepts that its text names."""
    found = {id(other.cond): names(other.text) for other in plain.values()}
    for (schedule, guarded), parts in zip(listed, texts, strict=True):
        for entry, text in zip(schedule, parts, strict=True) if guarded else ():
            if id(entry.cond) not in found:
                found[id(entry.cond)] = names(text)
    return found
