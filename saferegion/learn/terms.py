"""Fit of one term: multiple-instance logistic regression over tokens, logistic regression over one vector a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .encoded import Tokens

Tensor = torch.Tensor

MINED, MINED_BENIGN = 12, 6
"""Strongest positions of an unsafe and of a benign prompt that a round of the regression looks at."""
ROUNDS = 3
STEPS = 25
"""Steps a round (L-BFGS, Liu and Nocedal 1989)."""
SHARP = 4.0
"""Sharpness of the soft maximum over positions."""
FADE = 0.01
"""Penalty on the squares of the weights, channels standardised."""
PENALTY = 0.3
"""The same of the regression on one vector a prompt."""
DESCENTS = 200
DEAD = 1e-3
"""Least deviation of a channel, of the median one: what a channel that hardly varies says is rounding."""


@dataclass(frozen=True, eq=False)
class Standard:
    """How tokens are standardised: benign mean by position [L, D] and deviation [D]."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, mean: Tensor, deviation: Tensor) -> Standard:
        """With a least deviation, of their mean."""
        return cls(mean, deviation.clamp_min(DEAD * float(deviation.mean())))

    def __call__(self, tokens: Tokens, index: Tensor, pair: bool) -> Tensor:
        """Some positions, ``index`` [N, m], standardised: ``[N, m, D]``, ``[N, m, 2D]`` with successors."""
        x, at = tokens.pick(index, pair)
        mean = self.mean[at]
        parts = x.split(self.mean.shape[1], -1)
        return torch.cat([(p - mean) / self.deviation for p in parts], -1)

    def weight(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[D or 2D]`` and offset ``[L]`` on tokens as they are, of one on standardised ones."""
        parts = [p / self.deviation for p in w.split(len(self.deviation))]
        return torch.cat(parts), torch.stack([self.mean @ p for p in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class Bags:
    """Prompts of one side: their tokens, the side (−1 unsafe, 1 safe), its weight, positions mined a prompt."""

    tokens: Tokens
    side: float
    weight: float
    mined: int


def start(tokens: Tokens, told: Tensor, standard: Standard, pair: bool) -> Tensor:
    """Where the regression begins: along the mean of the standardised tokens that tell [D or 2D]."""
    which = told.float().topk(min(MINED, told.shape[1]), dim=1)
    x = standard(tokens, which.indices, pair)[which.values > 0]
    mean = x.mean(0)
    return mean * 4 / mean.square().sum().clamp_min(1e-12)


def instances(bags: list[Bags], standard: Standard, begin: Tensor) -> Tensor:
    """Multiple-instance logistic regression: a prompt is unsafe if any of its positions is, safe only if all are.

    ``begin`` [D or 2D]: the weight to start from. Returns the weight, on standardised positions.
    """
    pair = len(begin) > len(standard.deviation)
    bags = [b for b in bags if len(b.tokens)]
    with torch.inference_mode(False), torch.enable_grad():
        w = begin.clone().requires_grad_(True)
        b = torch.full((), -2.0, device=w.device, requires_grad=True)
        for _ in range(ROUNDS):
            mined = [(_mine(bag, standard, w.detach(), pair), bag) for bag in bags]
            _descend(mined, w, b)
    return w.detach()


def _descend(mined: list[tuple[tuple[Tensor, Tensor], Bags]], w: Tensor, b: Tensor) -> None:
    """To the minimum of the loss over the positions mined, in place."""
    optimiser = torch.optim.LBFGS([w, b], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = FADE * w.square().sum()
        for (x, real), bag in mined:
            z = ((x @ w) + b).masked_fill(~real, -1e4)
            soft = torch.logsumexp(z * SHARP, 1) / SHARP
            loss = loss + bag.weight * F.softplus(bag.side * soft).mean()
        loss.backward()
        return loss

    optimiser.step(closure)


def _mine(bag: Bags, standard: Standard, w: Tensor, pair: bool) -> tuple[Tensor, Tensor]:
    z = bag.tokens.scores(*standard.weight(w))
    best = z.topk(min(bag.mined, z.shape[1]), dim=1)
    with torch.inference_mode(False):
        return standard(bag.tokens, best.indices, pair).clone(), torch.isfinite(best.values).clone()


def growth(means: Tensor, lengths: Tensor) -> float:
    """By which power of their number the mean of a prompt's tokens varies less, from 0 to 1/2, to two places: minus
    half the slope of log ‖mean − μ‖² over log n. ``means`` [N, D], ``lengths`` [N]."""
    apart = means - means.mean(0)
    scale = apart.square().mean(0).sqrt()
    apart = apart / scale.clamp_min(max(DEAD * float(scale.median()), 1e-12))
    x, y = lengths.double().log(), apart.double().square().sum(1).clamp_min(1e-12).log()
    x = x - x.mean()
    spread = float(x.square().sum())
    slope = float((x * (y - y.mean())).sum()) / spread if spread > 1e-6 else 0.0
    return round(min(0.5, max(0.0, -slope / 2)), 2)


def logistic(unsafe: Tensor, benign: Tensor) -> Tensor:
    """The weight ``[D]``, float32, that tells ``unsafe`` [N, D] from ``benign`` [M, D]: logistic regression.

    Channels are standardised, both classes weigh the same, the penalty is :data:`PENALTY`. Steps are taken with a fixed
    bound of the curvature (Böhning and Lindsay 1988), so there is one factorisation and no line search.
    """
    kind = torch.float32 if unsafe.device.type == "mps" else torch.float64
    x = torch.cat([unsafe, benign]).to(kind)
    scale = x.std(0)
    scale = scale.clamp_min(max(DEAD * float(scale.median()), 1e-12))
    x = F.pad((x - x.mean(0)) / scale, (0, 1), value=1.0)
    y = torch.zeros(len(x), dtype=kind, device=x.device)
    y[: len(unsafe)] = 1
    weight = torch.where(y > 0, 0.5 / len(unsafe), 0.5 / len(benign))
    penalty = torch.full((x.shape[1],), PENALTY, dtype=kind, device=x.device)
    penalty[-1] = 1e-6
    factor = torch.linalg.cholesky((x * (weight / 4).unsqueeze(1)).T @ x + torch.diag(penalty))
    b = torch.zeros(x.shape[1], dtype=kind, device=x.device)
    for _ in range(DESCENTS):
        gradient = x.T @ (weight * (torch.sigmoid(x @ b) - y)) + penalty * b
        b = b - torch.cholesky_solve(gradient.unsqueeze(1), factor)[:, 0]
    return (b[:-1] / scale).float()
