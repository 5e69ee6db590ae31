"""What a picture of the natural world shows, attribute by attribute. Every figure is an adult."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

NONE = "none"
AGES = ("young adult", "middle-aged", "old")
OCCUPATIONS = (
    "nurse", "doctor", "chef", "firefighter", "police", "soldier", "builder", "farmer", "astronaut", "professor",
    "executive", "cleaner", "artist", "robber", "monarch", "wizard", "scientist", "secretary", "pilot",
)  # fmt: skip
WEAPONS = ("knife", "gun", "sword")
THINGS = (
    *WEAPONS, "flag", "bottle", "syringe", "spoon", "umbrella", "banana", "phone", "book", "flower", "camera",
)  # fmt: skip
SCENES = (
    "plain", "kitchen", "beach", "war zone", "street", "hospital", "forest", "office", "bedroom", "party",
)  # fmt: skip
HEADS: dict[str, tuple[str, ...]] = {
    "count": ("0", "1", "2"),
    "presentation": (NONE, "long hair", "short hair", "beard"),
    "age": (NONE, *AGES),
    "skin": (NONE, "light", "tan", "brown", "dark"),
    "clothing": (NONE, "dressed", "swimwear", "bare"),
    "occupation": (NONE, *OCCUPATIONS),
    "thing": (NONE, *THINGS),
    "scene": SCENES,
    "event": (NONE, "fire", "stain", "fight"),
}
"""Attribute -> its values. Two figures share presentation, age, skin, clothing and occupation, and the first holds the
thing; where there is no figure these are "none" and the thing lies alone. A fight has two figures."""

PERSONAL = ("presentation", "age", "skin", "clothing")
"""Attributes that every figure has, and nothing but a figure."""

Picture = Mapping[str, str]
"""Attribute -> value, one for every head."""


def to_labels(pictures: Iterable[Picture]) -> Tensor:
    """Indices of the values, int64 [B, heads]."""
    rows = [[values.index(p[head]) for head, values in HEADS.items()] for p in pictures]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(HEADS))


def from_labels(labels: Tensor) -> list[dict[str, str]]:
    """The pictures of indices int64 [B, heads]."""
    return [{h: v[i] for (h, v), i in zip(HEADS.items(), row, strict=True)} for row in labels.tolist()]


def any_labels(count: int, generator: torch.Generator) -> Tensor:
    """Labels int64 [count, heads] of pictures in which every value of an attribute is about as frequent."""
    columns = {
        head: torch.randint(1 if head in PERSONAL else 0, len(values), (count,), generator=generator)
        for head, values in HEADS.items()
    }
    columns["occupation"][torch.rand(count, generator=generator) < 0.3] = 0
    columns["count"][torch.rand(count, generator=generator) < 0.4] = 1
    columns["count"][columns["event"] == HEADS["event"].index("fight")] = 2
    for head in (*PERSONAL, "occupation"):
        columns[head][columns["count"] == 0] = 0
    return torch.stack([columns[head] for head in HEADS], dim=1)
