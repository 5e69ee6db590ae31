"""Compile a concept for a text encoder: its detector, a witness, and its displacement; every prompt is encoded once.

*Detector*: terms for words (``token``, ``pair``) by multiple-instance logistic regression, for the prompt as a whole
(``mean``, ``pooled``) by logistic regression, and the sum of the two; which of them a concept keeps is measured on
pairs that the fit has not seen. All thresholds share one false-alarm budget, on neutral prompts that it has not seen.
*Displacement*: the mean of what the unsafe prompts of the pairs add to the nearest token of their safe ones.
*Witness*: a second detector, fitted on other pairs, which is asked after a move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..core.conditioning import POOLED
from ..core.detector import Detector
from ..core.direction import Direction, Meta
from ..core.errors import CompileError, NotSeparableError
from ..core.fingerprint import Fingerprint, fingerprint_of
from ..core.movers import HalfSpaces
from ..core.readout import USUAL, Readout, Term
from . import terms as fits
from .bundled import neutral_prompts
from .calibrate import Scored, area, thresholds, weakest
from .displacement import added, displacement
from .encoded import Store, Tokens
from .prompts import Plan, filling, neutral_halves
from .recipes import Concept
from .settings import CompileSettings, Encode, Progress

Tensor = torch.Tensor

SEPARATES = 0.75
"""Least area under the ROC curve of a recipe's own pairs."""
EMPTY = 50
"""One in so many neutral vectors of the logistic regression is the empty prompt's, which says nothing unsafe."""
WORDS, WHOLE, BOTH = 0.1, 0.1, 0.8
"""What of the budget falls to words, to the prompt as a whole, and to the sum of both."""
RAISE = 0.1
"""Part of the way to the weakest held-out unsafe prompts by which a border of words is raised where that is further
than the budget asks: where a concept stands clear of all else, near neighbours get the room."""
BEYOND_MEAN = 0.3
"""How far beyond the benign mean an open prompt is taken, in displacements: at the mean itself a word that leans on
others beside it is still painted now and then."""
CHOICES = (
    ("pair", "mean", "pooled"),
    ("token", "mean", "pooled"),
    ("token", "pair", "mean", "pooled"),
    ("token", "pair"),
    ("pair",),
    ("token",),
    ("mean", "pooled"),
)
"""Sets of terms that a concept may keep; of equals the first."""
CLEARLY = 0.25
"""By how much a set of terms must beat those before it: held-out prompts are few."""
COUNTS = 3.0
"""Benign deviations over or under a border beyond which a held-out prompt counts no more."""

Pairs = Sequence[tuple[str, str]]


def compile(
    concept: Concept,
    encode: Encode,
    neutral: Sequence[str] | None = None,
    progress: Progress | None = None,
    settings: CompileSettings | None = None,
) -> Direction:
    """Compile one concept for the encoder behind ``encode``; see :func:`compile_many`."""
    return compile_many([concept], encode, neutral, progress, settings)[0]


def compile_many(
    concepts: Sequence[Concept],
    encode: Encode,
    neutral: Sequence[str] | None = None,
    progress: Progress | None = None,
    settings: CompileSettings | None = None,
) -> list[Direction]:
    """Compile several concepts; each distinct prompt is encoded once.

    Args:
        concepts: recipes.
        encode: list of prompts -> :class:`Conditioning`, any device and dtype. It may carry ``fingerprint`` (a
            :class:`Fingerprint`, or a method that returns one); else five short prompts are encoded for it.
        neutral: benign prompts (None: those bundled). Every second one fits, the others calibrate.
        progress: called with prompts done and in all after every batch; raise in it to stop.
        settings: see :class:`CompileSettings`.

    Raises:
        CompileError: the encoder returns something unusable, or a recipe does not separate on this encoder. Nothing
            is returned for the others then, so that no concept is missing silently.
    """
    settings = settings or CompileSettings()
    shared = neutral_prompts() if neutral is None else neutral
    fit, check = neutral_halves(shared, settings)
    plans = [Plan.of(c, settings) for c in concepts]
    with torch.no_grad():
        encoder = fingerprint_of(encode)
        long = filling(fit)
        store = Store(encode, [*(t for p in plans for t in p.texts()), *fit, *check, *long, ""], settings, progress)
        store.fill(frozenset(fit), frozenset(long))
        benign = _Benign.of(store, fit, check)
        return [_Concept(store, benign, plan).direction(encoder, shared, settings) for plan in plans]


