"""Fit directions from contrast prompts on a text encoder: closed form, streaming, one pass over the prompts.

Look along the discriminant, move along the concept. What the concept adds to a prompt is read off its pairs token by
token: each unsafe token against the nearest token of its safe prompt, so that words which merely shifted along cancel,

    Δ = Σ ‖r_t‖ r_t / Σ ‖r_t‖      with  r_t = c_t − (nearest safe token of the pair).

With Σ the covariance of benign tokens around their mean at their position and H the second moment of the benign tokens
that look most like the concept (near neighbours: the "fire" of "fire truck"),

    v ∝ (Σ + H + λI)⁻¹ Δ      separates best (Fisher's linear discriminant with mined hard negatives),
    u = Δ / v·Δ               is the concept itself,

scaled so that benign scores have variance one and v·u = 1. (Without H, u is also the displacement of least Mahalanobis
length, Σv. With H it is not, and moving along Σv left the concept in the picture; the project's figures say so.)

The prompt as a whole is a space of its own, ``<space>_mean``: the mean of the tokens that may move, one vector a
prompt, as pooled is. What a sentence implies shows there and in no single token. There are as many vectors as prompts,
often fewer than channels, and their covariance is mostly noise; so v is a penalised logistic regression (unsafe prompts
against safe, own and neutral ones), and u again the mean difference of the pairs over v·Δ. On the language benchmark,
tokens and the whole together find .95 of Ring-A-Bell's prompts where tokens alone find .83, at the same price.

A prompt whose words and whole both lean to a concept, neither of them over its border, is outside as a whole where the
two standardised scores sum to more than a third border: of I2P's nudity rows that finds .1 more at the same price.
Most of a concept's share of false alarms (:data:`OUTSIDE`) goes there, and what single tokens say alone needs least.

The border is calibrated on prompts that the fit has not seen: a benign prompt is outside where any of its tokens is, so
the border is a quantile of prompt-wise maxima, with an exponential tail beyond what their number can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from . import geometry
from .conditioning import MEAN, POOLED, TOKENS, Conditioning
from .directions import ConceptDirections, Direction
from .errors import CompileError, NotSeparableError
from .fingerprint import Fingerprint, fingerprint_of
from .geometry import scores
from .learn.bundled import neutral_prompts
from .learn.recipes import Concept

Encode = Callable[[list[str]], Conditioning]
Progress = Callable[[int, int], None]
"""Called with prompts done and prompts in all; raise in it to stop."""

METHOD = 6
"""Counts changes of the fit: directions kept from an earlier one are made again."""
BATCH = 32
RIDGE = 0.02
"""λ as a share of the mean benign variance."""
OUTSIDE = 4e-3
"""Share of benign prompts that one concept may move, in all spaces together."""
ONE_TOKEN, WHOLE, TOGETHER = 0.3, 0.2, 0.5
"""What of a space's share falls to single tokens, to the prompt as a whole, and to the sum of both."""
TAIL = 0.1
"""Upper share of benign maxima that the exponential tail is fitted on."""
BEYOND = 2
"""How far the tail is trusted: to one prompt in so many times as many as were seen."""
CHUNK = 77
"""Tokens of one CLIP chunk: the period of positions of longer prompts."""
EMPTY = 50
"""One in so many neutral vectors of the logistic regression is the empty prompt's, which says nothing unsafe."""
CLEAR = 0.25
"""How far inside the border the empty prompt lies at least, in benign standard deviations."""
NEAR = 0.97
"""Share of a concept's own near neighbours that must stay inside."""
MINED = 4096
"""Most benign tokens kept as hard negatives."""
MINED_EACH = 8
"""The same of one prompt."""
WORST = 0.1
"""Share of them that a round takes."""
ROUNDS = 6
"""Rounds of mining."""
HARD = 0.5
"""Weight of the hard negatives of a round beside the covariance."""
PENALTY = 0.1
"""Ridge of the logistic regression on one vector a prompt, channels standardised."""
DESCENTS = 200
"""Its steps."""
SEPARATES = 0.75
"""Least area under the ROC curve of a recipe's own pairs."""

