"""A concept as words people use, in the frames they write: alone, captions, tag lists.

A recipe of format 2 lists *words* by kind (what is kept out, the most used first) and *senses* (what sounds like it and
stays). The first words of each kind are set in some of its frames, each pair with a harmless word in the same frame, so
that tags and captions as such tell nothing; the harmless rows are the same for all concepts, so they are encoded once.
All words are known by name (see :mod:`saferegion.guard.naming`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError
from .places import vectors_folder
from .yaml_text import Text, line_of, load

FRAMES_FORMAT = "saferegion-frames/1"
FRAMES = "frames"
KINDS = ("things", "stuff", "people", "acts", "looks", "scenes")
"""A gun, blood, a sniper, stabbing someone, naked, a battlefield."""
PER_WORD = 3
"""Frames of each word that is set in frames: alone, among tags, in a caption."""
FEWEST = 24
"""Pairs that a few words make at least, as far as there are frames."""
SET = 36
"""Words of a recipe that are set in frames, the first of each kind in proportion; others are known by name alone."""
LONGEST_WORD = 80
MOST_WORDS = 400

_VOWEL = re.compile(r"(?i)(?!u[bcfhjkqrstn][aeiou]|eu|one\b|once\b|uk\b|usa?\b)[aeiou]|(?:hour|honest|x-|ak-|m\d)")
_MARKS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True)
class Kind:
    """How words of one kind are written: ``frames`` with ``{}``, ``{a}`` (the word with its article) or ``{_}`` (with
    underscores), the first of them the word alone; ``instead``: harmless words of the kind."""

    frames: tuple[str, ...]
    instead: tuple[str, ...]

    def set(self, word: str, frame: int) -> str:
        """The word in a frame, counted round."""
        return fill(self.frames[frame % len(self.frames)], word)


def fill(frame: str, word: str) -> str:
    """A word in a frame."""
    found = frame.replace("{a}", with_article(word)).replace("{_}", word.replace(" ", "_")).replace("{}", word)
    return found


def with_article(word: str) -> str:
    """``a`` or ``an`` before a word; none before what looks like a plural, or has one."""
    first, *_, last = word.lower().split() * 2
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if plural or first in ("a", "an", "the", "two", "some", "no") or not word[0].isascii() or not word[0].isalnum():
        return word
    return f"{'an' if _VOWEL.match(word) else 'a'} {word}"


@dataclass(frozen=True)
class Vocabulary:
    """``words``: by kind. ``senses``: what stays. ``everyday``: those of the words that are too common to name the
    concept (a knife): they are set in frames, and told by their embedding alone."""

    words: Mapping[str, tuple[str, ...]]
    senses: tuple[str, ...] = ()
    everyday: tuple[str, ...] = ()

    def every(self) -> list[str]:
        """All words, in order."""
        return [word for listed in self.words.values() for word in listed]

    def names(self) -> list[str]:
        """The words that name the concept, in order."""
        return [word for word in self.every() if word not in self.everyday]

    def first(self, most: int) -> dict[str, tuple[str, ...]]:
        """The first words of each kind, ``most`` in all, in proportion and at least one of each."""
        total = sum(map(len, self.words.values()))
        if total <= most:
            return dict(self.words)
        share = {k: len(v) * most / total for k, v in self.words.items()}
        counts = {k: max(1, int(s)) for k, s in share.items()}
        for kind in sorted(share, key=lambda k: int(share[k]) - share[k])[: max(0, most - sum(counts.values()))]:
            counts[kind] += 1
        return {k: v[: counts[k]] for k, v in self.words.items()}

    def pairs(
        self, frames: Mapping[str, Kind], per_word: int = PER_WORD, block: int = 5, most: int = SET
    ) -> list[tuple[str, str]]:
        """The first words in ``per_word`` frames beside a harmless one. Words come in blocks, all frames of a block
        before the next, so that every ``block``-th pair holds the same words: what measures was never fitted on."""
        listed = [(kind, i, word) for kind, words in self.first(most).items() for i, word in enumerate(words)]
        enough = -(-FEWEST // max(1, len(listed)))
        per_word = min(max(per_word, enough), min((len(frames[k].frames) for k, _, _ in listed), default=1))
        said = naming(self.every())
        instead = {
            k: [w for w in frames[k].instead if said is None or not said.search(w)] or list(frames[k].instead)
            for k in self.words
        }
        found = []
        for start in range(0, len(listed), block):
            for turn in range(per_word):
                for kind, i, word in listed[start : start + block]:
                    how = frames[kind]
                    frame = 0 if turn == 0 else 1 + (i + (turn - 1) * STRIDE) % (len(how.frames) - 1)
                    other = instead[kind][(i + turn * STRIDE) % len(instead[kind])]
                    found.append((how.set(word, frame), how.set(other, frame)))
        return found

    def spared(self, frames: Mapping[str, Kind]) -> list[str]:
        """Every sense, in one frame of things, the next for each."""
        how = frames["things"]
        return [how.set(sense, i) for i, sense in enumerate(self.senses)]


def naming(words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds any of the words, whole, also in the plural and with underscores; None of no words."""
    if not words:
        return None
    each = sorted((re.escape(w).replace(r"\ ", "[ _-]") for w in words), key=len, reverse=True)
    return re.compile(rf"(?i)(?<![^\W_])(?:{'|'.join(each)})(?:e?s)?(?![^\W_])")


