"""One generation: what is switched on for it, what the guard does to its conditionings, and what is told of it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from saferegion.core.conditioning import MEAN, POOLED
from saferegion.guard.selection import NO_FLOOR, Guard, GuardReport

from . import schedules
from .arguments import KEY, Arguments
from .guards import Guards
from .refusal import SafeRegionRefused

AXES = ("safe_region_enabled", "safe_region_strength", "safe_region_strengths", "safe_region_mode")
"""Attributes that X/Y/Z sets on a processing; each takes the place of the argument it is named after."""
MOST_HEAT_MAPS = 8
MOVED = f"{KEY} moved"
"""Infotext: the concepts that a picture's prompt was outside of."""

guards = Guards()


@dataclass(frozen=True)
class Seen:
    """One conditioning that was looked at: row ``row`` of ``report``."""

    where: str
    text: str
    report: GuardReport
    row: int


@dataclass
class Generation:
    """What is switched on for one processing, or why it cannot be; and what was seen."""

    arguments: Arguments = field(default_factory=Arguments)
    refusal: SafeRegionRefused | None = None
    seen: list[Seen] = field(default_factory=list)
    outside: list[dict[str, float]] = field(default_factory=list)  # of each picture of a batch: concept -> distance


_last: tuple[Any, weakref.ref[Any]] | None = None
"""The job that was configured last, and its generation's keeper."""


def configure(p: Any, values: Sequence[Any], default_concepts: Sequence[str]) -> Generation:
    """Read the script's arguments for the processing ``p``; what is wrong with them is raised when it encodes."""
    global _last
    generation = Generation()
    try:
        generation.arguments = _with_axes(p, values, default_concepts)
        p.extra_generation_params.update(generation.arguments.infotext())
    except Exception as error:  # hosts swallow what is raised here, and go on
        generation.refusal = SafeRegionRefused.of(error)
    p.safe_region = generation
    _last = (_job(), weakref.ref(p))
    return generation


def _with_axes(p: Any, values: Sequence[Any], default_concepts: Sequence[str]) -> Arguments:
    axes = {name: getattr(p, name) for name in AXES if hasattr(p, name)}
    enabled = axes.pop("safe_region_enabled", None)
    if enabled is not None:
        first = dict(values[0]) if values and isinstance(values[0], Mapping) else None
        values = [enabled, *values[1:]] if first is None else [{**first, "enabled": enabled}]
    arguments = Arguments.parse(values, default_concepts)
    if not arguments.enabled or not axes:
        return arguments
    chosen = {name.removeprefix("safe_region_"): value for name, value in axes.items()}
    if "strengths" in chosen:
        chosen["strengths"] = tuple({**dict(arguments.strengths), **dict(chosen["strengths"])}.items())
    merged = replace(arguments, **chosen)
    names = ("enabled", "concepts", "strength", "mode", "avoid", "instead", "sentences")
    again = {name: getattr(merged, name) for name in names} | {"strengths": dict(merged.strengths)}
    flags = {name: getattr(merged, name) for name in ("guard_negative", "heat_map")}
    return Arguments.parse([{**again, **flags}])


def _job() -> Any:
    from modules import shared

    return getattr(shared.state, "time_start", None)


def generation_of(p: Any) -> Generation | None:
    """Of ``p``, or, where an extension made ``p`` itself without this script (a detailer), of the job it is part of."""
    own = getattr(p, "safe_region", None)
    if own is not None or _last is None:
        return own
    job, keeper = _last
    outer = keeper()
    return getattr(outer, "safe_region", None) if outer is not None and job is not None and job == _job() else None


def guard_conditionings(
    p: Any, conds: Any, prompts: Any, steps: int, extra_network_data: Any, hires_steps: int | None
) -> Any:
    """What the host's ``get_conds_with_caching`` returned, guarded: new objects where something moved, else ``conds``.

    Raises:
        SafeRegionRefused: whatever went wrong; the generation ends without a picture.
    """
    generation = generation_of(p)
    if generation is None or conds is None:
        return conds
    if generation.refusal is not None:
        raise generation.refusal
    if not generation.arguments.enabled:
        return conds
    try:
        return _guarded(p, generation, conds, prompts, steps, extra_network_data, hires_steps)
    except Exception as error:
        refusal = SafeRegionRefused.of(error)
        raise refusal from (None if refusal is error else error)


