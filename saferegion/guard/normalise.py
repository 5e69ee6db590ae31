"""What a reader sees behind a disguise: hidden characters, look-alike, spaced, doubled and exchanged letters undone.

The result is for a second look: an adapter encodes it beside the prompt where the two differ. Text without a disguise
comes back as it is, character for character, and of a disguised text only the words in disguise change. Nothing here is
a word list of what is unsafe: words are those of the text encoder and of the recipes. Time grows with the length alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import groupby, product

from .confusable import OVERLAYS, is_foreign, is_styled, looks_like
from .words import LONGEST, SHORT, Words

HIDDEN, MARKS, ALIKE = "hidden characters", "marks on letters", "look-alike letters"
SPACED, DIGITS, MASKED = "spaced letters", "digits for letters", "masked letters"
ROUNDS = 3
"""Disguises of disguises that are undone."""
LEET = {
    "0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "!": "il", "+": "t", "€": "e", "£": "l",
}  # fmt: skip
"""What digits and signs stand for."""

_KEPT = re.compile(r"(<[a-z]\w{0,30}:[^<>\n]{0,200}>|\bembedding:\S+)", re.IGNORECASE)
_UNSEEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[{_UNSEEN}]+")
_BEHIND, _AHEAD = re.compile(r"\w+\Z|\W\Z"), re.compile(r"\A\w+|\A\W")
_BACKWARDS = re.compile("\u202e([ -~]{2,200})\u202c?")
_NOT_ASCII = re.compile(r"(?<![A-Za-z0-9\x80-\U0010ffff])[A-Za-z0-9]*[^\x00-\x7f][A-Za-z0-9\x80-\U0010ffff]*")
_LETTER, _MARK = "[A-Za-z0-9@$]", "-.*_~,/+=^·•‧∙–—"
_SINGLE = re.compile(
    rf"(?<![\w@$'’]){_LETTER}(?:(?P<apart>[ \t\n]{{1,4}}| ?[{_MARK}] ?){_LETTER}(?:(?P=apart){_LETTER})+"
    rf"|(?:[{_MARK}]{{1,3}}{_LETTER}){{2,}})(?![\w@$])"
)
_SPLIT = re.compile(r"(?<![\w.-])[A-Za-z]{1,12}(?:[-._*~·•‧∙][A-Za-z]{1,12}){1,5}(?![\w-])")
_AROUND = "!*#+•█"
_WORD = re.compile(r"(?:[^\W_]|[@$€£!+*#•█])+")
_MASKED = re.compile(r"[a-z]+[*#•█]+[a-z*#•█]*")


@dataclass(frozen=True)
class Normalised:
    """``text`` without disguise, and in plain words what was ``undone``; nothing where the text is the one given."""

    text: str
    undone: tuple[str, ...] = ()


class Normaliser:
    """Undoes disguises in texts.

    Args:
        words: words as they are written, the most common first.
        telling: words that tell a concept; where a disguise could be undone in several ways, one of these is meant, and
            only they are looked for behind disguises that ordinary text has too (``s*x``, ``5ex``, a letter left out).
    """

    def __init__(self, words: Iterable[str], telling: Collection[str] = ()) -> None:
        self.words = Words(words, telling)

    def __call__(self, text: str) -> Normalised:
        """``text`` as a reader understands it; LoRA tags and names of embeddings are left alone."""
        undone: dict[str, None] = {}
        parts = _KEPT.split(text)
        for i in range(0, len(parts), 2):
            for _ in range(ROUNDS):
                before = parts[i]
                parts[i] = self._round(before, undone)
                if parts[i] == before:
                    break
        plain = "".join(parts)
        return Normalised(plain, tuple(undone) if plain != text else ())

    def _round(self, text: str, undone: dict[str, None]) -> str:
        for step in (self._reveal, self._fold, self._join, self._reword):
            text = step(text, undone)
        return text

    # -- characters ----------------------------------------------------------------------------------------------

    def _reveal(self, text: str, undone: dict[str, None]) -> str:
        """Take out what nobody sees between letters, and turn round what is written backwards."""

        def turned(match: re.Match[str]) -> str:
            undone[HIDDEN] = None
            return match[1][::-1]

        def seen(match: re.Match[str]) -> str:
            start, end = match.span()
            inside = start > 0 and end < len(text) and _is_latin(text[start - 1]) and _is_latin(text[end])
            if not inside:
                return match[0]
            undone[HIDDEN] = None
            sides = _BEHIND.findall(text[max(0, start - LONGEST) : start]), _AHEAD.findall(text[end : end + LONGEST])
            whole = all(len(side[0]) > 2 and side[0].lower() in self.words.rank for side in sides)
            return " " if whole else ""

        if text.isascii() and text.isprintable():
            return text
        return _HIDDEN.sub(seen, _BACKWARDS.sub(turned, text))

    def _fold(self, text: str, undone: dict[str, None]) -> str:
        """Latin letters for those that look like them, and letters without marks that no spelling has."""
        if text.isascii():
            return text
        foreign, mixed = any(is_foreign(c) for c in text), False
        for everything in (False, True):  # short words follow where longer ones were in disguise
            if everything and not mixed:
                break
            found: dict[str, None] = {}

            def run(match: re.Match[str], found: dict[str, None] = found, everything: bool = everything) -> str:
                return "".join(
                    self._folded("".join(cs), foreign, everything, found) if wordlike else "".join(cs)
                    for wordlike, cs in groupby(match[0], _wordlike)
                )

            text = _NOT_ASCII.sub(run, text)
            mixed = ALIKE in found
            undone.update(found)
        return text

    def _folded(self, word: str, foreign: bool, everything: bool, undone: dict[str, None]) -> str:
        """One word; ``foreign``: the text speaks a language of other letters; ``everything``: it is in disguise."""
        bare = _bare(word)
        if (len(bare) < len(word) or (bare != word and self.words.known(bare.lower()))) and _is_marked(word):
            undone[MARKS] = None
            word = bare
        latin = any(c.isascii() and c.isalpha() for c in word)
        alike = [c for c in word if looks_like(c, latin)]
        if not alike:
            return word
        folded = "".join(looks_like(c, latin) or c for c in word)
        if not folded.isascii():
            return word
        known = self.words.known(folded.lower()) and len(folded) > 2
        mixed = latin and len(folded) > 2 and not any(is_styled(c) or _is_greek(c) for c in alike)
        whole = known and (latin or not foreign or any(is_styled(c) for c in alike))
        long = all(is_styled(c) for c in alike) and len(folded) > 3 and folded.isalpha()
        short = not foreign and (everything or (len(word) == 1 and "\u0400" <= word <= "\u052f"))
        if not (mixed or whole or long or short or (everything and latin)):
            return word
        undone[ALIKE] = None
        return folded

    # -- letters apart -------------------------------------------------------------------------------------------

    def _join(self, text: str, undone: dict[str, None]) -> str:
        """``n u d e``, ``n.u.d.e``, ``nu-de``."""

        def single(match: re.Match[str]) -> str:
            letters = re.sub(r"[^A-Za-z0-9@$]", "", match[0]).lower()
            words = self._words(letters)
            if not words:
                return match[0]
            undone[SPACED] = None
            return " ".join(words)

        def split(match: re.Match[str]) -> str:
            parts = re.split(r"[^A-Za-z]", match[0].lower())
            word = "".join(parts)
            whole = all(p in self.words.rank and (len(p) > 2 or p in SHORT) for p in parts)
            if word not in self.words.telling or whole or len(word) > LONGEST:
                return match[0]
            undone[SPACED] = None
            return word

        return _SPLIT.sub(split, _SINGLE.sub(single, text))

    def _words(self, letters: str) -> list[str]:
        """Letters as words; none where they are initials."""
        shown = sum(c.isalpha() for c in letters)
        if shown < 2 or 2 * shown < len(letters):
            return []
        for option in _plain_forms(letters):
            if not option.isalpha():
                continue
            if len(option) < 4:
                if option in self.words.telling:
                    return [option]
                continue
            words = self.words.cut(option)
            longest = max((len(w) for w, known in words if known), default=0)
            unknown = sum(len(w) for w, known in words if not known)
            likely = longest > 3 and len(option) > 2 * len(words)
            if (likely or any(w in self.words.telling for w, _ in words)) and 3 * unknown <= len(option):
                return [w for w, _ in words]
        return []

    # -- words ---------------------------------------------------------------------------------------------------

    def _reword(self, text: str, undone: dict[str, None]) -> str:
        """Digits and masks for letters, doubled and exchanged letters, word by word."""
        english = self.words.english(text)
        strong = sum(self._unleet(m[0].lower(), False) != m[0].lower() for m in _WORD.finditer(text) if _has_leet(m[0]))

        def word(match: re.Match[str]) -> str:
            given = match[0]
            if not given.isascii() and not any(c in "€£•█" for c in given):
                return given
            if given.isalpha():
                found, how = self.words.respelt(given.lower(), english)
            elif _MASKED.fullmatch(core := given.lower()):
                found, how = self.words.unmasked(core), MASKED
            elif strong > 1 or _has_leet(given):
                found, how = self._unleet(given.lower(), strong > 1), DIGITS
            else:
                return given
            if found == given.lower():
                return given
            undone[how] = None
            return found

        return _WORD.sub(word, text)

    def _unleet(self, given: str, everything: bool) -> str:
        """Digits and signs as the letters they stand for; ``everything``: also where that may be chance."""
        word = given.strip(_AROUND)
        if not word or not (everything or _has_leet(word)):
            return given
        head, tail = given[: given.index(word)], given[given.index(word) + len(word) :]
        letters = sum(c.isalpha() for c in word)
        if not all(c.isalpha() or c in LEET for c in word) or len(word) > LONGEST:
            return given
        spoken = [w for form in _plain_forms(word) if (w := self._spoken(form))]
        if not spoken or not (everything or self._is_leet(word, letters, self.words.best(spoken))):
            return given
        return head + self.words.best(spoken) + tail

    def _spoken(self, form: str) -> str:
        """The word that a form is, doubled and exchanged letters undone; empty where it is none."""
        if len(form) < 3:
            return form if form in SHORT else ""
        if form in self.words.rank:
            return form
        found = self.words.respelt(form)[0]
        return found if found in self.words.rank else ""

    def _is_leet(self, word: str, letters: int, meant: str) -> bool:
        """Whether a word with digits means another, rather than a number, a unit or a name."""
        telling = meant in self.words.telling
        if letters < 2 or 5 * letters < 2 * len(word) or len(meant) < 3:
            return False
        if not word[0].isalpha():
            inner = sum(not c.isalpha() for c in word[1:])
            return telling or (inner > 0 and len(meant) > 4)
        if word[-1].isalpha():
            return telling or len(meant) > 3
        stem = word.rstrip("".join(LEET))
        return (telling or len(meant) > 3) and not (len(stem) > 2 and stem in self.words.rank)


def _is_latin(c: str) -> bool:
    return (c.isascii() and (c.isalnum() or c in LEET)) or bool(looks_like(c)) or "À" <= c <= "ɏ"


def _is_greek(c: str) -> bool:
    return "\u0370" <= c <= "\u03ff" or c == "µ"


def _wordlike(c: str) -> bool:
    """Whether a character can be part of a word that is in disguise."""
    return (
        (c.isascii() and c.isalnum())
        or bool(unicodedata.combining(c))
        or c in OVERLAYS
        or "À" <= c <= "ɏ"
        or bool(looks_like(c, True))
        or is_foreign(c)
    )


def _bare(word: str) -> str:
    """A word without any marks."""
    parts = unicodedata.normalize("NFD", word)
    return "".join(c for c in parts if not unicodedata.combining(c) and c not in OVERLAYS)


def _is_marked(word: str) -> bool:
    """Whether a word carries more marks than a spelling does."""
    composed = unicodedata.normalize("NFC", word)
    loose = [c for c in composed if unicodedata.combining(c)]
    if any(c in OVERLAYS for c in word) or len(loose) > 2 or re.search("[\u0300-\u036f]{2}", composed):
        return True
    letters = [c for c in composed if c.isalpha()]
    return len(letters) > 2 and all(len(unicodedata.normalize("NFD", c)) > 1 for c in letters)


def _has_leet(word: str) -> bool:
    return any(c in LEET for c in word.strip(_AROUND)) and any(c.isalpha() for c in word)


def _plain_forms(word: str) -> list[str]:
    """What digits and signs may stand for; of more than three that are ambiguous, all alike."""
    doubtful = [c for c in word if len(LEET.get(c, "")) > 1]
    if len(doubtful) > 3:
        return ["".join(LEET.get(c, c)[min(i, len(LEET.get(c, c)) - 1)] for c in word) for i in (0, 1)]
    return ["".join(letters) for letters in product(*(LEET.get(c, c) for c in word))]
