"""The webui's conditionings as the library's: which rows and channels belong to which embedding space.

A conditioning of the webui is a tensor ``[T, D]`` (SD1.x, SD2.x, language models) or a mapping with ``crossattn``
``[T, D]`` and ``vector`` ``[V]`` (SDXL, SD3, Flux); further entries (Flux: ``guidance``) are passed through. Some hosts
put further dimensions of one in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saferegion.core.conditioning import Conditioning, Space
from saferegion.core.fingerprint import Fingerprint

from .refusal import SafeRegionRefused

CHUNK = 77
TIME_EMBEDDING = 256
"""Channels of one number (a size, a crop, a score) in SDXL's ``vector``, behind the pooled text."""


BEGIN_TOLERANCE = 0.25
"""Relative distance up to which a row is taken for one of a template: a LoRA moves it by a few hundredths."""
_SAME = 1e-3


def tokens_of(cond: Any) -> torch.Tensor:
    """``[T, D]`` of one prompt's conditioning."""
    tokens: torch.Tensor = cond["crossattn"] if isinstance(cond, Mapping) else cond
    return tokens.reshape(-1, tokens.shape[-1]) if tokens.ndim > 2 else tokens


def batch_of(conds: Any) -> torch.Tensor:
    """``[B, T, D]`` of what a host gives for some prompts at once: a tensor, a mapping, or a list of one each."""
    if isinstance(conds, list | tuple):
        return torch.stack([tokens_of(cond) for cond in conds])
    tokens: torch.Tensor = conds["crossattn"] if isinstance(conds, Mapping) else conds
    return tokens.reshape(len(tokens), -1, tokens.shape[-1]) if tokens.ndim > 3 else tokens


def parts_of(conds: Any) -> list[Any]:
    """The conditionings of single prompts in what a host gives for some at once."""
    if isinstance(conds, Mapping):
        return [{k: v[i] for k, v in conds.items()} for i in range(len(conds["crossattn"]))]
    return list(conds)


def whole_of(conds: Any, parts: Sequence[Any]) -> Any:
    """As ``conds``, of other ``parts``."""
    if isinstance(conds, Mapping):
        new = {k: torch.stack([part[k] for part in parts]) for k in conds}
        return type(conds)(new) if type(conds) is not dict else new
    return torch.stack(list(parts)) if isinstance(conds, torch.Tensor) else list(parts)


def vector_of(cond: Any) -> torch.Tensor | None:
    return cond.get("vector") if isinstance(cond, Mapping) else None


