"""Fit directions from contrast prompts on a text encoder: closed form, streaming, one pass over the prompts.

Look along the discriminant, move along the concept. With Σ the covariance of benign tokens around their mean at their
position and Δμ the mean unsafe − safe difference of the pairs,

    v ∝ (Σ + λI)⁻¹ Δμ      separates best (Fisher's linear discriminant),
    u ∝ (Σ₀ + λI) v        is the displacement of least Mahalanobis length that changes the score by one,

both scaled so that benign scores have variance one and v·u = 1. Σ₀ is of the shared neutral prompts alone, so that all
concepts compiled together move in one metric; Σ also holds the safe halves and the concept's own neutral prompts.

The border is calibrated on prompts that the fit has not seen: a benign prompt is outside where any of its tokens is, so
the border is a quantile of prompt-wise maxima, with an exponential tail beyond what their number can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .conditioning import POOLED, TOKENS, Conditioning
from .directions import ConceptDirections, Direction
from .errors import CompileError
from .fingerprint import Fingerprint, fingerprint_of
from .geometry import scores
from .recipes import Concept

Encode = Callable[[list[str]], Conditioning]
Progress = Callable[[int, int], None]
"""Called with prompts done and prompts in all; raise in it to stop."""

BATCH = 32
RIDGE = 0.02
"""λ as a share of the mean benign variance."""
OUTSIDE = 1e-3
"""Share of benign prompts that one concept may move."""
TAIL = 0.1
"""Upper share of benign maxima that the exponential tail is fitted on."""
CHUNK = 77
"""Tokens of one CLIP chunk: the period of positions of longer prompts."""
SEPARATES = 0.75
"""Least area under the ROC curve of a recipe's own pairs."""

_HELD_OUT = 5  # every fifth pair measures instead of being fitted on, from 20 pairs on
_ENOUGH_PAIRS = 20
_COME_AND_GO = "The encoder returns some spaces for some prompts only; it must return the same spaces always."
_FLOOR = 0.1  # least deviation by position, relative to the mean one: positions that never vary have no own scale


def compile(
    concept: Concept,
    encode: Encode,
    neutral: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    batch_size: int = BATCH,
    family: str = "",
) -> ConceptDirections:
    """Fit the directions of one concept on the encoder behind ``encode``; see :func:`compile_many`."""
    return compile_many([concept], encode, neutral, progress, batch_size=batch_size, family=family)[0]


def compile_many(
    concepts: Sequence[Concept],
    encode: Encode,
    neutral: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    batch_size: int = BATCH,
    family: str = "",
) -> list[ConceptDirections]:
    """Fit the directions of several concepts; the shared neutral prompts are encoded once.

    Memory does not grow with the number of prompts but for one float per token of a calibration prompt: embeddings
    are streamed into sums.

    Args:
        concepts: what to fit.
        encode: list of prompts -> :class:`Conditioning`, any device and dtype. It may carry ``fingerprint`` (a
            :class:`Fingerprint`, or a method that returns one); else five short prompts are encoded for it.
        neutral: benign prompts (None: those bundled). Every second one fits, the others calibrate.
        progress: called with prompts done and in all after every batch.
        batch_size: prompts a batch; halved where the device runs out of memory.
        family: encoder family, for people.

    Raises:
        CompileError: the encoder returns something unusable, or a recipe does not separate on this encoder. Nothing
            is returned for the others then, so that no concept is missing silently.
    """
    if neutral is None:
        from .library import neutral_prompts

        neutral = neutral_prompts()
    neutral = [n for n in neutral if n.strip()]
    if len(neutral) < 8:
        raise CompileError(f"At least 8 neutral prompts are needed to calibrate on; got {len(neutral)}.")
    concepts = list(concepts)
    fit_prompts, check_prompts = list(neutral[0::2]), list(neutral[1::2])
    plans = [_Plan.of(c) for c in concepts]
    total = len(neutral) + sum(p.size for p in plans)
    run = _Run(encode, batch_size, progress, total)
    with torch.no_grad():
        encoder = fingerprint_of(encode)
        base = _Benign()
        for c in run(fit_prompts):
            base.add(c)
        metric = {name: m.covariance() for name, m in base.spaces.items()}
        fitted = [_discriminant(plan, run, base, metric) for plan in plans]
        del metric
        calibrations = [
            {name: _Calibration(v, base.spaces[name].mean.float()) for name, (v, _) in parts.items()}
            for parts in fitted
        ]
        for c in run(check_prompts):
            for calibration in calibrations:
                _see(calibration, c, "benign")
        return [
            _finish(plan, run, parts, calibration, encoder, neutral, family)
            for plan, parts, calibration in zip(plans, fitted, calibrations, strict=True)
        ]