STRIDE = 3
"""From one frame of a word to its next, and from one harmless word to the next."""


def read_words(data: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a recipe's ``words`` and ``senses``. Raises RecipeError with the line."""
    words = data.get("words")
    if not isinstance(words, dict) or not words:
        raise RecipeError(f"{where}: 'words' must list words by kind: {', '.join(KINDS)}.")
    unknown = [k for k in words if k not in KINDS]
    if unknown:
        at = line_of(unknown[0])
        raise RecipeError(f"{where}{at}: unknown kind of words '{unknown[0]}'; known are {', '.join(KINDS)}.")
    found = {str(kind): _listed(words[kind], f"{where}: '{kind}'") for kind in words}
    senses = _listed(data["senses"], f"{where}: 'senses'") if "senses" in data else ()
    _each_once(found, senses, where)
    everyday = _listed(data["everyday"], f"{where}: 'everyday'") if "everyday" in data else ()
    listed = {word for words in found.values() for word in words}
    if unknown := [w for w in everyday if w not in listed]:
        raise RecipeError(f"{where}{line_of(unknown[0])}: '{unknown[0]}' in 'everyday' is none of the words.")
    count = sum(map(len, found.values()))
    if count > MOST_WORDS:
        raise RecipeError(f"{where}: {count:,} words are too many for one concept; at most {MOST_WORDS} are allowed.")
    kept = {k: tuple(map(str, v)) for k, v in found.items()}
    return Vocabulary(kept, tuple(map(str, senses)), tuple(map(str, everyday)))


def _listed(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where} must be a list with at least one word.")
    for word in value:
        at = line_of(word)
        if not isinstance(word, str) or not word.strip():
            raise RecipeError(
                f"{where}{at}: a word must be text that is not empty; got {word!r} (put quotes around it)."
            )
        if len(word) > LONGEST_WORD:
            raise RecipeError(f"{where}{at}: a word has at most {LONGEST_WORD} characters; got {len(word)}.")
        if wrong := unbalanced(word):
            raise RecipeError(f"{where}{at}: {word!r} has a {wrong} without its other half.")
    return tuple(value)


def _each_once(words: Mapping[str, Sequence[str]], senses: Sequence[str], where: str) -> None:
    seen: dict[str, str] = {}
    for kind, listed in [*words.items(), ("senses", senses)]:
        for word in listed:
            plain = " ".join(word.lower().split())
            if plain in seen:
                also = f"in '{seen[plain]}' too" if seen[plain] != kind else "twice"
                raise RecipeError(f"{where}{line_of(word)}: '{word}' in '{kind}' is {also}; keep one.")
            seen[plain] = kind


def unbalanced(text: str) -> str:
    """The first bracket without its other half, or nothing."""
    waiting: list[str] = []
    for c in text:
        if c in _MARKS:
            waiting.append(c)
        elif c in _MARKS.values() and (not waiting or _MARKS[waiting.pop()] != c):
            return f"'{c}'"
    return f"'{waiting[-1]}'" if waiting else ""


def read_frames(path: str | Path) -> dict[str, Kind]:
    """Read a file of frames. Raises RecipeError."""
    path = Path(path)
    data = load(path)
    if data.get("format") != FRAMES_FORMAT:
        raise RecipeError(f"{path.name} holds no frames: its first line must be 'format: {FRAMES_FORMAT}'.")
    kinds = data.get("kinds")
    if not isinstance(kinds, dict) or set(kinds) != set(KINDS):
        raise RecipeError(f"{path.name}: 'kinds' must hold {', '.join(KINDS)}.")
    found = {}
    for name, kind in kinds.items():
        if not isinstance(kind, dict) or set(kind) != {"frames", "instead"}:
            raise RecipeError(f"{path.name}: '{name}' must have exactly the keys 'frames' and 'instead'.")
        frames, instead = (_rows(kind[k], f"{path.name}: '{name}'", k) for k in ("frames", "instead"))
        if len(frames) < 2 or frames[0] != "{}":
            raise RecipeError(f"{path.name}: the first frame of '{name}' must be {{}}, and one must follow.")
        for frame in frames:
            if sum(frame.count(mark) for mark in ("{}", "{a}", "{_}")) != 1:
                raise RecipeError(
                    f"{path.name}{line_of(frame)}: a frame holds one of {{}}, {{a}}, {{_}} once; got {frame!r}."
                )
        found[str(name)] = Kind(tuple(map(str, frames)), tuple(map(str, instead)))
    return {name: found[name] for name in KINDS}


def _rows(value: Any, where: str, key: str) -> list[Text]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise RecipeError(f"{where}: '{key}' must be a list with at least one text.")
    return value


@cache
def bundled_frames() -> dict[str, Kind]:
    """The frames that come with the package."""
    return read_frames(vectors_folder() / f"{FRAMES}.yaml")


def read_vocabulary(path: str | Path) -> Vocabulary | None:
    """The words that a recipe file lists; None of a recipe of pairs alone. Raises RecipeError."""
    data = load(Path(path))
    return read_words(data, Path(path).name) if "words" in data else None
