"""Discover a concept through the diffusion model itself: what a prompt brings without saying it.

The border of a compiled direction is drawn by words. A volcano brings fire without a word for it, and only the
diffusion model knows. It is asked with no labels, no pictures and no list of associations: which neutral prompts' own
guidance points along the concept (:mod:`.evidence`), which of their words tell (:mod:`.detector`), and what must be
added to such a prompt so that the denoiser no longer adds the concept (:mod:`.train`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import POOLED, Conditioning
from ..core.detector import Detector
from ..core.direction import Direction, Meta
from ..core.errors import DiscoverError
from ..core.fingerprint import fingerprint_of
from ..learn.bundled import neutral_prompts
from ..learn.recipes import Concept
from . import detector as detectors
from .evidence import CONTEXTS, FORMS, KAPPAS, Evidence, axis_of, choose
from .model import Denoiser, Encode, Model
from .offset import Shift
from .resume import Kept, told_apart
from .settings import DiscoverySettings
from .train import Learned, Trainer
from .vector import discover_vector

Tensor = torch.Tensor

SUFFIX = "-discovered"
STAGES = ("choosing the evidence", "looking", "learning", "drawing the border")
FEWEST = 24
"""Neutral prompts without which nothing can be told of what is usual."""
FEWEST_FOUND = 4
"""Prompts that bring the concept, without which there is nothing to train on and to judge by."""
_UNKEYED = ("checkpoint", "progress", "told", "stop", "batch_size", "recompute", "family")


def discover(
    concept: Concept,
    encode: Encode,
    denoiser: Denoiser,
    neutral: Sequence[str] | None = None,
    settings: DiscoverySettings | None = None,
    **changes: object,
) -> Direction:
    """Learn what ``concept`` is in the eyes of a diffusion model; see the module.

    Args:
        concept: recipe, kind ``exclude``.
        encode: list of prompts -> :class:`Conditioning`, as for :func:`saferegion.compile`.
        denoiser: the frozen model.
        neutral: prompts to ask it about (None: those bundled); at least 24.
        settings: see :class:`DiscoverySettings`. changes: fields of it, as ``seed=0, steps=160, progress=f``.

    Returns:
        A direction of method ``discovered``, named after the concept with ``-discovered`` appended; its calibration
        figures say what was chosen on this model, ``curve`` holds the losses. Use it beside the compiled one:
        ``SafeRegion([compiled, found])``.

    Raises:
        DiscoverError: the model returns NaN, or lacks the concept, or no neutral prompt brings it; the recipe has no
            contrast; memory ran out; settings out of range. Nothing is returned then.
    """
    settings = _changed(settings or DiscoverySettings(), changes)
    if settings.method == "vector":
        return discover_vector(concept, encode, denoiser, settings=settings)
    if concept.kind != "exclude":
        raise DiscoverError(f"'{concept.name}' is an axis to balance: discover its sides with method 'vector'.")
    prompts = list(dict.fromkeys(n for n in (neutral_prompts() if neutral is None else neutral) if n.strip()))
    if len(prompts) < FEWEST:
        raise DiscoverError(f"At least {FEWEST} neutral prompts are needed to ask the model about; got {len(prompts)}.")
    model = Model(denoiser, encode, settings, _passes(concept, len(prompts), settings))
    kept = Kept.open(settings.checkpoint, _key(concept, prompts, model))
    with model.frozen(), torch.no_grad():
        found = _Discovery(concept, prompts, model, kept).run()
    model.finish()
    return found


def _changed(settings: DiscoverySettings, changes: dict[str, object]) -> DiscoverySettings:
    known = {f.name for f in dataclasses.fields(DiscoverySettings)}
    if unknown := sorted(set(changes) - known):
        raise DiscoverError(f"There is no setting {unknown[0]!r} of a discovery; there are {', '.join(sorted(known))}.")
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def _passes(concept: Concept, neutral: int, s: DiscoverySettings) -> int:
    """About how many rows the denoiser is asked for."""
    steps, pairs = s.sampling_steps, min(s.pairs, len(concept.pairs))
    both = 2 * len(CONTEXTS)
    asked = 4 * pairs * (2 * steps + both * len(KAPPAS) * min(s.levels, steps))
    looked = (neutral * s.pictures + pairs) * (2 * steps + 2 * both)
    judged = (s.rounds + 1) * s.batch_size // 2 * steps * 4
    return asked + looked + judged + s.steps * s.group * 5


def _key(concept: Concept, prompts: list[str], model: Model) -> str:
    fields = {k: v for k, v in vars(model.settings).items() if k not in _UNKEYED}
    parts = (concept.digest(prompts), sorted(fields.items(), key=str), told_apart(model.denoiser.parameters()))
    return hashlib.sha256(repr((parts, str(fingerprint_of(model.encode)), model.shape)).encode()).hexdigest()


@dataclass
class _Seen:
    """What the text encoder says of the prompts: features [N, D], the benign mean of each position [L, D] and the root
    mean square deviation of tokens from it, by space."""

    features: dict[str, Tensor]
    rest: dict[str, Tensor]
    size: dict[str, float]


class _Discovery:
    """One run, step by step."""

    def __init__(self, concept: Concept, prompts: list[str], model: Model, kept: Kept) -> None:
        self.concept, self.prompts, self.model, self.kept, self.settings = concept, prompts, model, kept, model.settings
        safe = list(dict.fromkeys(s for _, s in concept.pairs))
        self.safe = [s for s in safe[:: max(1, len(safe) // self.settings.pairs)] if s not in set(prompts)]

    def run(self) -> Direction:
        """Evidence, who brings the concept, Δ, the border."""
        seen = self._read()
        self.settings.tell(STAGES[0])
        axis = axis_of(self.model, self.concept.pairs, seen.rest, self.concept.name)
        evidence = choose(self.model, self.concept.pairs, self.prompts, axis)
        scores = self._look(evidence)
        found = detectors.find(seen.features, scores, (self.settings.budget, self.settings.brings))
        risky = self._risky(found, scores, evidence)
        shift = Shift.start(self.model.conditioning([""]), seen.size, self.settings.seed, self.model.device)
        learned = Trainer(self.model, evidence, risky, self.kept).run(shift)
        self.settings.tell(STAGES[3])
        return self._direction(evidence, seen, (found, risky), learned)

    def _parts(self) -> Iterator[tuple[int, Conditioning]]:
        """All prompts, those the recipe calls safe last, in batches: number of the first, conditioning."""
        prompts, size = [*self.prompts, *self.safe], self.settings.batch_size
        for at in range(0, len(prompts), size):
            yield at, self.model.conditioning(prompts[at : at + size])

    def _read(self) -> _Seen:
        rows: dict[str, list[Tensor]] = {}
        usual = _Usual(self.model.conditioning([""]))
        for _, c in self._parts():
            usual.add(c)
            for space, values in detectors.features(c).items():
                rows.setdefault(space, []).append(values)
        return _Seen({space: torch.cat(values) for space, values in rows.items()}, usual.mean(), usual.size())

    def _look(self, evidence: Evidence) -> Tensor:
        """Paint every prompt and ask for its evidence [N]."""
        if "evidence" not in self.kept.tensors:
            scores = []
            for at, c in self._parts():
                self.settings.tell(STAGES[1])
                noises = [self.model.noise(len(c.tokens), STAGES[1], k, at) for k in range(self.settings.pictures)]
                scores.append(torch.stack([evidence.of(self.model, c, x) for x in noises]).mean(0))
            self.kept.save({"evidence": torch.cat(scores)})
        return self.kept.tensors["evidence"]

    def _risky(self, found: detectors.Found, scores: Tensor, evidence: Evidence) -> list[str]:
        """The prompts found, of those that nobody called safe."""
        opened = found.opened[: len(self.prompts)]
        told = scores[: len(self.prompts)][opened]
        if int((told > evidence.border).sum()) < FEWEST_FOUND:
            raise DiscoverError(
                f"Only {int((told > evidence.border).sum())} of {len(self.prompts)} neutral prompts bring "
                f"'{self.concept.name}' into the picture without saying it: this model leaves nothing to discover; use "
                "the compiled direction."
            )
        return [p for p, o in zip(self.prompts, opened.tolist(), strict=True) if o]

    def _direction(
        self, evidence: Evidence, seen: _Seen, found: tuple[detectors.Found, list[str]], learned: Learned
    ) -> Direction:
        detector, figures = self._border(seen, *found, learned.best)
        figures |= {
            "evidence.area": evidence.area, "evidence.kappa": evidence.kappa,
            "evidence.form": float(list(FORMS).index(evidence.form)), "evidence.border": evidence.border,
            "found": float(len(found[1])), "agreement": found[0].agreement,
            "left": float(learned.left.mean()), "round": float(learned.judged.index(min(learned.judged))),
            **{f"evidence.level.{i}": float(self.model.times[n]) for i, n in enumerate(evidence.levels)},
            **evidence.areas,
        }  # fmt: skip
        c = self.concept
        meta = Meta(
            title=f"{c.title or c.name}, by association", version=c.version, family=self.settings.family,
            recipe=c.digest(self.prompts), method="discovered", seed=self.settings.seed,
            calibration={k: round(v, 6) for k, v in figures.items()}, licence=c.licence, curve=tuple(learned.curve),
        )  # fmt: skip
        movers = dict(learned.best.movers(self.settings.window))
        return Direction(c.name + SUFFIX, fingerprint_of(self.model.encode), detector, movers, seen.rest, meta=meta)

    def _border(
        self, seen: _Seen, found: detectors.Found, risky: list[str], shift: Shift
    ) -> tuple[Detector, dict[str, float]]:
        """A ridge of who was found, which is surer than the evidence of single pictures, turned so that a prompt is
        closed once it has moved."""
        x, opened = seen.features[found.space], found.opened
        moved = []
        for at in range(0, len(risky), self.settings.batch_size):
            c = self.model.conditioning(risky[at : at + self.settings.batch_size])
            moved.append(detectors.features(shift.on(c))[found.space] - detectors.features(c)[found.space])
        step = torch.cat(moved)
        ridge = detectors.turned(detectors.fit(x, opened.double()), x, step.mean(0), opened)
        left = ridge.left
        threshold = detectors.border(left[~opened], left[opened], self.settings.budget)
        at_rest = left[: len(self.prompts)][opened[: len(self.prompts)]] + step.double() @ ridge.weight
        figures = {
            "calm.opened": float((left[~opened] > threshold).double().mean()),
            "found.opened": float((left[opened] > threshold).double().mean()),
            "moved.opened": float((at_rest > threshold).double().mean()),
        }
        return detectors.detector(ridge, found.space, left[~opened], threshold), figures


class _Usual:
    """Mean and deviation of tokens by position, summed batch by batch."""

    def __init__(self, empty: Conditioning) -> None:
        self.period = {v.space: 1 if v.space == POOLED else v.rows.shape[1] for v in empty.views()}
        self.sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, c: Conditioning) -> None:
        for view in c.views():
            rows, period = view.rows.double().cpu(), self.period[view.space]
            mask = torch.ones(rows.shape[:2], dtype=torch.bool) if view.mask is None else view.mask.cpu()
            weight = mask.double().unsqueeze(-1)
            position = torch.arange(rows.shape[1]) % period
            parts = []
            for value in (weight, rows * weight, rows.square() * weight):
                total = torch.zeros(period, value.shape[2], dtype=torch.float64)
                parts.append(total.index_add_(0, position, value.sum(0)))
            old = self.sums.get(view.space)
            count, one, two = parts
            self.sums[view.space] = (count, one, two) if old is None else (old[0] + count, old[1] + one, old[2] + two)

    def mean(self) -> dict[str, Tensor]:
        """[L, D] by space; where no token may move, the mean of all positions."""
        found = {}
        for space, (count, one, _) in self.sums.items():
            overall = one.sum(0) / count.sum().clamp_min(1)
            found[space] = torch.where(count > 0, one / count.clamp_min(1), overall).float()
        return found

    def size(self) -> dict[str, float]:
        """Root mean square deviation of tokens from the mean of their position."""
        found = {}
        for space, (count, one, two) in self.sums.items():
            variance = (two - one.square() / count.clamp_min(1)).sum() / (count.sum() * two.shape[1]).clamp_min(1)
            found[space] = max(float(variance.clamp_min(0).sqrt()), 1e-6)
        return found
