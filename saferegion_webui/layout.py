"""The webui's conditionings as the library's: which rows and channels belong to which embedding space.

A conditioning of the webui is a tensor ``[T, D]`` (SD1.x, SD2.x) or a mapping with ``crossattn`` ``[T, D]`` and
``vector`` ``[V]`` (SDXL, SD3, Flux); further entries (Flux: ``guidance``) are passed through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saferegion.core.conditioning import Conditioning, Space
from saferegion.core.fingerprint import Fingerprint

from .refusal import SafeRegionRefused

CHUNK = 77
TIME_EMBEDDING = 256
"""Channels of one number (a size, a crop, a score) in SDXL's ``vector``, behind the pooled text."""


def tokens_of(cond: Any) -> torch.Tensor:
    tokens: torch.Tensor = cond["crossattn"] if isinstance(cond, Mapping) else cond
    return tokens


def vector_of(cond: Any) -> torch.Tensor | None:
    return cond.get("vector") if isinstance(cond, Mapping) else None


@dataclass(frozen=True)
class Layout:
    """How a family arranges its conditionings.

    Attributes:
        kind: ``clip`` (chunks of 77 rows, each with a begin token), ``sd3`` (CLIP chunks, then rows of T5) or ``t5``.
        pooled: leading channels of ``vector`` that text decides; 0: there is no pooled text.
        t5: T5 rows follow the CLIP rows (``sd3``; false where T5 is switched off and they are zero).
    """

    kind: str = "clip"
    pooled: int = 0
    t5: bool = False

    @classmethod
    def of(cls, tokens: torch.Tensor, vectors: torch.Tensor | None, kind: str = "clip") -> Layout:
        """From the host's conditionings of some different prompts, ``[B, T, D]`` and ``[B, V]``."""
        if vectors is None:
            return cls(kind)
        pooled = vectors.shape[1]
        if kind == "clip":  # what follows the pooled text is the same for all prompts, in whole embeddings
            differs = (vectors != vectors[:1]).any(0).nonzero()
            behind = pooled - int(differs.max()) - 1 if len(differs) else pooled
            pooled -= behind // TIME_EMBEDDING * TIME_EMBEDDING
        return cls(kind, pooled, kind == "sd3" and bool(tokens[..., pooled:].any()))

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
        if self.kind == "t5":
            filled = None if lengths is None else at < torch.tensor(lengths, device=tokens.device).unsqueeze(1)
            return Conditioning(tokens, filled, pooled, None, encoder)
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

    def _split(self, tokens: torch.Tensor) -> int:
        """Rows of CLIP: they are zero behind its channels, and rows of T5 are not."""
        behind = tokens[..., self.pooled :].flatten(2).any(2).any(0) if self.t5 else ~tokens.any(2).any(0)
        first = behind.nonzero()
        return int(first[0]) if len(first) else tokens.shape[1]

    def with_values(self, cond: Any, tokens: torch.Tensor, pooled: torch.Tensor | None) -> Any:
        """A new conditioning of the host like ``cond``, with other values; ``cond`` is left as it is."""
        if not isinstance(cond, Mapping):
            return tokens
        new = dict(cond)
        new["crossattn"] = tokens
        if pooled is not None:
            new["vector"] = torch.cat([pooled.to(cond["vector"]), cond["vector"][self.pooled :]])
        return new
