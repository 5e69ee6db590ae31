"""Says what a picture of the natural world shows: a small classifier trained on drawings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..latent_diffusion import to_unit
from .brush import SIDE
from .labels import HEADS

SIZES = tuple(len(values) for values in HEADS.values())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm1(x)))
        return x + self.second(F.silu(self.norm2(h)))


class JudgeNet(nn.Module):
    """Pictures float [B, 3, 48, 48] in -1 to 1 to the logits of all heads, in the order of HEADS: [B, all values]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), _Residual(32),
            nn.Conv2d(32, 56, 3, stride=2, padding=1), _Residual(56),
            nn.Conv2d(56, 72, 3, stride=2, padding=1), nn.GroupNorm(8, 72), nn.SiLU(),
            nn.Conv2d(72, 32, 1), nn.Flatten(), nn.SiLU(), nn.Linear(32 * 36, 72), nn.SiLU(),
        )  # fmt: skip
        self.out = nn.Linear(72, sum(SIZES))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


class Judge:
    """`judge(pictures uint8 [B, 48, 48, 3])`: the likeliest value of every attribute, arrays of str [B] by name."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.net = JudgeNet()
        self.net.load_state_dict(dict(state))
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, pictures: np.ndarray) -> dict[str, Tensor]:
        """Raw scores by attribute: float32 [B, values of the attribute]."""
        x = to_unit(pictures, SIDE)
        rows = torch.cat([self.net(part) for part in x.split(256)]) if len(x) else torch.zeros(0, sum(SIZES))
        return dict(zip(HEADS, rows.split(SIZES, dim=1), strict=True))

    def __call__(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        return {head: np.array(HEADS[head])[row.argmax(1).numpy()] for head, row in self.logits(pictures).items()}

    def shares(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities by attribute: float32 [B, values of the attribute]."""
        return {head: row.softmax(1).numpy() for head, row in self.logits(pictures).items()}