@dataclass(frozen=True, eq=False)
class _Benign:
    """What all concepts share, by space."""

    fit: list[str]
    check: list[str]
    standard: dict[str, fits.Standard]
    words: dict[str, fits.Standard]
    tokens: dict[str, Tokens]
    seen: dict[str, Tokens]
    growth: dict[str, float]
    left: Tensor
    """Which of ``seen`` count: prompts of ``check`` and the empty one."""

    @classmethod
    def of(cls, store: Store, fit: list[str], check: list[str]) -> _Benign:
        standard, words, tokens, seen = {}, {}, {}, {}
        for space in store.spaces:
            if space == POOLED:
                continue
            mean, deviation = store.benign[space].statistics()
            if not float(deviation.mean()) > 0:
                raise CompileError(f"The encoder gives the same embedding for every neutral prompt in space '{space}'.")
            standard[space] = fits.Standard.of(mean, deviation)
            words[space] = fits.Standard.of(store.benign[space].words(), deviation)
            tokens[space] = store.tokens(space, fit)
            seen[space] = store.tokens(space, [*check, ""])
        growth = {s: fits.growth(store.vector(s, fit), store.lengths(s, fit)) for s in standard}
        return cls(fit, check, standard, words, tokens, seen, growth, torch.arange(len(check) + 1))

    def without(self, fit: list[bool], check: list[bool]) -> _Benign:
        """The same but for some prompts, which name the concept."""
        if not any(fit) and not any(check):
            return self
        kept = [t for t, named in zip(self.fit, fit, strict=True) if not named]
        calm = [t for t, named in zip(self.check, check, strict=True) if not named]
        tokens = {s: t.hidden(torch.tensor(fit)) for s, t in self.tokens.items()}
        left = (~torch.tensor([*check, False])).nonzero()[:, 0]
        return _Benign(kept, calm, self.standard, self.words, tokens, self.seen, self.growth, left)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """One term with the scores of prompts the fit has not seen: benign [N], the empty prompt's [], near, unsafe."""

    term: Term
    benign: Tensor
    empty: Tensor
    near: Tensor
    unsafe: Tensor


