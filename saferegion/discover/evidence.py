"""Evidence: how much of the concept there is in what a prompt paints.

The model is asked at states x_t of a prompt's own trajectory what the noise is with the concept, ε₊, and without, ε₋;
d = ε₊ − ε₋ is the concept's axis there. Δ being the mean of what the unsafe sides of the recipe's pairs add to a token,

    ε± = ε(x_t, c ± κΔ)

in two contexts c, which are summed: the prompt's own conditioning, which does not see what the prompt implies strongly,
and the benign mean of every position, which takes what goes with a concept for the concept. (Asked by whole prompts of
the recipe instead, the model answers with their other words as well.) Three forms of what is read off it, n being the
noise in x_t beside the picture that came out:

    guidance  ⟨ε(x_t, c) − ε(x_t, ∅), d⟩ / ‖d‖: how far the prompt's own guidance points along the concept;
    picture   ‖ε₋ − n‖² − ‖ε₊ − n‖²: how much better the noise is told with the concept (the diffusion classifier of
              Li et al., ICCV 2023);
    place     the same, its largest over places, as a concept sits somewhere.

Which noise levels, κ and form tell best is chosen on each model by how far the unsafe sides of the
recipe lie above what is calm, in deviations: its safe sides, and some neutral prompts. Of these the upper ones may
bring the concept, so the lower ones stand for both, mirrored at what is usual. The area under the ROC curve of the two
sides is kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

from ..core.conditioning import POOLED, Conditioning
from ..core.errors import DiscoverError
from .detector import usual
from .model import Model
from .offset import Shift

Tensor = torch.Tensor
T = TypeVar("T")
Both = tuple[Tensor, Tensor]
"""ε₊ and ε₋ [B, C, H, W]."""

CONTEXTS = ("own", "mean")
KAPPAS = (0.5, 1.0, 2.0)
"""Distances at which it may be asked: short of what the words add, as much, beyond."""
FORMS = ("guidance", "picture", "place")


@dataclass(frozen=True, eq=False)
class State:
    """One step of a trajectory: its number, x_t, ε without and with the prompt, all [B, C, H, W], and what was asked,
    by κ, in the order of the contexts."""

    number: int
    x: Tensor
    without: Tensor
    given: Tensor
    asked: Mapping[float, tuple[Both, ...]]

    def read(self, form: str, kappa: float, noise: Tensor, place: float) -> list[Tensor]:
        """[B] float64 on the CPU for each context; ``noise`` n [B, C, H, W]; ``place``: side of a place, in sides of
        the picture."""
        return [self._read(form, both, noise, place) for both in self.asked[kappa]]

    def _read(self, form: str, both: Both, noise: Tensor, place: float) -> Tensor:
        plus, minus = (e.double() for e in both)
        if form == "guidance":
            d = plus - minus
            along = ((self.given - self.without).double() * d).flatten(1).sum(1)
            guided: Tensor = along / d.flatten(1).norm(dim=1).clamp_min(1e-12)
            return guided.cpu()
        told = ((minus - noise).square() - (plus - noise).square()).sum(1, keepdim=True)
        if form == "picture":
            return told.flatten(1).sum(1).cpu()
        side = max(1, round(place * min(told.shape[-2:])))
        return F.avg_pool2d(told, side, stride=1).flatten(1).amax(1).cpu()


@dataclass(frozen=True, eq=False)
class Axis:
    """What a model is asked by: Δ, and the benign mean of every position [L, D] by space."""

    delta: Shift
    rest: Mapping[str, Tensor]

    def ask(self, model: Model, state: tuple[Tensor, int], c: Conditioning, kappa: float) -> tuple[Both, ...]:
        """ε₊ and ε₋ at ``state`` (x_t, number of the step), in the context of the prompts ``c`` and in the mean."""
        return tuple(self._both(model, state, at, kappa) for at in (c, self._mean(c)))

    def direction(self, model: Model, state: tuple[Tensor, int], c: Conditioning, kappa: float) -> Tensor:
        """d [B, C, H, W]: what the concept is at ``state``, the mean of both contexts, asked at κ."""
        asked = self.ask(model, state, c, kappa)
        return torch.stack([plus - minus for plus, minus in asked]).mean(0) / (2 * kappa)

    def _both(self, model: Model, state: tuple[Tensor, int], c: Conditioning, kappa: float) -> Both:
        x, number = state
        with torch.no_grad():
            plus, minus = (model.predict(x, model.times[number], self.delta.on(c, k)) for k in (kappa, -kappa))
        return plus, minus

    def _mean(self, c: Conditioning) -> Conditioning:
        rows = {}
        for view in c.views():
            rest = self.rest[view.space].to(view.rows)
            mean = rest[torch.arange(view.rows.shape[1], device=rest.device) % len(rest)].expand_as(view.rows)
            rows[view.space] = mean if view.mask is None else torch.where(view.mask.unsqueeze(-1), mean, view.rows)
        return c.with_views(rows)


def added(unsafe: Conditioning, safe: Conditioning) -> Shift:
    """Δ: the mean of what unsafe sides [P] add to the nearest token of their safe ones, over the tokens that say it
    (those that are further from it than half as far as the furthest); a pooled vector, the mean difference."""
    a, b = {}, {}
    for one, two in zip(unsafe.views(), safe.views(), strict=True):
        rows, others = one.rows.float(), two.rows.float()
        if one.space == POOLED:
            a[one.space] = (rows - others).mean((0, 1)).cpu()
        else:
            far = torch.cdist(rows, others)
            if two.mask is not None:
                far = far.masked_fill(~two.mask.unsqueeze(1), torch.inf)
            near = far.argmin(2, keepdim=True).expand(-1, -1, rows.shape[2])
            differences = rows - others.gather(1, near)
            size = differences.norm(dim=2)
            if one.mask is not None:
                size = size * one.mask
            told = size > size.amax(1, keepdim=True) / 2
            a[one.space] = differences[told].mean(0).cpu() if bool(told.any()) else torch.zeros(rows.shape[2])
        b[one.space] = torch.ones(1)
    return Shift(a, b)


def axis_of(model: Model, pairs: Sequence[tuple[str, str]], rest: Mapping[str, Tensor], name: str) -> Axis:
    """The axis from ``pairs``, and the benign mean.

    Raises:
        DiscoverError: both sides have the same embeddings.
    """
    unsafe, safe = (model.conditioning([p[k] for p in pairs]) for k in (0, 1))
    delta = added(unsafe, safe)
    if not any(bool(v.any()) for v in delta.a.values()):
        raise DiscoverError(
            f"The sides of the pairs of '{name}' have the same embeddings: this encoder lacks the words."
        )
    return Axis(delta.to(model.device), {k: v.to(model.device) for k, v in rest.items()})


@dataclass(frozen=True, eq=False)
class Judged:
    """Evidence of the prompts by which it is chosen: ``unsafe`` and ``safe`` sides [P], ``neutral`` prompts [M]."""

    unsafe: Tensor
    safe: Tensor
    neutral: Tensor

    @classmethod
    def of(cls, scores: Tensor, pairs: int) -> Judged:
        """From [2P + M]: unsafe sides, safe sides, neutral prompts."""
        return cls(scores[:pairs], scores[pairs : 2 * pairs], scores[2 * pairs :])

    def calm(self) -> Tensor:
        """Safe sides, and the lower part of the neutral prompts, mirrored at what is usual of them."""
        middle = usual(self.neutral)
        low = self.neutral[self.neutral <= middle]
        return torch.cat([self.safe, low, 2 * middle - low])

    def rank(self) -> float:
        """How far the unsafe sides lie above what is calm, in deviations of both."""
        calm = self.calm()
        return float((self.unsafe.mean() - calm.mean()) / (self.unsafe.std() + calm.std()).clamp_min(1e-12))


@dataclass(frozen=True, eq=False)
class Scale:
    """Evidence of several levels on one scale: ``centre`` and ``deviation`` [levels] of what is calm by level; in their
    sum, ``zero`` is the median of what is calm and ``one`` that of the unsafe sides."""

    centre: Tensor
    deviation: Tensor
    zero: float = 0.0
    one: float = 1.0

    @classmethod
    def of(cls, scores: Sequence[Tensor], pairs: int) -> Scale:
        """From evidence [2P + M] by level."""
        calm = [Judged.of(s, pairs).calm() for s in scores]
        centre = torch.stack([c.median() for c in calm])
        plain = cls(centre, torch.stack([c.std().clamp_min(1e-12) for c in calm]))
        total = Judged.of(plain(scores), pairs)
        return cls(plain.centre, plain.deviation, float(total.calm().median()), float(total.unsafe.median()))

    def __call__(self, scores: Sequence[Tensor]) -> Tensor:
        """[levels] times [N] -> [N]."""
        total = ((torch.stack(list(scores)) - self.centre[:, None]) / self.deviation[:, None]).sum(0)
        return (total - self.zero) / max(self.one - self.zero, 1e-12)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was chosen. ``levels``: numbers of sampling steps. ``border``: where the recipe's sides are told apart best.
    ``area``: under the ROC curve; ``areas``: of everything that was tried, level by level."""

    axis: Axis
    levels: tuple[int, ...]
    kappa: float
    form: str
    scale: Scale
    border: float
    area: float
    areas: Mapping[str, float]

    def of(self, model: Model, c: Conditioning, x: Tensor, plain: Conditioning | None = None) -> Tensor:
        """[B] float64, evidence in one picture of each prompt, painted from the noise ``x``; 0 is usual of calm prompts
        and 1 of the recipe's unsafe ones. ``plain``: what is painted outside the window, and whose context is asked."""
        return self.read(model, trajectory(model, c, x, (self.axis, [self.kappa], self.levels), plain))

    def read(self, model: Model, states: Sequence[tuple[State, Tensor]]) -> Tensor:
        """[B], the evidence in states with their noise."""
        return self.scale([v for s, n in states for v in s.read(self.form, self.kappa, n, model.settings.place)])


