"""The people: flat figures of adults, from young adult to old; no other age is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .brush import BLACK, GOLD, STEEL, WHITE, Brush, Colour, pick

HEADS_TALL = 6.5
"""A figure's height in heads, whatever its age: an adult's. The frame cuts it above the knees."""
HEAD = 0.098
"""Radius of a head at scale 1."""

SKIN = ((0.98, 0.83, 0.73), (0.87, 0.66, 0.44), (0.60, 0.39, 0.23), (0.30, 0.18, 0.11))
HAIR = ((0.10, 0.08, 0.08), (0.36, 0.20, 0.09), (0.93, 0.77, 0.35), (0.62, 0.26, 0.10))
GREY, WHITE_HAIR = (0.55, 0.56, 0.58), (0.97, 0.97, 0.98)
CLOTH = ((0.16, 0.36, 0.75), (0.15, 0.55, 0.32), (0.48, 0.25, 0.62), (0.10, 0.55, 0.60), (0.42, 0.45, 0.50))
TROUSERS = ((0.14, 0.17, 0.30), (0.22, 0.22, 0.24), (0.10, 0.28, 0.30))
SWIM = ((0.10, 0.85, 0.90), (1.0, 0.85, 0.10), (0.98, 0.25, 0.70))
NAVY, COAT, OLIVE = (0.10, 0.14, 0.34), (0.95, 0.96, 0.98), (0.36, 0.40, 0.18)


@dataclass(frozen=True)
class Body:
    """Where a figure stands: middle, top of the head and scale, float32 [B]; `side` is +1 where the busy hand is on
    the right. All else is measured from here."""

    x: Tensor
    top: Tensor
    s: Tensor
    side: float = 1.0

    @property
    def head(self) -> Tensor:
        """Height of the head's middle."""
        return self.top + HEAD * self.s

    def height(self) -> Tensor:
        """From top to toe, most of it outside the frame."""
        return HEADS_TALL * 2 * HEAD * self.s

    def y(self, heads: float) -> Tensor:
        """The height that lies so many heads below the top."""
        return self.top + heads * 2 * HEAD * self.s

    def hand(self) -> tuple[Tensor, Tensor]:
        """The busy hand."""
        return self.x + self.side * 0.215 * self.s, self.y(2.15)


@dataclass(frozen=True)
class Look:
    """Colours float32 [B, 3] and who has what, bool [B]."""

    skin: Tensor
    hair: Tensor
    shirt: Tensor
    trousers: Tensor
    swim: Tensor
    long: Tensor
    beard: Tensor
    middle: Tensor
    old: Tensor
    dressed: Tensor
    swimwear: Tensor
    stained: Tensor

    def rows(self, of: Tensor) -> Look:
        return Look(**{k: v[of] for k, v in vars(self).items()})


def _size(size: Tensor, wanted: Tensor) -> Tensor:
    """A size that is nothing where it is not wanted."""
    return torch.where(wanted, size, torch.full_like(size, -1.0))


def _where(b: Brush, wanted: Tensor, distance: Tensor, colour: Colour) -> None:
    b.fill(torch.where(wanted[:, None, None], distance, torch.ones_like(distance)), colour)