def _guarded(
    p: Any, generation: Generation, conds: Any, prompts: Any, steps: int, data: Any, hires_steps: int | None
) -> Any:
    from modules import shared

    arguments = generation.arguments
    hires = hires_steps is not None
    if not hires and hasattr(conds, "batch"):  # the prompts of a new batch
        generation.outside = []
        p.extra_generation_params.pop(MOVED, None)
    listed = schedules.rows(conds, _signs(p, arguments, hires))
    wanted = [schedule for schedule, guarded in listed if guarded]
    if not wanted:
        return conds
    networks = None if getattr(p, "disable_extra_networks", False) else data
    guard, encoder = guards.get(shared.sd_model, arguments, networks)
    if guard.floor is None:
        p.comment(f"Safe Region: {NO_FLOOR}.")
    seen = schedules.apply(guard, encoder.layout, [entry.cond for schedule in wanted for entry in schedule])
    end = hires_steps if hires_steps is not None else steps
    made: dict[int, Any] = {}
    for schedule in wanted:
        if id(schedule) not in made:
            made[id(schedule)] = schedules.guarded(schedule, end, guard, seen)
    if any(s.moved for s in seen.values()) or arguments.heat_map:
        negative = not hasattr(conds, "batch")
        where = ("negative " if negative else "") + ("hires prompt" if hires else "prompt")
        _tell(p, generation, guard, listed, seen, _texts(prompts, steps, hires_steps, negative), where)
        if not negative:
            _note(p, generation, conds, seen, hires)
    return schedules.rebuilt(conds, [made.get(id(s), s) if guarded else s for s, guarded in listed])


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


def _tell(
    p: Any,
    generation: Generation,
    guard: Guard,
    listed: Sequence[tuple[Any, bool]],
    seen: Mapping[tuple[int, int], schedules.Moved],
    texts: Sequence[Sequence[str]],
    where: str,
) -> None:
    """Keep what was seen of each text, and say under the picture what moved."""
    from modules import shared

    from .encoder import token_strings

    told = {(s.where, s.text) for s in generation.seen}
    for (schedule, guarded), parts in zip(listed, texts, strict=True):
        for entry, text in zip(schedule, parts, strict=True) if guarded else ():
            views = [seen[id(entry.cond), w] for w in range(len(guard.windows()))]
            view = next((v for v in views if v.moved), views[0])
            if (where, text) in told or not view.report.reports:
                continue
            told.add((where, text))
            generation.seen.append(Seen(where, text, view.report, view.row))
            if view.moved and getattr(shared.opts, "safe_region_report", True):
                words = token_strings(shared.sd_model, text)
                p.comment(f"Safe Region, {where}: {describe(view.report, view.row, words)}")


def describe(report: GuardReport, row: int, words: Sequence[str] | None = None) -> str:
    """One line: each concept that was outside, how far before and after, and by which words."""
    lines = []
    for region in report.reports:
        moved = region.moved_prompts()[row]
        for f in region.findings:
            if f.prompt != row or f.before is None or f.after is None or not (f.tokens or region.mode != "project"):
                continue
            line = f"{f.title} {f.before:+.1f} → {f.after:+.1f} sd from the border"
            if region.mode != "project":
                line = f"{region.mode} {line}"
            if f.space == POOLED:
                line += " (pooled)"
            elif f.space.endswith(MEAN):
                line += " (the prompt as a whole)"
            elif f.tokens:
                named = [words[t] for t in f.tokens if words and t < len(words) and words[t]]
                kept = list(dict.fromkeys(named))
                line += f", {len(f.tokens)} token{'s' * (len(f.tokens) > 1)} outside"
                line += f" ({', '.join(kept[:6])}{' …' * (len(kept) > 6)})" if kept else ""
            lines.append(line)
        if moved and region.mode == "steer" and not lines:
            lines.append("steered")
    return "; ".join(lines) or "inside the safe region, nothing was changed"


def _note(
    p: Any, generation: Generation, conds: Any, seen: Mapping[tuple[int, int], schedules.Moved], hires: bool
) -> None:
    """In each picture's parameters: which concepts its prompt was outside of, and how far."""
    if not hires or len(generation.outside) != len(conds.batch):
        generation.outside = [{} for _ in conds.batch]
    for far, parts in zip(generation.outside, conds.batch, strict=True):
        own = {id(entry.cond) for part in parts for entry in part.schedules}
        for (cond, _), view in seen.items():
            if view.moved and cond in own:
                for f in (f for r in view.report.reports for f in r.findings if f.prompt == view.row):
                    if f.before is not None and f.before > 0:
                        far[f.concept] = max(far.get(f.concept, 0.0), f.before)
    p.extra_generation_params[MOVED] = [
        ", ".join(f"{name} {value:+.1f}" for name, value in far.items()) or None for far in generation.outside
    ]


def show_heat_maps(p: Any, processed: Any) -> None:
    """Put a picture of each text's distances behind the pictures of the gallery, where that is switched on."""
    generation = getattr(p, "safe_region", None)
    if generation is None or not generation.arguments.heat_map:
        return
    text = processed.infotexts[processed.index_of_first_image] if processed.infotexts else ""
    for picture in heat_maps(generation):
        processed.images.append(picture)
        processed.infotexts.append(text)  # the host's Save button reads a seed out of it


def heat_maps(generation: Generation) -> list[Any]:
    """A Pillow image of each text that was seen, the first ones."""
    from modules import shared
    from PIL import Image

    from saferegion.view.heat_map import heat_map

    from .encoder import token_strings

    pictures = []
    for s in generation.seen[:MOST_HEAT_MAPS]:
        words = token_strings(shared.sd_model, s.text)
        for report in s.report.reports:
            title = f"{s.where}: {s.text}" if s.text else s.where
            pictures.append(Image.fromarray(heat_map(report, words, s.row, title=title)))
    return pictures