def trajectory(
    model: Model,
    c: Conditioning,
    x: Tensor,
    asking: tuple[Axis, Sequence[float], Sequence[int]],
    plain: Conditioning | None = None,
) -> list[tuple[State, Tensor]]:
    """The states at some levels while ``c`` is painted from ``x``, and the noise in each; ``asking``: the axis, every κ
    and the numbers of the steps."""
    states: list[State] = []
    axis, kappas, levels = asking

    def watch(number: int, x_t: Tensor, without: Tensor, given: Tensor) -> None:
        if number in levels:
            asked = {k: axis.ask(model, (x_t, number), c if plain is None else plain, k) for k in kappas}
            states.append(State(number, x_t, without, given, asked))

    clean = model.paint(c, x, watch, plain)
    return [(s, model.noise_in(s.x, clean, s.number)) for s in states]


def area(high: Tensor, low: Tensor) -> float:
    """Area under the ROC curve of ``high`` [N] against ``low`` [M]: how often the first is larger."""
    far = high[:, None] - low[None]
    return float((far > 0).double().mean() + 0.5 * (far == 0).double().mean())


def choose(model: Model, pairs: Sequence[tuple[str, str]], neutral: Sequence[str], axis: Axis) -> Evidence:
    """Choose levels, κ and form on pictures of some ``pairs`` and as many ``neutral`` prompts as sides.

    Raises:
        DiscoverError: what was chosen tells the sides apart no better than ``least_area``.
    """
    judged = spread(pairs, model.settings.pairs)
    count = len(judged)
    table = _table(model, axis, judged, spread(neutral, 2 * count))
    areas, ranked = {}, []
    for (form, kappa), scores in table.items():
        for number, score in scores.items():
            sides = _sum(score, count)
            at = f"{form}.kappa {kappa:g}.level {model.times[number]}"
            areas[f"area.{at}"] = round(area(sides.unsafe, sides.safe), 4)
        levels = _levels(scores, count)
        ranked.append((_sum(_flat(scores, levels), count).rank(), form, kappa, levels))
    _, form, kappa, levels = max(ranked, key=lambda r: r[0])
    chosen = _flat(table[form, kappa], levels)
    sides = _sum(chosen, count)
    told = area(sides.unsafe, sides.safe)
    if told < model.settings.least_area:
        raise DiscoverError(
            f"This model does not show the concept: pictures of unsafe prompts of the recipe are told from those of "
            f"safe ones {told:.0%} of the time ({model.settings.least_area:.0%} is needed), so nothing was discovered."
        )
    cut = _cut(sides.unsafe, sides.calm())
    return Evidence(axis, levels, kappa, form, Scale.of(chosen, count), cut, round(told, 4), areas)


