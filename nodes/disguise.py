"""What a guarded CLIP remembers of the texts that it turned into tokens: those in disguise, with the tokens of their
plain text, and those that name a concept. Encoders see tokens alone, and nodes put tokens of several texts together, so
texts are found by their rows.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from ..saferegion.guard.library import Library
from ..saferegion.guard.naming import NOTHING, Names, names_in
from ..saferegion.guard.normalise import Normaliser
from ..saferegion.guard.second_look import normaliser, undisguised
from ..saferegion.guard.selection import Selection
from ..saferegion.guard.words import words_of
from ..saferegion.learn.recipes import Concept

KEPT = 4096
"""Last texts in disguise, and last texts that name a concept, that are remembered."""

Row = tuple[int | None, ...]
T = TypeVar("T")
Kept = OrderedDict[tuple[str, tuple[Row, ...]], T]
"""By encoder and rows of a text."""
_vocabularies: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()


class Plain(NamedTuple):
    """Tokens without disguise, and what was undone."""

    tokens: dict[str, Any]
    undone: tuple[str, ...]


class _Kept(NamedTuple):
    rows: list[Any]
    blank: list[Any]  # a row of nothing, where there is one
    undone: tuple[str, ...]


class Texts:
    """Texts in disguise that went through one CLIP object and its clones."""

    def __init__(self, tokenizer: Any, selection: Selection, library: Library | None = None) -> None:
        self._tokenizer, self._selection, self._library = tokenizer, selection, library
        self._kept: Kept[_Kept] = OrderedDict()
        self._named: Kept[frozenset[str]] = OrderedDict()

    @cached_property
    def normalise(self) -> Normaliser:
        """Made when the first text comes."""
        return normaliser_of(self._tokenizer, self._selection)

    @cached_property
    def names(self) -> Names:
        """What a text names, of all that is switched on."""
        return names_in(self._selection, self._library)

    def learn(self, text: Any, tokens: Any, tokenize: Callable[[str], Any]) -> None:
        """Remember a text's tokens where it is in disguise, or names a concept.

        Raises:
            SafeRegionError: it cannot be read.
        """
        if not isinstance(text, str) or not isinstance(tokens, Mapping):
            return
        self._name(tokens, self.names(text))
        found = undisguised(self.normalise, text)
        if found is None:
            return
        plain, blank = tokenize(found.text), tokenize("")
        self._name(plain, self.names(found.text))
        for key, rows in tokens.items():
            if isinstance(rows, list) and rows and key in plain and _key(rows) != _key(plain[key]):
                _remember(self._kept, key, rows, _Kept(plain[key], blank.get(key, [])[:1], found.undone))

    def _name(self, tokens: Mapping[str, Any], names: frozenset[str]) -> None:
        for key, rows in tokens.items() if names else ():
            if isinstance(rows, list) and rows:
                _remember(self._named, key, rows, names)

    def named(self, tokens: Mapping[str, Any]) -> frozenset[str]:
        """Concepts that the texts name whose tokens these are, or are among these."""
        lists = [(key, rows) for key, rows in tokens.items() if isinstance(rows, list)]
        return NOTHING.union(*(names for key, rows in lists for _, names in _runs(self._named, key, rows) if names))

    def plain(self, tokens: Mapping[str, Any]) -> Plain | None:
        """Tokens with the plain text's in place of those of texts in disguise; None where there are none.

        Encoders that stand side by side read as many rows as each other: what got shorter is filled up with blanks.
        """
        found: dict[str, Any] = dict(tokens)
        undone: dict[str, None] = {}
        longest: dict[int, int] = {}
        blanks: dict[str, Any] = {}
        for key, rows in tokens.items():
            if not isinstance(rows, list):
                continue
            found[key], kept = self._replaced(key, rows)
            longest[len(rows)] = max(longest.get(len(rows), 0), len(found[key]), len(rows))
            for k in kept:
                blanks[key] = k.blank
                undone.update(dict.fromkeys(k.undone))
        if not undone:
            return None
        for key, blank in blanks.items():
            missing = longest[len(tokens[key])] - len(found[key])
            found[key] = [*found[key], *(blank * missing)]
        return Plain(found, tuple(undone))

    def _replaced(self, key: str, rows: list[Any]) -> tuple[list[Any], list[_Kept]]:
        found, used = [], []
        for own, kept in _runs(self._kept, key, rows):
            found += own if kept is None else kept.rows
            used += [] if kept is None else [kept]
        return found, used


def _remember(kept: Kept[T], key: str, rows: list[Any], value: T) -> None:
    kept.pop((key, _key(rows)), None)  # what comes again is the last again
    kept[key, _key(rows)] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)


def _runs(kept: Kept[T], key: str, rows: list[Any]) -> Iterator[tuple[list[Any], T | None]]:
    """``rows`` cut into what is remembered, the longest first, each with it, and single rows with nothing."""
    ids, at = _key(rows), 0
    lengths = sorted({len(of) for k, of in kept if k == key}, reverse=True)
    while at < len(rows):
        for length in lengths:
            if (value := kept.get((key, ids[at : at + length]))) is not None:
                yield rows[at : at + length], value
                at += length
                break
        else:
            yield rows[at : at + 1], None
            at += 1


def listening(tokenizer: Any, texts: Texts) -> Any:
    """A tokenizer like the one given, of which ``texts`` learns every text in disguise."""
    inner = tokenizer.tokenize_with_weights

    def tokenize_with_weights(text: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = inner(text, *args, **kwargs)
        texts.learn(text, tokens, lambda plain: inner(plain, *args, **kwargs))
        return tokens

    tokenize_with_weights.safe_region_unguarded = inner  # type: ignore[attr-defined]
    heard = copy.copy(tokenizer)
    heard.tokenize_with_weights = tokenize_with_weights
    return heard


def normaliser_of(tokenizer: Any, selection: Selection) -> Normaliser:
    """The normaliser that knows the words of a host's tokenizer and of the concepts that are switched on."""
    try:
        known = _vocabularies.get(tokenizer)
    except TypeError:  # cannot be remembered
        return normaliser(_vocabulary(tokenizer), _own(selection))
    if known is None:
        known = _vocabularies[tokenizer] = _vocabulary(tokenizer)
    return normaliser(known, _own(selection))


def _own(selection: Selection) -> tuple[Concept, ...]:
    return tuple(c.concept for c in selection.choices if isinstance(c.concept, Concept))


def _vocabulary(tokenizer: Any) -> tuple[str, ...]:
    """Whole words of every encoder's tokenizer, the most common first."""
    found: dict[str, None] = {}
    for part in vars(tokenizer).values():
        names = getattr(part, "inv_vocab", None)
        if isinstance(names, Mapping):
            found.update(dict.fromkeys(words_of(names[i] for i in sorted(names))))
    return tuple(found)


def _key(rows: list[Any]) -> tuple[Row, ...]:
    """Rows without their weights, which nodes may change, and without what embeddings hold."""
    return tuple(tuple(t[0] if isinstance(t[0], int) else None for t in row) for row in rows)
