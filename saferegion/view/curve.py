"""The loss of a discovery as a picture. Needs Pillow, which both hosts have; imported when a picture is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 20, 44
_BACK, _INK, _FAINT, _GRID, _DOTS, _LINE = (
    (255, 255, 255), (32, 34, 40), (120, 124, 132), (232, 234, 238), (176, 196, 224), (32, 92, 184),
)  # fmt: skip
_SMOOTH = 0.9


def loss_curve(losses: Sequence[float], title: str = "", size: tuple[int, int] = (640, 360)) -> NDArray[np.uint8]:
    """Loss over steps, as it was (pale) and as a running mean (dark): uint8 ``[H, W, 3]``.

    Args:
        losses: one a step; those that are not finite are left out.
        size: width and height in pixels.
    """
    from PIL import Image, ImageDraw

    from .heat_map import font

    width, height = size
    image = Image.new("RGB", size, _BACK)
    draw = ImageDraw.Draw(image)
    face, small = font(15), font(12)
    draw.text((_LEFT, 12), title, _INK, face)
    points = [(i, float(y)) for i, y in enumerate(losses, 1) if math.isfinite(y)]
    if not points:
        draw.text((_LEFT, height // 2), "no step was taken", _FAINT, face)
        return np.asarray(image).copy()
    right, bottom = width - _RIGHT, height - _BOTTOM
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    step = _round(max(high - low, 1e-12) / 4)
    low, high = step * math.floor(low / step), step * max(1, math.ceil(high / step - 1e-9))
    last = max(len(losses), 2)

    def at(i: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (i - 1) / (last - 1) * (right - _LEFT),
            bottom - (y - low) / (high - low) * (bottom - _TOP),
        )

    for k in range(round((high - low) / step) + 1):
        y = low + k * step
        draw.line([at(1, y), at(last, y)], _GRID)
        draw.text((_LEFT - 8, at(1, y)[1]), f"{y:.3g}", _FAINT, small, anchor="rm")
    for i in range(1, last + 1) if last <= 8 else sorted({1, *(round(last * q / 4) for q in range(1, 5))}):
        draw.text((at(i, low)[0], bottom + 8), str(i), _FAINT, small, anchor="mt")
    draw.text(((_LEFT + right) / 2, height - 6), "step", _FAINT, small, anchor="mb")
    smooth, mean = [], points[0][1]
    for count, (i, y) in enumerate(points):
        share = min(_SMOOTH, count / (count + 1))
        mean = share * mean + (1 - share) * y
        smooth.append(at(i, mean))
    raw = [at(i, y) for i, y in points]
    for line, colour, thick in ((raw, _DOTS, 1), (smooth, _LINE, 3)):
        if len(line) > 1:
            draw.line(line, colour, thick, joint="curve")
        else:
            x, y = line[0]
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_LINE)
    return np.asarray(image).copy()


def _round(value: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= value * (1 - 1e-9))
