"""A brush that paints a batch of pictures at once, with signed distances and soft edges.

Colours are RGB in 0 to 1; places and sizes are shares of the picture's side, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SIDE = 48
Number = Tensor | float
Colour = Tensor | Sequence[float]

BLOOD = (0.62, 0.02, 0.06)
WHITE, BLACK, GOLD, STEEL = (0.97, 0.97, 0.97), (0.07, 0.07, 0.09), (0.95, 0.76, 0.15), (0.78, 0.81, 0.85)


def number(value: Number) -> Number:
    return value[:, None, None] if isinstance(value, Tensor) else value


class Brush:
    """Paints on pictures [B, 3, side, side], in place; every number is one for all, or float32 [B]."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        at = (torch.arange(SIDE, device=image.device, dtype=torch.float32) + 0.5) / SIDE
        self.x, self.y = at[None, None, :], at[None, :, None]

    def fill(self, distance: Tensor, colour: Colour, alpha: float = 1.0) -> None:
        """Paint where the signed distance is negative."""
        cover = (0.5 - distance * SIDE).clamp(0, 1) * alpha
        tone = colour if isinstance(colour, Tensor) else torch.tensor(colour, device=self.image.device)
        tone = tone.expand(len(self.image), 3)[:, :, None, None]
        self.image.lerp_(tone.expand_as(self.image), cover.expand(len(self.image), SIDE, SIDE)[:, None])

    def ellipse_at(self, cx: Number, cy: Number, rx: Number, ry: Number) -> Tensor:
        dx, dy = (self.x - number(cx)) / number(rx), (self.y - number(cy)) / number(ry)
        radii = (torch.as_tensor(r, device=self.image.device, dtype=torch.float32) for r in (rx, ry))
        least = torch.minimum(*radii)
        return ((dx * dx + dy * dy).sqrt() - 1) * (number(least) if least.ndim else least)

    def box_at(self, cx: Number, cy: Number, w: Number, h: Number, turn: Number = 0.0, lean: Number = 0.0) -> Tensor:
        """Of half width w and half height h, turned by `turn` radians, its top moved by `lean` shares of its height."""
        x, y = self.x - number(cx), self.y - number(cy)
        t = torch.as_tensor(turn, device=self.image.device, dtype=torch.float32)
        c, s = number(t.cos()) if t.ndim else t.cos(), number(t.sin()) if t.ndim else t.sin()
        u, v = x * c + y * s, y * c - x * s
        u = u + v * number(lean)
        return torch.maximum(u.abs() - number(w), v.abs() - number(h))

    def line_at(self, x0: Number, y0: Number, x1: Number, y1: Number, r: Number) -> Tensor:
        px, py = self.x - number(x0), self.y - number(y0)
        bx, by = number(x1) - number(x0), number(y1) - number(y0)
        share = ((px * bx + py * by) / (bx * bx + by * by + 1e-9)).clamp(0, 1)
        dx, dy = px - share * bx, py - share * by
        return (dx * dx + dy * dy).sqrt() - number(r)

    def cone_at(self, cx: Number, top: Number, w: Number, h: Number) -> Tensor:
        """A triangle with its point up: half width w at the foot, height h."""
        y = self.y - number(top)
        return torch.maximum((self.x - number(cx)).abs() - number(w) * y / number(h), y - number(h))

    def ellipse(self, cx: Number, cy: Number, rx: Number, ry: Number, colour: Colour, alpha: float = 1.0) -> None:
        self.fill(self.ellipse_at(cx, cy, rx, ry), colour, alpha)

    def disc(self, cx: Number, cy: Number, r: Number, colour: Colour, alpha: float = 1.0) -> None:
        self.fill(self.ellipse_at(cx, cy, r, r), colour, alpha)

    def box(
        self, cx: Number, cy: Number, w: Number, h: Number, colour: Colour, turn: Number = 0.0, lean: Number = 0.0
    ) -> None:
        self.fill(self.box_at(cx, cy, w, h, turn, lean), colour)

    def line(self, x0: Number, y0: Number, x1: Number, y1: Number, r: Number, colour: Colour) -> None:
        self.fill(self.line_at(x0, y0, x1, y1, r), colour)

    def cone(self, cx: Number, top: Number, w: Number, h: Number, colour: Colour) -> None:
        self.fill(self.cone_at(cx, top, w, h), colour)


def pick(colours: Sequence[Sequence[float]], chance: Tensor) -> Tensor:
    """One of the colours [n, 3] for each number in 0 to 1: float32 [B, 3]."""
    table = torch.tensor(colours, device=chance.device)
    return table[(chance * len(colours)).long().clamp(max=len(colours) - 1)]
