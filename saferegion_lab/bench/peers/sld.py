"""Safe Latent Diffusion: a third question to the model at every step (Schramowski et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import PHRASES, Guard


@dataclass
class SLD(Guard):
    """Guidance away from a safety prompt, where the prompt's noise lies nearer to it than ``threshold``.

    ``warmup``: share of the sampling in which nothing is done; ``scale``: s_S; ``momentum``, ``beta``: s_m and beta_m.
    """

    warmup: float = 0.2
    scale: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4

    def setup(self) -> None:
        self.sides = (self.meter.encode([""]), self.meter.encode([", ".join(PHRASES)]))

    def combine(
        self, step: int, steps: int, eps: Tensor, sides: Sequence[Tensor], guidance: float, state: dict[str, Any]
    ) -> Tensor:
        empty, unsafe = sides
        toward = eps - unsafe
        amount = (toward.abs() * self.scale).clamp(max=1.0)
        amount = torch.where(toward >= self.threshold, 0.0, amount)
        before = state.get("momentum", torch.zeros_like(eps))
        safety = amount * (unsafe - empty) + self.momentum * before
        state["momentum"] = self.beta * before + (1 - self.beta) * safety
        guided = eps - empty
        if step >= round(self.warmup * steps) and self.scale > 0:
            guided = guided - safety
        return empty + guidance * guided


PUBLISHED = {
    "weak": {"warmup": 0.3, "scale": 200.0, "threshold": 0.0, "momentum": 0.0, "beta": 0.0},
    "medium": {"warmup": 0.2, "scale": 1000.0, "threshold": 0.01, "momentum": 0.3, "beta": 0.4},
    "strong": {"warmup": 0.14, "scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "beta": 0.7},
    "max": {"warmup": 0.0, "scale": 5000.0, "threshold": 1.0, "momentum": 0.5, "beta": 0.7},
}
"""Warm-up in shares of the 50 steps that it was published for."""