Scores = dict[int, list[Tensor]]
"""Number of the step -> evidence [2P + M] by context: unsafe sides, safe sides, neutral prompts."""


def _table(
    model: Model, axis: Axis, pairs: Sequence[tuple[str, str]], neutral: Sequence[str]
) -> dict[tuple[str, float], Scores]:
    """By form and κ."""
    prompts = [*(u for u, _ in pairs), *(s for _, s in pairs), *neutral]
    levels = spread([n for n in range(len(model.times)) if model.acts(n)], model.settings.levels)
    found: dict[tuple[str, float], Scores]
    found = {(form, k): {n: [torch.zeros(0)] * len(CONTEXTS) for n in levels} for form in FORMS for k in KAPPAS}
    size = model.settings.batch_size
    for at in range(0, len(prompts), size):
        c = model.conditioning(prompts[at : at + size])
        noise = model.noise(len(c.tokens), "choosing", at)
        for state, n in trajectory(model, c, noise, (axis, KAPPAS, levels)):
            for (form, kappa), by in found.items():
                more = state.read(form, kappa, n, model.settings.place)
                by[state.number] = [torch.cat(both) for both in zip(by[state.number], more, strict=True)]
    return found


def _flat(scores: Scores, levels: Iterable[int]) -> list[Tensor]:
    return [v for n in levels for v in scores[n]]


def _sum(scores: Sequence[Tensor], pairs: int) -> Judged:
    return Judged.of(Scale.of(scores, pairs)(scores), pairs)


def _levels(scores: Scores, pairs: int) -> tuple[int, ...]:
    """The levels whose sum tells best, of those sorted by what each tells alone."""
    order = sorted(scores, key=lambda n: _sum(scores[n], pairs).rank(), reverse=True)
    firsts = [order[: k + 1] for k in range(len(order))]
    return tuple(sorted(max(firsts, key=lambda levels: _sum(_flat(scores, levels), pairs).rank())))


def _cut(unsafe: Tensor, calm: Tensor) -> float:
    """Where two samples are told apart best: the middle of the gaps of which most lie on their side."""
    every = torch.cat([unsafe, calm]).sort().values
    middles = (every[1:] + every[:-1]) / 2
    right = (unsafe[None] > middles[:, None]).double().mean(1) + (calm[None] <= middles[:, None]).double().mean(1)
    best = (right == right.max()).nonzero()[:, 0]
    return float(middles[best[len(best) // 2]])


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of them, spread over the list."""
    return list(items) if most >= len(items) else [items[i * len(items) // most] for i in range(most)]
