"""What of a ComfyUI conditioning is text, and how it is taken apart for the core and put together again.

ComfyUI hands a conditioning on as a tensor ``cross_attn`` and a dictionary. Which embedding spaces are in there depends
on the text encoder. It is told from what the encoder gives for a few fixed prompts, so that encoders that this pack has
never heard of are guarded by the same code:

* ``cross_attn`` is the space ``tokens``; rows of two encoders one after another (Stable Diffusion 3, whose CLIP rows
  are filled up with zeros) are ``clip`` and ``t5``;
* ``pooled_output`` is ``pooled``, except where no diffusion model reads it (Stable Diffusion 1 and 2);
* every other floating tensor that the encoder returns (``conditioning_llama3``, ``conditioning_mt5xl``, …) is a space.

Rows that may not move: begin tokens and templates (the same for every prompt, so told by their values), rows of zeros,
and rows that an ``attention_mask`` takes out, of an encoder that fills short prompts up and masks the filling. No other
mask is believed: an end token typed into the prompt masks whatever follows, and the diffusion models of Qwen-Image, and
of HunyuanDiT where the prompt is long, read those rows all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..saferegion.core.conditioning import Conditioning, Space
from ..saferegion.core.errors import ConditioningError
from ..saferegion.guard.selection import Guard, GuardReport
from .keys import LYRICS, MASK, PREFIX, refuse_unknown

TOKENS, CLIP_ROWS, T5_ROWS = "tokens", "clip", "t5"
SD3_WIDTH, SD3_CLIP_WIDTH = 4096, 2048
BEGIN_TOLERANCE = 0.25
"""Relative distance up to which a row is taken for a begin token. A LoRA moves it by a few hundredths; other tokens,
and the begin token of other encoders, are further away."""
_SAME = 1e-3

Told = TypeVar("Told")

Output = tuple[torch.Tensor, torch.Tensor | None, Mapping[str, Any]]
"""``cross_attn`` [B, T, D], ``pooled_output`` [B, P] or None, and everything else by its key."""


@dataclass(frozen=True, eq=False)
class _Part:
    """One space of a conditioning, as rows ``[B, T, D]``, and where they came from."""

    space: str
    rows: torch.Tensor
    mask: torch.Tensor  # bool [B, T], what may move
    key: str | None  # None: cross_attn
    where: torch.Tensor | None  # bool [T] rows of cross_attn; None: all


@dataclass(frozen=True, eq=False)
class Family:
    """Embedding spaces of one text encoder.

    Attributes:
        blank: whether ``cross_attn`` is nothing but zeros (HiDream without its T5).
        two_rows: whether CLIP rows (zeros beyond channel 2048) and T5 rows share ``cross_attn``.
        pooled: whether ``pooled_output`` holds text that the diffusion model reads.
        ignores_pooled: whether no diffusion model reads it, whatever it holds.
        keys: other text tensors of the dictionary, by key.
        masks: key of a mask that the encoder puts on the filling of short prompts -> rows up to which it fills.
        begin: space -> ``[P, D]`` rows that every prompt begins with; P may be 0.
        width: of ``cross_attn``.
    """

    blank: bool
    two_rows: bool
    pooled: bool
    ignores_pooled: bool
    keys: tuple[str, ...]
    masks: Mapping[str, int]
    begin: Mapping[str, torch.Tensor]
    width: int

    @classmethod
    def of(cls, outputs: Sequence[Output], reads_pooled: bool = True, masked: bool = True) -> Family:
        """From the outputs for :data:`~saferegion.fingerprint.PROBES`, one prompt each; whether the diffusion model
        reads the pooled output, and leaves out what the encoder masks.

        Raises:
            ConditioningError: the encoder gives no embeddings of text.
        """
        for tokens, _, _ in outputs:
            if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
                raise ConditioningError(
                    "This text encoder does not give token embeddings [batch, tokens, width], so it cannot be guarded; "
                    "connect the CLIP of a text-to-image model."
                )
        for _, _, extras in outputs:
            refuse_unknown(extras)
        tokens, _, _ = outputs[-1]
        width = tokens.shape[2]
        two = width == SD3_WIDTH and bool((_zero_tail(tokens) & tokens.ne(0).any(-1).any(0)).any())
        pooled = reads_pooled and any(p is not None and bool(p.ne(0).any()) for _, p, _ in outputs)
        keys = tuple(sorted({k for _, _, extras in outputs for k, v in extras.items() if _is_text(k, v)}))
        zeros = not any(bool(tokens.ne(0).any()) for tokens, _, _ in outputs)
        if zeros and not keys:
            raise ConditioningError(
                "This text encoder gives token embeddings of zeros, so it cannot be guarded; load all of its parts."
            )
        masks = {k: v.shape[-1] for _, _, extras in outputs for k, v in extras.items() if masked and _masks(k, v)}
        unknown = cls(zeros, two, pooled, not reads_pooled, keys, masks, {}, width)
        parts = [{p.space: p.rows[0] for p in unknown._parts(*output)} for output in outputs]
        spaces = {name for p in parts for name in p}
        begin = {name: _common([p[name] for p in parts if name in p]) for name in spaces}
        return cls(zeros, two, pooled, not reads_pooled, keys, masks, begin, width)

    # -- taking apart ----------------------------------------------------------------------------------------------

    def _parts(self, tokens: torch.Tensor, pooled: torch.Tensor | None, extras: Mapping[str, Any]) -> list[_Part]:
        def mask(key: str) -> Any:
            found = extras.get(key)
            return found if isinstance(found, torch.Tensor) and found.shape[-1] <= self.masks.get(key, 0) else None

        found = []
        if self.two_rows:
            clip = _zero_tail(tokens)
            for space, where in ((CLIP_ROWS, clip), (T5_ROWS, ~clip)):
                if bool(where.any()):
                    rows = tokens[:, where.to(tokens.device)]
                    rows = rows[:, :, :SD3_CLIP_WIDTH] if space == CLIP_ROWS else rows
                    found.append(self._part(space, rows, None, None, where))
        elif not self.blank:
            found.append(self._part(TOKENS, tokens, mask(MASK), None, None))
        for key in self.keys:
            if _is_text(key, extras.get(key)):
                rows = _as_rows(extras[key], key)
                found.append(self._part(_space(key), rows, mask(f"{MASK}_{_space(key)}"), key, None))
        return found

    def _part(self, space: str, rows: torch.Tensor, given: Any, key: str | None, where: torch.Tensor | None) -> _Part:
        mask = rows.ne(0).any(-1)
        begin = self.begin.get(space)
        if begin is not None and len(begin):
            mask = mask & ~_near(rows, begin)
        if isinstance(given, torch.Tensor) and given.ndim == 2 and given.shape[1] == rows.shape[1]:
            mask = mask & (given.to(rows.device) != 0)
        return _Part(space, rows, mask, key, where)

    def movable(self, rows: torch.Tensor) -> torch.Tensor:
        """bool ``[B, T]``: rows of ``cross_attn`` [B, T, D] that may move, of families whose text is one space."""
        return self._part(TOKENS, rows, None, None, None).mask

    def conditioning(
        self, tokens: torch.Tensor, pooled: torch.Tensor | None = None, extras: Mapping[str, Any] | None = None
    ) -> Conditioning:
        """The core's view of one conditioning; spaces of different width are filled up with zeros."""
        return self._pack(self._parts(tokens, pooled, extras or {}), self._pooled(pooled, tokens))

    def batch(self, outputs: Sequence[Output]) -> Conditioning:
        """The core's view of several prompts, one a row; shorter ones are filled up with rows that may not move."""
        split = [{p.space: p for p in self._parts(*output)} for output in outputs]
        names = list(dict.fromkeys(name for parts in split for name in parts))
        joined = []
        for name in names:
            one = next(parts[name] for parts in split if name in parts)
            longest = max(parts[name].rows.shape[1] for parts in split if name in parts)
            rows = one.rows.new_zeros(len(split), longest, one.rows.shape[2])
            mask = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
            for i, parts in enumerate(split):
                if name in parts:
                    t = parts[name].rows.shape[1]
                    rows[i, :t], mask[i, :t] = parts[name].rows[0], parts[name].mask[0]
            joined.append(_Part(name, rows, mask, None, None))
        pooled = [self._pooled(p, t) for t, p, _ in outputs]
        known = [p for p in pooled if p is not None]
        return self._pack(joined, torch.cat(known) if len(known) == len(outputs) else None)

    def _pooled(self, pooled: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
        if not self.pooled or pooled is None or not self._text_pooled(pooled):
            return None
        if len(pooled) == 1 and len(tokens) > 1:
            return pooled.expand(len(tokens), -1)
        return pooled

    @staticmethod
    def _text_pooled(pooled: torch.Tensor) -> bool:
        return bool(pooled.ne(0).any())

    @staticmethod
    def _pack(parts: Sequence[_Part], pooled: torch.Tensor | None) -> Conditioning:
        if len(parts) == 1:
            return Conditioning(parts[0].rows, parts[0].mask, pooled, (Space(parts[0].space),))
        widest = max(p.rows.shape[2] for p in parts)
        rows = [torch.nn.functional.pad(p.rows, (0, widest - p.rows.shape[2])) for p in parts]
        spaces, start = [], 0
        for p in parts:
            end = start + p.rows.shape[1]
            spaces.append(Space(p.space, slice(start, end), slice(0, p.rows.shape[2])))
            start = end
        tokens = torch.cat([r.to(rows[0]) for r in rows], 1)
        mask = torch.cat([p.mask.to(tokens.device) for p in parts], 1)
        return Conditioning(tokens, mask, pooled, tuple(spaces))

    # -- guarding --------------------------------------------------------------------------------------------------

    def guard(
        self,
        guard: Guard,
        tokens: torch.Tensor,
        pooled: torch.Tensor | None,
        extras: Mapping[str, Any],
        own: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any], GuardReport | None]:
        """One conditioning guarded: new tensors where something moved, the same objects where nothing did.

        ``own``: this encoder has made it just now, so its begin token is not asked where it comes from; some nodes
        encode prompts whose begin token they have masked.

        Returns:
            ``cross_attn``, ``pooled_output``, the changed keys of ``extras``, and the report (None: no text in it).

        Raises:
            ConditioningError: it cannot be guarded.
            UnresolvedError: a concept stayed open, so nothing may be painted of it.
        """

        def resolved(c: Conditioning) -> tuple[Conditioning, GuardReport]:
            after, report = guard.apply(c)
            report.require_resolved()
            return after, report

        return self.change(resolved, tokens, pooled, extras, own)

    def change(
        self,
        change: Callable[[Conditioning], tuple[Conditioning, Told]],
        tokens: torch.Tensor,
        pooled: torch.Tensor | None,
        extras: Mapping[str, Any],
        own: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any], Told | None]:
        """One conditioning as ``change`` leaves it, and what it tells; takes ``own``, returns and raises as
        :meth:`guard`."""
        self._check(tokens, pooled, extras)
        if not own:
            self._same_encoder(tokens)
        parts = self._parts(tokens, pooled, extras)
        if not any(bool(p.mask.any()) for p in parts) and self._pooled(pooled, tokens) is None:
            return tokens, pooled, {}, None
        before = self._pack(parts, self._pooled(pooled, tokens))
        after, report = change(before)
        if after is before:
            return tokens, pooled, {}, report
        changed: dict[str, Any] = {}
        if after.tokens is not before.tokens:
            for part, space in zip(parts, after.spaces or (), strict=True):
                rows = after.tokens[:, space.rows, space.channels]
                if part.key is not None:
                    changed[part.key] = _from_rows(rows, extras[part.key])
                elif part.where is None:
                    tokens = rows.to(tokens)
                else:
                    tokens = tokens.clone()
                    tokens[:, part.where.to(tokens.device), : rows.shape[2]] = rows.to(tokens)
        if after.pooled is not before.pooled:
            pooled = after.pooled
        return tokens, pooled, changed, report

    def _check(self, tokens: Any, pooled: Any, extras: Mapping[str, Any]) -> None:
        refuse_unknown(extras)
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
            raise ConditioningError(
                "This conditioning holds no token embeddings, so there is nothing that could be guarded; connect the "
                "output of a text encode node."
            )
        if tokens.shape[2] != self.width:
            raise ConditioningError(
                f"This conditioning is {tokens.shape[2]} wide and the connected CLIP gives {self.width}: connect the "
                "CLIP that made the conditioning, or take the guard out where a model reads no text at all."
            )
        if pooled is not None and (not isinstance(pooled, torch.Tensor) or pooled.ndim != 2):
            raise ConditioningError("pooled_output must be a tensor [batch, width] or absent.")
        if pooled is not None and not (self.pooled or self.ignores_pooled) and self._text_pooled(pooled):
            raise ConditioningError(
                "This conditioning carries a pooled output, which the connected CLIP does not give: connect the CLIP "
                "that made the conditioning."
            )
        lyrics = extras.get(LYRICS)
        if isinstance(lyrics, torch.Tensor) and int(lyrics.ne(0).sum()) > 1:
            raise ConditioningError(
                "This conditioning carries song lyrics, which go to the model as token ids and cannot be guarded: "
                "leave the lyrics empty, or take the guard out."
            )
        if self.blank and bool(tokens.ne(0).any()):
            raise ConditioningError(
                "This conditioning carries token embeddings, which the connected CLIP does not give: connect the CLIP "
                "that made the conditioning."
            )
        unknown = [k for k, v in extras.items() if _is_text(k, v) and k not in self.keys]
        if unknown:
            raise ConditioningError(
                f"This conditioning carries text in '{unknown[0]}', which the connected CLIP does not give: connect "
                "the CLIP that made the conditioning."
            )

    def _same_encoder(self, tokens: torch.Tensor) -> None:
        """The first row is the same for every prompt of one encoder and layer, and another one's otherwise."""
        space = CLIP_ROWS if self.two_rows else TOKENS
        begin = self.begin.get(space)
        if begin is None or not len(begin) or not bool(tokens.ne(0).any()):
            return
        first = tokens[:, :1, : begin.shape[1]]
        if not bool(_near(first, begin[:1]).all()):
            away = (first[:, 0].float() - begin[0].to(first.device)).norm(dim=-1).max() / begin[0].norm()
            raise ConditioningError(
                f"This conditioning was not made by the connected CLIP (its begin token is {float(away):.0%} off, "
                f"{BEGIN_TOLERANCE:.0%} is allowed): connect the CLIP that made it, after its LoRA and Set Last Layer "
                "nodes."
            )

    def vector(self, guard: Guard, vector: torch.Tensor) -> tuple[torch.Tensor, GuardReport]:
        """A single text embedding ``[B, D]``, such as GLIGEN's, guarded as pooled or as one token."""
        c = Conditioning(vector.unsqueeze(1), None, None, (Space(TOKENS),))
        if self.width != vector.shape[1]:
            raise ConditioningError(
                f"A GLIGEN text of width {vector.shape[1]} cannot be guarded with the connected CLIP, which is "
                f"{self.width} wide."
            )
        after, report = guard.apply(c)
        report.require_resolved()
        return (vector if after is c else after.tokens[:, 0]), report