@dataclass(frozen=True, eq=False)
class Layout:
    """How a family arranges its conditionings.

    Attributes:
        kind: ``clip`` (chunks of 77 rows, each with a begin token), ``sd3`` (CLIP chunks, then rows of T5) or ``rows``
            (T5 and language models: as many as a prompt needs, or filled up).
        pooled: leading channels of ``vector`` that text decides; 0: there is no pooled text.
        t5: T5 rows follow the CLIP rows (``sd3``; false where T5 is switched off and they are zero).
        begin: ``[P, D]`` rows that every prompt begins with (``rows``: the template of a language model).
    """

    kind: str = "clip"
    pooled: int = 0
    t5: bool = False
    begin: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1))

    @classmethod
    def of(
        cls,
        tokens: torch.Tensor,
        vectors: torch.Tensor | None,
        kind: str = "clip",
        lengths: Sequence[int] | None = None,
    ) -> Layout:
        """From the host's conditionings of some different prompts, ``[B, T, D]`` and ``[B, V]``; see
        :meth:`conditioning`."""
        begin = _common(tokens, lengths) if kind == "rows" else torch.zeros(0, 1)
        if vectors is None:
            return cls(kind, begin=begin)
        pooled = vectors.shape[1]
        if kind == "clip":  # what follows the pooled text is the same for all prompts, in whole embeddings
            differs = (vectors != vectors[:1]).any(0).nonzero()
            behind = pooled - int(differs.max()) - 1 if len(differs) else pooled
            pooled -= behind // TIME_EMBEDDING * TIME_EMBEDDING
        return cls(kind, pooled, kind == "sd3" and bool(tokens[..., pooled:].any()), begin)

    def conditioning(
        self,
        tokens: torch.Tensor,
        vectors: torch.Tensor | None,
        encoder: Fingerprint | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Conditioning:
        """``tokens`` ``[B, T, D]`` and ``vectors`` ``[B, V]`` of the host as one conditioning of the library.

        ``lengths``: rows of each prompt (None: all); what follows them was filled up.

        Raises:
            SafeRegionRefused: rows that are not whole chunks.
        """
        pooled = vectors[:, : self.pooled] if vectors is not None and self.pooled else None
        batch, length = tokens.shape[:2]
        at = torch.arange(length, device=tokens.device)
        if self.kind == "rows":
            movable = tokens.ne(0).any(-1) & ~self._templated(tokens)
            if lengths is not None:
                movable &= at < torch.tensor(lengths, device=tokens.device).unsqueeze(1)
            return Conditioning(tokens, movable, pooled, None, encoder)
        split = self._split(tokens) if self.kind == "sd3" else length
        if split % CHUNK or not split:
            raise SafeRegionRefused(
                f"Safe Region does not know conditionings of {split} rows (CLIP has {CHUNK} a chunk): "
                "this family of checkpoints is not supported; switch Safe Region off for it."
            )
        mask = (at % CHUNK != 0) | (at >= split)
        spaces = None
        if self.kind == "sd3":
            clip = Space("clip", slice(0, split), slice(0, self.pooled))
            spaces = (clip, Space("t5", slice(split, None), slice(0, tokens.shape[2]))) if self.t5 else (clip,)
        return Conditioning(tokens, mask.expand(batch, length), pooled, spaces, encoder)

    @property
    def worded(self) -> str:
        """The space whose rows the host's token strings name."""
        return "clip" if self.kind == "sd3" else "tokens"

    def _templated(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool ``[B, T]``: rows of the template in front of every prompt."""
        found = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        rows = min(len(self.begin), tokens.shape[1])
        if rows:
            begin = self.begin[:rows].to(tokens.device)
            away = (tokens[:, :rows].float() - begin).norm(dim=-1)
            found[:, :rows] = away <= BEGIN_TOLERANCE * begin.norm(dim=-1)
        return found

    def _split(self, tokens: torch.Tensor) -> int:
        """Rows of CLIP: they are zero behind its channels, and rows of T5 are not."""
        behind = tokens[..., self.pooled :].flatten(2).any(2).any(0) if self.t5 else ~tokens.any(2).any(0)
        first = behind.nonzero()
        return int(first[0]) if len(first) else tokens.shape[1]

    def with_values(self, cond: Any, tokens: torch.Tensor, pooled: torch.Tensor | None) -> Any:
        """A new conditioning of the host like ``cond``, with other values; ``cond`` is left as it is."""
        if not isinstance(cond, Mapping):
            return _shaped(tokens, cond)
        new = dict(cond)
        new["crossattn"] = _shaped(tokens, cond["crossattn"])
        if pooled is not None:
            new["vector"] = torch.cat([pooled.to(cond["vector"]), cond["vector"][self.pooled :]])
        return new


def _shaped(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return tokens.reshape(*like.shape[:-2], *tokens.shape) if like.ndim > 2 else tokens


def _common(tokens: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """``[P, D]`` float32: rows with which all prompts of ``tokens`` ``[B, T, D]`` begin; none where all rows are the
    same."""
    rows = min(lengths) if lengths is not None else tokens.shape[1]
    first = tokens[0, :rows].float()
    away = (tokens[:, :rows].float() - first).norm(dim=-1).amax(0)
    count = int((away <= _SAME * first.norm(dim=-1).clamp_min(1e-12)).int().cumprod(0).sum())
    return first[: count if count < tokens.shape[1] else 0].clone()
