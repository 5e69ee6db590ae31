"""The report as a picture: a heat map of each token's distance from the border, before and after.

Needs Pillow, which both hosts have; it is imported when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import SafeRegionError
from ..core.report import Report

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE = 8.0
"""Distance from the border, in benign standard deviations, at which the colour is full."""

BAND = 26
"""Columns that stand side by side; a longer prompt goes on in the band below."""

_CELL_W, _CELL_H, _GAP, _PAD = 44, 26, 14, 12
_BACK, _INK, _FAINT = (255, 255, 255), (32, 34, 40), (120, 124, 132)
_BLIND = (226, 228, 232)


def heat_map(
    report: Report,
    token_strings: Sequence[str] | None = None,
    prompt: int = 0,
    space: str | None = None,
    title: str = "",
) -> NDArray[np.uint8]:
    """A row per concept, before and after, a column per token; long prompts in bands of :data:`BAND` columns.

    Args:
        report: of :meth:`SafeRegion.apply`.
        token_strings: one string per token of the conditioning; runs of one string (padding) share a column.
        prompt: which prompt of the batch. space: which space (None: the first).

    Returns:
        uint8 ``[H, W, 3]``. Blue is inside, white on the border, red outside, grey may not move.
    """
    from PIL import Image, ImageDraw

    found = [s for s in report.spaces if space is None or s.space == space]
    if not found:
        raise SafeRegionError(
            f"The report has no space {space!r}; it has {', '.join(s.space for s in report.spaces) or 'none'}."
        )
    part = found[0]
    if not 0 <= prompt < part.scores.shape[0]:
        raise SafeRegionError(f"The report has {part.scores.shape[0]} prompts; there is no prompt {prompt}.")
    before = part.before(len(report.concepts))[prompt].numpy()
    after = part.after(len(report.concepts))[prompt].numpy()
    columns = _columns(before.shape[0], token_strings)
    face, small = font(13), font(11)
    labels = [_label(name, len(span)) for name, span in columns]
    head = max([text_width(small, t) for t in labels], default=0) + 10
    left = max(text_width(face, t) for t in (*report.titles, "before")) + text_width(small, "  before") + 2 * _PAD
    block = 2 * _CELL_H + _GAP
    band = head + len(report.concepts) * block
    starts = range(0, len(columns), BAND)
    first = _PAD + (24 if title else 0)
    width = left + min(len(columns), BAND) * _CELL_W + 2 * _PAD
    height = first + max(1, len(starts)) * band + 34
    image = Image.new("RGB", (max(width, 420), height), _BACK)
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
        for k, name in enumerate(report.titles):
            y = top + k * block
            draw.text((_PAD, y + 5), _plain(name, 40), fill=_INK, font=face)
            for row, (word, values) in enumerate((("before", before), ("after", after))):
                at = y + row * _CELL_H
                draw.text((left - text_width(small, word) - 8, at + 7), word, fill=_FAINT, font=small)
                for i, (_, span) in enumerate(columns[start : start + BAND]):
                    _cell(draw, small, left + i * _CELL_W, at, values[span, k])
    key = "benign standard deviations from the border: blue inside, red outside, grey may not move"
    draw.text((_PAD, height - 24), key, fill=_FAINT, font=small)
    return np.asarray(image)


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
    names = [str(t) for t in range(length)] if strings is None else [*strings[:length], *[""] * (length - len(strings))]
    columns: list[tuple[str, list[int]]] = []
    for t, name in enumerate(names):
        if columns and columns[-1][0] == name and strings is not None:
            columns[-1][1].append(t)
        else:
            columns.append((name, [t]))
    return columns


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
