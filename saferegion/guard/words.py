"""Words, and what is meant by one that is none: written twice the letters, two exchanged, one missing, one masked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from itertools import groupby

DOUBLED, MISSPELT = "doubled letters", "misspelt word"

LONGEST = 32
"""Letters of the longest word that is looked up, its doubled letters counted once."""
COMMON = 3000
"""Words so common that one of four letters is meant where two are exchanged."""
ENOUGH = 15_000
"""Words from which on what is not among them is taken for misspelt, where a letter is missing, added or another."""
SHORT = frozenset({
    "a", "i", "ad", "am", "an", "as", "at", "be", "by", "do", "go", "he", "hi", "if",
    "in", "is", "it", "me", "my", "no", "of", "oh", "on", "or", "so", "to", "up", "us", "we",
})  # fmt: skip
"""Words of one and two letters; others are not made up."""


class Words:
    """Words that are known.

    Args:
        words: as they are written, the most common first.
        telling: words that tell a concept.
    """

    def __init__(self, words: Iterable[str], telling: Collection[str] = ()) -> None:
        self.telling = frozenset(w for w in telling if _is_word(w) and len(w) > 2)
        known = dict.fromkeys(w for w in words if _is_word(w))
        self.rank = {w: i for i, w in enumerate([*known, *sorted(self.telling - known.keys())])}
        self._single = _index(self.rank, lambda w: [_collapsed(w)] if len(w) > 2 else [])
        enough = self.telling if len(self.rank) >= ENOUGH else ()
        self._shorter = _index(enough, lambda w: _shortened(w) if len(w) > 4 else [])
        self._of_length = _index(self.telling, lambda w: [f"{w[0]}{len(w)}"])

    def known(self, word: str) -> bool:
        """Whether a word is one, or a form of one."""
        if word in self.rank:
            return True
        for ending in ("s", "es", "ed", "ing", "er", "ers", "ly"):
            stem = word.removesuffix(ending)
            if stem == word or len(stem) < 3:
                continue
            if stem in self.rank or (ending[0] in "ei" and stem + "e" in self.rank):
                return True
        return False

    def english(self, text: str) -> bool:
        """Whether most words of a text are known, so that one that is not is none."""
        words = re.findall(r"[^\W\d_]{3,}", text.lower())
        unknown = sum(not self.known(w) for w in words)
        return 3 * (unknown - 1) <= len(words) - 1

    def respelt(self, word: str, closely: bool = False) -> tuple[str, str]:
        """A word that is none as the word it is meant to be, and how it differed."""
        if len(word) < 4 or self.known(word):
            return word, ""
        return self._meant(word, closely)

    def _meant(self, word: str, closely: bool) -> tuple[str, str]:
        collapsed = _collapsed(word)
        if len(collapsed) > LONGEST:
            return word, ""
        lengths = _lengths(word)
        alike = (w for w in self._single.get(collapsed, ()) if word != w + w[-1] or w[-1] in "aeiouy")  # Gunn, Matt
        doubled = [w for w in alike if all(a <= b for a, b in zip(_lengths(w), lengths, strict=True))]
        if doubled:
            return self.best(doubled), DOUBLED
        if len(word) > LONGEST:
            return word, ""
        turned = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 2)}
        exchanged = [w for w in turned if w in self.rank and (len(w) > 4 or w in self.telling or self.rank[w] < COMMON)]
        if exchanged:
            return self.best(exchanged), MISSPELT
        if not closely:
            return word, ""
        near = {
            w
            for form in [word, *_shortened(word)]
            for w in self._shorter.get(form, ())
            if w[0] == word[0] and abs(len(w) - len(word)) < 2 and (len(w) != len(word) or len(w) > 6)
        }
        near = {w for w in near if w not in (word[:-1], word + "s") and _differ_once(w, word)}
        return (self.best(near), MISSPELT) if near else (word, "")

    def best(self, words: Iterable[str]) -> str:
        """Of words that may be meant, a telling one, else the most common."""
        return min(words, key=lambda w: (w not in self.telling, self.rank.get(w, COMMON), w))

    def unmasked(self, word: str) -> str:
        """``s*x``: a telling word of the same length."""
        shown = sum(c.isalpha() for c in word)
        if shown < 2 or 2 * shown < len(word) or len(word) > LONGEST or (not word[-1].isalpha() and shown < 3):
            return word
        form = re.compile(re.sub(r"[^a-z]", "[a-z]", word))
        fits = [w for w in self._of_length.get(f"{word[0]}{len(word)}", ()) if form.fullmatch(w)]
        return self.best(fits) if fits else word

    def cut(self, letters: str) -> list[tuple[str, bool]]:
        """The likeliest words that ``letters`` are when put one after another, each with whether it is known."""
        best, start = [0.0], [0]
        for end in range(1, len(letters) + 1):
            costs = [(best[end - 1] + 20.0, end - 1)]
            for begin in range(max(0, end - LONGEST), end):
                word = letters[begin:end]
                if word in self.rank and (len(word) > 2 or word in SHORT):
                    cost = math.log(self.rank[word] + 10) + 2 - 2 * (word in self.telling)
                    costs.append((best[begin] + cost, begin))
            cost, begin = min(costs)
            best.append(cost)
            start.append(begin)
        found: list[tuple[str, bool]] = []
        end = len(letters)
        while end:
            word = letters[start[end] : end]
            known = len(word) > 1 or word in SHORT
            if not known and found and not found[-1][1]:
                word += found.pop()[0]
            found.append((word, known))
            end = start[end]
        return found[::-1]


def words_of(vocabulary: Iterable[str]) -> list[str]:
    """Whole words of a tokenizer's vocabulary, given in the order of its ids, in lower case."""
    tokens = [t for t in vocabulary if isinstance(t, str)]
    for mark in ("</w>", "▁", "Ġ"):  # byte pairs of CLIP, SentencePiece, byte pairs of language models
        whole = [t.removeprefix(mark).removesuffix(mark) for t in tokens if mark in (t[:1], t[-4:]) and t != mark]
        if whole:
            break
    else:
        whole = [t for t in tokens if not t.startswith("##")]
    return list(dict.fromkeys(t.lower() for t in whole if _is_word(t.lower())))


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalpha() and len(text) <= LONGEST


def _collapsed(word: str) -> str:
    return "".join(c for c, _ in groupby(word))


def _lengths(word: str) -> list[int]:
    return [len(list(same)) for _, same in groupby(word)]


def _shortened(word: str) -> list[str]:
    """The word itself and without any one letter but the first."""
    return [word, *(word[:i] + word[i + 1 :] for i in range(1, len(word)))]


def _differ_once(a: str, b: str) -> bool:
    """Whether one letter added, left out or changed makes one word of the other."""
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))


def _index(words: Iterable[str], keys: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        for key in keys(word):
            found.setdefault(key, []).append(word)
    return found
