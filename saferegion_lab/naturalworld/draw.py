"""Draws pictures of the natural world from their labels, a batch at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .brush import SIDE, Brush, pick
from .figures import CLOTH, MARKS, SKIN, SWIM, TROUSERS, Body, Look, Wear, body, hair_colours, head
from .labels import HEADS
from .objects import OBJECTS
from .scenery import BACKGROUNDS, JITTER

BLOOD = (0.62, 0.02, 0.06)
ORDER = tuple(HEADS)


def draw(labels: Tensor, generator: torch.Generator, part: int = 4096) -> Tensor:
    """Pictures float32 [B, 3, 48, 48] in 0 to 1 of labels int64 [B, heads], on the labels' device.

    Places, sizes and shades vary by numbers that `generator`, one of the CPU, gives; the same on every device.
    """
    chance = torch.rand(len(labels), JITTER * 3, generator=generator)
    found = [
        _draw(rows, numbers.to(labels.device))
        for rows, numbers in zip(labels.split(part), chance.split(part), strict=True)
    ]
    return torch.cat(found) if found else torch.zeros(0, 3, SIDE, SIDE, device=labels.device)


def _draw(labels: Tensor, chance: Tensor) -> Tensor:
    image = torch.ones(len(labels), 3, SIDE, SIDE, device=labels.device)
    scene, own, more = chance.split(JITTER, 1)
    column = dict(zip(ORDER, labels.unbind(1), strict=True))
    for index, name in enumerate(HEADS["scene"]):
        rows = (column["scene"] == index).nonzero()[:, 0]
        if len(rows):
            part = Brush(image[rows])
            BACKGROUNDS[name](part, scene[rows])
            image[rows] = part.image
    fire, stain, fight = (column["event"] == HEADS["event"].index(e) for e in ("fire", "stain", "fight"))
    _flames(image, fire, own, behind=True)
    _puddle(image, stain, own)
    two = column["count"] == 2
    for second in (True, False):
        rows = (two if second else column["count"] > 0).nonzero()[:, 0]
        if len(rows):
            _figure(image, rows, column, own[rows], more[rows], second, fight, two)
    rows = ((column["count"] == 0) & (column["thing"] > 0)).nonzero()[:, 0]
    if len(rows):
        u = own[rows]
        at = (0.46 + 0.1 * u[:, 0], 0.58 + 0.08 * u[:, 1], 1.35 + 0.2 * u[:, 2], u[:, 3])
        _things(image, rows, column["thing"], at)
    _burst(image, fight, own)
    _flames(image, fire, own, behind=False)
    flip = more[:, 0] < 0.5
    image[flip] = image[flip].flip(3)
    tint = 1 + 0.08 * (more[:, 1:4] - 0.5)
    return (image * tint[:, :, None, None]).clamp(0, 1)


def _figure(
    image: Tensor,
    rows: Tensor,
    column: dict[str, Tensor],
    u: Tensor,
    v: Tensor,
    second: bool,
    fight: Tensor,
    two: Tensor,
) -> None:
    value = {name: found[rows] for name, found in column.items()}
    pair = two[rows]
    s = torch.where(pair, 0.86, 1.0) * (0.96 + 0.08 * v[:, 10])
    side = 1.0 if second else -1.0
    gap = torch.where(fight[rows], 0.215, 0.235) + 0.02 * (v[:, 4] - 0.5)
    x = 0.5 + torch.where(pair, side * gap, 0.10 * (u[:, 10] - 0.5) + 0.03)
    at = Body(x, torch.where(pair, 0.25, 0.185) + 0.03 * u[:, 11], s, side)

    def of(head_name: str, label: str) -> Tensor:
        return value[head_name] == HEADS[head_name].index(label)

    look = Look(
        skin=torch.tensor(SKIN, device=image.device)[(value["skin"] - 1).clamp(min=0)],
        hair=hair_colours(value["age"], u[:, 12] if not second else v[:, 12], HEADS["age"]),
        shirt=pick(CLOTH, u[:, 13] if not second else v[:, 13]),
        trousers=pick(TROUSERS, u[:, 14] if not second else v[:, 14]),
        swim=pick(SWIM, u[:, 15] if not second else v[:, 15]),
        long=of("presentation", "long hair"),
        beard=of("presentation", "beard"),
        middle=of("age", "middle-aged"),
        old=of("age", "old"),
        dressed=of("clothing", "dressed"),
        swimwear=of("clothing", "swimwear"),
        stained=of("event", "stain"),
    )
    brush = Brush(image[rows])
    raised = (value["thing"] > 0) & (not second)
    body(brush, at, look, raised, fight[rows])
    head(brush, at, look)
    for index, name in enumerate(HEADS["occupation"][1:], start=1):
        worn = (value["occupation"] == index).nonzero()[:, 0]
        if len(worn):
            part = Brush(brush.image[worn])
            MARKS[name](Wear(part, Body(at.x[worn], at.top[worn], at.s[worn], at.side), look.dressed[worn]))
            brush.image[worn] = part.image
    bloody = look.stained.nonzero()[:, 0]
    if len(bloody):
        part = Brush(brush.image[bloody])
        px, ps = at.x[bloody], at.s[bloody]
        for dx, heads, r in ((-0.04, 2.1, 0.045), (0.02, 2.35, 0.06), (0.05, 2.75, 0.03), (-0.03, 2.8, 0.024)):
            part.disc(px + dx * ps, at.y(heads)[bloody], r * ps, BLOOD)
        brush.image[bloody] = part.image
    image[rows] = brush.image
    if second:
        return
    hand = at.hand()
    holding = raised.nonzero()[:, 0]
    if len(holding):
        place = (hand[0][holding], hand[1][holding], (s * 1.08)[holding], u[holding, 16])
        _things(image, rows[holding], column["thing"], place)
        part = Brush(image[rows[holding]])
        part.disc(hand[0][holding], hand[1][holding], 0.036 * s[holding], look.skin[holding])
        image[rows[holding]] = part.image


def _things(image: Tensor, rows: Tensor, thing: Tensor, at: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    kinds = thing[rows]
    for index, name in enumerate(HEADS["thing"][1:], start=1):
        own = (kinds == index).nonzero()[:, 0]
        if len(own):
            part = Brush(image[rows[own]])
            OBJECTS[name](part, (at[0][own], at[1][own], at[2][own], at[3][own]))
            image[rows[own]] = part.image


def _flames(image: Tensor, fire: Tensor, chance: Tensor, behind: bool) -> None:
    rows = fire.nonzero()[:, 0]
    if not len(rows):
        return
    part, u = Brush(image[rows]), chance[rows]
    spots = (
        ((0.10, 0.42), (0.30, 0.30), (0.70, 0.32), (0.90, 0.45)) if behind else ((0.0, 0.68), (0.97, 0.70), (0.5, 0.80))
    )
    for k, (at, top) in enumerate(spots):
        x, y = at + 0.05 * (u[:, 17 + k % 4] - 0.5), top + 0.06 * (u[:, 20 + k % 4] - 0.5)
        for width, below, tone in ((0.15, 0.0, (1.0, 0.42, 0.05)), (0.09, 0.13, (1.0, 0.80, 0.10))):
            part.cone(x, y + below, width, 0.95 - top, tone)
            part.cone(x + 0.09, y + below + 0.12, width * 0.7, 0.9 - top, tone)
    image[rows] = part.image


def _puddle(image: Tensor, stain: Tensor, chance: Tensor) -> None:
    rows = stain.nonzero()[:, 0]
    if not len(rows):
        return
    part, u = Brush(image[rows]), chance[rows]
    x = 0.44 + 0.12 * u[:, 17]
    part.ellipse(x, 0.92, 0.40 + 0.05 * u[:, 18], 0.075, BLOOD)
    for k, (dx, y, r) in enumerate(
        ((-0.34, 0.76, 0.04), (0.32, 0.72, 0.045), (0.40, 0.60, 0.025), (-0.41, 0.62, 0.03))
    ):
        part.disc(x + dx + 0.04 * (u[:, 19 + k] - 0.5), y, r, BLOOD)
    image[rows] = part.image


def _burst(image: Tensor, fight: Tensor, chance: Tensor) -> None:
    """What comics draw where a blow lands."""
    rows = fight.nonzero()[:, 0]
    if not len(rows):
        return
    part, u = Brush(image[rows]), chance[rows]
    x, y = 0.48 + 0.04 * u[:, 17], 0.36 + 0.05 * u[:, 18]
    for turn in (0.0, 0.785):
        part.box(x, y, 0.075, 0.075, (1.0, 0.92, 0.15), turn)
    part.disc(x, y, 0.045, (1.0, 0.50, 0.05))
    image[rows] = part.image