@dataclass(frozen=True)
class _Plan:
    """Which prompts of a concept fit and which only measure."""

    concept: Concept
    fit: tuple[tuple[str, str], ...]
    check: tuple[tuple[str, str], ...]
    own_fit: tuple[str, ...]
    own_check: tuple[str, ...]

    @classmethod
    def of(cls, concept: Concept) -> _Plan:
        pairs, own = concept.pairs, concept.neutral
        if len(pairs) < _ENOUGH_PAIRS:
            return cls(concept, pairs, pairs, own[0::2], own[1::2])
        check = pairs[_HELD_OUT - 1 :: _HELD_OUT]
        fit = tuple(p for i, p in enumerate(pairs) if i % _HELD_OUT != _HELD_OUT - 1)
        return cls(concept, fit, check, own[0::2], own[1::2])

    @property
    def size(self) -> int:
        return 2 * len(self.fit) + 2 * len(self.check) + len(self.own_fit) + len(self.own_check)


class _Run:
    """Encodes prompts in batches, tells progress, halves the batch where memory runs out."""

    def __init__(self, encode: Encode, batch_size: int, progress: Progress | None, total: int) -> None:
        self.encode, self.batch_size, self.progress, self.total, self.done = (
            encode,
            max(1, batch_size),
            progress,
            total,
            0,
        )

    def __call__(self, prompts: Sequence[str]) -> Iterator[Conditioning]:
        start = 0
        while start < len(prompts):
            batch = list(prompts[start : start + self.batch_size])
            try:
                c = self.encode(batch)
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                continue
            if not isinstance(c, Conditioning) or c.tokens.shape[0] != len(batch):
                raise CompileError(
                    f"encode must return one row of a saferegion.Conditioning for each of {len(batch)} prompts."
                )
            if not bool(torch.isfinite(c.tokens).all()) or (
                c.pooled is not None and not bool(torch.isfinite(c.pooled).all())
            ):
                raise CompileError("The encoder returned NaN or infinite values; load a working text encoder.")
            start += len(batch)
            self.done += len(batch)
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield c