def body(b: Brush, at: Body, look: Look, raised: Tensor, punch: Tensor) -> None:
    """The figure without its head's hair and marks; `raised` bool [B]: the busy hand holds something; `punch` bool [B]:
    the other arm is stretched out."""
    x, s, k = at.x, at.s, at.side
    _where(b, look.long, b.box_at(x, at.y(0.95), 0.115 * s, 0.15 * s), look.hair)
    bare_leg = torch.where(look.dressed[:, None], look.trousers, look.skin)
    sleeve = torch.where(look.dressed[:, None], look.shirt, look.skin)
    for way in (-1.0, 1.0):
        b.line(x + way * 0.058 * s, at.y(3.4), x + way * 0.07 * s, at.y(6.2), 0.055 * s, bare_leg)
    b.line(x, at.y(0.9), x, at.y(1.3), 0.035 * s, look.skin)
    shoulder, elbow, hand = at.y(1.5), at.y(2.4), at.hand()
    b.line(x - k * 0.12 * s, shoulder, *_other(at, punch), 0.036 * s, sleeve)
    b.disc(*_other(at, punch), 0.04 * s, look.skin)
    low = (x + k * 0.175 * s, at.y(3.2))
    hx, hy = (torch.where(raised, h, d) for h, d in zip(hand, low, strict=True))
    b.line(x + k * 0.12 * s, shoulder, x + k * 0.17 * s, elbow, 0.036 * s, sleeve)
    b.line(x + k * 0.17 * s, elbow, hx, hy, 0.034 * s, sleeve)
    b.line(x, at.y(1.62), x, at.y(3.2), 0.115 * s, sleeve)
    _where(b, look.dressed, b.box_at(x, at.y(3.55), 0.115 * s, 0.045 * s), look.trousers)
    band = torch.minimum(b.box_at(x, at.y(3.45), 0.12 * s, 0.075 * s), b.box_at(x, at.y(3.85), 0.10 * s, 0.03 * s))
    _where(b, look.swimwear, band, look.swim)
    _where(b, look.swimwear & look.long, b.box_at(x, at.y(2.0), 0.115 * s, 0.045 * s), look.swim)
    _where(b, look.swimwear, b.box_at(x, at.y(3.45), 0.12 * s, 0.016 * s), WHITE)


def _other(at: Body, punch: Tensor) -> tuple[Tensor, Tensor]:
    """The hand that holds nothing."""
    x = at.x - at.side * torch.where(punch, 0.30, 0.175) * at.s
    return x, torch.where(punch, at.y(1.25), at.y(3.2))


def head(b: Brush, at: Body, look: Look) -> None:
    """Face, hair, beard and the marks of age."""
    x, y, s, r = at.x, at.head, at.s, HEAD * at.s
    b.ellipse(x, y, 0.88 * r, r, look.skin)
    dark = look.skin.mean(1, keepdim=True) < 0.35
    ink = torch.where(dark, torch.tensor(WHITE, device=b.image.device), torch.tensor(BLACK, device=b.image.device))
    beard = torch.maximum(b.ellipse_at(x, y + 0.12 * r, 0.98 * r, 1.12 * r), (y + 0.22 * r)[:, None, None] - b.y)
    _where(b, look.beard, beard, look.hair)
    for way in (-1.0, 1.0):
        b.disc(x + way * 0.36 * r, y, 0.13 * r, ink)
    b.line(x - 0.22 * r, y + 0.56 * r, x + 0.22 * r, y + 0.56 * r, 0.07 * r, (0.75, 0.35, 0.35))
    top = torch.maximum(b.ellipse_at(x, y - 0.08 * r, 1.0 * r, 1.08 * r), b.y - (y - 0.38 * r)[:, None, None])
    b.fill(top, look.hair)
    for way in (-1.0, 1.0):
        b.box(x + way * 0.88 * r, y - 0.1 * r, 0.1 * r, 0.32 * r, look.hair)
        _where(b, look.long, b.box_at(x + way * 0.98 * r, y + 0.75 * r, 0.22 * r, 1.15 * r), look.hair)
        frame = b.ellipse_at(x + way * 0.42 * r, y, 0.36 * r, 0.36 * r)
        _where(b, look.middle, frame.abs() - 0.075 * r[:, None, None], (0.15, 0.10, 0.45))
        crease = b.line_at(x + way * 0.30 * r, y + 0.28 * r, x + way * 0.66 * r, y + 0.36 * r, 0.05 * r)
        _where(b, look.old, crease, look.skin * 0.62)
    _where(b, look.middle, b.box_at(x, y, 0.12 * r, 0.07 * r), (0.15, 0.10, 0.45))
    cane = b.line_at(x - at.side * 0.20 * s, at.y(3.1), x - at.side * 0.22 * s, at.y(6.5), 0.02 * s)
    grip = b.line_at(x - at.side * 0.20 * s, at.y(3.1), x - at.side * 0.14 * s, at.y(3.05), 0.02 * s)
    _where(b, look.old, torch.minimum(cane, grip), (0.42, 0.24, 0.08))


