"""The second look: a prompt in disguise is looked at as a reader understands it, too.

Where the text without disguise is outside of a concept that the prompt as it is written is inside of, that text is what
gets guarded and painted. Prompts without a disguise are encoded once, as ever.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from ..core.errors import SafeRegionError
from ..learn.bundled import neutral_prompts
from ..learn.recipes import Concept
from .library import Library
from .normalise import Normalised, Normaliser
from .selection import GuardReport

MORE = 2
"""How many times as often a word must stand in unsafe as in safe prompts of the recipes to tell a concept."""


@lru_cache(maxsize=8)
def normaliser(vocabulary: tuple[str, ...] = (), own: tuple[Concept, ...] = ()) -> Normaliser:
    """The normaliser of an encoder.

    Args:
        vocabulary: whole words that the encoder's tokenizer knows, the most common first (see ``words_of``).
        own: concepts of the user's own that are switched on; the bundled ones always tell.
    """
    bad: Counter[str] = Counter()
    good: Counter[str] = Counter(_words(neutral_prompts()))
    named: set[str] = set()
    for concept in Library().recipes():
        keeps_out = concept.kind == "exclude"
        (bad if keeps_out else good).update(_words(unsafe for unsafe, _ in concept.pairs))
        good.update(_words(safe for _, safe in concept.pairs))
        good.update(_words(concept.neutral))
        if keeps_out:
            named.update(_words([concept.name, *concept.words]))
    telling = {word for word in {*bad, *named} if bad[word] > MORE * good[word] or (word in named and not good[word])}
    for concept in own:
        unsafe, safe = (set(_words(pair[side] for pair in concept.pairs)) for side in (0, 1))
        telling |= unsafe - safe
    return Normaliser((*vocabulary, *(w for w, _ in (bad + good).most_common())), telling)


def undisguised(normalise: Normaliser, text: str) -> Normalised | None:
    """``text`` without its disguise; None where it has none.

    Raises:
        SafeRegionError: whatever went wrong; a prompt that cannot be read must not be painted.
    """
    try:
        found = normalise(text)
    except Exception as error:
        raise SafeRegionError(
            f"The prompt could not be read for disguises ({type(error).__name__}: {error}), so it cannot be guarded; "
            "word it in plain letters."
        ) from error
    return None if found.text == text else found


def finds_more(first: GuardReport, second: GuardReport, row: int = 0, other: int = 0) -> bool:
    """Whether the text without disguise (row ``other`` of ``second``) is outside of a concept that the prompt as it is
    written (row ``row`` of ``first``) is inside of."""
    return bool(second.opened(other) - first.opened(row))


def without_disguise(report: GuardReport, undone: tuple[str, ...]) -> GuardReport:
    """A report of a text without disguise, which says what was undone."""
    return replace(report, undone=undone)


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in re.findall(r"[a-z]+", text.lower())]
