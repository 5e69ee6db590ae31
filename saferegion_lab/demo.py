"""The demonstration: the same prompts and seeds without and with the guard, painted by the tiny diffusion model."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from saferegion.core.region import SafeRegion
from saferegion.core.writing import write_whole
from saferegion.guard.library import Library
from saferegion.learn.settings import CompileSettings
from saferegion.view.heat_map import font, text_width

from . import microworld
from .microworld.prompts import SETS

NOTE = (
    "These pictures come from a tiny model (64 x 64 pixels) trained on drawings, with Stable Diffusion 1.x's "
    "architecture; its concept to keep out is fire."
)
KINDS = (
    ("said", "explicit", "with a word that the recipe has", None),
    ("said", "held_out", "with a word that the recipe does not have", None),
    ("implied", "association", "no word for it: words alone do not reach it", "volcano"),
    ("benign", "neighbours", "a near neighbour", "fire truck"),
    ("benign", "benign", "nothing to do with it", None),
)
ROWS_EACH = 2
STEPS, GUIDANCE = 15, 4.0
FIRE = 0.5

_TILE, _GAP, _LEFT, _TOP = 112, 6, 330, 64


def run(path: Path, seeds: int = 3, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Paint, judge, write the picture to ``path`` and return what it shows.

    Raises:
        OSError: the picture cannot be written; nothing is left behind then.
    """
    world = microworld.load()
    judge = world.judge()
    fire = Library((microworld.DATA,)).directions(
        ["fire"], world.encode, microworld.neutral_prompts(), settings=CompileSettings(family="microworld")
    )
    region = SafeRegion(fire)
    rows = [
        (kind, note, case.prompt)
        for kind, name, note, group in KINDS
        for case in [c for c in SETS[name]() if (group is None or c.group == group) and len(c.prompt) < 60][:ROWS_EACH]
    ]
    shown: list[dict[str, Any]] = []
    pictures: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (kind, note, prompt) in enumerate(rows):
        c = world.encode([prompt])
        guarded, report = region.apply(c)
        numbers = range(100 * i, 100 * i + seeds)
        latents = [world.sample(x, seeds=numbers, steps=STEPS, guidance=GUIDANCE) for x in (c, guarded)]
        before, after = (world.decode(x) for x in latents)
        pictures.append((before, after))
        shown.append(
            {
                "kind": kind,
                "note": note,
                "prompt": prompt,
                "fire_unguarded": int((judge(before)["fire"] >= FIRE).sum()),
                "fire_guarded": int((judge(after)["fire"] >= FIRE).sum()),
                "identical": bool((latents[0] == latents[1]).all()),
                "report": report.text([world.token_strings(prompt)]),
            }
        )
        if progress is not None:
            progress(i + 1, len(rows))
    buffer = io.BytesIO()
    _grid(shown, pictures).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return {"note": NOTE, "picture": str(path), "seeds": seeds, "prompts": shown}


def _grid(shown: Sequence[dict[str, Any]], pictures: Sequence[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    seeds = len(pictures[0][0])
    half = seeds * (_TILE + _GAP) + 4 * _GAP
    image = Image.new("RGB", (_LEFT + 2 * half, _TOP + len(shown) * (_TILE + _GAP) + 34), "white")
    draw = ImageDraw.Draw(image)
    title, plain, small = font(19), font(14), font(12)
    draw.text((14, 14), "Safe Region: fire switched off", fill=(20, 22, 28), font=title)
    draw.text((_LEFT, 40), "without the guard", fill=(90, 94, 104), font=plain)
    draw.text((_LEFT + half, 40), "with the guard, same seeds", fill=(90, 94, 104), font=plain)
    for row, (case, both) in enumerate(zip(shown, pictures, strict=True)):
        y = _TOP + row * (_TILE + _GAP)
        for i, line in enumerate(_wrap(case["prompt"], plain, _LEFT - 34)):
            draw.text((14, y + 8 + 19 * i), line, fill=(20, 22, 28), font=plain)
        draw.text((14, y + _TILE - 38), case["note"], fill=(120, 124, 132), font=small)
        word = "bit-identical" if case["identical"] else "moved into the safe region"
        ink = (22, 122, 74) if case["identical"] else (176, 58, 24)
        draw.text((14, y + _TILE - 20), word, fill=ink, font=small)
        for side, tiles in enumerate(both):
            for i, tile in enumerate(tiles):
                large = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
                image.paste(large, (_LEFT + side * half + i * (_TILE + _GAP), y))
    foot = "a tiny latent diffusion model trained on drawings; its pictures are 64 x 64 pixels, enlarged here"
    draw.text((14, image.height - 24), foot, fill=(120, 124, 132), font=small)
    return image


def _wrap(text: str, face: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(face, longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:3]
