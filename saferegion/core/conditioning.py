"""What the text encoder hands to the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import ConditioningError
from .fingerprint import Fingerprint
from .spaces import POOLED, TOKENS, Space, uncovered

__all__ = ["POOLED", "TOKENS", "Conditioning", "Space", "View"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class View:
    """One space of a conditioning: ``rows`` [B, T, D] in the caller's dtype, ``mask`` bool [B, T] or None (all)."""

    space: str
    rows: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False, init=False)
class Conditioning:
    """Text conditioning of a batch; immutable.

    Args:
        tokens: ``[B, T, D]``, floating (not 8-bit), any device; never changed in place.
        mask: bool ``[B, T]``, the tokens that may move (None: all). The begin token of a CLIP chunk is the same for
            every prompt and should not move; padding and end tokens carry the sentence and should.
        pooled: ``[B, P]`` or None.
        spaces: which rows and channels belong to which embedding space (None: one space, ``tokens``). They are
            disjoint, and what none of them covers must be zero (the channels that SD3 fills up CLIP rows with).
        encoder: fingerprint of the text encoder, where known; a region refuses one that is not its own.
        movable: another name of ``mask``.

    Raises:
        ConditioningError: shapes, dtypes or spaces that do not fit together.
    """

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    spaces: tuple[Space, ...]
    encoder: Fingerprint | None

    def __init__(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        spaces: tuple[Space, ...] | None = None,
        encoder: Fingerprint | None = None,
        *,
        movable: Tensor | None = None,
    ) -> None:
        if movable is not None:
            if mask is not None:
                raise ConditioningError("mask and movable are one thing: give one of them.")
            mask = movable
        spaces = TOKENS if spaces is None else tuple(spaces)
        self._set(tokens, mask, pooled, spaces, encoder)
        self._check()

    def _set(self, *values: object) -> None:
        for name, value in zip(("tokens", "mask", "pooled", "spaces", "encoder"), values, strict=True):
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        tokens, mask, pooled = self.tokens, self.mask, self.pooled
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
            raise ConditioningError(f"tokens must be a floating tensor [batch, tokens, width]; got {_seen(tokens)}.")
        if mask is not None and (
            not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != tokens.shape[:2]
        ):
            raise ConditioningError(
                f"mask must be a bool tensor {tuple(tokens.shape[:2])}, as tokens have; got {_seen(mask)}."
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
        for name, tensor in (("tokens", tokens), ("pooled", pooled)):
            if tensor is not None and tensor.element_size() < 2:
                raise ConditioningError(
                    f"{name} are 8-bit ({_seen(tensor)}), too coarse to be moved: convert them to 16 bits or more."
                )
        if self.spaces is TOKENS:
            return
        for rows, channels in uncovered(self.spaces, tokens.shape[1], tokens.shape[2]):
            if bool(tokens[:, rows, channels].ne(0).any()):
                raise ConditioningError(
                    f"No space covers rows {rows.start} to {rows.stop - 1}, channels {channels.start} to "
                    f"{channels.stop - 1}, so they would stay unguarded: name the space they belong to."
                )

    @property
    def movable(self) -> Tensor | None:
        """Another name of ``mask``."""
        return self.mask

    def replace(self, tokens: Tensor, pooled: Tensor | None) -> Conditioning:
        """The same conditioning with other values of the same shapes."""
        new = object.__new__(Conditioning)
        new._set(tokens, self.mask, pooled, self.spaces, self.encoder)
        return new

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        """Some prompts of the batch, with everything else as it was."""
        new = object.__new__(Conditioning)
        parts = (None if t is None else t[rows] for t in (self.tokens, self.mask, self.pooled))
        new._set(*parts, self.spaces, self.encoder)
        return new

    def expand(self, count: int) -> Conditioning:
        """One prompt, ``count`` times, without copying."""
        new = object.__new__(Conditioning)
        parts = (None if t is None else t.expand(count, *t.shape[1:]) for t in (self.tokens, self.mask, self.pooled))
        new._set(*parts, self.spaces, self.encoder)
        return new

    def views(self) -> list[View]:
        """Every space, in order, and last :data:`POOLED` as one row, where there is one."""
        tokens, mask = self.tokens, self.mask
        if self.spaces is TOKENS:
            found = [View("tokens", tokens, mask)]
        else:
            found = [
                View(s.name, tokens[:, s.rows, s.channels], None if mask is None else mask[:, s.rows])
                for s in self.spaces
            ]
        if self.pooled is not None:
            found.append(View(POOLED, self.pooled.unsqueeze(1), None))
        return found

    def with_views(self, rows: dict[str, Tensor]) -> Conditioning:
        """The same with other rows ``[B, T, D]`` of some spaces; spaces that are not named keep their tensors."""
        tokens, pooled = self.tokens, self.pooled
        for space in self.spaces:
            if (new := rows.get(space.name)) is None:
                continue
            if new.shape == tokens.shape:
                tokens = new
            else:
                tokens = tokens.clone() if tokens is self.tokens else tokens
                tokens[:, space.rows, space.channels] = new
        if POOLED in rows:
            pooled = rows[POOLED][:, 0]
        return self.replace(tokens, pooled)


def _seen(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
