"""Δ = b ⊗ a while it is learned (Li et al., WWW 2025, arXiv 2505.15427, their Eq. 6): what is added to every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core.conditioning import POOLED, Conditioning
from ..core.movers import Offset

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Shift:
    """``a[space]`` [D] and ``b[space]`` [L] by position, with period L; float32, on the model's device."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]

    @classmethod
    def start(cls, empty: Conditioning, size: Mapping[str, float], seed: int, device: torch.device) -> Shift:
        """b zero and a Gaussian, as published; ``size``: root mean square of a's entries by space. Positions are those
        of the empty prompt; the pooled vector has one."""
        draw = torch.Generator().manual_seed(seed)
        a, b = {}, {}
        for view in empty.views():
            a[view.space] = (size[view.space] * torch.randn(view.rows.shape[2], generator=draw)).to(device)
            b[view.space] = torch.zeros(1 if view.space == POOLED else view.rows.shape[1], device=device)
        return cls(a, b)

    def along(self, other: Shift) -> Shift:
        """The same b, and a in the direction of another's, as large as before."""
        a = {}
        for space, mine in self.a.items():
            theirs = other.a[space].to(mine)
            size = theirs.norm()
            a[space] = torch.where(size > 0, theirs * (mine.norm() / size.clamp_min(1e-12)), mine)
        return Shift(a, self.b)

    def parameters(self) -> list[Tensor]:
        """a of every space, then b of every space."""
        return [*self.a.values(), *self.b.values()]

    def copy(self) -> Shift:
        """The same numbers, on the CPU, without gradients."""
        return Shift(
            {k: v.detach().cpu().float().clone() for k, v in self.a.items()},
            {k: v.detach().cpu().float().clone() for k, v in self.b.items()},
        )

    def times(self, length: float) -> Shift:
        """``length`` times as long."""
        return Shift(self.a, {k: length * v for k, v in self.b.items()})

    def to(self, device: torch.device) -> Shift:
        """The same on a device."""
        return Shift({k: v.to(device) for k, v in self.a.items()}, {k: v.to(device) for k, v in self.b.items()})

    def on(self, c: Conditioning, times: float = 1.0) -> Conditioning:
        """``c`` + ``times`` Δ where tokens may move; differentiable in Δ."""
        rows = {}
        for view in c.views():
            a, b = (t[view.space].to(view.rows.device) for t in (self.a, self.b))
            weight = b[torch.arange(view.rows.shape[1], device=b.device) % len(b)].unsqueeze(1)
            step = times * weight * a
            if view.mask is not None:
                step = step * view.mask.unsqueeze(-1)
            rows[view.space] = (view.rows.float() + step).to(view.rows.dtype)
        return c.with_views(rows)

    def movers(self, window: tuple[float, float]) -> dict[str, Offset]:
        """As movers of a direction."""
        return {k: Offset(self.b[k].clone(), self.a[k].clone(), window) for k in self.a}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """By name, for a checkpoint."""
        parts = {"a": self.a, "b": self.b}
        return {f"{name}.{p}.{k}": v.detach().cpu().clone() for p, part in parts.items() for k, v in part.items()}

    @classmethod
    def read(cls, name: str, tensors: Mapping[str, Tensor], device: torch.device) -> Shift:
        """What :meth:`tensors` wrote."""
        found: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                part, space = key[len(name) + 1 :].split(".", 1)
                found[part][space] = value.clone().to(device)
        return cls(found["a"], found["b"])
