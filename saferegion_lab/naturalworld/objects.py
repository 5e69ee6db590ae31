"""The things: each takes a brush, the place of the hand, a scale, and a number in 0 to 1; all float32 [B]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .brush import BLACK, GOLD, STEEL, WHITE, Brush, number, pick

At = tuple[Tensor, Tensor, Tensor, Tensor]


def _knife(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.cone(x, y - 0.27 * s, 0.045 * s, 0.24 * s, STEEL)
    b.line(x, y - 0.03 * s, x, y + 0.07 * s, 0.024 * s, (0.30, 0.15, 0.06))


def _gun(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.box(x + 0.07 * s, y - 0.06 * s, 0.13 * s, 0.034 * s, (0.13, 0.14, 0.16))
    b.box(x + 0.0 * s, y + 0.02 * s, 0.03 * s, 0.07 * s, (0.13, 0.14, 0.16), 0.2)
    b.box(x + 0.17 * s, y - 0.105 * s, 0.014 * s, 0.016 * s, (0.13, 0.14, 0.16))


def _sword(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.line(x, y - 0.42 * s, x, y - 0.05 * s, 0.018 * s, (0.88, 0.90, 0.95))
    b.box(x, y - 0.04 * s, 0.085 * s, 0.018 * s, GOLD)
    b.line(x, y, x, y + 0.06 * s, 0.018 * s, (0.30, 0.15, 0.06))


def _flag(b: Brush, at: At) -> None:
    x, y, s, u = at
    b.line(x, y - 0.36 * s, x, y + 0.14 * s, 0.012 * s, (0.45, 0.30, 0.15))
    b.box(x + 0.11 * s, y - 0.27 * s, 0.11 * s, 0.08 * s, pick(((0.1, 0.5, 0.9), (0.1, 0.7, 0.3), (1.0, 0.8, 0.1)), u))
    b.box(x + 0.11 * s, y - 0.27 * s, 0.11 * s, 0.022 * s, WHITE)


def _bottle(b: Brush, at: At) -> None:
    x, y, s, u = at
    tone = pick(((0.05, 0.42, 0.22), (0.42, 0.22, 0.05)), u)
    b.line(x, y - 0.08 * s, x, y + 0.04 * s, 0.045 * s, tone)
    b.box(x, y - 0.17 * s, 0.018 * s, 0.07 * s, tone)
    b.box(x, y - 0.02 * s, 0.045 * s, 0.03 * s, WHITE)


def _syringe(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.line(x, y - 0.20 * s, x, y - 0.30 * s, 0.010 * s, (0.35, 0.35, 0.40))
    b.box(x, y - 0.10 * s, 0.034 * s, 0.10 * s, (0.75, 0.95, 1.0))
    b.box(x, y - 0.06 * s, 0.034 * s, 0.05 * s, (0.95, 0.45, 0.10))
    b.line(x, y, x, y + 0.07 * s, 0.010 * s, (0.35, 0.35, 0.40))
    b.box(x, y + 0.08 * s, 0.04 * s, 0.012 * s, (0.35, 0.35, 0.40))


def _spoon(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.line(x, y - 0.14 * s, x, y + 0.09 * s, 0.014 * s, (0.66, 0.69, 0.74))
    b.ellipse(x, y - 0.19 * s, 0.048 * s, 0.07 * s, (0.66, 0.69, 0.74))
    b.ellipse(x, y - 0.19 * s, 0.026 * s, 0.046 * s, (0.90, 0.92, 0.96))


def _umbrella(b: Brush, at: At) -> None:
    x, y, s, u = at
    tone = pick(((0.85, 0.25, 0.55), (0.20, 0.35, 0.80), (0.10, 0.60, 0.55)), u)
    b.line(x, y - 0.30 * s, x, y + 0.09 * s, 0.012 * s, (0.30, 0.20, 0.12))
    dome = torch.maximum(b.ellipse_at(x, y - 0.22 * s, 0.20 * s, 0.17 * s), b.y - number(y - 0.22 * s))
    b.fill(dome, tone)
    b.line(x, y + 0.09 * s, x + 0.04 * s, y + 0.09 * s, 0.012 * s, (0.30, 0.20, 0.12))


def _banana(b: Brush, at: At) -> None:
    x, y, s, _ = at
    outer = b.ellipse_at(x - 0.02 * s, y - 0.07 * s, 0.13 * s, 0.15 * s)
    inner = b.ellipse_at(x - 0.08 * s, y - 0.10 * s, 0.12 * s, 0.14 * s)
    b.fill(torch.maximum(outer, -inner), (1.0, 0.87, 0.12))
    b.disc(x + 0.0 * s, y - 0.21 * s, 0.018 * s, (0.40, 0.28, 0.06))


def _phone(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.box(x, y - 0.07 * s, 0.06 * s, 0.10 * s, BLACK)
    b.box(x, y - 0.08 * s, 0.042 * s, 0.07 * s, (0.30, 0.80, 1.0))


def _book(b: Brush, at: At) -> None:
    x, y, s, u = at
    b.box(x, y - 0.06 * s, 0.13 * s, 0.09 * s, pick(((0.55, 0.16, 0.45), (0.12, 0.40, 0.30)), u))
    b.box(x - 0.058 * s, y - 0.07 * s, 0.052 * s, 0.075 * s, (1.0, 0.98, 0.90))
    b.box(x + 0.058 * s, y - 0.07 * s, 0.052 * s, 0.075 * s, (1.0, 0.98, 0.90))


def _flower(b: Brush, at: At) -> None:
    x, y, s, u = at
    b.line(x, y - 0.16 * s, x, y + 0.09 * s, 0.013 * s, (0.10, 0.55, 0.15))
    b.ellipse(x + 0.04 * s, y - 0.02 * s, 0.04 * s, 0.018 * s, (0.10, 0.55, 0.15))
    tone = pick(((1.0, 0.45, 0.75), (1.0, 0.95, 0.98), (0.75, 0.45, 1.0)), u)
    for dx, dy in ((0.0, -0.055), (0.055, -0.015), (0.034, 0.05), (-0.034, 0.05), (-0.055, -0.015)):
        b.disc(x + dx * s, y + (dy - 0.19) * s, 0.04 * s, tone)
    b.disc(x, y - 0.19 * s, 0.032 * s, (1.0, 0.75, 0.1))


def _camera(b: Brush, at: At) -> None:
    x, y, s, _ = at
    b.box(x, y - 0.05 * s, 0.12 * s, 0.075 * s, (0.16, 0.16, 0.19))
    b.box(x - 0.05 * s, y - 0.14 * s, 0.035 * s, 0.02 * s, (0.16, 0.16, 0.19))
    b.disc(x, y - 0.05 * s, 0.058 * s, (0.70, 0.72, 0.78))
    b.disc(x, y - 0.05 * s, 0.036 * s, (0.15, 0.25, 0.60))
    b.disc(x + 0.09 * s, y - 0.10 * s, 0.016 * s, (1.0, 0.95, 0.5))


OBJECTS: dict[str, Callable[[Brush, At], None]] = {
    "knife": _knife, "gun": _gun, "sword": _sword, "flag": _flag, "bottle": _bottle, "syringe": _syringe,
    "spoon": _spoon, "umbrella": _umbrella, "banana": _banana, "phone": _phone, "book": _book, "flower": _flower,
    "camera": _camera,
}  # fmt: skip
