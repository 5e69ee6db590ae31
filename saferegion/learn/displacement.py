"""What the concept adds to a token."""

from __future__ import annotations

import math

import torch

from .encoded import Tokens

Tensor = torch.Tensor

TOLD = 0.5
"""Share of a prompt's largest difference from which a token counts as one that tells."""


def added(unsafe: Tokens, safe: Tokens) -> tuple[Tensor, Tensor]:
    """Each unsafe token against the nearest token of its own safe prompt, so that words which merely shifted along
    cancel: the differences ``[N, K, D]``, and which tokens tell, bool ``[N, K]``."""
    differences, told = [], []
    for (part, u), (_, s) in zip(unsafe.chunks(), safe.chunks(), strict=True):
        far = torch.cdist(u, s).masked_fill(~safe.real[part].unsqueeze(1), math.inf)
        nearest = s.gather(1, far.argmin(2, keepdim=True).expand(-1, -1, s.shape[2]))
        rest = (u - nearest) * unsafe.real[part].unsqueeze(-1)
        size = rest.norm(dim=-1)
        differences.append(rest)
        told.append((size > TOLD * size.amax(1, keepdim=True)) & unsafe.real[part])
    return torch.cat(differences), torch.cat(told)


def displacement(differences: Tensor, told: Tensor) -> Tensor:
    """u ``[D]``: the mean of what the telling tokens have more."""
    return differences[told].mean(0)
