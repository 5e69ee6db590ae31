"""Which prompts of a concept fit, which calibrate and which only measure; each distinct text counts once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..core.errors import CompileError
from .recipes import Concept
from .settings import CompileSettings

T = TypeVar("T")

FEWEST_NEUTRAL = 8
LONG, FILLED = 16, 75
"""Prompts that fill a chunk, and their words: as many as a chunk of CLIP has tokens of text."""
QUALITY = (
    "masterpiece", "best quality", "highly detailed", "8k", "sharp focus", "intricate", "soft light", "award winning",
    "cinematic lighting", "vivid colours", "depth of field", "absurdres",
)  # fmt: skip
"""Tags that people put in front of what they want to see."""
_HELD_OUT = 5  # every fifth pair measures instead of being fitted on, from 20 pairs on
_ENOUGH_PAIRS = 20


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``items``, in their order, spread over them by golden steps: a list made of templates, one
    after another, repeats itself, and even steps would meet the same rows in each."""
    count = len(items)
    if most >= count:
        return list(items)
    step = max(1, round(count * 0.618034))
    while math.gcd(step, count) > 1:
        step += 1
    return [items[i] for i in sorted(i * step % count for i in range(most))]


@dataclass(frozen=True)
class Plan:
    """The prompts of one concept."""

    concept: Concept
    fit: tuple[tuple[str, str], ...]
    check: tuple[tuple[str, str], ...]
    second: tuple[tuple[str, str], ...]
    """Pairs of the witness: every second of those that fit, and those that only measure."""
    own_fit: tuple[str, ...]
    own_check: tuple[str, ...]

    @classmethod
    def of(cls, concept: Concept, settings: CompileSettings) -> Plan:
        """Draw the plan of a recipe."""
        most = settings.pairs if concept.kind == "exclude" else settings.axis
        pairs, own = spread(concept.pairs, most), spread(concept.neutral, settings.own)
        if len(pairs) < _ENOUGH_PAIRS:
            return cls(concept, tuple(pairs), tuple(pairs), tuple(pairs), tuple(own[0::2]), tuple(own[1::2]))
        check = pairs[_HELD_OUT - 1 :: _HELD_OUT]
        fit = [p for i, p in enumerate(pairs) if i % _HELD_OUT != _HELD_OUT - 1]
        return cls(concept, tuple(fit), tuple(check), tuple([*fit[1::2], *check]), tuple(own[0::2]), tuple(own[1::2]))

    def texts(self) -> list[str]:
        """Every prompt, the pairs first."""
        return [*(t for pair in (*self.fit, *self.check) for t in pair), *self.own_fit, *self.own_check]


def filling(texts: Sequence[str]) -> list[str]:
    """A few long prompts that have words at every position of a chunk: of several of ``texts`` one after another, and
    of one of them behind tags of quality, as many as leave it room."""
    found, words = [], [w for text in texts for w in text.split()]
    for start in range(0, len(words) - FILLED + 1, FILLED):
        found.append(" ".join(words[start : start + FILLED]))
    behind = []
    for i, text in enumerate(spread(texts, LONG)):
        tags = [QUALITY[(i + k) % len(QUALITY)] for k in range(2 + 2 * i)]
        behind.append(", ".join([*tags, text]))
    return [*spread(found, LONG), *behind]


def neutral_halves(neutral: Sequence[str], settings: CompileSettings) -> tuple[list[str], list[str]]:
    """Those that fit and those that calibrate. Raises CompileError: too few."""
    kept = spread(list(dict.fromkeys(n for n in neutral if n.strip())), settings.neutral)
    if len(kept) < FEWEST_NEUTRAL:
        raise CompileError(f"At least {FEWEST_NEUTRAL} neutral prompts are needed to calibrate on; got {len(kept)}.")
    return kept[0::2], kept[1::2]