class _Concept:
    """The compilation of one concept."""

    def __init__(self, store: Store, benign: _Benign, plan: Plan) -> None:
        self.store, self.plan = store, plan
        self.benign = benign.without(plan.concept.named(benign.fit), plan.concept.named(benign.check))
        self.near = [*plan.own_check, *dict.fromkeys(s for _, s in plan.check)]
        self.unsafe = [u for u, _ in plan.check]

    def direction(self, encoder: Fingerprint, neutral: Sequence[str], settings: CompileSettings) -> Direction:
        """The compiled concept."""
        concept = self.plan.concept
        fitted = self._fit(self.plan.fit)
        detector, figures = self._choose(fitted, settings.outside)
        own = len(self.plan.own_check)  # the safe prompts of the pairs follow
        best = max(min(area(f.unsafe, f.near[own:]), area(f.unsafe, f.benign)) for f in fitted)
        if best < SEPARATES:
            raise NotSeparableError(
                f"'{concept.name}' does not separate on this encoder: its unsafe prompts score above its safe ones "
                f"{best:.0%} of the time, {SEPARATES:.0%} is needed; give more pairs, that differ in the concept alone."
            )
        kinds = {t.readout for t in detector.terms}
        second = [f for f in self._fit(self.plan.second, kinds)]
        witness = self._bordered(second, detector.joint, settings.outside)
        movers = {space: self._mover(space) for space in self.store.spaces}
        rest = {s: self.benign.standard[s].mean.cpu() for s in self.store.spaces if s != POOLED}
        if POOLED in self.store.spaces:
            rest[POOLED] = self.store.vector(POOLED, self.benign.fit).mean(0, keepdim=True).cpu()
        return Direction(
            concept=concept.name,
            encoder=encoder,
            detector=detector,
            movers=movers,
            rest=rest,
            witness=witness,
            meta=Meta(
                title=concept.title,
                kind=concept.kind,
                version=concept.version,
                family=settings.family,
                recipe=concept.digest(neutral),
                method="compiled",
                seed=settings.seed,
                calibration=figures | {"area": round(best, 4)},
                licence=concept.licence,
            ),
        )

    # -- terms ---------------------------------------------------------------------------------------------------

    def _fit(self, pairs: Pairs, kinds: set[Readout] | None = None) -> list[_Fitted]:
        found = []
        for space in self.store.spaces:
            if space == POOLED:
                if kinds is None or Readout(space, POOLED) in kinds:
                    found.append(self._vector(space, "pooled", pairs))
                continue
            wanted = [r for r in ("token", "pair") if kinds is None or Readout(space, r) in kinds]
            if wanted:
                found += self._words(space, pairs, wanted)
            if kinds is None or Readout(space, "mean") in kinds:
                found.append(self._whole(space, pairs))
        return found

    def _words(self, space: str, pairs: Pairs, kinds: Sequence[str]) -> list[_Fitted]:
        store, standard = self.store, self.benign.words[space]
        unsafe, safe = (store.tokens(space, [p[i] for p in pairs]) for i in (0, 1))
        own = store.tokens(space, self.plan.own_fit)
        _, told = added(unsafe, safe)
        bags = [
            fits.Bags(unsafe, -1.0, 1.0, fits.MINED),
            fits.Bags(safe, 1.0, 0.5, fits.MINED_BENIGN),
            fits.Bags(self.benign.tokens[space], 1.0, 0.5, fits.MINED_BENIGN),
            fits.Bags(own, 1.0, 0.25, fits.MINED_BENIGN),
        ]
        found = []
        for kind in kinds:
            w = fits.instances(bags, standard, fits.start(unsafe, told, standard, kind == "pair"))
            weight, offset = standard.weight(w)

            def score(tokens: Tokens, weight: Tensor = weight, offset: Tensor = offset) -> Tensor:
                return tokens.scores(weight, offset).amax(1) if len(tokens) else weight.new_zeros(0)

            calm = score(self.benign.seen[space])
            seen = [
                calm[self.benign.left.to(calm.device)],
                *(score(store.tokens(space, t)) for t in (self.near, self.unsafe)),
            ]
            found.append(self._standardised(Readout(space, kind), weight, offset, seen))
        return found

    def _vector(self, space: str, kind: str, pairs: Pairs) -> _Fitted:
        store = self.store
        unsafe, safe = (store.vector(space, [p[i] for p in pairs]) for i in (0, 1))
        neutral, own = store.vector(space, self.benign.fit), store.vector(space, self.plan.own_fit)
        nothing = store.vector(space, [""]).expand(max(1, len(neutral) // EMPTY), -1)
        weight = fits.logistic(unsafe, torch.cat([safe, own, neutral, nothing]))
        seen = [store.vector(space, t) @ weight for t in ([*self.benign.check, ""], self.near, self.unsafe)]
        return self._standardised(Readout(space, kind), weight, weight.new_zeros(1), seen)

    def _whole(self, space: str, pairs: Pairs) -> _Fitted:
        """As :meth:`_vector`, of the mean of the tokens, which varies less the more there are."""
        store, growth = self.store, self.benign.growth[space]
        middle = store.vector(space, self.benign.fit).mean(0)

        def grown(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
            by = (store.lengths(space, texts) / USUAL) ** growth
            return (store.vector(space, texts) - middle) * by.unsqueeze(1), by

        (unsafe, _), (safe, _) = (grown([p[i] for p in pairs]) for i in (0, 1))
        neutral, own = grown(self.benign.fit)[0], grown(self.plan.own_fit)[0]
        nothing = grown([""])[0].expand(max(1, len(neutral) // EMPTY), -1)
        weight = fits.logistic(unsafe, torch.cat([safe, own, neutral, nothing]))
        (calm, by), (near, of_near), (bad, of_bad) = (
            (x @ weight, n) for x, n in map(grown, ([*self.benign.check, ""], self.near, self.unsafe))
        )
        shift = calm[:-1].sum() / by[:-1].sum()  # where benign prompts have mean 0
        seen = [calm - shift * by, near - shift * of_near, bad - shift * of_bad]
        fitted = self._standardised(Readout(space, "mean"), weight, (middle @ weight + shift).reshape(1), seen)
        return replace(fitted, term=replace(fitted.term, growth=growth))

    def _standardised(self, readout: Readout, weight: Tensor, offset: Tensor, seen: list[Tensor]) -> _Fitted:
        """Scores in benign deviations, from the scores of benign prompts and the empty one, near and unsafe ones."""
        benign = seen[0][:-1]
        mean, deviation = benign.mean(), benign.std().clamp_min(1e-9)
        benign, near, unsafe = ((s - mean) / deviation for s in seen)
        term = Term(
            readout,
            (weight / deviation).unsqueeze(0).cpu(),
            ((offset + mean) / deviation).unsqueeze(0).cpu(),
        )
        return _Fitted(term, benign[:-1].cpu(), benign[-1].cpu(), near.cpu(), unsafe.cpu())

    # -- thresholds ----------------------------------------------------------------------------------------------

    def _choose(self, fitted: list[_Fitted], outside: float) -> tuple[Detector, dict[str, float]]:
        """The terms that find most of the held-out unsafe prompts under the budget, and spare near neighbours."""
        spaces = list(dict.fromkeys(f.term.readout.space for f in fitted))
        choices = {"+".join(c): c for c in CHOICES}
        best: tuple[float, str, Detector] | None = None
        figures: dict[str, float] = {}
        for name, kinds in choices.items():
            kept = [f for f in fitted if f.term.readout.reduce in kinds]
            if not kept:
                continue
            joint = tuple(
                (i, j)
                for i, a in enumerate(kept)
                for j, b in enumerate(kept)
                if a.term.readout.reduce in ("token", "pair")
                and b.term.readout == Readout(a.term.readout.space, "mean")
            )
            detector = self._bordered(kept, joint, outside)
            far = _columns([f.unsafe for f in kept], joint) - _borders(detector)
            near = _columns([f.near for f in kept], joint) - _borders(detector)
            top, close = far.amax(1), near.amax(1) if len(near) else torch.zeros(0)
            found = float((top > 0).double().mean())
            spared = float((close <= 0).double().mean()) if len(close) else 1.0
            value = found + spared + 0.1 * float(top.clamp(-COUNTS, COUNTS).mean())
            figures[f"{name}.found"] = round(found, 4)
            if best is None or value > best[0] + CLEARLY:
                best = value, name, detector
        if best is None:
            raise CompileError(
                f"'{self.plan.concept.name}': the encoder gives nothing to tell it by in {', '.join(spaces)}."
            )
        return best[2], figures | {"found": figures[f"{best[1]}.found"]}

    def _bordered(self, kept: list[_Fitted], joint: tuple[tuple[int, int], ...], outside: float) -> Detector:
        words = sum(f.term.readout.reduce in ("token", "pair") for f in kept)
        whole = len(kept) - words
        part = [WORDS / words if f.term.readout.reduce in ("token", "pair") else WHOLE / whole for f in kept]
        part += [BOTH / max(1, len(joint))] * len(joint)
        shares = [p / sum(part) for p in part]
        scored = Scored(
            benign=_columns([f.benign for f in kept], joint),
            near=_columns([f.near for f in kept], joint),
            empty=_columns([f.empty.unsqueeze(0) for f in kept], joint)[0],
            unsafe=_columns([f.unsafe for f in kept], joint),
        )
        borders = thresholds(scored, shares, outside)
        for i, f in enumerate(kept):
            if f.term.readout.reduce in ("token", "pair"):
                borders[i] += RAISE * max(0.0, weakest(f.unsafe) - float(borders[i]))
        count = len(kept)
        return Detector(tuple(f.term for f in kept), borders[:count], joint, borders[count:] if joint else None)

    # -- displacement --------------------------------------------------------------------------------------------

    def _mover(self, space: str) -> HalfSpaces:
        store, pairs = self.store, self.plan.fit
        if space == POOLED:
            u = (store.vector(space, [a for a, _ in pairs]) - store.vector(space, [b for _, b in pairs])).mean(0)
            neutral = store.vector(space, self.benign.fit)
            unit = self._unit(u, space)
            z = neutral @ unit
            mean, deviation = z.mean().reshape(1), z.std()
        else:
            unsafe, safe = (store.tokens(space, [p[i] for p in pairs]) for i in (0, 1))
            u = displacement(*added(unsafe, safe))
            unit, standard = self._unit(u, space), self.benign.standard[space]
            mean = standard.mean @ unit
            z = self.benign.tokens[space].scores(unit, mean)
            deviation = z[torch.isfinite(z)].std()
        target = -(BEYOND_MEAN * u.norm()).reshape(1).cpu()
        return HalfSpaces(
            u.unsqueeze(0).cpu(), mean.unsqueeze(0).cpu(), deviation.clamp_min(1e-9).reshape(1).cpu(), target
        )

    def _unit(self, u: Tensor, space: str) -> Tensor:
        size = float(u.norm())
        least = 1e-6 * float(self.benign.standard[space].deviation.norm()) if space in self.benign.standard else 1e-9
        if not size > least:
            raise NotSeparableError(
                f"'{self.plan.concept.name}': the unsafe and safe prompts have the same embeddings in space '{space}'; "
                "give pairs that differ in the concept."
            )
        return u / size


def _columns(scores: Sequence[Tensor], joint: Sequence[tuple[int, int]]) -> Tensor:
    """Scores of terms and joint terms ``[N, n]``."""
    each = torch.stack(list(scores), 1)
    return torch.cat([each, *((each[:, i] + each[:, j]).unsqueeze(1) for i, j in joint)], 1)


def _borders(detector: Detector) -> Tensor:
    return detector.thresholds if detector.sums is None else torch.cat([detector.thresholds, detector.sums])


__all__ = ["compile", "compile_many"]