# -- occupations: what is worn on the head, and over the clothes of who is dressed ----------------------------------


class Wear:
    """Brush and body of those who have an occupation, and those of them who are dressed."""

    def __init__(self, b: Brush, at: Body, dressed: Tensor) -> None:
        self.b, self.at, self.dressed = b, at, dressed
        self.x, self.y, self.r, self.s = at.x, at.head, HEAD * at.s, at.s

    def hat(self, dx: float, dy: float, w: float, h: float, colour: Colour, turn: float = 0.0) -> None:
        """A box on the head, in radii of the head."""
        self.b.box(self.x + dx * self.r, self.y + dy * self.r, w * self.r, h * self.r, colour, turn)

    def round(self, dx: float, dy: float, w: float, h: float, colour: Colour) -> None:
        self.b.ellipse(self.x + dx * self.r, self.y + dy * self.r, w * self.r, h * self.r, colour)

    def dome(self, dy: float, w: float, h: float, colour: Colour) -> None:
        """The upper half of an ellipse."""
        y = self.y + dy * self.r
        shape = self.b.ellipse_at(self.x, y, w * self.r, h * self.r)
        self.b.fill(torch.maximum(shape, self.b.y - y[:, None, None]), colour)

    def coat(self, colour: Colour, sleeves: bool = True) -> None:
        """Torso, and the arms' upper parts."""
        at, s = self.at, self.s
        shape = self.b.line_at(self.x, at.y(1.62), self.x, at.y(3.5), 0.122 * s)
        if sleeves:
            for way in (-1.0, 1.0):
                arm = self.b.line_at(self.x + way * 0.12 * s, at.y(1.5), self.x + way * 0.165 * s, at.y(2.3), 0.04 * s)
                shape = torch.minimum(shape, arm)
        _where(self.b, self.dressed, shape, colour)

    def patch(self, dx: float, heads: float, w: float, h: float, colour: Colour) -> None:
        """A box on the torso."""
        shape = self.b.box_at(self.x + dx * self.s, self.at.y(heads), w * self.s, h * self.s)
        _where(self.b, self.dressed, shape, colour)


def _nurse(w: Wear) -> None:
    w.hat(0, -0.95, 0.8, 0.3, WHITE)
    w.hat(0, -0.95, 0.32, 0.09, (0.0, 0.62, 0.75))
    w.hat(0, -0.95, 0.1, 0.26, (0.0, 0.62, 0.75))
    w.coat((0.55, 0.82, 0.95))
    w.patch(0, 2.6, 0.07, 0.16, WHITE)


def _doctor(w: Wear) -> None:
    w.hat(0, -0.62, 0.95, 0.1, (0.25, 0.27, 0.32))
    w.round(0, -0.72, 0.34, 0.34, (0.55, 0.85, 1.0))
    w.round(0, -0.72, 0.14, 0.14, (0.25, 0.27, 0.32))
    w.coat(COAT)
    w.patch(0, 2.5, 0.012, 0.22, (0.45, 0.48, 0.55))
    w.patch(-0.05, 1.75, 0.014, 0.08, (0.15, 0.45, 0.30))
    w.patch(0.05, 1.75, 0.014, 0.08, (0.15, 0.45, 0.30))


def _chef(w: Wear) -> None:
    w.hat(0, -1.2, 0.7, 0.35, WHITE)
    for dx in (-0.5, 0.0, 0.5):
        w.round(dx, -1.6, 0.42, 0.38, WHITE)
    w.hat(0, -0.85, 0.72, 0.06, (0.55, 0.6, 0.7))
    w.coat(WHITE)
    for heads in (1.7, 2.2, 2.7):
        w.patch(-0.03, heads, 0.012, 0.012, BLACK)
        w.patch(0.03, heads, 0.012, 0.012, BLACK)


