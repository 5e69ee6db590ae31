"""Fit of gates: does a prompt say it or not? Told apart on an encoder, measured on words that the fit has not seen.

The words of a recipe are dealt into folds. For each fold a term is fitted without it (multiple-instance logistic
regression over tokens, logistic regression over the mean of the tokens and over the pooled vector) and asks it. The
detector of the gate is the mean of these terms (bagging, Breiman 1996); its border is set on the answers to unseen
words: where errors that touch a prompt, :data:`TOUCHES` times as dear as those that leave one untouched, cost least.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import POOLED
from ..core.detector import Detector
from ..core.errors import NotSeparableError
from ..core.readout import Readout, Term
from . import terms as fits
from .calibrate import area
from .encoded import Store
from .people import GateRecipe, Said

Tensor = torch.Tensor
Ask = Callable[[list[int], list[int]], tuple[Tensor, Tensor, Tensor]]
"""Places of prompts that say it and of those that do not -> weight [D], offset [L], scores of all prompts [N]."""

FOLDS = 3
TOUCHES = 3.0
"""How much dearer it is to touch a prompt that should be left alone than to leave one that could be balanced."""
SEPARATES = 0.8
"""Least balanced accuracy of a gate on words that its fit has not seen."""
LEAST = 0.05
"""Least deviation of prompts that do not say it, of that of all prompts."""
ALONE = 1.0
"""Deviations beyond the last prompt of the other side at which one of two summed terms opens alone."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a gate says of prompts whose words were held out: scores ``[N]``, whether it holds bool ``[N]``, their folds
    ``[N]``. ``opens``: a prompt is touched only where it holds."""

    scores: Tensor
    holds: Tensor
    fold: Tensor
    opens: bool

    def border(self, without: int | None = None) -> float:
        """Where errors cost least. ``without``: a fold that does not count."""
        use = torch.ones_like(self.holds) if without is None else self.fold != without
        miss, false = (1.0, TOUCHES) if self.opens else (TOUCHES, 1.0)
        return _border(self.scores[use], self.holds[use], miss, false)

    def judged(self) -> Tensor:
        """bool ``[N]``: whether the gate holds, each fold by a border of the other folds."""
        said = torch.zeros_like(self.holds)
        for f in self.fold.unique().tolist():
            said = torch.where(self.fold == f, self.scores > self.border(f), said)
        return said

    def figures(self) -> dict[str, float]:
        """``accuracy`` (balanced), ``missed`` (holds, not seen), ``false`` (does not, seen) on words held out."""
        said = self.judged()
        missed = float((~said[self.holds]).double().mean())
        false = float(said[~self.holds].double().mean())
        right = area(self.scores[self.holds], self.scores[~self.holds])
        return {
            "accuracy": round(1 - (missed + false) / 2, 4), "missed": round(missed, 4), "false": round(false, 4),
            "area": round(right, 4),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class FittedGate:
    """A gate on one encoder."""

    recipe: GateRecipe
    detector: Detector
    answers: Answers


def folds_of(words: Sequence[str], folds: int = FOLDS) -> Tensor:
    """Where words belong ``[N]``: each distinct one is dealt to a fold, in the order of its hash, whatever stands
    beside it in a recipe."""
    order = sorted(dict.fromkeys(words), key=lambda w: hashlib.sha256(w.encode()).digest())
    place = {w: i % folds for i, w in enumerate(order)}
    return torch.tensor([place[w] for w in words])


def fit_gate(store: Store, recipe: GateRecipe) -> FittedGate:
    """Fit a gate on prompts that ``store`` holds. Raises NotSeparableError: this encoder does not tell it."""
    fit = Fit(store, *recipe.said(), recipe.people.many)
    found = [FittedGate(recipe, *fit.detector(c, recipe.opens)) for c in fit.choices()]
    best = max(found, key=lambda g: g.answers.figures()["accuracy"])
    accuracy = best.answers.figures()["accuracy"]
    if accuracy < SEPARATES:
        raise NotSeparableError(
            f"'{recipe.name}' does not separate on this encoder: it tells unseen words with an accuracy of "
            f"{accuracy:.0%}, {SEPARATES:.0%} is needed, so nothing can be balanced here."
        )
    return best


def _border(scores: Tensor, holds: Tensor, miss: float = 1.0, false: float = 1.0) -> float:
    """The border with the least cost, by what a miss and a false alarm cost; of equals the middle of them."""
    order = scores.double().sort()
    said = holds[order.indices].double()
    zero = torch.zeros(1, dtype=torch.float64)
    missed = torch.cat([zero, said.cumsum(0)]) / said.sum().clamp_min(1)
    right = torch.cat([zero, (1 - said).cumsum(0)]) / (1 - said).sum().clamp_min(1)
    cost = miss * missed + false * (1 - right)
    ends = order.values
    edges = torch.cat([ends[:1] - 1, (ends[1:] + ends[:-1]) / 2, ends[-1:] + 1])
    least = (cost <= cost.min() + 1e-9).nonzero()[:, 0]
    return float(edges[least[len(least) // 2]])


@dataclass(frozen=True, eq=False)
class FittedTerm:
    """A term; the scores ``[N]`` of all prompts by the fits that have not seen their words; and where errors of both
    kinds, equally dear, cost least."""

    term: Term
    scores: Tensor
    border: float
    area: float


class Fit:
    """Terms that tell some prompts from others."""

    def __init__(self, store: Store, holds: Sequence[Said], spares: Sequence[Said], by_word: bool = True) -> None:
        """``by_word``: prompts of one word are held out together, else each alone."""
        self.store = store
        self.texts = [s.text for s in (*holds, *spares)]
        self.holds = torch.tensor([True] * len(holds) + [False] * len(spares))
        self.fold = folds_of([s.word if by_word else s.text for s in (*holds, *spares)])
        kinds = [(s, k) for s in store.spaces for k in (("pooled",) if s == POOLED else ("mean", "token"))]
        self.terms = [self._term(s, k) for s, k in kinds]

    def best(self) -> FittedTerm:
        """The term with the largest area."""
        return max(self.terms, key=lambda t: t.area)

    def choices(self) -> list[tuple[FittedTerm, ...]]:
        """Each term, and the sum of the mean and the token term of a space."""
        by = {t.term.readout: t for t in self.terms}
        pairs = [(by[Readout(s, "mean")], by[Readout(s, "token")]) for s in self.store.spaces if s != POOLED]
        return [*pairs, *((t,) for t in self.terms)]

    def detector(self, terms: Sequence[FittedTerm], opens: bool) -> tuple[Detector, Answers]:
        """Of one term or of the sum of two, and its answers."""
        scores = torch.stack([t.scores for t in terms]).sum(0)
        answers = Answers(scores, self.holds, self.fold, opens)
        border = torch.tensor([answers.border()])
        if len(terms) == 1:
            return Detector((terms[0].term,), border), answers
        alone = [float(torch.maximum(t.scores[~self.holds].max() + ALONE, border[0])) for t in terms]
        return Detector(tuple(t.term for t in terms), torch.tensor(alone), ((0, 1),), border), answers

    def _term(self, space: str, kind: str) -> FittedTerm:
        ask = self._tokens(space) if kind == "token" else self._whole(space)
        scores = torch.zeros(len(self.texts))
        weights, offsets = [], []
        for f in range(FOLDS):
            weight, offset, each = ask(*self._parts(f))
            each = each.nan_to_num(neginf=float(each[each.isfinite()].min()))  # a prompt without a token
            here = each[(self.fold == f) & ~self.holds]
            mean, deviation = here.mean(), here.std().clamp_min(max(LEAST * float(each.std()), 1e-9))
            weights.append(weight / deviation)
            offsets.append((offset + mean) / deviation)
            scores = torch.where(self.fold == f, (each - mean) / deviation, scores)
        weight, offset = (torch.stack(p).mean(0, keepdim=True) for p in (weights, offsets))
        right = area(scores[self.holds], scores[~self.holds])
        return FittedTerm(Term(Readout(space, kind), weight, offset), scores, _border(scores, self.holds), right)

    def _parts(self, f: int) -> tuple[list[int], list[int]]:
        rest = self.fold != f
        yes, no = ((rest & side).nonzero()[:, 0].tolist() for side in (self.holds, ~self.holds))
        return yes, no

    def _whole(self, space: str) -> Ask:
        vectors = self.store.vector(space, self.texts)

        def ask(yes: list[int], no: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            weight = fits.logistic(vectors[yes], vectors[no])
            return weight.cpu(), torch.zeros(1), (vectors @ weight).cpu()

        return ask

    def _tokens(self, space: str) -> Ask:
        standard = fits.Standard.of(*self.store.benign[space].statistics())
        vectors, tokens = self.store.vector(space, self.texts), self.store.tokens(space, self.texts)

        def ask(yes: list[int], no: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            apart = (vectors[yes].mean(0) - vectors[no].mean(0)) / standard.deviation
            begin = apart * 4 / apart.square().sum().clamp_min(1e-12)
            some = [self.store.tokens(space, [self.texts[i] for i in part]) for part in (yes, no)]
            bags = [fits.Bags(some[0], -1.0, 1.0, fits.MINED), fits.Bags(some[1], 1.0, 1.0, fits.MINED_BENIGN)]
            weight, offset = standard.weight(fits.instances(bags, standard, begin))
            return weight.cpu(), offset.cpu(), tokens.scores(weight, offset).amax(1).cpu()

        return ask
