"""What the text encoder hands to the sampler, and the embedding spaces it consists of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from .errors import ConditioningError

if TYPE_CHECKING:
    from .fingerprint import Fingerprint

POOLED = "pooled"
MEAN = "_mean"
"""Ending of the name of a space's sentence space: the mean of the tokens that may move."""

_NAME = re.compile(r"[a-z0-9_]{1,64}")


class Space(NamedTuple):
    """One embedding space inside ``tokens``: which rows of dim 1 and which channels of dim 2 belong to it.

    SD1.x, SD2.x, SDXL and T5 conditionings are one space, ``tokens``. SD3 puts CLIP rows and T5 rows one after
    another: two spaces in one tensor. ``pooled`` is a space of its own and is never listed here.
    """

    name: str
    rows: slice = slice(None)
    channels: slice = slice(None)


TOKENS = (Space("tokens"),)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Text conditioning of a batch.

    Args:
        tokens: ``[B, T, D]``, any floating dtype, any device; never changed in place.
        movable: bool ``[B, T]``, the tokens that may move (None: all). The begin token of a CLIP chunk is the same
            for every prompt and should not move; padding and end tokens carry the sentence and should.
        pooled: ``[B, P]`` or None.
        spaces: which rows and channels belong to which embedding space (None: one space, ``tokens``).
        encoder: fingerprint of the text encoder, where known; a region refuses one that is not its own.

    Raises:
        ConditioningError: shapes or dtypes that do not fit together.
    """

    tokens: torch.Tensor
    movable: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    spaces: tuple[Space, ...] | None = None
    encoder: Fingerprint | None = None

    def __post_init__(self) -> None:
        tokens, movable, pooled = self.tokens, self.movable, self.pooled
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
            raise ConditioningError(f"tokens must be a floating tensor [batch, tokens, width]; got {_seen(tokens)}.")
        if movable is not None and (
            not isinstance(movable, torch.Tensor) or movable.dtype != torch.bool or movable.shape != tokens.shape[:2]
        ):
            raise ConditioningError(
                f"movable must be a bool tensor {tuple(tokens.shape[:2])}, as tokens have; got {_seen(movable)}."
            )
        if pooled is not None and (
            not isinstance(pooled, torch.Tensor)
            or pooled.ndim != 2
            or not pooled.is_floating_point()
            or pooled.shape[0] != tokens.shape[0]
        ):
            raise ConditioningError(
                f"pooled must be a floating tensor [{tokens.shape[0]}, width] or None; got {_seen(pooled)}."
            )
        if self.spaces is None:
            object.__setattr__(self, "spaces", TOKENS)
        elif not self.spaces or len({s.name for s in self.spaces}) != len(self.spaces):
            raise ConditioningError("spaces must be a non-empty tuple of Space with distinct names.")
        elif bad := [s.name for s in self.spaces if not _may_be_called(s.name)]:
            raise ConditioningError(
                f"A space is named with a-z, 0-9 and _, not '{POOLED}' and without '{MEAN}' at the end; got {bad[0]!r}."
            )

    def replace(self, tokens: torch.Tensor, pooled: torch.Tensor | None) -> Conditioning:
        """The same conditioning with other values."""
        return Conditioning(tokens, self.movable, pooled, self.spaces, self.encoder)


def _may_be_called(name: str) -> bool:
    return name != POOLED and not name.endswith(MEAN) and _NAME.fullmatch(name) is not None


def _seen(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