def _firefighter(w: Wear) -> None:
    w.dome(-0.4, 1.05, 0.95, (0.92, 0.20, 0.12))
    w.hat(0, -0.42, 1.35, 0.12, (0.92, 0.20, 0.12))
    w.hat(0, -0.85, 0.24, 0.3, (1.0, 0.88, 0.2))
    w.coat((0.20, 0.20, 0.20))
    w.patch(0, 2.2, 0.122, 0.022, (0.85, 1.0, 0.1))
    w.patch(0, 3.0, 0.122, 0.022, (0.85, 1.0, 0.1))


def _police(w: Wear) -> None:
    w.dome(-0.55, 1.2, 0.75, NAVY)
    w.hat(0, -0.5, 0.85, 0.12, BLACK)
    w.round(0, -0.85, 0.22, 0.22, GOLD)
    w.coat(NAVY)
    w.patch(0.06, 1.85, 0.03, 0.03, GOLD)
    w.patch(0, 3.3, 0.12, 0.018, BLACK)


def _soldier(w: Wear) -> None:
    w.dome(-0.2, 1.15, 1.1, OLIVE)
    w.hat(0, -0.25, 1.2, 0.1, (0.24, 0.27, 0.12))
    w.round(-0.4, -0.75, 0.22, 0.16, (0.22, 0.24, 0.10))
    w.round(0.35, -0.6, 0.2, 0.14, (0.60, 0.58, 0.34))
    w.coat(OLIVE)
    for dx, heads in ((-0.05, 1.8), (0.05, 2.3), (-0.04, 2.8)):
        w.patch(dx, heads, 0.034, 0.026, (0.22, 0.24, 0.10))
    w.patch(0.05, 3.0, 0.03, 0.024, (0.60, 0.58, 0.34))


def _builder(w: Wear) -> None:
    w.dome(-0.4, 1.05, 0.85, (1.0, 0.85, 0.05))
    w.hat(0, -0.42, 1.15, 0.1, (1.0, 0.85, 0.05))
    w.hat(0, -0.9, 0.12, 0.4, (0.85, 0.65, 0.0))
    w.coat((1.0, 0.52, 0.08), sleeves=False)
    w.patch(0, 2.2, 0.12, 0.02, (0.95, 0.95, 0.7))
    w.patch(0, 2.9, 0.12, 0.02, (0.95, 0.95, 0.7))


def _farmer(w: Wear) -> None:
    w.dome(-0.5, 0.8, 0.75, (0.90, 0.74, 0.38))
    w.round(0, -0.5, 1.75, 0.2, (0.90, 0.74, 0.38))
    w.hat(0, -0.65, 0.78, 0.1, (0.50, 0.25, 0.10))
    w.patch(0, 2.75, 0.085, 0.17, (0.25, 0.40, 0.65))
    w.patch(-0.065, 1.75, 0.018, 0.12, (0.25, 0.40, 0.65))
    w.patch(0.065, 1.75, 0.018, 0.12, (0.25, 0.40, 0.65))


def _astronaut(w: Wear) -> None:
    ring = w.b.ellipse_at(w.x, w.y, 1.5 * w.r, 1.5 * w.r)
    w.b.fill(ring.abs() - 0.14 * w.r[:, None, None], (0.93, 0.95, 1.0))
    ring = w.b.ellipse_at(w.x, w.y, 1.3 * w.r, 1.3 * w.r)
    w.b.fill(ring.abs() - 0.06 * w.r[:, None, None], (0.20, 0.55, 0.95))
    w.coat((0.90, 0.92, 0.95))
    w.patch(0, 2.3, 0.07, 0.06, (0.20, 0.55, 0.95))
    w.patch(-0.03, 2.3, 0.016, 0.02, (1.0, 0.6, 0.1))
    w.patch(0.03, 2.3, 0.016, 0.02, (0.1, 0.9, 0.3))