def _is_text(key: str, value: Any) -> bool:
    return (
        key.startswith(PREFIX)
        and key != LYRICS
        and isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim >= 2
        and bool(value.ne(0).any())
    )


def _masks(key: str, value: Any) -> bool:
    return key.startswith(MASK) and isinstance(value, torch.Tensor) and bool(value.eq(0).any())


def _space(key: str) -> str:
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key.removeprefix(PREFIX).lower())
    return name[:64] or "text"


def _zero_tail(tokens: torch.Tensor) -> torch.Tensor:
    """bool ``[T]`` on the CPU: rows without anything beyond the width of Stable Diffusion 3's CLIP encoders."""
    return tokens[:, :, SD3_CLIP_WIDTH:].eq(0).all(-1).all(0).cpu()


def _as_rows(value: torch.Tensor, key: str) -> torch.Tensor:
    """``[B, T, D]``; several layers ``[B, L, T, D]`` become rows, the layers of one token side by side, and a vector
    ``[B, D]`` becomes one row."""
    if value.ndim == 2:
        return value.unsqueeze(1)
    if value.ndim == 3:
        return value
    if value.ndim == 4:
        return value.transpose(1, 2).flatten(1, 2)
    raise ConditioningError(f"'{key}' has {value.ndim} dimensions, and text of that shape is not known.")


