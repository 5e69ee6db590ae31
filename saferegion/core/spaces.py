"""The embedding spaces a conditioning consists of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from .errors import ConditioningError

POOLED = "pooled"
"""Name of the space of the pooled vector; it is never listed among the spaces of the tokens."""

_NAME = re.compile(r"[a-z0-9_]{1,64}")

Rectangle = tuple[slice, slice]
"""Rows and channels of ``tokens``."""


class Space(NamedTuple):
    """One embedding space inside ``tokens``: which rows of dim 1 and which channels of dim 2 belong to it.

    SD1.x, SD2.x, SDXL and T5 conditionings are one space, ``tokens``. SD3 puts CLIP rows and T5 rows one after
    another: two spaces in one tensor.
    """

    name: str
    rows: slice = slice(None)
    channels: slice = slice(None)


TOKENS = (Space("tokens"),)


def is_name(text: str) -> bool:
    """Whether ``text`` may name a space of tokens: a-z, 0-9 and _, and not :data:`POOLED`."""
    return text != POOLED and _NAME.fullmatch(text) is not None


def uncovered(spaces: Sequence[Space], length: int, width: int) -> list[Rectangle]:
    """What of ``length`` rows and ``width`` channels no space covers, as rectangles.

    Raises:
        ConditioningError: spaces overlap, are empty, skip rows, or are named twice or wrongly.
    """
    if not spaces or len({s.name for s in spaces}) != len(spaces):
        raise ConditioningError("spaces must be a non-empty tuple of Space with distinct names.")
    boxes: list[tuple[int, int, int, int]] = []
    for space in spaces:
        if not is_name(space.name):
            raise ConditioningError(f"A space is named with a-z, 0-9 and _, not '{POOLED}'; got {space.name!r}.")
        top, bottom, skip = space.rows.indices(length)
        left, right, jump = space.channels.indices(width)
        if skip != 1 or jump != 1 or (right <= left and width > 0):
            raise ConditioningError(f"Space '{space.name}' must be a run of neighbouring rows and channels.")
        for other, (up, down, near, far) in zip(spaces, boxes, strict=False):
            if top < down and up < bottom and left < far and near < right:
                raise ConditioningError(f"The spaces '{other.name}' and '{space.name}' overlap.")
        boxes.append((top, max(top, bottom), left, right))
    if sum((b - t) * (r - lo) for t, b, lo, r in boxes) == length * width:
        return []
    cuts = sorted({0, length, *(edge for t, b, _, _ in boxes for edge in (t, b))})
    holes: list[Rectangle] = []
    for top, bottom in itertools.pairwise(cuts):
        at = 0
        for left, right in sorted((lo, r) for t, b, lo, r in boxes if t <= top and bottom <= b):
            if left > at:
                holes.append((slice(top, bottom), slice(at, left)))
            at = right
        if at < width:
            holes.append((slice(top, bottom), slice(at, width)))
    return holes
