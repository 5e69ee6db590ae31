"""Recipes: a concept described by contrast prompts, and the YAML files that hold them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError
from ..core.texts import JOINERS, KINDS, is_plain
from . import vocabulary
from .vocabulary import naming
from .yaml_text import load

RECIPE_FORMAT = "saferegion-recipe/1"
WORDS_FORMAT = "saferegion-recipe/2"
"""With words in frames, beside or instead of pairs."""
NEUTRAL_FORMAT = "saferegion-neutral/1"
NEUTRAL = "neutral"
LONGEST = 4000
"""Characters of the longest prompt."""
FEWEST_PAIRS = 4
MOST_PAIRS = 20_000
"""Most pairs of one recipe, its templates filled in."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
LONGEST_LINE = 1000
"""Characters of the longest title or licence."""

SENTENCES = (
    "{}",
    "a photo, {}",
    "a painting, {}",
    "a house, {}",
    "a street in a city, {}",
    "a person in a room, {}",
    "a dog in a garden, {}",
    "a forest and a lake, {}",
    "{}, a table with a chair",
    "{}, a car on a road",
    "{}, a tree in a field",
    "a portrait, {}, highly detailed",
)
"""Where words go that come without sentences of their own."""

_REQUIRED = {"format", "name", "title", "kind", "version", "licence", "pairs"}
_OPTIONAL = {"description", "templates", "neutral"}
_OF_WORDS = {"words", "senses", "everyday"}


