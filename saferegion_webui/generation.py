"""One generation: what is switched on for it, what the guard does to its conditionings, and what is told of it."""

from __future__ import annotations

import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.guard.minors import NO_MINORS
from saferegion.guard.naming import Names
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import undisguised
from saferegion.guard.selection import GuardReport

from . import host, interception, schedules
from .arguments import KEY, Arguments, joined
from .encoder import HostEncoder
from .guards import Guards
from .layout import parts_of, tokens_of, whole_of
from .refusal import SafeRegionRefused
from .settings import default_concepts, option
from .telling import pictures, shown, told
from .watch import Watch

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
    beside: dict[str, float] = field(default_factory=dict)
    """The same, of texts that extensions encoded themselves, for all pictures."""
    seen_by: Watch | None = None
    process: weakref.ref[Any] | None = None
    number: str = field(default_factory=lambda: secrets.token_hex(4))
    task: str = ""
    at: float = field(default_factory=lambda: round(time.time(), 3))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without a word of any prompt."""
        return {
            "id": self.number,
            "task": self.task,
            "at": self.at,
            "guarded": self.arguments.enabled,
            "concepts": list(self.arguments.concepts),
            "preset": self.arguments.preset,
            "refused": None if self.refusal is None else self.refusal.detail,
            "texts": [
                {
                    "where": s.where,
                    "concepts": [
                        {
                            "concept": f.concept, "title": f.title, "found": f.open, "before": f.before,
                            "after": f.after, "told_by": list(f.how),
                        }
                        for region in s.report.reports
                        for f in shown(region, s.row)
                    ],
                }
                for s in self.seen
            ],
        }  # fmt: skip


class Reports:
    """The newest generations, by their numbers and the host's tasks."""

    KEPT = 64

    def __init__(self) -> None:
        self._known: OrderedDict[str, Generation] = OrderedDict()

    def add(self, generation: Generation) -> None:
        self._known[generation.number] = generation
        while len(self._known) > self.KEPT:
            self._known.popitem(last=False)

    def newest(self) -> list[Generation]:
        """The newest first."""
        return list(self._known.values())[::-1]

    def of(self, number: str) -> Generation | None:
        return next((g for g in self.newest() if number in (g.number, g.task)), None)


reports = Reports()


def by_default() -> Arguments:
    """What the host's settings switch on for whoever asks for nothing."""
    on = bool(option("default_on", False))
    return Arguments.parse([], default_concepts(), default_on=on) if on else Arguments()


def configure(p: Any, values: Sequence[Any], default_concepts: Sequence[str], default_on: bool = False) -> Generation:
    """Read the script's arguments for the processing ``p``; what is wrong with them is raised when it encodes.

    ``default_concepts``, ``default_on``: what the host's settings say.
    """
    generation = Generation(task=host.task())
    axes = {name: getattr(p, f"safe_region_{name}") for name in AXES if hasattr(p, f"safe_region_{name}")}
    try:
        generation.arguments = Arguments.parse(values, default_concepts, axes, default_on)
        p.extra_generation_params.update(generation.arguments.infotext())
    except Exception as error:  # hosts swallow what is raised here, and go on
        generation.refusal = SafeRegionRefused.of(error)
    generation.process = weakref.ref(p)
    p.safe_region = generation
    reports.add(generation)
    _now(generation)
    return generation


def _job() -> Any:
    from modules import shared

    return getattr(shared.state, "time_start", None)


def _now(generation: Generation) -> None:
    """It is the one that the host works on."""
    from modules import shared

    shared.state.safe_region = (_job(), generation)


def current() -> Generation | None:
    """The generation that the host works on; None: it works on none that this script knows."""
    from modules import shared

    job, generation = getattr(shared.state, "safe_region", (None, None))
    return generation if job is not None and job == _job() else None


def generation_of(p: Any) -> Generation | None:
    """Of ``p``; or, where an extension made ``p`` itself without this script (a detailer), of the job it is part of;
    or, where it is part of none, what the host's settings say."""
    own: Generation | None = getattr(p, "safe_region", None) or current()
    if own is None and p is not None and (found := by_default()).enabled:
        own = p.safe_region = Generation(found, process=weakref.ref(p))
        p.extra_generation_params.update(found.infotext())
    return own


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
    _now(generation)
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
        _note_beside(p, generation)
    watching(generation)
    listed = schedules.rows(conds, _signs(p, arguments, hires))
    wanted = {id(schedule): schedule for schedule, guarded in listed if guarded}
    if not wanted:
        return _allowed(generation, conds, negative, listed)
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
    new = [(made[id(s)] if guarded else s, guarded) for s, guarded in listed]
    return _allowed(generation, schedules.rebuilt(conds, [s for s, _ in new]), negative, new)


def _allowed(generation: Generation, conds: Any, negative: bool, listed: Sequence[tuple[Any, bool]]) -> Any:
    """``conds``, of which from now on may be painted: all of a prompt, of a negative one what was guarded."""
    for schedule, guarded in listed:
        for entry in schedule if generation.seen_by is not None else ():
            allow = generation.seen_by.allow if guarded or not negative else generation.seen_by.allow_away
            allow(tokens_of(entry.cond))
    return conds


