"""Who brings the concept: a ridge regression of the evidence tells who is found, and a term as those of compiled
concepts tells them from calm prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..core.conditioning import POOLED
from ..core.detector import FURTHEST, Detector
from ..core.readout import Readout, Term
from ..learn import terms
from ..learn.encoded import Store

Tensor = torch.Tensor

NARROWEST = FURTHEST / 10
"""Deviations between the mean of calm prompts and the border where they hardly differ."""
KINDS = ("token", "mean")
"""What the two scores read of a prompt."""
CLEAR = 0.25
"""Calm deviations above the mean of calm prompts where a border lies at least."""
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


@dataclass(frozen=True, eq=False)
class Found:
    """Who brings the concept: ``opened`` bool [N] of the prompts asked. ``space``: whose tokens foretell it best.
    ``agreement``: correlation of the evidence with what is foretold of each prompt by the others. ``cut``: where calm
    prompts end on the scale of the evidence."""

    opened: Tensor
    space: str
    agreement: float
    cut: float


def find(
    store: Store,
    asked: tuple[Sequence[str], Sequence[str]],
    evidence: Tensor,
    least: tuple[float, float],
    settling: int,
) -> Found:
    """Foretell the evidence [N] of prompts from the mean of their tokens, in the space that foretells it best.

    The second half of ``asked``, which the recipe calls safe, shows nothing, whatever is taken for it there. Found are
    those above the end of calm, ``least[0]`` being the budget of :func:`end_of_calm`, and above ``least[1]``; then,
    ``settling`` times, those of whom the others foretell that they are found rather than not.
    """
    (prompts, safe), best = asked, None
    count = len(prompts)
    for space in (s for s in store.spaces if s != POOLED):
        x = torch.cat([store.vector(space, prompts), store.vector(space, safe)]).cpu()
        nothing = torch.zeros(len(safe), dtype=torch.float64)
        left = fit(x, torch.cat([evidence.double(), nothing])).left[:count]
        agreement = float(torch.corrcoef(torch.stack([left, evidence.double()]))[0, 1].nan_to_num(0.0))
        if best is None or agreement > best[0]:
            best = agreement, space, x, nothing, left
    assert best is not None
    agreement, space, x, nothing, left = best
    cut = max(end_of_calm(left, least[0]), least[1])
    opened = left > cut
    for _ in range(settling if bool(opened.any()) else 0):
        left = fit(x, torch.cat([opened.double(), nothing])).left[:count]
        opened = left > (usual(left[~opened]) + float(left[opened].mean())) / 2
    return Found(opened, space, agreement, cut)


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


@dataclass(frozen=True, eq=False)
class Sides:
    """Prompts by what they do: ``store`` has the tokens of ``found``, ``calm`` and ``safe`` ones, ``moved`` those of
    the found ones after Δ."""

    store: Store
    moved: Store
    found: list[str]
    calm: list[str]
    safe: list[str]

    def half(self, which: int) -> Sides:
        """Every second prompt of each, from the first or the second."""
        return replace(self, **{k: getattr(self, k)[which::2] for k in ("found", "calm", "safe")})


def draw(sides: Sides, budget: float) -> tuple[Detector, dict[str, float]]:
    """The detector that is open where two scores are over their borders, in the space that tells best: of the strongest
    token, which tells found prompts from calm ones, and of the mean of the tokens, which tells found ones from
    themselves once they have moved.

    Scores have mean 0 and deviation 1 over calm prompts. Figures: shares of calm, found and moved prompts that are over
    both borders, foretold by the other half.
    """
    best = None
    for space in (s for s in sides.store.spaces if s != POOLED):
        (calm, found, _), (calm_mean, found_mean, moved_mean) = (_foretold(sides, space, k) for k in KINDS)
        word = border(calm, found, budget)
        whole = max(CLEAR, float(moved_mean.quantile(1 - budget) + found_mean.quantile(budget)) / 2)
        over = {
            "calm.opened": (calm > word) & (calm_mean > whole),
            "found.opened": (found > word) & (found_mean > whole),
            "moved.opened": moved_mean > whole,
        }
        figures = {k: float(v.double().mean()) for k, v in over.items()}
        value = figures["found.opened"] - figures["calm.opened"] - figures["moved.opened"]
        if best is None or value > best[0]:
            best = value, space, word, whole, figures
    assert best is not None
    _, space, word, whole, figures = best
    given = _Line.of(sides, space, "token").detector(word)
    return replace(_Line.of(sides, space, "mean").detector(whole), given=given), figures


def _foretold(sides: Sides, space: str, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of calm and safe prompts, found and moved ones, each by what was fitted on the other half."""
    halves = [_Line.of(sides.half(1 - k), space, kind).scores(sides.half(k)) for k in (0, 1)]
    calm, found, moved = (torch.cat(both) for both in zip(*halves, strict=True))
    return calm, found, moved