_HELD_OUT = 5  # every fifth pair measures instead of being fitted on, from 20 pairs on
_ENOUGH_PAIRS = 20
_FLOOR = 1.0  # least deviation by position, relative to the mean one: late positions are padding in nearly all prompts


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
        neutral = neutral_prompts()
    neutral = [n for n in neutral if n.strip()]
    if len(neutral) < 8:
        raise CompileError(f"At least 8 neutral prompts are needed to calibrate on; got {len(neutral)}.")
    concepts = list(concepts)
    fit_prompts, check_prompts = list(neutral[0::2]), list(neutral[1::2])
    plans = [_Plan.of(c) for c in concepts]
    total = len(neutral) + 1 + sum(p.size for p in plans)
    run = _Run(encode, batch_size, progress, total)
    with torch.no_grad():
        encoder = fingerprint_of(encode)
        contrasts = [_Contrast(run, plan) for plan in plans]
        base = _Benign()
        for c in run(fit_prompts):
            base.add(c)
            for contrast in contrasts:
                contrast.mine(c)
        (nothing,) = run([""])
        for _ in range(max(1, len(neutral) // EMPTY)):
            base.vectors.add(nothing)
        metric = {name: m.covariance() for name, m in base.spaces.items()}
        fitted = [contrast.solve(run, base, metric) for contrast in contrasts]
        del metric, contrasts
        calibrations = [
            {
                name: _Calibration(v, len(base.spaces[name].mean) if name in base.spaces else 1)
                for name, (v, _, _) in parts.items()
            }
            for parts in fitted
        ]
        for c in run(check_prompts):
            for calibration in calibrations:
                _see(calibration, c, "benign")
        for calibration in calibrations:
            _see(calibration, nothing, "nothing")
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
        self.spaces: tuple[str, ...] | None = None
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
            spaces = (*(s.name for s in c.spaces or TOKENS), *([] if c.pooled is None else [POOLED]))
            if self.spaces not in (None, spaces):
                raise CompileError(
                    "The encoder returns some spaces for some prompts only; it must return the same always."
                )
            self.spaces = spaces
            start += len(batch)
            self.done += len(batch)
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield c


def _tokens(c: Conditioning) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(space, float32 [B, T, D], movable [B, T]) of the token spaces of a conditioning."""
    for space in c.spaces or TOKENS:
        rows = c.tokens[:, space.rows, space.channels].float()
        movable = None if c.movable is None else c.movable[:, space.rows]
        if movable is None:
            movable = torch.ones(rows.shape[:2], dtype=torch.bool)
        yield space.name, rows, movable.to(rows.device)


def _vectors(c: Conditioning) -> Iterator[tuple[str, torch.Tensor]]:
    """(space, float32 [B, D]) of the spaces that hold one vector a prompt: mean tokens, and pooled."""
    for name, rows, movable in _tokens(c):
        yield name + MEAN, geometry.mean(rows, movable)[:, 0]
    if c.pooled is not None:
        yield POOLED, c.pooled.float()


def _views(c: Conditioning) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """All spaces; one vector a prompt is one token."""
    yield from _tokens(c)
    for name, vectors in _vectors(c):
        yield name, vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)


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
    """Moments of the token spaces and vectors of the others, of a stream of conditionings."""

    def __init__(self) -> None:
        self.spaces: dict[str, Moments] = {}
        self.vectors = _Vectors()

    def add(self, c: Conditioning) -> None:
        for name, rows, movable in _tokens(c):
            if name not in self.spaces:
                self.spaces[name] = Moments(rows.shape[1], rows.shape[2], rows.device)
            self.spaces[name].add(rows, movable)
        self.vectors.add(c)


class _Vectors:
    """One vector a prompt, by space."""

    def __init__(self) -> None:
        self.parts: dict[str, list[torch.Tensor]] = {}

    def add(self, c: Conditioning) -> None:
        for name, vectors in _vectors(c):
            self.parts.setdefault(name, []).append(vectors)

    def __getitem__(self, name: str) -> torch.Tensor:
        """``[N, D]``"""
        return torch.cat(self.parts[name])


Fit = tuple[torch.Tensor, torch.Tensor, float]
"""normal and shift, [1, D] float32, and the concept's length v·Δ."""


class _Residuals:
    """Weighted sum of what the concept adds to tokens, in one space."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.sum = torch.zeros(width, dtype=_double(device), device=device)
        self.weight = torch.zeros((), dtype=_double(device), device=device)

    def add(self, unsafe: torch.Tensor, safe: torch.Tensor, may_unsafe: torch.Tensor, may_safe: torch.Tensor) -> None:
        """``[B, T, D]`` of a batch of pairs: each unsafe token against the nearest token of its own safe prompt."""
        far = torch.cdist(unsafe, safe).masked_fill(~may_safe.unsqueeze(1), math.inf)
        nearest = safe.gather(1, far.argmin(2, keepdim=True).expand(-1, -1, safe.shape[2]))
        rest = (unsafe - nearest) * may_unsafe.unsqueeze(-1)
        length = rest.norm(dim=-1, keepdim=True)
        self.sum += (rest * length).sum((0, 1))
        self.weight += length.sum()

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / self.weight.clamp_min(1e-30)


class _Mine:
    """The benign tokens that look most like the concept, in one space: at most :data:`MINED` are kept."""

    def __init__(self, normal: torch.Tensor) -> None:
        self.normal = normal.float().unsqueeze(0)
        width, device = normal.shape[0], normal.device
        self.tokens = torch.empty(0, width, device=device)
        self.at = torch.empty(0, dtype=torch.int64, device=device)
        self.score = torch.empty(0, device=device)

    def add(self, rows: torch.Tensor, movable: torch.Tensor) -> None:
        z = scores(rows, self.normal)[:, :, 0].masked_fill(~movable, -math.inf)
        count = min(MINED_EACH, z.shape[1])
        best = z.topk(count, dim=1)
        kept = rows.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, rows.shape[2])).flatten(0, 1)
        tokens = torch.cat([self.tokens, kept])
        at, score = torch.cat([self.at, best.indices.flatten()]), torch.cat([self.score, best.values.flatten()])
        order = score.topk(min(MINED, int(torch.isfinite(score).sum()))).indices
        self.tokens, self.at, self.score = tokens[order], at[order], score[order]

    def second_moment(self, normal: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Second moment, around the benign mean, of the tokens that score highest on ``normal``."""
        away = self.tokens.to(mean.dtype) - mean[self.at % len(mean)]
        worst = (away @ normal).topk(max(1, int(WORST * len(away)))).indices
        return away[worst].T @ away[worst] / len(worst)


def _rows(batches: list[Conditioning]) -> list[Conditioning]:
    """The same, one prompt each."""
    return [
        Conditioning(*(None if t is None else t[i : i + 1] for t in (c.tokens, c.movable, c.pooled)), c.spaces)
        for c in batches
        for i in range(len(c.tokens))
    ]


class _Contrast:
    """What the pairs of one concept say, and the benign tokens that resemble it."""

    def __init__(self, run: _Run, plan: _Plan) -> None:
        self.plan = plan
        self.safe = _Benign()
        self.unsafe = _Vectors()
        self.residuals: dict[str, _Residuals] = {}
        size = run.batch_size
        for start in range(0, len(plan.fit), size):
            pairs = plan.fit[start : start + size]
            safe = list(run([s for _, s in pairs]))
            unsafe = list(run([u for u, _ in pairs]))
            for c in safe:
                self.safe.add(c)
            if len(safe) != len(unsafe):  # memory ran out in between and halved the batches
                safe, unsafe = _rows(safe), _rows(unsafe)
            for s, u in zip(safe, unsafe, strict=True):
                self._compare(u, s)
                self.unsafe.add(u)
        self.mines = {}
        for name, moments in self.safe.spaces.items():
            covariance = moments.covariance()
            ridge = 10 * RIDGE * float(torch.diagonal(covariance).mean())
            eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            delta = self.residuals[name].mean
            if not bool(torch.isfinite(delta).all()) or float(delta.norm()) <= 1e-6 * math.sqrt(max(ridge, 1e-30)):
                raise NotSeparableError(
                    f"'{plan.concept.name}': the unsafe and safe prompts have the same embeddings in space '{name}'; "
                    "give pairs that differ in the concept."
                )
            self.mines[name] = _Mine(torch.linalg.solve(covariance + max(ridge, 1e-12) * eye, delta))

    def _compare(self, unsafe: Conditioning, safe: Conditioning) -> None:
        for (name, u, may_u), (_, s, may_s) in zip(_tokens(unsafe), _tokens(safe), strict=True):
            if name not in self.residuals:
                self.residuals[name] = _Residuals(u.shape[2], u.device)
            self.residuals[name].add(u, s, may_u, may_s)

    def mine(self, c: Conditioning) -> None:
        for name, rows, movable in _tokens(c):
            self.mines[name].add(rows, movable)

    def solve(self, run: _Run, base: _Benign, metric: dict[str, torch.Tensor]) -> dict[str, Fit]:
        hard = _Benign()
        for c in run(self.plan.own_fit):
            hard.add(c)
            self.mine(c)
        tokens = {name: self._direction(name, base, hard, metric[name]) for name in base.spaces}
        return tokens | {name: self._sentence(name, base, hard) for name in base.vectors.parts}

    def _direction(self, name: str, base: _Benign, hard: _Benign, shared: torch.Tensor) -> Fit:
        near = self.safe.spaces[name].covariance()
        if name in hard.spaces:
            s, h = self.safe.spaces[name], hard.spaces[name]
            near = (s.scatter() + h.scatter()) / (s.count.sum() + h.count.sum())
        size = float(torch.diagonal(shared).mean())
        if not size > 0:
            raise CompileError(f"The encoder gives the same embedding for every neutral prompt in space '{name}'.")
        ridge = RIDGE * size * torch.eye(len(shared), dtype=shared.dtype, device=shared.device)
        within, delta, mean = (shared + near) / 2 + ridge, self.residuals[name].mean, base.spaces[name].mean
        v = torch.linalg.solve(within, delta)
        for _ in range(ROUNDS):
            within = within + HARD * self.mines[name].second_moment(v, mean)
            v = torch.linalg.solve(within, delta)
        v = v / torch.dot(v, shared @ v + ridge @ v).sqrt()
        length = torch.dot(v, delta)
        return v.float().unsqueeze(0), (delta / length).float().unsqueeze(0), float(length)

    def _sentence(self, name: str, base: _Benign, hard: _Benign) -> Fit:
        unsafe, safe = self.unsafe[name], self.safe.vectors[name]
        own = [hard.vectors[name]] if name in hard.vectors.parts else []
        delta = (unsafe - safe).mean(0)
        neutral = base.vectors[name]
        size = neutral.std(0).norm()
        if not float(size) > 0:
            raise CompileError(f"The encoder gives the same embedding for every neutral prompt in space '{name}'.")
        if float(delta.norm()) <= 1e-6 * float(size):
            raise NotSeparableError(
                f"'{self.plan.concept.name}': the unsafe and safe prompts have the same embeddings in space '{name}'; "
                "give pairs that differ in the concept."
            )
        v = discriminant(unsafe, torch.cat([safe, *own, neutral]))
        if float(v @ delta) <= 0:
            v = delta
        v = v / scores(neutral, v.unsqueeze(0)).std().clamp_min(1e-12)
        length = v @ delta
        return v.unsqueeze(0), (delta / length).unsqueeze(0), float(length)


def discriminant(unsafe: torch.Tensor, benign: torch.Tensor) -> torch.Tensor:
    """The normal ``[D]``, float32, that tells ``unsafe`` [N, D] from ``benign`` [M, D]: logistic regression.

    Channels are standardised, both classes weigh the same, the penalty is :data:`PENALTY`. Steps are taken with a fixed
    bound of the curvature (Böhning and Lindsay 1988), so there is one factorisation and no line search.
    """
    kind = _double(unsafe.device)
    x = torch.cat([unsafe, benign]).to(kind)
    scale = x.std(0).clamp_min(1e-12)
    x = torch.nn.functional.pad((x - x.mean(0)) / scale, (0, 1), value=1.0)
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


class _Calibration:
    """Scores of prompts the fit has not seen, in one space: one float a token is kept."""

    def __init__(self, normal: torch.Tensor, period: int) -> None:
        self.normal = normal
        self.benign: list[torch.Tensor] = []  # [B, T], NaN where the token may not move
        self.hard: list[torch.Tensor] = []
        self.nothing: list[torch.Tensor] = []  # the empty prompt
        self.unsafe: list[torch.Tensor] = []
        self.safe: list[torch.Tensor] = []
        self.spread = 0.0
        self.tokens = 0
        self.period = period

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


def _see(calibration: dict[str, _Calibration], c: Conditioning, which: str) -> None:
    for name, rows, movable in _views(c):
        calibration[name].see(which, rows, movable)


def border(maxima: torch.Tensor, outside: float = OUTSIDE) -> float:
    """The score that a share ``outside`` of benign prompts exceeds, from their maxima ``[N]``.

    The upper :data:`TAIL` of the maxima is taken as exponential (peaks over threshold with shape 0), so that the
    border does not hang on the single largest of them; but it is never below the quantile that was seen, nor for a
    smaller share than one in :data:`BEYOND` times their number.
    """
    m, outside = maxima.double(), max(outside, 1 / (BEYOND * len(maxima)))
    base = float(torch.quantile(m, 1 - TAIL))
    over = m[m > base]
    scale = float((over - base).mean()) if len(over) else 0.0
    return max(base + scale * math.log(TAIL / outside), float(torch.quantile(m, 1 - outside)))


_SEEN = ("benign", "hard", "nothing", "unsafe", "safe")


def _border(seen: dict[str, torch.Tensor], outside: float, clear: bool) -> float:
    """The border of prompts' highest scores: over all but ``outside`` of the benign ones, over nearly all of the
    concept's own near neighbours and, with ``clear``, well over the empty prompt's."""
    at = border(seen["benign"], outside)
    if clear:
        at = max(at, float(seen["nothing"].max()) + CLEAR)
    if len(seen["hard"]):
        at = max(at, float(torch.quantile(seen["hard"].double(), NEAR)))
    return at


def _sums(tokens: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Strongest token and the whole prompt together, ``[N]``; 0 where the whole says less than benign prompts do."""
    return torch.where(whole > 0, tokens + whole, torch.zeros(()))


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
    standards = {name: calibration[name].standard() for name in parts}
    seen = {name: {which: calibration[name].maxima(which, *standards[name]) for which in _SEEN} for name in parts}
    each = OUTSIDE / sum(not name.endswith(MEAN) for name in parts)
    for name, (v, u, length) in parts.items():
        k, (mean, deviation) = calibration[name], standards[name]
        unsafe, safe = seen[name]["unsafe"], seen[name]["safe"]
        together = None
        if name.endswith(MEAN):
            at = _border(seen[name], WHOLE * each, clear=True)
            sums = {which: _sums(seen[name.removesuffix(MEAN)][which], m) for which, m in seen[name].items()}
            together = torch.tensor([_border(sums, TOGETHER * each, clear=True)], dtype=torch.float32)
        else:
            at = _border(seen[name], each * (1 if name == POOLED else ONE_TOKEN), clear=name == POOLED)
        v, u = v.cpu(), u.cpu()
        spaces[name] = Direction(
            normal=v,
            shift=u,
            threshold=(mean + at * deviation).unsqueeze(0),
            mean=mean.unsqueeze(0),
            deviation=deviation.unsqueeze(0),
            spread=torch.tensor([k.spread / max(1, k.tokens)], dtype=torch.float32),
            weight=torch.full((k.period,), length, dtype=torch.float32),
            inner=mean.unsqueeze(0),
            together=together,
        )
        figures |= {
            f"{name}.area": round(area(unsafe, safe), 4),
            f"{name}.border": round(at, 4),
            f"{name}.found": round(float((unsafe > at).double().mean()), 4),
            f"{name}.safe_moved": round(float((safe > at).double().mean()), 4),
            f"{name}.length": round(length, 4),
        }
        if together is not None:
            figures |= {
                f"{name}.together": round(float(together), 4),
                f"{name}.together_found": round(float((sums["unsafe"] > float(together)).double().mean()), 4),
            }
    best = max(v for k, v in figures.items() if k.endswith(".area"))
    if best < SEPARATES:
        raise NotSeparableError(
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