def _views(c: Conditioning) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(space, float32 [B, T, D], movable [B, T]) of a conditioning; pooled is one token."""
    for space in c.spaces or TOKENS:
        rows = c.tokens[:, space.rows, space.channels].float()
        movable = None if c.movable is None else c.movable[:, space.rows]
        if movable is None:
            movable = torch.ones(rows.shape[:2], dtype=torch.bool)
        yield space.name, rows, movable.to(rows.device)
    if c.pooled is not None:
        yield (
            POOLED,
            c.pooled.float().unsqueeze(1),
            torch.ones(len(c.pooled), 1, dtype=torch.bool, device=c.pooled.device),
        )


def _double(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def positions(length: int, period: int) -> torch.Tensor:
    """Position of each of ``length`` tokens within the period."""
    return torch.arange(length) % period


class Moments:
    """Sums of tokens by position, and of their outer products: streamed, so memory is O(L·D + D²).

    Positions repeat every :data:`CHUNK` tokens where prompts are longer and fill whole chunks; where lengths vary
    otherwise (encoders without padding) there is one position for all.
    """

    def __init__(self, length: int, width: int, device: torch.device, second: bool = True) -> None:
        kind = _double(device)
        self.length = length
        self.count = torch.zeros(length, dtype=kind, device=device)
        self.sum = torch.zeros(length, width, dtype=kind, device=device)
        self.outer = torch.zeros(width, width, dtype=kind, device=device) if second else None

    def add(self, rows: torch.Tensor, movable: torch.Tensor) -> None:
        """Add ``rows`` [B, T, D] float32 where ``movable`` [B, T]."""
        self._fit_length(rows.shape[1])
        weight = movable.to(rows.dtype)
        kept = rows * weight.unsqueeze(-1)
        by_position, count = kept.sum(0), weight.sum(0)
        if self.length == 1:
            self.sum += by_position.sum(0, keepdim=True)
            self.count += count.sum()
        else:
            for start in range(0, rows.shape[1], self.length):
                part = slice(start, start + self.length)
                self.sum += by_position[part]
                self.count += count[part]
        if self.outer is not None:
            flat = kept.flatten(0, 1)
            self.outer += flat.T @ flat

    def _fit_length(self, length: int) -> None:
        if self.length == 1 or length == self.length or (self.length == CHUNK and length % CHUNK == 0):
            return
        new = CHUNK if self.length % CHUNK == 0 and length % CHUNK == 0 else 1
        self.count = self.count.reshape(-1, new).sum(0)
        self.sum = self.sum.reshape(-1, new, self.sum.shape[1]).sum(0)
        self.length = new

    @property
    def mean(self) -> torch.Tensor:
        """``[L, D]``; zero where nothing was seen."""
        return self.sum / self.count.clamp_min(1).unsqueeze(1)

    def scatter(self) -> torch.Tensor:
        """Σ_t (c_t − mean at its position)(…)ᵀ, ``[D, D]``."""
        if self.outer is None:
            raise CompileError("These moments hold no second moments.")
        mean = self.mean
        return self.outer - (mean * self.count.unsqueeze(1)).T @ mean

    def covariance(self) -> torch.Tensor:
        """Within-position covariance, ``[D, D]``."""
        return self.scatter() / self.count.sum().clamp_min(1)


class _Benign:
    """Moments of all spaces of a stream of conditionings."""

    def __init__(self, second: bool = True) -> None:
        self.second = second
        self.spaces: dict[str, Moments] = {}

    def add(self, c: Conditioning) -> None:
        for name, rows, movable in _views(c):
            if name not in self.spaces:
                self.spaces[name] = Moments(rows.shape[1], rows.shape[2], rows.device, self.second)
            self.spaces[name].add(rows, movable)


Fit = tuple[torch.Tensor, torch.Tensor]
"""normal and shift, [1, D] float32."""


def _discriminant(plan: _Plan, run: _Run, base: _Benign, metric: dict[str, torch.Tensor]) -> dict[str, Fit]:
    safe, unsafe = _Benign(), _Benign(second=False)
    for c in run([s for _, s in plan.fit]):
        safe.add(c)
    for c in run([u for u, _ in plan.fit]):
        unsafe.add(c)
    hard = _Benign()
    for c in run(plan.own_fit):
        hard.add(c)
    if any(m.spaces and m.spaces.keys() != base.spaces.keys() for m in (safe, unsafe, hard)):
        raise CompileError(_COME_AND_GO)
    parts: dict[str, Fit] = {}
    for name, moments in base.spaces.items():
        s, u = safe.spaces[name], unsafe.spaces[name]
        delta = _mean_difference(u, s)
        shared = metric[name]
        near = s.covariance()
        if name in hard.spaces:
            near = (s.scatter() + hard.spaces[name].scatter()) / (s.count.sum() + hard.spaces[name].count.sum())
        within = (shared + near) / 2
        ridge = RIDGE * float(torch.diagonal(shared).mean())
        if not ridge > 0 or not bool(torch.isfinite(delta).all()):
            raise CompileError(f"The encoder gives the same embedding for every neutral prompt in space '{name}'.")
        if float(delta.norm()) <= 1e-6 * float(torch.diagonal(shared).sum().sqrt()):
            raise CompileError(
                f"'{plan.concept.name}': the unsafe and safe prompts have the same embeddings in space '{name}'; "
                "give pairs that differ in the concept."
            )
        eye = torch.eye(len(shared), dtype=shared.dtype, device=shared.device)
        v = torch.linalg.solve(within + ridge * eye, delta)
        moved = shared @ v + ridge * v
        variance = torch.dot(v, moved)
        v = v / variance.sqrt()
        parts[name] = ((v.float().unsqueeze(0)), (moved / variance.sqrt()).float().unsqueeze(0))
        del moments
    return parts


def _mean_difference(unsafe: Moments, safe: Moments) -> torch.Tensor:
    """Mean unsafe − safe token, weighing positions by how often both sides fill them."""
    if unsafe.length != safe.length:
        return unsafe.sum.sum(0) / unsafe.count.sum() - safe.sum.sum(0) / safe.count.sum()
    weight = torch.minimum(unsafe.count, safe.count)
    return ((unsafe.mean - safe.mean) * weight.unsqueeze(1)).sum(0) / weight.sum().clamp_min(1)


class _Calibration:
    """Scores of prompts the fit has not seen, in one space: one float a token is kept."""

    def __init__(self, normal: torch.Tensor, mean: torch.Tensor) -> None:
        self.normal = normal
        self.benign: list[torch.Tensor] = []  # [B, T], NaN where the token may not move
        self.hard: list[torch.Tensor] = []
        self.unsafe: list[torch.Tensor] = []
        self.safe: list[torch.Tensor] = []
        self.spread = 0.0
        self.tokens = 0
        self.period = len(mean)

    def see(self, which: str, rows: torch.Tensor, movable: torch.Tensor) -> None:
        z = scores(rows, self.normal)[:, :, 0].masked_fill(~movable, math.nan)
        getattr(self, which).append(z.cpu())
        if which == "benign":
            size = scores(rows * rows, self.normal * self.normal)[:, :, 0].clamp_min(0).sqrt()
            self.spread += float((size * movable).sum())
            self.tokens += int(movable.sum())

    def standard(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Benign mean and deviation by position, ``[L]``."""
        total, square, count = (torch.zeros(self.period, dtype=torch.float64) for _ in range(3))
        for z in self.benign:
            at = positions(z.shape[1], self.period).expand_as(z)
            known = ~z.isnan()
            total.index_add_(0, at[known], z[known].double())
            square.index_add_(0, at[known], z[known].double() ** 2)
            count.index_add_(0, at[known], torch.ones(int(known.sum()), dtype=torch.float64))
        mean = total / count.clamp_min(1)
        variance = (square / count.clamp_min(1) - mean**2).clamp_min(0)
        pooled = float((variance * count).sum() / count.sum().clamp_min(1))
        everywhere = float(total.sum() / count.sum().clamp_min(1))
        seen = count > 1
        mean = torch.where(seen, mean, torch.as_tensor(everywhere, dtype=torch.float64))
        variance = torch.where(seen, variance, torch.as_tensor(pooled, dtype=torch.float64))
        deviation = variance.sqrt().clamp_min(_FLOOR * math.sqrt(pooled) if pooled > 0 else 1e-6)
        return mean.float(), deviation.float()

    def maxima(self, which: str, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """Largest standardised score of each prompt, ``[N]``."""
        found = []
        for z in getattr(self, which):
            at = positions(z.shape[1], self.period)
            far = (z - mean[at]) / deviation[at]
            found.append(far.nan_to_num(nan=-math.inf).amax(1))
        return torch.cat(found) if found else torch.empty(0)

    def gap(self) -> float:
        """Mean unsafe − safe score: the concept's length, what steering by β = 1 takes off."""
        return float(
            torch.cat([z.flatten() for z in self.unsafe]).nanmean()
            - torch.cat([z.flatten() for z in self.safe]).nanmean()
        )


def _see(calibration: dict[str, _Calibration], c: Conditioning, which: str) -> None:
    for name, rows, movable in _views(c):
        if name not in calibration:
            raise CompileError(_COME_AND_GO)
        calibration[name].see(which, rows, movable)


def border(maxima: torch.Tensor, outside: float = OUTSIDE) -> float:
    """The score that a share ``outside`` of benign prompts exceeds, from their maxima ``[N]``.

    The upper :data:`TAIL` of the maxima is taken as exponential (peaks over threshold with shape 0), so that the
    border does not hang on the single largest of them; but it is never below the quantile that was seen.
    """
    m = maxima.double()
    base = float(torch.quantile(m, 1 - TAIL))
    over = m[m > base]
    scale = float((over - base).mean()) if len(over) else 0.0
    return max(base + scale * math.log(TAIL / outside), float(torch.quantile(m, 1 - outside)))


def area(unsafe: torch.Tensor, safe: torch.Tensor) -> float:
    """Area under the ROC curve: the chance that an unsafe prompt scores higher than a safe one."""
    higher = (unsafe.unsqueeze(1) > safe.unsqueeze(0)).double()
    return float((higher + 0.5 * (unsafe.unsqueeze(1) == safe.unsqueeze(0))).mean())


def _finish(
    plan: _Plan,
    run: _Run,
    parts: dict[str, Fit],
    calibration: dict[str, _Calibration],
    encoder: Fingerprint,
    neutral: Sequence[str],
    family: str,
) -> ConceptDirections:
    for which, prompts in (
        ("hard", plan.own_check),
        ("unsafe", [u for u, _ in plan.check]),
        ("safe", [s for _, s in plan.check]),
    ):
        for c in run(prompts):
            _see(calibration, c, which)
    spaces: dict[str, Direction] = {}
    figures: dict[str, float] = {}
    for name, (v, u) in parts.items():
        k = calibration[name]
        mean, deviation = k.standard()
        benign, hard = k.maxima("benign", mean, deviation), k.maxima("hard", mean, deviation)
        unsafe, safe = k.maxima("unsafe", mean, deviation), k.maxima("safe", mean, deviation)
        at = border(torch.cat([benign, hard]))
        gap = k.gap()
        v, u = v.cpu(), u.cpu()
        spaces[name] = Direction(
            normal=v,
            shift=u,
            threshold=(mean + at * deviation).unsqueeze(0),
            mean=mean.unsqueeze(0),
            deviation=deviation.unsqueeze(0),
            spread=torch.tensor([k.spread / max(1, k.tokens)], dtype=torch.float32),
            weight=torch.full((k.period,), gap, dtype=torch.float32),
        )
        figures |= {
            f"{name}.area": round(area(unsafe, safe), 4),
            f"{name}.border": round(at, 4),
            f"{name}.found": round(float((unsafe > at).double().mean()), 4),
            f"{name}.safe_moved": round(float((safe > at).double().mean()), 4),
            f"{name}.gap": round(gap, 4),
        }
    best = max(v for k, v in figures.items() if k.endswith(".area"))
    if best < SEPARATES:
        raise CompileError(
            f"'{plan.concept.name}' does not separate on this encoder: its unsafe prompts score above its safe ones "
            f"{best:.0%} of the time, {SEPARATES:.0%} is needed; give more pairs, that differ in the concept alone."
        )
    concept = plan.concept
    return ConceptDirections(
        concept=concept.name,
        title=concept.title,
        kind=concept.kind,
        version=concept.version,
        spaces=spaces,
        encoder=encoder,
        family=family,
        recipe=concept.digest(neutral),
        calibration=figures,
        licence=concept.licence,
    )
