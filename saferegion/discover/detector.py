"""Who brings the concept: a ridge regression of the evidence on the mean of the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core import geometry
from ..core.conditioning import POOLED, Conditioning
from ..core.detector import FURTHEST, Detector
from ..core.readout import Readout, Term

Tensor = torch.Tensor

NARROWEST = FURTHEST / 10
"""Deviations between the mean of calm prompts and the border where they hardly differ."""
SHRINK = 0.01
"""What is added to the covariance of features, of its mean diagonal, so that it can be inverted."""
PENALTIES = 17
"""Penalties that are tried, from 10⁻⁴ to 10⁴ times the mean eigenvalue: the whole range in which they differ."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """w·x + bias: ``weight`` [D] and ``bias``, float64; ``left`` [N]: what is foretold of each prompt by the others."""

    weight: Tensor
    bias: float
    left: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.double() @ self.weight + self.bias


def fit(x: Tensor, y: Tensor) -> Ridge:
    """Ridge regression of ``y`` [N] on ``x`` [N, D] (Hoerl and Kennard 1970), channels on one scale, its penalty chosen
    by the error of each prompt foretold by the others (leave one out, in closed form)."""
    x, y = x.double(), y.double()
    mean, deviation = x.mean(0), x.std(0)
    deviation = torch.where(deviation > 1e-9 * deviation.max(), deviation, torch.inf)  # channels that say nothing
    z, target = (x - mean) / deviation, y - y.mean()
    values, vectors = torch.linalg.eigh(z @ z.T)
    values = values.clamp_min(0)
    best, chosen, left = math.inf, None, target
    for power in torch.linspace(-4, 4, PENALTIES).tolist():
        kept = values / (values + 10**power * values.mean())
        told = vectors @ (kept * (vectors.T @ target))
        own = (vectors.square() @ kept + 1 / len(y)).clamp_max(1 - 1e-9)
        off = (target - told) / (1 - own)
        error = float(off.square().mean())
        if error < best:
            best, chosen, left = error, 10**power * values.mean(), target - off
    dual = vectors @ ((vectors.T @ target) / (values + chosen))
    weight = (z.T @ dual) / deviation
    return Ridge(weight, float(y.mean() - mean @ weight), left + y.mean())


def turned(ridge: Ridge, x: Tensor, step: Tensor, opened: Tensor) -> Ridge:
    """The ridge turned as little as can be so that ``step`` [D], what a prompt's features move by, takes every opened
    prompt to where calm ones usually are.

    Of all weights that do so it is the one whose scores differ least from the ridge's over the prompts ``x`` [N, D]:
    w − C⁻¹s (r + w·s) / s·C⁻¹s, C their covariance, s the step, r how far the scores must fall.
    """
    x, s = x.double(), step.double()
    fall = float(ridge.left[opened].max()) - usual(ridge.left[~opened])
    missing = fall + float(ridge.weight @ s)
    if missing <= 0:
        return ridge
    centred = x - x.mean(0)
    cover = centred.T @ centred / len(x)
    cover = cover + SHRINK * torch.diagonal(cover).mean() * torch.eye(len(cover), dtype=cover.dtype)
    v = torch.linalg.solve(cover, s)
    turn = v * (missing / (s @ v).clamp_min(1e-30))
    return Ridge(ridge.weight - turn, ridge.bias + float(x.mean(0) @ turn), ridge.left - centred @ turn)


def features(c: Conditioning) -> dict[str, Tensor]:
    """The mean of the tokens under the mask [B, D], by space of tokens, float32 on the CPU."""
    views = (v for v in c.views() if v.space != POOLED)
    return {v.space: geometry.mean(v.rows.float(), v.mask).cpu() for v in views}


@dataclass(frozen=True, eq=False)
class Found:
    """What was foretold of the prompts: ``ridge`` in ``space``, ``cut`` on its scale, ``agreement``: correlation of the
    evidence with what is foretold of each prompt by the others; ``opened`` bool [N]."""

    space: str
    ridge: Ridge
    cut: float
    agreement: float
    opened: Tensor


def find(x: Mapping[str, Tensor], evidence: Tensor, least: tuple[float, float]) -> Found:
    """Foretell the evidence [N] from each space's features [N, D], and keep the space that foretells it best.

    Found are those above the end of calm, ``least[0]`` being the budget of :func:`end_of_calm`, and above ``least[1]``.
    """
    best = None
    for space, rows in x.items():
        ridge = fit(rows, evidence)
        agreement = float(torch.corrcoef(torch.stack([ridge.left, evidence.double()]))[0, 1].nan_to_num(0.0))
        if best is None or agreement > best.agreement:
            cut = max(end_of_calm(ridge.left, least[0]), least[1])
            best = Found(space, ridge, cut, agreement, ridge.left > cut)
    assert best is not None
    return best


def end_of_calm(scores: Tensor, budget: float) -> float:
    """Where calm prompts end: at the quantile 1 − ``budget`` of a normal distribution around :func:`usual`, as wide as
    the scores [N] below it. Prompts that bring the concept lie above and change neither, as long as they are fewer
    than half."""
    x = scores.double()
    middle = usual(x)
    low = middle - x[x <= middle]
    spread = float(low.square().mean().sqrt())
    return middle + float(torch.special.ndtri(torch.tensor(1 - budget, dtype=torch.float64))) * spread


def usual(scores: Tensor) -> float:
    """The shorth: mean of the shortest interval that holds half of the scores [N] (Andrews et al. 1972)."""
    x = scores.double().sort().values
    half = len(x) // 2 + 1
    at = int((x[half - 1 :] - x[: len(x) - half + 1]).argmin())
    return float(x[at : at + half].mean())


def border(calm: Tensor, risky: Tensor, budget: float) -> float:
    """Threshold: halfway between where ``calm`` scores [N] end and where the ``risky`` ones [M] begin, the outermost
    share ``budget`` of both left aside; where calm prompts end if they overlap."""
    end = max(float(calm.quantile(1 - budget)), end_of_calm(calm, budget))
    return max(end, (end + float(risky.quantile(budget))) / 2)


def detector(ridge: Ridge, space: str, calm: Tensor, threshold: float) -> Detector:
    """The ridge as a detector whose scores have mean 0 and deviation 1 over ``calm``, what is foretold of calm
    prompts [N] (less than 1 if they hardly differ); ``threshold`` on the ridge's scale."""
    mean = float(calm.mean())
    deviation = max(float(calm.std()), (threshold - mean) / NARROWEST)
    term = Term(
        Readout(space, "mean"),
        (ridge.weight / deviation).float().unsqueeze(0),
        torch.tensor([[(mean - ridge.bias) / deviation]], dtype=torch.float32),
    )
    return Detector((term,), torch.tensor([(threshold - mean) / deviation], dtype=torch.float32))
