"""What is written down of a generation: its report, a picture's parameters, a line under it, and heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import schedules
from .arguments import KEY, joined
from .encoder import HostEncoder
from .generation import Generation, Seen
from .telling import pictures, shown, told

MOST_HEAT_MAPS = 8
MOVED = f"{KEY} moved"
"""Infotext: the concepts that a picture's prompt was outside of."""


def looked_at(
    listed: Sequence[tuple[Any, bool]], texts: Sequence[Sequence[str]], looks: schedules.Looks
) -> Iterator[tuple[str, schedules.Moved]]:
    """Every text that was looked at, with what was seen of it: in the first window in which it moved, else at all."""
    for (schedule, guarded), parts in zip(listed, texts, strict=True):
        for entry, text in zip(schedule, parts, strict=True) if guarded else ():
            each = looks[id(entry.cond)]
            yield text, next((look for look in each if look.moved), each[0])


def tell(
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


def moved(p: Any, generation: Generation, conds: Any, looks: schedules.Looks, hires: bool) -> None:
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


def beside(p: Any, generation: Generation) -> None:
    """In the parameters of every picture: what texts of extensions were outside of."""
    if generation.beside and not isinstance(p.extra_generation_params.get(MOVED), list):
        p.extra_generation_params[MOVED] = joined(f"{name} {value:+.1f}" for name, value in generation.beside.items())


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
