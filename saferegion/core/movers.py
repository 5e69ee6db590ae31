"""What changes? Two kinds of mover: half-spaces of compiled concepts, offsets of discovered ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import geometry
from .errors import SafeRegionError
from .readout import LONGEST, check_tensor

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """{ c : u_f·(c_t − μ_t) / |u_f| ≤ ι_f for every facet f and every token t under the mask }.

    Attributes:
        displacement: ``[F, D]``, u: the mean of what the concept adds to a token.
        mean: ``[F, L]``, benign mean of u·c_t / |u| by position. deviation: ``[F]``, its benign deviation.
        target: ``[F]``, ι, from the benign mean; 0 is the benign mean.
    """

    displacement: Tensor
    mean: Tensor
    deviation: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        check_tensor("displacement", self.displacement, 2)
        check_tensor("mean", self.mean, 2)
        check_tensor("deviation", self.deviation, 1)
        check_tensor("target", self.target, 1)
        if not len(self.displacement) == len(self.mean) == len(self.deviation) == len(self.target):
            raise SafeRegionError("displacement, mean, deviation and target must have as many facets.")
        if not bool((self.displacement.double().norm(dim=1) > 1e-12).all()):
            raise SafeRegionError("A displacement must be longer than zero.")
        if not bool((self.deviation > 0).all()):
            raise SafeRegionError("deviation must be positive.")

    @property
    def facets(self) -> int:
        return len(self.displacement)

    @property
    def width(self) -> int:
        return self.displacement.shape[1]

    @property
    def length(self) -> Tensor:
        """``[F]``, |u|: how far the concept moves a token."""
        found: Tensor = self.displacement.double().norm(dim=1).float()
        return found

    @property
    def unit(self) -> Tensor:
        """``[F, D]``, u / |u|."""
        u = self.displacement.double()
        found: Tensor = (u / u.norm(dim=1, keepdim=True)).float()
        return found


@dataclass(frozen=True, eq=False)
class Offset:
    """c_t + b_t a: a rank-one offset (Li et al., WWW 2025), for open prompts, within a step window.

    Attributes:
        b: ``[L]`` by position. a: ``[D]``. window: part of the sampling, as fractions from 0 (first step) to 1.
    """

    b: Tensor
    a: Tensor
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_tensor("b", self.b, 1)
        check_tensor("a", self.a, 1)
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise SafeRegionError(f"The step window must be 0 <= start < end <= 1; got {self.window}.")

    @property
    def facets(self) -> int:
        return 1

    @property
    def width(self) -> int:
        return len(self.a)


Mover = HalfSpaces | Offset


class Fleet:
    """All movers of a region in one space, in the region's order: the half-spaces' facets first, then the offsets."""

    def __init__(self, movers: Sequence[tuple[int, Mover]], rest: Sequence[Tensor], strength: Sequence[float]) -> None:
        """``movers``: (concept, mover). ``rest``: benign means [L, D] of those concepts that have one. ``strength``: by
        concept."""
        half = [(i, m) for i, m in movers if isinstance(m, HalfSpaces)]
        offset = [(i, m) for i, m in movers if isinstance(m, Offset)]
        self.half, self.offsets = sum(m.facets for _, m in half), len(offset)
        owner = [*(i for i, m in half for _ in range(m.facets)), *(i for i, _ in offset)]
        self.vectors = torch.cat([*(m.unit for _, m in half), *(m.a.unsqueeze(0) for _, m in offset)])
        self._bias = [*(m.mean for _, m in half), *(torch.zeros(1, 1) for _ in offset)]
        self._b = [m.b for _, m in offset]
        unit = self.vectors[: self.half].double()
        gram = (unit @ unit.T).float()
        gram.fill_diagonal_(1.0)
        self.sweeps = geometry.sweeps(gram)
        self.again = -(-self.sweeps // 4)  # sweeps of a motion that goes on from one
        length = [*(m.length for _, m in half), *(torch.ones(1) for _ in offset)]
        power = torch.tensor([strength[i] for i in owner])
        self._rest = list(rest)
        self._home = {
            "owner": torch.tensor(owner, dtype=torch.int64),
            "vectors": self.vectors,
            "gram": gram,
            "steps": geometry.steps(gram, self.sweeps) if self.sweeps else gram,
            "steps again": geometry.steps(gram, self.again) if self.sweeps else gram,
            "inverse": torch.linalg.pinv(gram.double(), rtol=PARALLEL, hermitian=True).float(),
            "target": torch.cat([*(m.target for _, m in half), torch.zeros(0)]),
            "length": torch.cat(length),
            "strength": power,
            "part": power.clamp_max(1),
            "beyond": (power - 1).clamp_min(0),
        }
        reach = self._home["beyond"] * self._home["length"]
        self._home["reach"] = reach[: self.half] - self._home["target"]  # beyond the benign mean, at no further depth
        self._owns = owner == list(range(len(strength)))
        self._partial = bool((power < 1).any())
        self._here: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._home}
        self._at: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def bias(self) -> Tensor:
        """``[K, L]``: what is taken off the coordinates along the vectors."""
        period = max(b.shape[1] for b in self._bias)
        return torch.cat([b[:, torch.arange(period) % b.shape[1]] for b in self._bias])

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Constants on ``device``."""
        found = self._here.get(device)
        if found is None:
            with torch.inference_mode(False):
                found = self._here[device] = {k: v.to(device) for k, v in self._home.items()}
        return found

    def at(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """b of the offsets ``[T, O]`` and the benign mean ``[T, D]`` of each position."""
        key = (length, device)
        found = self._at.get(key)
        if found is None:
            if len(self._at) >= LONGEST:
                self._at.clear()
            at = torch.arange(length)
            with torch.inference_mode(False):
                b = [b[at % len(b)] for b in self._b]
                rest = [r[at % len(r)] for r in self._rest]
                found = (
                    torch.stack(b, 1).to(device) if b else torch.zeros(length, 0, device=device),
                    (torch.stack(rest).mean(0) if rest else torch.zeros(length, self.vectors.shape[1])).to(device),
                )
            self._at[key] = found
        return found

    def _owned(self, values: Tensor) -> Tensor:
        """By concept [B, C] -> by vector [B, K]."""
        return values if self._owns else values.index_select(1, self.on(values.device)["owner"])

    def amounts(self, along: Tensor, opened: Tensor, depth: Tensor | None, start: Tensor | None) -> Tensor:
        """How far each token goes along each vector, against it: [B, T, K].

        Args:
            along: coordinates [B, T, K]. opened: bool [B, C], concepts that are open for a prompt.
            depth: [B, C], how much further in than the target, in displacements (None: not at all). start: amounts to
                go on from.
        """
        here, half = self.on(along.device), self.half
        mine = self._owned(opened).unsqueeze(1)
        further = None if depth is None else self._owned(depth).unsqueeze(1)
        parts = []
        if self.offsets:
            b, _ = self.at(along.shape[1], along.device)
            deeper = here["beyond"][half:] if further is None else further[..., half:] + here["beyond"][half:]
            share = (1 + deeper) * here["part"][half:]
            given = -torch.where(mine[..., half:], b * share, 0.0)
            parts.append(given)
            if half:
                cross = here["vectors"][half:] @ here["vectors"][:half].T
                along = along[..., :half] - geometry.combine(given, cross)
        if half:
            reach = here["reach"]
            if further is not None:
                reach = torch.addcmul(reach, further[..., :half], here["length"][:half])
            excess = along[..., :half] + reach
            excess = torch.where(mine[..., :half], excess, geometry.SHUT)
            begin = None if start is None else start[..., :half]
            sweeps, steps = (self.sweeps, "steps") if start is None else (self.again, "steps again")
            if sweeps and excess.device.type != "cpu":
                solved = geometry.solve_in_steps(here[steps], excess, sweeps, begin)
            else:
                solved = geometry.solve(here["gram"], excess, sweeps, begin)
            parts.insert(0, solved * here["part"][:half] if self._partial else solved)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


PARALLEL = 1e-6
"""Singular values of the Gram matrix below this share of the largest are taken for zero when erasing: they come from
concepts that are nearly the same, and their inverse would be nothing but rounding."""
