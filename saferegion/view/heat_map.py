"""The report as a picture: how far each token, and the prompt as a whole, is from the border, before and after.

Needs Pillow, which both hosts have; it is imported when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import SafeRegionError
from ..core.report import Reading, Report

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE = 8.0
"""Distance from the border, in benign standard deviations, at which the colour is full."""
BAND = 26
"""Columns that stand side by side; a longer prompt goes on in the band below."""
WHOLE = "whole"
"""Name of the column of the prompt as a whole."""
KEY = "red: outside the safe region; blue: inside; grey: may not move"

_CELL_W, _CELL_H, _GAP, _PAD = 44, 26, 14, 12
_BACK, _INK, _FAINT = (255, 255, 255), (32, 34, 40), (120, 124, 132)
_BLIND = (226, 228, 232)


def heat_map(
    report: Report,
    token_strings: Sequence[str] | None = None,
    prompt: int = 0,
    space: str | None = None,
    title: str = "",
    concepts: Collection[str] | None = None,
) -> NDArray[np.uint8]:
    """A row per concept, before and after; a column for the prompt as a whole, and one per token that is told by words.

    Long prompts go on in bands of :data:`BAND` columns. A concept that is not told by words has no fields there.

    Args:
        report: of :meth:`SafeRegion.apply`.
        token_strings: one string per token of the space; runs of one string (padding) share a column.
        prompt: which prompt of the batch. space: which space (None: the first that is told by words).
        concepts: which concepts have rows (None: all).

    Returns:
        uint8 ``[H, W, 3]``.
    """
    from PIL import Image, ImageDraw

    if not 0 <= prompt < len(report.before.far):
        raise SafeRegionError(f"The report has {len(report.before.far)} prompts; there is no prompt {prompt}.")
    before = _fields(report.before, prompt, space)
    after = before if report.after is report.before else _fields(report.after, prompt, space)
    rows = [k for k, name in enumerate(report.concepts) if concepts is None or name in concepts]
    titles = [report.titles[k] for k in rows]
    columns = _columns(len(before) - 1, token_strings)
    face, small = font(13), font(11)
    labels = [_label(name, len(span)) for name, span in columns]
    head = max(text_width(small, t) for t in labels) + 10
    left = max(text_width(face, t) for t in (*titles, "before")) + text_width(small, "  before") + 2 * _PAD
    block = 2 * _CELL_H + _GAP
    band = head + len(rows) * block
    starts = range(0, len(columns), BAND)
    first = _PAD + (24 if title else 0)
    width = left + min(len(columns), BAND) * _CELL_W + 2 * _PAD
    height = first + len(starts) * band + 34
    image = Image.new("RGB", (max(width, text_width(small, KEY) + 2 * _PAD), height), _BACK)
    draw = ImageDraw.Draw(image)
    if title:
        draw.text((_PAD, _PAD), _plain(title, 110), fill=_INK, font=face)
    for n, start in enumerate(starts):
        top = first + n * band + head
        for i, text in enumerate(labels[start : start + BAND]):
            strip = Image.new("RGB", (head, 18), _BACK)
            ImageDraw.Draw(strip).text((2, 2), text, fill=_INK, font=small)
            turned = strip.rotate(90, expand=True)
            image.paste(turned, (left + i * _CELL_W + (_CELL_W - 18) // 2, top - head))
        for place, (k, name) in enumerate(zip(rows, titles, strict=True)):
            y = top + place * block
            draw.text((_PAD, y + 5), _plain(name, 40), fill=_INK, font=face)
            for row, (word, values) in enumerate((("before", before), ("after", after))):
                at = y + row * _CELL_H
                draw.text((left - text_width(small, word) - 8, at + 7), word, fill=_FAINT, font=small)
                told = ~np.isnan(values[:, k])
                for i, (_, span) in enumerate(columns[start : start + BAND]):
                    if told[1:].any() or told[span].any():
                        _cell(draw, small, left + i * _CELL_W, at, values[span, k])
    draw.text((_PAD, height - 24), KEY, fill=_FAINT, font=small)
    return np.asarray(image).copy()


def _fields(reading: Reading, prompt: int, space: str | None) -> NDArray[np.float32]:
    """``[1 + T, K]``: of the prompt as a whole, then of each token; NaN where nothing is known."""
    held = reading.held()
    if space is not None and space not in held:
        raise SafeRegionError(
            f"The report tells nothing by words of space {space!r}; it does of {', '.join(held) or 'none'}."
        )
    far = reading.far[prompt].detach().cpu().float().numpy()
    whole = np.where(np.isfinite(far), far, np.nan)[None]
    each = next(iter(held.values()), None) if space is None else held[space]
    return whole if each is None else np.concatenate([whole, each[prompt].numpy()])


def _cell(draw: Any, face: Any, x: int, y: int, values: NDArray[np.float32]) -> None:
    """One field: the highest of ``values`` that is known."""
    known = values[~np.isnan(values)]
    value = float(known.max()) if len(known) else None
    draw.rectangle((x, y, x + _CELL_W - 2, y + _CELL_H - 2), fill=_BLIND if value is None else _colour(value))
    if value is not None:
        text = f"{value:+.1f}" if abs(value) < 99.5 else f"{value:+.0f}"
        ink = (255, 255, 255) if abs(value) > 0.7 * SCALE else _INK
        draw.text((x + (_CELL_W - text_width(face, text)) // 2 - 1, y + 6), text, fill=ink, font=face)


def _columns(length: int, strings: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Name and rows of every column: row 0 is the prompt as a whole, token t is row t + 1."""
    names = [str(t) for t in range(length)] if strings is None else [*strings[:length], *[""] * (length - len(strings))]
    columns: list[tuple[str, list[int]]] = []
    for t, name in enumerate(names):
        if columns and columns[-1][0] == name:
            columns[-1][1].append(t + 1)
        else:
            columns.append((name, [t + 1]))
    return [(WHOLE, [0]), *columns]


def _label(name: str, count: int) -> str:
    text = _plain(name, 18) or "padding"
    return f"{text} x{count}" if count > 1 else text


def _plain(text: str, longest: int) -> str:
    text = text.encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= longest else text[: longest - 1] + "~"


def _colour(value: float) -> tuple[int, int, int]:
    part = min(1.0, abs(value) / SCALE)
    part = 0.35 + 0.65 * part if value > 0 else part  # outside is seen however little
    end = (178, 24, 43) if value > 0 else (67, 147, 195)
    return tuple(round(250 + (e - 250) * part) for e in end)  # type: ignore[return-value]


def font(size: int) -> Any:
    """Pillow's own font in ``size`` points, whatever its version."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def text_width(face: Any, text: str) -> int:
    """Width of ``text`` in pixels."""
    return int(face.getlength(text)) if hasattr(face, "getlength") else 6 * len(text)