def _turned(sides: Sides, space: str) -> Tensor:
    """The weight [D] of a ridge regression that tells found prompts from calm ones, turned as little as can be so that
    what they move by takes every one of them to where calm ones usually are.

    Of all weights that do so it is the one whose scores differ least from the ridge's over these prompts: w − C⁻¹s
    (r + w·s) / s·C⁻¹s, C their covariance, s the mean step, r how far the scores must fall.
    """
    found = sides.store.vector(space, sides.found).double().cpu()
    x = torch.cat([found, sides.store.vector(space, [*sides.calm, *sides.safe]).double().cpu()])
    opened = torch.arange(len(x)) < len(found)
    ridge = fit(x, opened.double())
    s = (sides.moved.vector(space, sides.found).double().cpu() - found).mean(0)
    missing = float(ridge.left[opened].max()) - usual(ridge.left[~opened]) + float(ridge.weight @ s)
    if missing <= 0:
        return ridge.weight.float()
    centred = x - x.mean(0)
    cover = centred.T @ centred / len(x)
    cover = cover + SHRINK * torch.diagonal(cover).mean() * torch.eye(len(cover), dtype=cover.dtype)
    v = torch.linalg.solve(cover, s)
    weight: Tensor = ridge.weight - v * (missing / (s @ v).clamp_min(1e-30))
    return weight.float()


@dataclass(frozen=True, eq=False)
class _Line:
    """One linear score in one space: weight [D], offset [L], its mean and deviation over calm prompts."""

    readout: Readout
    weight: Tensor
    offset: Tensor
    mean: float
    deviation: float

    @classmethod
    def of(cls, sides: Sides, space: str, kind: str) -> _Line:
        """Fitted on ``sides``."""
        store = sides.store
        if kind == "mean":
            weight = _turned(sides, space)
            offset = weight.new_zeros(1)
        else:
            standard = terms.Standard.of(*store.benign[space].statistics())
            bags = [
                terms.Bags(store.tokens(space, sides.found), -1.0, 1.0, terms.MINED),
                terms.Bags(store.tokens(space, sides.calm), 1.0, 0.5, terms.MINED_BENIGN),
                terms.Bags(store.tokens(space, sides.safe), 1.0, 0.5, terms.MINED_BENIGN),
            ]
            apart = store.vector(space, sides.found).mean(0) - store.vector(space, sides.calm).mean(0)
            begin = apart / standard.deviation
            begin = begin * 4 / begin.square().sum().clamp_min(1e-12)
            weight, offset = standard.weight(terms.instances(bags, standard, begin))
        plain = cls(Readout(space, kind), weight, offset, 0.0, 1.0)
        calm = plain.scores(sides)[0]
        return replace(plain, mean=float(calm.mean()), deviation=max(float(calm.std()), 1e-9))

    def scores(self, sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
        """Of calm and safe prompts [N], found ones [M] and moved ones [M], in calm deviations."""
        asked = ((sides.store, [*sides.calm, *sides.safe]), (sides.store, sides.found), (sides.moved, sides.found))
        calm, found, moved = (self._of(s, texts) for s, texts in asked)
        return calm, found, moved

    def _of(self, store: Store, texts: list[str]) -> Tensor:
        if self.readout.reduce == "mean":
            z = store.vector(self.readout.space, texts).cpu() @ self.weight.cpu()
        else:
            z = store.tokens(self.readout.space, texts).scores(self.weight, self.offset).amax(1)
        return (z.double().cpu() - self.mean) / self.deviation

    def detector(self, threshold: float) -> Detector:
        """With a threshold in calm deviations; these count as larger where calm prompts hardly differ."""
        wide = max(1.0, threshold / NARROWEST)
        term = Term(
            self.readout,
            (self.weight / self.deviation / wide).cpu().float().unsqueeze(0),
            ((self.offset + self.mean) / self.deviation / wide).cpu().float().unsqueeze(0),
        )
        return Detector((term,), torch.tensor([threshold / wide], dtype=torch.float32))
