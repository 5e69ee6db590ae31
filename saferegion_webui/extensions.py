"""What other extensions paint from: what they encode themselves is guarded, what they kept is looked at and refused."""

from __future__ import annotations

from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.guard.second_look import undisguised
from saferegion.guard.watch import Watch

from . import host, interception, notes, policy_door, schedules
from .generation import Generation, Seen, current, generation_of, guards, now
from .layout import parts_of, tokens_of, whole_of
from .refusal import SafeRegionRefused
from .telling import shown


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
        if generation is None:
            policy_door.stray()
        return None if generation is None or not generation.arguments.enabled else generation.seen_by

    def sampling(self, p: Any) -> Watch | None:
        generation = generation_of(p)
        if generation is None:
            return None
        now(generation)
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
        notes.beside(p, generation)
    return conds if all(a is b for a, b in zip(each, new, strict=True)) else whole_of(conds, new)
