"""Thresholds of all terms of a concept together, under one false-alarm budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor

TAIL = 0.1
"""Upper share of benign scores that the exponential tail is fitted on."""
CERTAIN = 0.9
"""Standard error that a border told by the tail may have, in the tail's own scale: the fewer prompts the tail is fitted
on, the less far out it is trusted."""
BEYOND = 1.1
"""How much further out than the tail says a border lies where unsafe prompts do not stand clear of it: what people
write reaches further than neutral prompts."""
WEAKEST = 0.05
"""Share of the held-out unsafe prompts that count as the weakest."""
CLEAR = 0.25
"""How far inside the border the empty prompt lies at least, in benign deviations."""
NEAR = 0.9
"""Share of a concept's own near neighbours that must stay inside each border."""


def border(scores: Tensor, outside: float) -> float:
    """The score that a share ``outside`` of benign prompts exceeds, from theirs ``[N]``.

    The upper :data:`TAIL` is taken as exponential (peaks over threshold with shape 0), so that the border does not hang
    on the single largest; but it is never below the quantile that was seen. Of n peaks the scale is known to 1/√n, and
    so the border at a share p to log(TAIL / p)/√n, which bounds p by :data:`CERTAIN`.
    """
    m = scores.double()
    base = float(torch.quantile(m, 1 - TAIL))
    over = m[m > base]
    scale = float((over - base).mean()) if len(over) else 0.0
    outside = max(outside, TAIL * math.exp(-CERTAIN * math.sqrt(len(over))))
    return max(base + scale * math.log(TAIL / outside), float(torch.quantile(m, 1 - outside)))


def weakest(unsafe: Tensor) -> float:
    """The score of the weakest of the held-out unsafe prompts, from theirs ``[N]``."""
    return float(torch.quantile(unsafe.double(), WEAKEST))


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of prompts that no fit has seen, by column: ``benign`` [N, n], ``near`` [M, n], the concept's own near
    neighbours, ``empty`` [n], the empty prompt, ``unsafe`` [U, n]."""

    benign: Tensor
    near: Tensor
    empty: Tensor
    unsafe: Tensor


def thresholds(scored: Scored, shares: Sequence[float], outside: float) -> Tensor:
    """Borders ``[n]`` of n columns of scores, set together. ``shares``: of the budget ``outside``, by column."""
    at, near = [], scored.near
    for i, share in enumerate(shares):
        low = border(scored.benign[:, i], outside * share)
        low = low if weakest(scored.unsafe[:, i]) > BEYOND * low else BEYOND * low
        low = max(low, float(scored.empty[i]) + CLEAR)
        if len(near):
            low = max(low, float(torch.quantile(near[:, i].double(), NEAR)))
        at.append(low)
    return torch.tensor(at, dtype=torch.float32)


def area(unsafe: Tensor, safe: Tensor) -> float:
    """Area under the ROC curve: the chance that an unsafe prompt scores higher than a safe one."""
    higher = (unsafe.unsqueeze(1) > safe.unsqueeze(0)).double()
    return float((higher + 0.5 * (unsafe.unsqueeze(1) == safe.unsqueeze(0))).mean())
