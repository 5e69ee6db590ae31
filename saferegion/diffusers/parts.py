"""What of the return value of ``encode_prompt`` is text: how it is taken apart for the core and put together again.

Rows that may not move: those that every prompt begins with (begin tokens, templates), rows of zeros, and rows that a
returned mask takes out. Stable Diffusion 3 puts CLIP rows, filled up with zeros, and T5 rows one after another: two
spaces. Rows of several layers ``[L, B, T, D]`` become rows one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.conditioning import Conditioning, Space
from ..core.errors import ConditioningError
from .table import Signature, Slot

CLIP_ROWS, T5_ROWS = "clip", "t5"
BEGIN_TOLERANCE = 0.25
"""Relative distance up to which a row is taken for a begin token: weights of a prompt and LoRA move it by less."""
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class Part:
    """One space of a batch of prompts, as rows [B, T, D] with a bool mask [B, T] of what may move.

    ``at``: place in what was returned. ``where``: bool [T], its rows of the tensor there; None: all.
    """

    space: str
    rows: Tensor
    mask: Tensor
    at: int
    where: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """The spaces of one pipeline class on one text encoder.

    Attributes:
        slots: what ``encode_prompt`` returns, in order.
        clip_width: channels of CLIP rows in tokens that hold T5 rows too; None where they hold one kind.
        begin: space -> [P, D] rows that every prompt begins with; P may be 0.
        left_out: spaces that say nothing, such as those of an encoder that is not loaded.
    """

    slots: tuple[Slot, ...]
    clip_width: int | None = None
    begin: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, pipe: Any, signature: Signature, probes: Sequence[Any]) -> Layout:
        """From what ``encode_prompt`` returned for each of some prompts.

        Raises:
            ConditioningError: it gives no embeddings of text, or something else than the table says.
        """
        two = type(pipe).__name__.startswith("StableDiffusion3")
        first = cls(signature.slots, _clip_width(pipe) if two else None)
        parts = [{p.space: p for p in first.parts(found)} for found in probes]
        spaces = {s: [p[s].rows[0] for p in parts] for s in parts[0] if all(s in p for p in parts)}
        silent = frozenset(s for s, rows in spaces.items() if not any(bool(r.ne(0).any()) for r in rows))
        if not set(spaces) - silent:
            raise ConditioningError(
                f"{type(pipe).__name__} gives no embeddings of text, so it cannot be guarded: load its text encoder."
            )
        begin = {s: _common(rows) for s, rows in spaces.items() if s not in silent}
        return replace(first, begin=begin, left_out=silent)

    def check(self, found: Any) -> tuple[Any, ...]:
        """What was returned, as a tuple. Raises ConditioningError: it is not what the table says."""
        given = found if isinstance(found, tuple) else (found,)
        if len(given) != len(self.slots):
            raise ConditioningError(
                f"encode_prompt returned {len(given)} things where {len(self.slots)} were expected, so it cannot be "
                "guarded: install the version of diffusers that Safe Region knows."
            )
        for value, slot in zip(given, self.slots, strict=True):
            if slot.kind != "tokens" or slot.negative or _is_rows(value):
                continue
            raise ConditioningError(
                f"encode_prompt returned {type(value).__name__} where embeddings of text were expected, so nothing "
                "could be guarded: give a prompt, or prompt_embeds [prompts, tokens, width]."
            )
        return given

    def parts(self, found: Any) -> list[Part]:
        """The text of the positive prompts, by space."""
        given = self.check(found)
        masks = {
            s.space: v
            for s, v in zip(self.slots, given, strict=True)
            if s.kind == "mask" and not s.negative and isinstance(v, Tensor) and v.ndim == 2
        }
        parts: list[Part] = []
        for at, (slot, value) in enumerate(zip(self.slots, given, strict=True)):
            if slot.negative or value is None or slot.kind not in ("tokens", "layers"):
                continue
            if slot.kind == "tokens" and self.clip_width is not None:
                parts += self._two(value, at)
            else:
                parts.append(self._part(slot.space, *_rows(slot, value), at, masks.get(slot.space)))
        return [p for p in parts if p.space not in self.left_out]

    def _two(self, value: Tensor, at: int) -> list[Part]:
        clip = value[:, :, self.clip_width :].eq(0).all(-1).all(0) & value.ne(0).any(-1).any(0)
        found = []
        for space, where in ((CLIP_ROWS, clip), (T5_ROWS, ~clip)):
            if bool(where.any()):
                rows = value[:, where]
                rows = rows[:, :, : self.clip_width] if space == CLIP_ROWS else rows
                found.append(replace(self._part(space, rows, None, at, None), where=where))
        return found

    def _part(self, space: str, rows: Tensor, there: Tensor | None, at: int, given: Tensor | None) -> Part:
        mask = rows.ne(0).any(-1)
        begin = self.begin.get(space)
        if begin is not None and len(begin):
            mask = mask & ~_near(rows, begin)
        if there is not None:
            mask = mask & there
        if given is not None and given.shape == mask.shape:
            mask = mask & (given.to(mask.device) != 0)
        return Part(space, rows, mask, at)

    def pooled(self, found: Any) -> tuple[int, Tensor] | None:
        """The place and the vectors [B, D] of the positive pooled output; None where there is none, or of zeros."""
        for at, (slot, value) in enumerate(zip(self.slots, self.check(found), strict=True)):
            if slot.kind == "pooled" and not slot.negative and isinstance(value, Tensor) and bool(value.ne(0).any()):
                return at, value
        return None

    def conditioning(self, found: Any) -> Conditioning:
        """The core's view of a batch; spaces of different width are filled up with zeros."""
        parts, pooled = self.parts(found), self.pooled(found)
        vectors = None if pooled is None else pooled[1].flatten(1)
        if len(parts) == 1:
            return Conditioning(parts[0].rows, parts[0].mask, vectors, (Space(parts[0].space),))
        widest = max(p.rows.shape[2] for p in parts)
        rows = [torch.nn.functional.pad(p.rows, (0, widest - p.rows.shape[2])) for p in parts]
        spaces, start = [], 0
        for p in parts:
            end = start + p.rows.shape[1]
            spaces.append(Space(p.space, slice(start, end), slice(0, p.rows.shape[2])))
            start = end
        tokens = torch.cat([r.to(rows[0]) for r in rows], 1)
        return Conditioning(tokens, torch.cat([p.mask for p in parts], 1), vectors, tuple(spaces))

    def put(self, found: Any, before: Conditioning, after: Conditioning, moved: Sequence[int]) -> Any:
        """What was returned, with the prompts ``moved`` taken from ``after``: new tensors, what was given stays."""
        given = list(self.check(found))
        which = torch.tensor(list(moved), device=before.tokens.device)
        if after.tokens is not before.tokens:
            views = {v.space: v.rows for v in after.views()}
            for part in self.parts(found):
                given[part.at] = _put(self.slots[part.at], given[part.at], part, views[part.space], which)
        pooled = self.pooled(found)
        if pooled is not None and after.pooled is not None and after.pooled is not before.pooled:
            at, value = pooled
            new = value.clone()
            new[which.to(new.device)] = after.pooled[which].reshape(len(which), *value.shape[1:]).to(new)
            given[at] = new
        return tuple(given) if isinstance(found, tuple) else given[0]

    def mixed(self, found: Any, other: Any, rows: Sequence[int]) -> Any:
        """``found`` with the prompts ``rows`` of ``other`` in place of its own; None where their shapes differ."""
        given, new = list(self.check(found)), self.check(other)
        for at, slot in enumerate(self.slots):
            a, b = given[at], new[at]
            if slot.negative or a is None:
                continue
            if isinstance(a, list):
                given[at] = [b[i] if i in rows else x for i, x in enumerate(a)]
                continue
            if slot.kind == "other":
                continue
            if b is None or a.shape != b.shape:
                return None
            dim = 1 if slot.kind == "layers" else 0
            which = torch.tensor(list(rows), device=a.device)
            given[at] = a.index_copy(dim, which, b.to(a).index_select(dim, which))
        return tuple(given) if isinstance(found, tuple) else given[0]


