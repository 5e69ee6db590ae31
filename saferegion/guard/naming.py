"""What a prompt names: where its text says a word that a recipe lists, the borders of that concept lie nearer.

A border on the embedding alone is as far out as harmless prompts ask for, and a word in a list of twenty tags moves the
embedding little. The word itself is evidence that costs no pass of any model. It decides nothing alone: what is named
must still lie :data:`NEARER` of the way out, so that a "gun dog" stays; and a word within a phrase that the recipe's
senses list ("hot glue gun") is not named at all. Texts that name nothing are judged as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from ..core.errors import SafeRegionError
from ..learn.recipes import Concept
from ..learn.vocabulary import naming
from .library import Library
from .minors import BESIDE, SEXUAL
from .selection import Selection

NOTHING: frozenset[str] = frozenset()
_MARKS = re.compile(r"[()\[\]{}:|\\]+")


@dataclass(frozen=True)
class Named:
    """One concept: what says it by name, what sounds like it and stays, and the first words of both."""

    concept: str
    said: re.Pattern[str]
    stays: re.Pattern[str] | None
    heads: frozenset[str]

    @classmethod
    def of(cls, concept: Concept) -> Named | None:
        """None of a concept that lists no word."""
        said = naming(concept.words)
        if said is None:
            return None
        return cls(concept.name, said, naming(concept.senses), frozenset(_first(w) for w in concept.words))

    def by(self, text: str, heads: frozenset[str]) -> bool:
        """Whether ``text`` names it; ``heads``: its words, so that most texts need no search."""
        if not ("" in self.heads or heads & self.heads):
            return False
        spared = [] if self.stays is None else [m.span() for m in self.stays.finditer(text)]
        return any(not any(a <= m.start() and m.end() <= b for a, b in spared) for m in self.said.finditer(text))


@dataclass(frozen=True)
class Names:
    """What a text names, of some concepts."""

    each: tuple[Named, ...] = ()

    def __call__(self, text: str) -> frozenset[str]:
        """Names of the concepts that ``text`` names; weights, brackets and underscores do not hide a word."""
        plain = " ".join(_MARKS.sub(" ", text).split())
        words = re.findall(r"[^\W_]+", plain.lower())
        heads = frozenset((*words, *(w.removesuffix("s") for w in words), *(w.removesuffix("es") for w in words)))
        return frozenset(n.concept for n in self.each if n.by(plain, heads))


def _first(word: str) -> str:
    """The first word of a listed one; empty of one without letters, which may stand anywhere."""
    found = re.search(r"[^\W_]+", word.lower())
    return found[0] if found else ""


@lru_cache(maxsize=32)
def names_of(concepts: tuple[Concept, ...]) -> Names:
    """Of concepts; those that list no word are never named."""
    return Names(tuple(n for c in concepts if (n := Named.of(c)) is not None))


def names_in(selection: Selection, library: Library | None = None) -> Names:
    """Of what is switched on: recipes, and directions of a bundled or own recipe's name; and of the minors baseline,
    which is on always."""
    library = Library() if library is None else library
    own = _recipes((c.concept if isinstance(c.concept, Concept) else c.name for c in selection.choices), library)
    beside = (replace(c, name=c.name + BESIDE) for c in _recipes(SEXUAL, Library()))
    return names_of((*own, *beside))


def _recipes(wanted: Iterable[str | Concept], library: Library) -> Iterable[Concept]:
    for each in wanted:
        try:
            found = each if isinstance(each, Concept) else library.find(each)
        except SafeRegionError:  # directions whose recipe is not here
            continue
        if isinstance(found, Concept):
            yield found


__all__ = ["NOTHING", "Names", "names_in", "names_of"]