def watching(generation: Generation) -> Watch:
    """What looks at all that the loaded checkpoint paints from.

    Raises:
        SafeRegionRefused: this host does not tell what paints.
    """
    from modules import shared

    model = host.diffusion_model(shared.sd_model)
    if model is None:
        raise SafeRegionRefused(
            "Safe Region: this webui does not tell what paints (no diffusion_model in its checkpoint), so what it "
            "paints from cannot be looked at; switch Safe Region off for this checkpoint."
        )
    interception.install_model(shared.sd_model, model, painting)
    if generation.seen_by is None:
        generation.seen_by = Watch(lambda rows, vector: _look(generation, rows, vector))
    empty = host.empty_rows(shared.sd_model)
    if empty is not None:
        generation.seen_by.allow(empty)
    return generation.seen_by


def _look(generation: Generation, rows: Any, vector: Any) -> None:
    """Refuse rows that no prompt of this generation gave and that lie outside the safe region."""
    from modules import shared

    named = ""
    try:
        guard, encoder = guards.get(shared.sd_model, generation.arguments, None)
        vectors = None if vector is None else vector.unsqueeze(0)
        _, report = guard.apply(encoder.layout.conditioning(rows.unsqueeze(0), vectors))
    except SafeRegionError as error:
        named = f"it cannot be judged: {str(error).removeprefix('Safe Region: ').rstrip('.')}"
    else:
        open_ones = [f.title for region in report.reports for f in shown(region, 0) if f.open]
        if not open_ones:
            return
        named = f"it is outside the safe region: {', '.join(dict.fromkeys(open_ones))}"
    raise SafeRegionRefused(
        f"Safe Region: another extension paints from a text that does not come from the prompt ({named}), so no "
        "picture was made: change that text, or switch the extension off."
    )


class Painting:
    """The generation that the host paints now, for what stands in front of its methods."""

    def watch(self) -> Watch | None:
        generation = current()
        if generation is not None and generation.refusal is not None:
            raise generation.refusal
        return None if generation is None or not generation.arguments.enabled else generation.seen_by

    def sampling(self, p: Any) -> Watch | None:
        generation = generation_of(p)
        if generation is None:
            return None
        _now(generation)
        if generation.refusal is not None:
            raise generation.refusal
        return watching(generation) if generation.arguments.enabled else None

    def encoded(self, checkpoint: Any, prompts: Any, conds: Any) -> Any:
        generation = current()
        if generation is None:
            return conds
        if generation.refusal is not None:
            raise generation.refusal
        negative = bool(getattr(prompts, "is_negative_prompt", False)) and not generation.arguments.guard_negative
        if not generation.arguments.enabled or negative:
            return conds
        try:
            return _encoded(generation, checkpoint, prompts, conds)
        except Exception as error:
            refusal = SafeRegionRefused.of(error)
            generation.refusal = refusal  # whoever asked may go on without: the next pass is refused too
            raise refusal from (None if refusal is error else error)


painting = Painting()


def _encoded(generation: Generation, checkpoint: Any, prompts: Any, conds: Any) -> Any:
    """What an extension encoded of ``prompts``, guarded as the prompt itself is."""
    p = None if generation.process is None else generation.process()
    guard, encoder = guards.get(checkpoint, generation.arguments, getattr(p, "extra_network_data", None))
    watch = watching(generation)
    texts = [str(text) for text in prompts]
    each = parts_of(conds)
    if len(each) != len(texts):  # more chunks than prompts: what is what cannot be told
        texts = [""] * len(each)
    normalise = guards.normaliser(encoder, generation.arguments)
    plain = {}
    for cond, text in zip(each, texts, strict=True):
        if (bare := undisguised(normalise, text)) is not None:
            plain[id(cond)] = schedules.Plain(encoder.like(cond, bare.text, text, prompts), bare.text, bare.undone)
    names = guards.names(generation.arguments)
    named = {id(other.cond): names(other.text) for other in plain.values()}
    named |= {id(cond): names(text) for cond, text in zip(each, texts, strict=True)}
    every = [*each, *(other.cond for other in plain.values())]
    looks = schedules.second(schedules.apply(guard, encoder.layout, every, named), plain)
    new = []
    for cond, text in zip(each, texts, strict=True):
        look = next((look for look in looks[id(cond)] if look.moved), looks[id(cond)][0])
        if look.moved:
            for f in (f for region in look.report.reports for f in shown(region, look.row) if f.open):
                generation.beside[f.concept] = max(generation.beside.get(f.concept, 0.0), f.before or 0.0)
            words = encoder.words(text if look.text is None else look.text)
            generation.seen.append(Seen("text of an extension", text, look.report, look.row, words))
        watch.allow(tokens_of(look.cond))
        new.append(look.cond)
    if p is not None:
        _note_beside(p, generation)
    return conds if all(a is b for a, b in zip(each, new, strict=True)) else whole_of(conds, new)


def _note_beside(p: Any, generation: Generation) -> None:
    """In the parameters of every picture: what texts of extensions were outside of."""
    if generation.beside and not isinstance(p.extra_generation_params.get(MOVED), list):
        p.extra_generation_params[MOVED] = joined(f"{name} {value:+.1f}" for name, value in generation.beside.items())


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
        joined(f"{name} {value:+.1f}" for name, value in {**generation.beside, **far}.items()) or None
        for far in generation.far
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