def _is_rows(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point() for v in value)
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


def _rows(slot: Slot, value: Any) -> tuple[Tensor, Tensor | None]:
    """[B, T, D], and bool [B, T] of rows that are there, where they are not the same for every prompt."""
    if isinstance(value, list):
        rows = torch.nn.utils.rnn.pad_sequence(value, batch_first=True)
        lengths = torch.tensor([len(v) for v in value], device=rows.device)
        return rows, torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    if slot.kind == "layers":
        return value.transpose(0, 1).flatten(1, 2), None
    return value, None


def _put(slot: Slot, value: Any, part: Part, rows: Tensor, which: Tensor) -> Any:
    if isinstance(value, list):
        chosen = set(which.tolist())
        return [rows[i, : len(v)].to(v) if i in chosen else v for i, v in enumerate(value)]
    new = value.clone()
    at = which.to(new.device)
    if slot.kind == "layers":
        count, _, length, width = value.shape
        new[:, at] = rows[which].reshape(len(which), count, length, width).transpose(0, 1).to(new)
    elif part.where is None:
        new[at] = rows[which].to(new)
    else:
        place = part.where.nonzero()[:, 0]
        new[at[:, None], place, : rows.shape[2]] = rows[which].to(new)
    return new


def _clip_width(pipe: Any) -> int:
    """Channels of both CLIP encoders side by side."""
    widths = [getattr(getattr(pipe, n, None), "config", None) for n in ("text_encoder", "text_encoder_2")]
    found = sum(int(c.hidden_size) for c in widths if c is not None)
    if not found:
        raise ConditioningError("The CLIP text encoders of this pipeline are not loaded, so it cannot be guarded.")
    return found


def _common(rows: Sequence[Tensor]) -> Tensor:
    """[P, D] rows with which all of ``rows`` [T, D] begin, float32."""
    length = min(len(r) for r in rows)
    first = rows[0][:length].float()
    size = first.norm(dim=-1).clamp_min(1e-12)
    same = torch.ones(length, dtype=torch.bool, device=first.device)
    for other in rows[1:]:
        same &= (other[:length].float() - first).norm(dim=-1) <= _SAME * size
    count = int(same.int().cumprod(0).sum())
    longest = max(len(r) for r in rows)
    return first[: count if count < longest else 0].clone()


def _near(rows: Tensor, begin: Tensor) -> Tensor:
    """bool [B, T]: rows that are the first of ``begin`` anywhere, or another of them at its own place."""
    begin = begin.to(rows.device)
    if rows.shape[-1] != begin.shape[-1]:
        raise ConditioningError(
            f"These embeddings are {rows.shape[-1]} wide and the text encoder gives {begin.shape[-1]}, so they cannot "
            "be guarded: encode the prompt with this pipeline's text encoder."
        )
    found = _is(rows, begin[0])
    for t in range(1, min(len(begin), rows.shape[1])):
        found[:, t] |= _is(rows[:, t], begin[t])
    return found


def _is(rows: Tensor, row: Tensor) -> Tensor:
    near: Tensor = (rows.float() - row).norm(dim=-1) <= BEGIN_TOLERANCE * row.norm()
    return near