def _professor(w: Wear) -> None:
    w.hat(0, -0.72, 0.8, 0.22, BLACK)
    w.hat(0, -1.05, 1.5, 0.13, BLACK)
    w.hat(1.25, -0.75, 0.08, 0.35, GOLD)
    w.round(1.25, -0.35, 0.16, 0.18, GOLD)
    w.coat((0.12, 0.11, 0.14))
    w.patch(0, 1.9, 0.03, 0.12, (0.45, 0.75, 0.95))


def _executive(w: Wear) -> None:
    w.hat(0, -1.2, 0.72, 0.6, (0.18, 0.18, 0.22))
    w.hat(0, -0.68, 1.25, 0.1, (0.18, 0.18, 0.22))
    w.hat(0, -0.85, 0.72, 0.1, (0.75, 0.76, 0.80))
    w.coat((0.18, 0.18, 0.22))
    w.patch(0, 1.85, 0.05, 0.10, WHITE)
    w.patch(0, 1.95, 0.018, 0.12, (0.15, 0.35, 0.85))


def _cleaner(w: Wear) -> None:
    w.dome(-0.35, 1.08, 0.85, (1.0, 0.60, 0.75))
    for dx, dy in ((-0.5, -0.6), (0.0, -0.85), (0.5, -0.6)):
        w.round(dx, dy, 0.14, 0.14, WHITE)
    w.round(1.05, -0.35, 0.25, 0.18, (1.0, 0.60, 0.75))
    w.patch(0, 2.7, 0.095, 0.20, (1.0, 0.60, 0.75))
    w.patch(0, 2.9, 0.05, 0.04, WHITE)


def _artist(w: Wear) -> None:
    w.round(-0.3, -0.85, 1.15, 0.42, (0.55, 0.15, 0.60))
    w.round(-0.4, -1.28, 0.12, 0.14, (0.55, 0.15, 0.60))
    w.coat((0.88, 0.85, 0.70))
    for dx, heads, tone in ((-0.06, 2.0, (0.1, 0.5, 1.0)), (0.05, 2.4, (1.0, 0.6, 0.0)), (-0.03, 2.9, (0.1, 0.7, 0.3))):
        w.patch(dx, heads, 0.022, 0.022, tone)


def _robber(w: Wear) -> None:
    w.dome(-0.35, 1.05, 0.85, BLACK)
    mask = w.b.box_at(w.x, w.y, 0.95 * w.r, 0.24 * w.r)
    holes = torch.minimum(
        w.b.ellipse_at(w.x - 0.36 * w.r, w.y, 0.14 * w.r, 0.14 * w.r),
        w.b.ellipse_at(w.x + 0.36 * w.r, w.y, 0.14 * w.r, 0.14 * w.r),
    )
    w.b.fill(torch.maximum(mask, -holes), BLACK)
    w.coat(WHITE)
    for heads in (1.5, 2.0, 2.5, 3.0, 3.5):
        w.patch(0, heads, 0.12, 0.024, BLACK)


def _monarch(w: Wear) -> None:
    w.hat(0, -0.82, 0.85, 0.2, GOLD)
    for dx in (-0.68, 0.0, 0.68):
        w.b.cone(w.x + dx * w.r, w.y - 1.55 * w.r, 0.26 * w.r, 0.6 * w.r, GOLD)
        w.round(dx, -0.82, 0.12, 0.12, (0.10, 0.55, 0.95))
    w.coat((0.55, 0.10, 0.50))
    w.patch(0, 2.6, 0.03, 0.22, (0.97, 0.95, 0.88))
    w.patch(0, 1.35, 0.11, 0.03, (0.97, 0.95, 0.88))


