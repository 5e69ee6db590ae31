"""One generation: what is switched on for it, what the guard does to its conditionings, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saferegion.core.report import Finding, Report, describe
from saferegion.guard.minors import BESIDE, NO_MINORS
from saferegion.guard.naming import Names
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import undisguised
from saferegion.guard.selection import GuardReport

from . import schedules
from .arguments import KEY, Arguments
from .encoder import HostEncoder
from .guards import Guards
from .refusal import SafeRegionRefused

AXES = ("enabled", "strength", "strengths", "mode")
"""Arguments that X/Y/Z sets on a processing, as ``safe_region_<name>``."""
MOST_HEAT_MAPS = 8
MOVED = f"{KEY} moved"
"""Infotext: the concepts that a picture's prompt was outside of."""

guards = Guards()


@dataclass(frozen=True)
class Seen:
    """One text that was looked at: row ``row`` of ``report``; ``words``: what its tokens are called, by space."""

    where: str
    text: str
    report: GuardReport
    row: int
    words: Mapping[str, Sequence[str]]


@dataclass
class Generation:
    """What is switched on for one processing, or why it cannot be; and what was seen."""

    arguments: Arguments = field(default_factory=Arguments)
    refusal: SafeRegionRefused | None = None
    seen: list[Seen] = field(default_factory=list)
    far: list[dict[str, float]] = field(default_factory=list)
    """Of each picture of a batch: concepts that its prompt was outside of, and how far."""


def configure(p: Any, values: Sequence[Any], default_concepts: Sequence[str]) -> Generation:
    """Read the script's arguments for the processing ``p``; what is wrong with them is raised when it encodes."""
    from modules import shared

    generation = Generation()
    axes = {name: getattr(p, f"safe_region_{name}") for name in AXES if hasattr(p, f"safe_region_{name}")}
    try:
        generation.arguments = Arguments.parse(values, default_concepts, axes)
        p.extra_generation_params.update(generation.arguments.infotext())
    except Exception as error:  # hosts swallow what is raised here, and go on
        generation.refusal = SafeRegionRefused.of(error)
    p.safe_region = generation
    shared.state.safe_region = (_job(), generation)
    return generation


def _job() -> Any:
    from modules import shared

    return getattr(shared.state, "time_start", None)


def generation_of(p: Any) -> Generation | None:
    """Of ``p``, or, where an extension made ``p`` itself without this script (a detailer), of the job it is part of."""
    from modules import shared

    own = getattr(p, "safe_region", None)
    job, outer = getattr(shared.state, "safe_region", (None, None))
    return outer if own is None and job is not None and job == _job() else own


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
    hires, negative = hires_steps is not None, not hasattr(conds, "batch")
    if not hires and not negative:  # the prompts of a new batch
        generation.far = []
        p.extra_generation_params.pop(MOVED, None)
    listed = schedules.rows(conds, _signs(p, arguments, hires))
    wanted = {id(schedule): schedule for schedule, guarded in listed if guarded}
    if not wanted:
        return conds
    networks = None if getattr(p, "disable_extra_networks", False) else data
    guard, encoder = guards.get(shared.sd_model, arguments, networks)
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
        _tell(p, generation, encoder, where, _looked_at(listed, texts, looks))
        if not negative:
            _note(p, generation, conds, looks, hires)
    return schedules.rebuilt(conds, [made[id(s)] if guarded else s for s, guarded in listed])


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


def _looked_at(
    listed: Sequence[tuple[Any, bool]], texts: Sequence[Sequence[str]], looks: schedules.Looks
) -> Iterator[tuple[str, schedules.Moved]]:
    """Every text that was looked at, with what was seen of it: in the first window in which it moved, else at all."""
    for (schedule, guarded), parts in zip(listed, texts, strict=True):
        for entry, text in zip(schedule, parts, strict=True) if guarded else ():
            each = looks[id(entry.cond)]
            yield text, next((look for look in each if look.moved), each[0])


def _tell(
    p: Any, generation: Generation, encoder: HostEncoder, where: str, looked: Iterator[tuple[str, schedules.Moved]]
) -> None:
    """Keep what was seen of each text, and say under the picture what moved."""
    from modules import shared

    known = {(s.where, s.text) for s in generation.seen}
    for text, look in looked:
        if (where, text) in known or not look.report.reports:
            continue
        known.add((where, text))
        words = encoder.words(text if look.text is None else look.text)
        generation.seen.append(Seen(where, text, look.report, look.row, words))
        if look.moved and getattr(shared.opts, "safe_region_report", True):
            p.comment(f"Safe Region, {where}: {told(look.report, look.row, words)}")


def shown(region: Report, row: int) -> list[Finding]:
    """What is shown of row ``row``: every concept that is on, and the baseline for minors where it was open."""
    on = {name for name, strength in zip(region.concepts, region.strengths, strict=True) if strength > 0}
    mine = [f for f in region.findings if f.prompt == row and f.concept in on]
    return [f for f in mine if f.open or not f.concept.endswith(BESIDE)]


def told(report: GuardReport, row: int, words: Mapping[str, Sequence[str]]) -> str:
    """One line: each concept that row ``row`` was outside of, or that is always moved."""
    lines = []
    for region in report.reports:
        for f in shown(region, row):
            if f.open or region.mode != "project":
                lines.append(("" if region.mode == "project" else f"{region.mode}, ") + describe(f, words))
    lines += [report.found_after] if report.undone else []
    lines += [report.names] if report.named and lines else []
    return "; ".join(lines) or "inside the safe region, nothing was changed"


def _note(p: Any, generation: Generation, conds: Any, looks: schedules.Looks, hires: bool) -> None:
    """In each picture's parameters: which concepts its prompt was outside of, and how far."""
    if not hires or len(generation.far) != len(conds.batch):
        generation.far = [{} for _ in conds.batch]
    for far, parts in zip(generation.far, conds.batch, strict=True):
        own = {id(entry.cond) for part in parts for entry in part.schedules}
        for look in (look for key in own for look in looks.get(key, ()) if look.moved):
            for f in (f for region in look.report.reports for f in shown(region, look.row) if f.open):
                far[f.concept] = max(far.get(f.concept, 0.0), f.before or 0.0)
    p.extra_generation_params[MOVED] = [
        ", ".join(f"{name} {value:+.1f}" for name, value in far.items()) or None for far in generation.far
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
    """Pillow images of the texts that were seen, the first ones."""
    found = []
    for s in generation.seen[:MOST_HEAT_MAPS]:
        found += pictures(s.report, s.row, s.words, f"{s.where}: {s.text}" if s.text else s.where)
    return found


def pictures(report: GuardReport, row: int, words: Mapping[str, Sequence[str]], title: str) -> list[Any]:
    """Heat maps of one prompt as Pillow images, one a region."""
    from PIL import Image

    from saferegion.view.heat_map import heat_map

    found = []
    for region in report.reports:
        if concepts := [f.concept for f in shown(region, row)]:
            space = next(iter(region.before.held()), None)
            own = None if space is None else words.get(space)
            found.append(Image.fromarray(heat_map(region, own, row, space, title, concepts)))
    return found