def _from_rows(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if like.ndim < 4:
        return rows.reshape(like.shape).to(like)
    b, layers, t, d = like.shape
    return rows.reshape(b, t, layers, d).transpose(1, 2).contiguous().to(like)


def _common(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[P, D]`` rows with which all of ``rows`` [T, D] begin, float32."""
    length = min(len(r) for r in rows)
    first = rows[0][:length].float()
    size = first.norm(dim=-1).clamp_min(1e-12)
    same = torch.ones(length, dtype=torch.bool, device=first.device)
    for other in rows[1:]:
        same &= (other[:length].float() - first).norm(dim=-1) <= _SAME * size
    count = int(same.int().cumprod(0).sum())
    longest = max(len(r) for r in rows)
    return first[: count if count < longest else 0].clone()


def _near(rows: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
    """bool ``[B, T]``: rows that are the first of ``begin`` [P, D] anywhere, or another of them at its own place."""
    begin = begin.to(rows.device)
    if rows.shape[-1] != begin.shape[-1]:
        return torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
    found = _is(rows, begin[0])
    for t in range(1, min(len(begin), rows.shape[1])):
        found[:, t] |= _is(rows[:, t], begin[t])
    return found


def _is(rows: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return (rows.float() - row).norm(dim=-1) <= BEGIN_TOLERANCE * row.norm()