@dataclass(frozen=True)
class Concept:
    """Something to keep out or to balance, described by prompts.

    Attributes:
        name: lower case, digits and dashes. title: what people read.
        pairs: ``(unsafe, safe)`` prompts that differ in the concept alone, templates already filled in.
        neutral: benign prompts of the concept's own, near neighbours; they calibrate the border.
        kind: ``exclude`` or ``balance``.
        words: what says the concept by name; a shared neutral prompt that holds one is none for this concept.
        senses: phrases with such a word that stay.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    neutral: tuple[str, ...] = ()
    title: str = ""
    kind: str = "exclude"
    version: int = 1
    description: str = ""
    licence: str = ""
    words: tuple[str, ...] = ()
    senses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise RecipeError(f"A concept's name must be lower-case letters, digits and dashes; got {self.name!r}.")
        for key, text in (("title", self.title), ("licence", self.licence)):
            if not is_plain(text, LONGEST_LINE, JOINERS):
                raise RecipeError(f"'{self.name}': '{key}' must be one line without control or hidden characters.")
        if self.kind not in KINDS:
            raise RecipeError(f"'{self.name}': kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not self.pairs:
            raise RecipeError(f"'{self.name}': give at least one pair of an unsafe and a safe prompt.")
        for unsafe, safe in self.pairs:
            if _plain(unsafe) == _plain(safe):
                raise RecipeError(
                    f"'{self.name}': the pair {unsafe!r} / {safe!r} has no contrast; they must differ in the concept."
                )

    @classmethod
    def from_pairs(
        cls,
        name: str,
        pairs: Iterable[Sequence[str]],
        neutral: Iterable[str] = (),
        *,
        title: str = "",
        kind: str = "exclude",
        licence: str = "",
    ) -> Concept:
        """A concept from ``(unsafe, safe)`` prompts; ``name`` may be any words. Raises RecipeError."""
        slug = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:64]
        if not slug:
            raise RecipeError(f"A concept's name needs a letter or a digit; got {name!r}.")
        rows = [tuple(p) if isinstance(p, Sequence) and not isinstance(p, str) else (p,) for p in pairs]
        for row in rows:
            if len(row) != 2:
                raise RecipeError(f"'{slug}': a pair is (unsafe, safe); got {row!r}.")
        return cls(
            name=slug,
            title=title or str(name),
            kind=kind,
            licence=licence,
            pairs=tuple((_prompt(a, slug), _prompt(b, slug)) for a, b in rows),
            neutral=tuple(_prompt(n, slug) for n in neutral),
        )

    @classmethod
    def from_words(
        cls,
        name: str,
        avoid: Iterable[str],
        instead: Iterable[str] = (),
        sentences: Iterable[str] = (),
    ) -> Concept:
        """A concept from words: what to avoid, and what may stand in its place.

        Args:
            name: any words.
            avoid: words or phrases ("fire", "in flames").
            instead: what stands in their place, in turn; none: the sentence goes without.
            sentences: each with ``{}`` where the words go (none: :data:`SENTENCES`).

        Raises:
            RecipeError: no word, or a sentence without ``{}``.
        """
        words = list(dict.fromkeys(w.strip() for w in avoid if w.strip()))
        others = [w.strip() for w in instead if w.strip()]
        frames = list(dict.fromkeys(s.strip() for s in sentences if s.strip())) or list(SENTENCES)
        if not words:
            raise RecipeError(f"'{name}': give at least one word or phrase to avoid.")
        for frame in frames:
            if frame.count("{}") != 1:
                raise RecipeError(f"'{name}': each sentence must hold {{}} exactly once; got {frame!r}.")
        pairs = []
        for i, word in enumerate(words):
            for j, frame in enumerate(frames):
                other = others[(i + j) % len(others)] if others else ""
                safe = " ".join(frame.replace("{}", other).split())
                safe = re.sub(r"\s*([,;:])(?:\s*[,;:])+", r"\1", safe).strip(" ,;:")
                pairs.append((frame.replace("{}", word), safe or "a picture"))
        return replace(cls.from_pairs(name, pairs, title=str(name)), words=tuple(words))

    def named(self, texts: Iterable[str]) -> list[bool]:
        """Which texts hold one of the words."""
        said = naming(self.words)
        return [said is not None and said.search(t) is not None for t in texts]

    def digest(self, neutral: Sequence[str] = ()) -> str:
        """SHA-256, hex, of what directions depend on: the pairs, the own and the shared neutral prompts."""
        parts = [self.kind, self.pairs, self.neutral, list(neutral), *([self.words] if self.words else [])]
        text = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def read_recipe(path: str | Path) -> Concept:
    """Read a recipe file. Raises RecipeError with one sentence that says what to mend."""
    path = Path(path)
    data = load(path)
    where, told = path.name, data.get("format")
    if told not in (RECIPE_FORMAT, WORDS_FORMAT):
        raise RecipeError(f"{where} is not a recipe: its first line must be 'format: {WORDS_FORMAT}'.")
    of_words = told == WORDS_FORMAT
    required = _REQUIRED - {"pairs"} | {"words"} if of_words else _REQUIRED
    missing = sorted(required - set(data))
    if missing:
        raise RecipeError(f"{where}: the key '{missing[0]}' is missing.")
    all_known = required | _OPTIONAL | ({"pairs", *_OF_WORDS} if of_words else set())
    unknown = sorted(map(str, set(data) - all_known))
    if unknown:
        raise RecipeError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(sorted(all_known))}.")
    name = data["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RecipeError(f"{where}: 'name' must be lower-case letters, digits and dashes; got {name!r}.")
    version = data["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecipeError(f"{where}: 'version' must be a whole number from 1; got {version!r}.")
    for key in ("title", "kind", "licence", "description"):
        if not isinstance(data.get(key, ""), str):
            raise RecipeError(f"{where}: '{key}' must be text.")
    templates = _strings(data.get("templates", ["{}"]), where, "templates")
    for template in templates:
        if template.count("{}") != 1:
            raise RecipeError(f"{where}: each template must hold {{}} exactly once; got {template!r}.")
    pairs = _pairs(data["pairs"], where) if "pairs" in data else []
    if len(templates) * len(pairs) > MOST_PAIRS:
        raise RecipeError(
            f"{where}: {len(templates):,} templates times {len(pairs):,} pairs are {len(templates) * len(pairs):,} "
            f"pairs; at most {MOST_PAIRS:,} are allowed."
        )
    neutral = _strings(data["neutral"], where, "neutral") if "neutral" in data else []
    words: list[tuple[str, str]] = []
    names: tuple[str, ...] = ()
    senses: tuple[str, ...] = ()
    if of_words:
        listed, frames = vocabulary.read_words(data, where), vocabulary.bundled_frames()
        words, neutral = listed.pairs(frames), [*listed.spared(frames), *neutral]
        names, senses = tuple(listed.names()), listed.senses
    try:
        return Concept(
            name=str(name),
            title=data["title"].strip(),
            kind=str(data["kind"]),
            version=version,
            licence=data["licence"].strip(),
            description=str(data.get("description", "")),
            pairs=(*words, *((t.replace("{}", a), t.replace("{}", b)) for t in templates for a, b in pairs)),
            neutral=tuple(neutral),
            words=names,
            senses=senses,
        )
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def recipe_text(concept: Concept, title: str = "") -> str:
    """The YAML file of a concept, that :func:`read_recipe` reads back."""
    import yaml

    data: dict[str, Any] = {
        "format": RECIPE_FORMAT,
        "name": concept.name,
        "title": title or concept.title or concept.name,
        "kind": concept.kind,
        "version": concept.version,
        "licence": concept.licence or "none",
        "description": concept.description or "What is kept out, and what is deliberately not.",
        "pairs": [{"unsafe": u, "safe": s} for u, s in concept.pairs],
    }
    if concept.neutral:
        data["neutral"] = list(concept.neutral)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def words_text(
    name: str, words: Mapping[str, Sequence[str]], senses: Sequence[str] = (), title: str = "", description: str = ""
) -> str:
    """The YAML file of a recipe of words by kind, that :func:`read_recipe` reads back. Raises RecipeError."""
    import yaml

    data: dict[str, Any] = {
        "format": WORDS_FORMAT,
        "name": name,
        "title": title or name.replace("-", " ").capitalize(),
        "kind": "exclude",
        "version": 1,
        "licence": "none",
        "description": description or "What is kept out, and what is deliberately not.",
        "words": {k: list(v) for k, v in words.items()},
    }
    if senses:
        data["senses"] = list(senses)
    vocabulary.read_words(data, name)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def read_neutral(path: str | Path) -> tuple[str, ...]:
    """Read the neutral prompts that all concepts share. Raises RecipeError."""
    path = Path(path)
    data = load(path)
    if data.get("format") != NEUTRAL_FORMAT:
        raise RecipeError(f"{path.name} holds no neutral prompts: its first line must be 'format: {NEUTRAL_FORMAT}'.")
    if "prompts" not in data:
        raise RecipeError(f"{path.name}: the key 'prompts' is missing.")
    return tuple(_strings(data["prompts"], path.name, "prompts"))


def _strings(value: Any, where: str, key: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where}: '{key}' must be a list with at least one text.")
    return [_prompt(v, f"{where}: '{key}'") for v in value]


def _pairs(value: Any, where: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or len(value) < FEWEST_PAIRS:
        raise RecipeError(f"{where}: 'pairs' must be a list of at least {FEWEST_PAIRS} pairs.")
    pairs = []
    for i, pair in enumerate(value, 1):
        if not isinstance(pair, dict) or set(pair) != {"unsafe", "safe"}:
            raise RecipeError(f"{where}: pair {i} must have exactly the keys 'unsafe' and 'safe'.")
        pairs.append((_prompt(pair["unsafe"], f"{where}: pair {i}"), _prompt(pair["safe"], f"{where}: pair {i}")))
    return pairs


def _prompt(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where}: a prompt must be text that is not empty; got {value!r} (put quotes around it).")
    if len(value) > LONGEST:
        raise RecipeError(f"{where}: a prompt has at most {LONGEST} characters; got {len(value)}.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise RecipeError(f"{where}: a prompt holds half a character (a lone surrogate); got {value[:60]!r}.")
    return str(value.strip())


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
