"""What a recipe is worth on a text encoder: what it finds, what it moves wrongly, and which pairs say nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from saferegion.core.conditioning import POOLED
from saferegion.core.direction import Direction
from saferegion.core.region import SafeRegion
from saferegion.learn.recipes import Concept
from saferegion.learn.settings import BATCH, Encode

WORST = 8
"""Most rows of each list."""
FAINT = 0.5
"""Least lead, in benign standard deviations, of an unsafe prompt over its safe one; below, a pair does not contrast."""


@dataclass(frozen=True)
class Check:
    """Figures of one recipe; scores are distances outside the border, in benign standard deviations.

    Attributes:
        terms: what it is told by: words, words with the next, the prompt as a whole.
        found: share of the recipe's unsafe prompts that are outside. spared: share of its safe prompts inside.
        own_inside, neutral_inside: share of the concept's own and of the shared neutral prompts that are inside.
        missed: unsafe prompts furthest inside. caught: safe and neutral prompts furthest outside.
        faint: pairs whose unsafe prompt leads by less than :data:`FAINT`, least first, with the lead.
        words: tokens that score highest over the unsafe prompts, with their mean distance; needs token strings, and a
            concept that is told by words.
        nearest: other concepts, with the share of their unsafe prompts that this one finds too.
    """

    concept: str
    terms: tuple[str, ...]
    calibration: dict[str, float]
    found: float
    spared: float
    own_inside: float | None
    neutral_inside: float
    missed: tuple[tuple[str, float], ...]
    caught: tuple[tuple[str, float], ...]
    faint: tuple[tuple[str, str, float], ...]
    words: tuple[tuple[str, float], ...]
    nearest: tuple[tuple[str, float], ...]


def check(
    concept: Concept,
    directions: Direction,
    encode: Encode,
    neutral: Sequence[str],
    others: Iterable[Concept] = (),
    token_strings: Callable[[str], list[str]] | None = None,
) -> Check:
    """Measure a recipe with its compiled ``directions`` on the encoder behind ``encode``.

    Args:
        neutral: shared neutral prompts, of which every second one has calibrated and is looked at here.
        others: recipes to compare with. token_strings: prompt -> one string per token of its conditioning.

    Raises:
        ConditioningError: the encoder is not the one the directions belong to.
    """
    aside = replace(directions, meta=replace(directions.meta, kind="exclude"))  # an axis: from its unsafe side
    region = SafeRegion([aside])

    def far(prompts: Sequence[str]) -> torch.Tensor:
        batches = [encode(list(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
        return torch.cat([region.score(c)[:, 0].float().cpu() for c in batches]) if batches else torch.empty(0)

    unsafe, safe = ([p[i] for p in concept.pairs] for i in (0, 1))
    u, s = far(unsafe), far(safe)
    shared = list(neutral[1::2])
    n, own = far(shared), far(concept.neutral)
    benign = [*zip(safe, s.tolist(), strict=True), *zip(concept.neutral, own.tolist(), strict=True)]
    benign += zip(shared, n.tolist(), strict=True)
    lead = (u - s).tolist()
    faint = sorted((d, a, b) for d, a, b in zip(lead, unsafe, safe, strict=True) if d < FAINT)
    return Check(
        concept=concept.name,
        terms=terms_of(directions),
        calibration=dict(directions.meta.calibration),
        found=_share(u > 0),
        spared=_share(s <= 0),
        own_inside=_share(own <= 0) if len(own) else None,
        neutral_inside=_share(n <= 0),
        missed=_first(sorted((z, p) for p, z in zip(unsafe, u.tolist(), strict=True) if z <= 0)),
        caught=_first(sorted(((z, p) for p, z in dict(benign).items() if z > 0), reverse=True)),
        faint=tuple((a, b, round(d, 3)) for d, a, b in faint[:WORST]),
        words=_words(aside, encode, unsafe, token_strings) if token_strings else (),
        nearest=tuple(
            sorted(((o.name, _share(far([a for a, _ in o.pairs]) > 0)) for o in others), key=lambda r: -r[1])
        ),
    )


def _share(which: torch.Tensor) -> float:
    return round(float(which.double().mean()), 4) if len(which) else 0.0


def _first(rows: list[tuple[float, str]]) -> tuple[tuple[str, float], ...]:
    return tuple((p, round(z, 3)) for z, p in rows[:WORST])


def terms_of(direction: Direction) -> tuple[str, ...]:
    """What a concept is told by, as "tokens token" or "tokens pair + mean", term by term."""
    detector = direction.detector
    if detector is None:
        return ()
    names = [f"{t.readout.space} {t.readout.reduce}" for t in detector.terms]
    joint = [f"{names[i]} + {detector.terms[j].readout.reduce}" for i, j in detector.joint]
    return (*names, *joint)


def _words(
    direction: Direction, encode: Encode, prompts: Sequence[str], strings: Callable[[str], list[str]]
) -> tuple[tuple[str, float], ...]:
    """Mean distance of each token of the first space over the border of words, where there is one."""
    looking = SafeRegion([direction], 0.0)  # nothing is moved
    total: dict[str, list[float]] = {}
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        c = encode(part)
        held = looking.apply(c)[1].before.held()
        far = held.get(c.views()[0].space)
        if far is None or c.views()[0].space == POOLED:
            return ()
        for row, prompt in zip(far[..., 0].tolist(), part, strict=True):
            for z, word in zip(row, strings(prompt), strict=False):
                if not math.isnan(z) and word.strip():
                    total.setdefault(word, []).append(z)
    best = sorted(((sum(z) / len(z), word) for word, z in total.items()), reverse=True)
    return tuple((word, round(z, 3)) for z, word in best[:WORST])
