"""Discover a concept through the diffusion model itself: what a prompt brings without saying it.

The border of a compiled direction is drawn by words. A volcano brings fire without a word for it, and only the
diffusion model knows. It is asked with no labels, no pictures and no list of associations: which neutral prompts' own
guidance points along the concept (:mod:`.evidence`), which of their words tell (:mod:`.detector`), and what must be
added to such a prompt so that the denoiser no longer adds the concept (:mod:`.train`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch

from ..core.conditioning import POOLED
from ..core.direction import Direction, Meta
from ..core.errors import DiscoverError
from ..core.fingerprint import fingerprint_of
from ..learn.bundled import neutral_prompts
from ..learn.encoded import Store
from ..learn.prompts import spread
from ..learn.recipes import Concept
from ..learn.settings import CompileSettings
from . import detector as detectors
from .evidence import CONTEXTS, FORMS, KAPPAS, Evidence, axis_of, choose
from .model import Denoiser, Encode, Model
from .offset import Shift
from .resume import Kept, told_apart
from .settings import DiscoverySettings
from .train import LENGTHS, Learned, Trainer
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
    looked = neutral * s.pictures * (2 * steps + 2 * both)
    held = min(s.batch_size, max(1, round(s.held_out * neutral / 4)))  # as if one prompt in four brought it
    judged = held * (s.rounds * 7 * steps + len(LENGTHS) * (steps + both))
    return asked + looked + judged + s.steps * s.group * 7


def _key(concept: Concept, prompts: list[str], model: Model) -> str:
    fields = {k: v for k, v in vars(model.settings).items() if k not in _UNKEYED}
    parts = (concept.digest(prompts), sorted(fields.items(), key=str), told_apart(model.denoiser.parameters()))
    return hashlib.sha256(repr((parts, str(fingerprint_of(model.encode)), model.shape)).encode()).hexdigest()


class _Discovery:
    """One run, step by step."""

    def __init__(self, concept: Concept, prompts: list[str], model: Model, kept: Kept) -> None:
        self.concept, self.prompts, self.model, self.kept, self.settings = concept, prompts, model, kept, model.settings
        known = set(prompts)
        safe = [s for s in dict.fromkeys(s for _, s in concept.pairs) if s not in known]
        self.safe = spread(safe, len(prompts))
        made = CompileSettings(batch_size=self.settings.batch_size)
        self.store = Store(model.conditioning, [*prompts, *self.safe], made, None)

    def run(self) -> Direction:
        """Evidence, who brings the concept, Δ, the border."""
        self.store.fill(frozenset(self.prompts))
        rest, size = self._usual()
        self.settings.tell(STAGES[0])
        axis = axis_of(self.model, self.concept.pairs, rest, self.concept.name)
        evidence = choose(self.model, self.concept.pairs, self.prompts, axis)
        scores = self._look(evidence)
        least = self.settings.doubt, self.settings.brings
        found = detectors.find(self.store, (self.prompts, self.safe), scores, least, self.settings.settling)
        self._require_some(found, scores, evidence)
        shift = Shift.start(self.model.conditioning([""]), size, self.settings.seed, self.model.device)
        shift = shift.along(axis.delta)  # where the words of the concept lie; b is zero, so nothing moves yet
        learned = Trainer(self.model, evidence, self._of(found.opened), scores[~found.opened], self.kept).run(shift)
        self.settings.tell(STAGES[3])
        return self._direction(evidence, rest, found, learned)

    def _of(self, which: Tensor) -> list[str]:
        return [p for p, w in zip(self.prompts, which.tolist(), strict=True) if w]

    def _usual(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The benign mean of each position [L, D], and the root mean square deviation from it, by space."""
        rest, size = {}, {}
        for space in self.store.spaces:
            if space == POOLED:
                rows = self.store.vector(space, self.prompts)
                mean, deviation = rows.mean(0, keepdim=True), rows.std(0)
            else:
                mean, deviation = self.store.benign[space].statistics()
            rest[space], size[space] = mean.cpu(), max(float(deviation.square().mean().sqrt()), 1e-6)
        return rest, size

    def _look(self, evidence: Evidence) -> Tensor:
        """Paint every prompt and ask for its evidence [N]."""
        if "evidence" not in self.kept.tensors:
            scores = []
            for at in range(0, len(self.prompts), self.settings.batch_size):
                self.settings.tell(STAGES[1])
                c = self.model.conditioning(self.prompts[at : at + self.settings.batch_size])
                noises = [self.model.noise(len(c.tokens), STAGES[1], k, at) for k in range(self.settings.pictures)]
                scores.append(torch.stack([evidence.of(self.model, c, x) for x in noises]).mean(0))
            self.kept.save({"evidence": torch.cat(scores)})
        return self.kept.tensors["evidence"]

    def _require_some(self, found: detectors.Found, scores: Tensor, evidence: Evidence) -> None:
        bring = int((scores[found.opened] > evidence.border).sum())
        if bring < FEWEST_FOUND:
            raise DiscoverError(
                f"Only {bring} of {len(self.prompts)} neutral prompts bring '{self.concept.name}' into the picture "
                "without saying it: this model leaves nothing to discover; use the compiled direction."
            )

    def _direction(
        self, evidence: Evidence, rest: dict[str, Tensor], found: detectors.Found, learned: Learned
    ) -> Direction:
        risky = self._of(found.opened)
        moved = self.store.beside(lambda texts: learned.best.on(self.model.conditioning(texts)), risky)
        sides = detectors.Sides(self.store, moved, risky, self._of(~found.opened), self.safe)
        detector, figures = detectors.draw(sides, self.settings.budget)
        figures |= {
            "evidence.area": evidence.area, "evidence.kappa": evidence.kappa,
            "evidence.form": float(list(FORMS).index(evidence.form)), "evidence.border": evidence.border,
            "found": float(len(risky)), "agreement": found.agreement, "cut": found.cut,
            "left": float(learned.left.mean()), "length": learned.length,
            "round": float(learned.judged.index(min(learned.judged))),
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
        return Direction(c.name + SUFFIX, fingerprint_of(self.model.encode), detector, movers, rest, meta=meta)