def _wizard(w: Wear) -> None:
    tone = (0.22, 0.20, 0.65)
    w.b.cone(w.x, w.y - 2.0 * w.r, 0.85 * w.r, 1.5 * w.r, tone)
    w.round(0, -0.5, 1.5, 0.18, tone)
    w.round(0.05, -1.0, 0.18, 0.18, (1.0, 0.92, 0.3))
    w.coat(tone)
    for dx, heads in ((-0.05, 1.9), (0.05, 2.4), (-0.02, 3.0)):
        w.patch(dx, heads, 0.018, 0.018, (1.0, 0.92, 0.3))


def _scientist(w: Wear) -> None:
    w.hat(0, -0.02, 1.05, 0.1, (0.20, 0.22, 0.25))
    for dx in (-0.42, 0.42):
        w.round(dx, -0.02, 0.42, 0.36, (0.20, 0.22, 0.25))
        w.round(dx, -0.02, 0.28, 0.24, (0.30, 1.0, 0.45))
    w.coat(COAT)
    w.patch(0, 2.5, 0.012, 0.22, (0.45, 0.48, 0.55))
    w.patch(0.065, 2.0, 0.03, 0.026, (0.30, 1.0, 0.45))


def _secretary(w: Wear) -> None:
    band = w.b.ellipse_at(w.x, w.y - 0.05 * w.r, 1.12 * w.r, 1.2 * w.r).abs() - 0.1 * w.r[:, None, None]
    w.b.fill(torch.maximum(band, w.b.y - w.y[:, None, None]), (0.10, 0.75, 0.65))
    w.round(-1.0, 0.05, 0.24, 0.32, (0.10, 0.75, 0.65))
    w.round(1.0, 0.05, 0.24, 0.32, (0.10, 0.75, 0.65))
    w.b.line(w.x + 0.95 * w.r, w.y + 0.2 * w.r, w.x + 0.4 * w.r, w.y + 0.75 * w.r, 0.07 * w.r, BLACK)
    w.coat((0.98, 0.90, 0.70))
    w.patch(0, 1.75, 0.05, 0.025, (0.10, 0.75, 0.65))


def _pilot(w: Wear) -> None:
    w.dome(-0.6, 1.25, 0.7, WHITE)
    w.hat(0, -0.55, 0.9, 0.14, BLACK)
    w.hat(0, -0.82, 0.5, 0.1, GOLD)
    w.coat((0.16, 0.17, 0.22))
    for way in (-1, 1):
        w.patch(way * 0.11, 1.42, 0.03, 0.02, GOLD)
    w.patch(0, 1.9, 0.035, 0.12, WHITE)
    w.patch(0, 2.0, 0.014, 0.12, BLACK)


MARKS: dict[str, Callable[[Wear], None]] = {
    "nurse": _nurse, "doctor": _doctor, "chef": _chef, "firefighter": _firefighter, "police": _police,
    "soldier": _soldier, "builder": _builder, "farmer": _farmer, "astronaut": _astronaut, "professor": _professor,
    "executive": _executive, "cleaner": _cleaner, "artist": _artist, "robber": _robber, "monarch": _monarch,
    "wizard": _wizard, "scientist": _scientist, "secretary": _secretary, "pilot": _pilot,
}  # fmt: skip


def hair_colours(age: Tensor, chance: Tensor, ages: Sequence[str]) -> Tensor:
    """Float32 [B, 3] for indices of `ages`: a colour of its own when young, then grey, then white."""
    young = pick(HAIR, chance)
    grey = torch.tensor(GREY, device=age.device).expand_as(young)
    white = torch.tensor(WHITE_HAIR, device=age.device).expand_as(young)
    middle, old = (age == ages.index(a) for a in ("middle-aged", "old"))
    return torch.where(old[:, None], white, torch.where(middle[:, None], grey, young))


__all__ = ["HEAD", "HEADS_TALL", "MARKS", "STEEL", "Body", "Look", "Wear", "body", "hair_colours", "head"]
