"""What a recipe's words teach: words it lists, and words it does not, in frames it has never seen.

A third of the words is held out in turn, with every sentence and every longer word that holds one of them; half of the
senses (what sounds like a word and stays) likewise. The frames of measuring are not those of the recipes. On
all-MiniLM-L6-v2, whose tokens know what words mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from saferegion.core.errors import SafeRegionError
from saferegion.core.region import SafeRegion
from saferegion.guard.library import Library
from saferegion.guard.naming import names_of
from saferegion.learn.bundled import neutral_prompts
from saferegion.learn.compile import compile_many
from saferegion.learn.places import vectors_folder
from saferegion.learn.recipes import Concept, read_recipe
from saferegion.learn.settings import Encode
from saferegion.learn.vocabulary import Vocabulary, bundled_frames, fill, naming, read_vocabulary

from . import machine, wilson
from .scores import Scores

FOLDS = 3
FRAMES = {
    "alone": ("{}",),
    "caption": (
        "a picture of {a}",
        "{a} near a window, evening",
        "an old postcard that shows {a}",
        "{a} in a kitchen",
        "a watercolour of {a} by the sea",
    ),
    "tags": (
        "best quality, 1man, city, night, {}, rain, 8k",
        "score_9, score_8_up, rating_safe, {}, dramatic lighting",
        "absurdres, highres, solo, {_}, blurry background, standing",
        "forest, mist, {}, ultra detailed, trending on artstation, sharp focus",
        "2women, office, window, {}, masterpiece, smile, day",
    ),
}
"""Frames of measuring; none of them is a recipe's."""
PERSONAL = {
    "acts": ("a picture of someone {}", "a woman {} by the sea, evening", "a tall man {} in a kitchen"),
    "looks": ("a picture of a {} lady", "a {} man near a window, evening", "a tall woman, {}, in a kitchen"),
}
"""Captions of what people do and how they look."""
HARMLESS = [
    "lamp post", "sailboat", "cinnamon roll", "wooden chair", "cactus", "wool scarf", "piano", "ferry", "notebook",
    "sparrow", "fountain", "tulip", "skateboard", "cheese board", "harbour", "windmill", "hot air balloon",
    "ice cream", "saxophone", "snow globe", "rowing boat", "cottage", "library", "tea set", "raincoat", "tram",
    "pumpkin", "goldfish", "lighthouse", "wheelbarrow", "picnic basket", "hammock",
]  # fmt: skip
"""Words that nobody switches off, for tag lists and captions that must stay."""
Progress = Callable[[int, int], None]
NEAR = ("{}", "a picture of {a}", "best quality, 1man, city, night, {}, rain, 8k")
"""Frames of senses."""


@dataclass(frozen=True)
class Recipe:
    """A recipe of words: what :func:`saferegion.compile` takes, and the words that it was made of."""

    concept: Concept
    words: Vocabulary

    @classmethod
    def read(cls, path: Path) -> Recipe | None:
        """None of a recipe of pairs alone."""
        words = read_vocabulary(path)
        return None if words is None else cls(read_recipe(path), words)

    def without(self, held: Sequence[str], senses: Sequence[str]) -> Concept:
        """The concept as if ``held`` words and ``senses`` had never been listed: no word or sentence holds one."""
        named = naming(held)
        assert named is not None
        frames = bundled_frames()
        words = {k: tuple(w for w in v if not named.search(w)) for k, v in self.words.words.items()}
        stay = tuple(s for s in self.words.senses if s not in senses)
        left = Vocabulary({k: v for k, v in words.items() if v}, stay, self.words.everyday)
        own = len(self.words.pairs(frames))
        sentences = tuple(p for p in self.concept.pairs[own:] if not named.search(p[0]))
        spared = self.concept.neutral[len(self.words.senses) :]
        return replace(
            self.concept,
            pairs=(*left.pairs(frames), *sentences),
            neutral=(*left.spared(frames), *spared),
            words=tuple(left.names()),
        )

    def listed(self) -> list[tuple[str, str]]:
        """(kind, word), in the order of the recipe."""
        return [(kind, word) for kind, words in self.words.words.items() for word in words]


def in_frames(kind: str, word: str, how: str) -> list[str]:
    """A word in the frames of measuring."""
    if how == "caption" and kind in PERSONAL:
        return [frame.format(word) for frame in PERSONAL[kind]]
    return [fill(frame, word) for frame in FRAMES[how]]


def measure(recipe: Recipe, encode: Encode, neutral: Sequence[str]) -> dict[str, Any]:
    """Shares found of one recipe: ``held`` words (cross-validated) and ``senses`` held out, by their embedding alone;
    ``listed`` words as both doors judge them, by name too."""
    folds: dict[str, list[bool]] = {how: [] for how in (*FRAMES, "senses")}
    words, senses = recipe.listed(), recipe.words.senses
    for fold in range(FOLDS):
        out, spared = words[fold::FOLDS], senses[fold % 2 :: 2]
        region = SafeRegion(compile_many([recipe.without([w for _, w in out], spared)], encode, neutral))
        for how in FRAMES:
            folds[how] += opened(region, encode, [t for kind, w in out for t in in_frames(kind, w, how)])
        folds["senses"] += opened(region, encode, [fill(f, s) for s in spared for f in NEAR])
    scores = Scores(compile_many([recipe.concept], encode, neutral), names_of((recipe.concept,)), encode)

    def found(texts: Sequence[str]) -> list[bool]:
        return [bool(d.max() > 0) for d in scores(texts)]

    return {
        "concept": recipe.concept.name,
        "words": len(words),
        "held": {how: _share(folds[how]) for how in FRAMES},
        "listed": {how: _share(found([t for k, w in words for t in in_frames(k, w, how)])) for how in FRAMES},
        "senses": _share(folds["senses"]),
        "harmless": _share(found(harmless())),
    }


def harmless() -> list[str]:
    """Words that nobody switches off, in every frame of measuring."""
    return [t for word in HARMLESS for how in FRAMES for t in in_frames("things", word, how)]


def opened(region: SafeRegion, encode: Encode, texts: Sequence[str]) -> list[bool]:
    """Which prompts are open."""
    found: list[bool] = []
    for at in range(0, len(texts), 64):
        found += (region.score(encode(list(texts[at : at + 64]))) > 0).any(1).tolist()
    return found


def _share(flags: Sequence[bool]) -> dict[str, Any]:
    count = len(flags)
    return {"share": sum(flags) / max(1, count), "prompts": count, "interval": wilson(sum(flags), count)}


def run(names: Sequence[str] | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Recipes of words: bundled ones by name, or files (None: every bundled one). Raises SafeRegionError: none is."""
    from .language import encoder

    bundled = [vectors_folder() / f"{n}.yaml" for n in Library().names()]
    paths = [Path(n) if n.endswith(".yaml") else vectors_folder() / f"{n}.yaml" for n in names] if names else bundled
    recipes = [r for p in paths if (r := Recipe.read(p)) is not None]
    if not recipes:
        raise SafeRegionError("None of these recipes lists words (format 2); name one that does, or its file.")
    encode, neutral, rows = encoder(), neutral_prompts(), []
    for n, recipe in enumerate(recipes, 1):
        rows.append(measure(recipe, encode, neutral))
        if progress is not None:
            progress(n, len(recipes))
    return {"machine": machine(), "encoder": "all-MiniLM-L6-v2", "folds": FOLDS, "concepts": rows}


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    table = Table(
        "concept", "words", *(f"{h}: {how}" for h in ("held out", "listed") for how in FRAMES), "senses", "calm"
    )
    table.title = f"words found, {result['encoder']}"
    for row in result["concepts"]:
        shares = [row[h][how] for h in ("held", "listed") for how in FRAMES] + [row["senses"], row["harmless"]]
        table.add_row(row["concept"], str(row["words"]), *(f"{s['share']:.3f}" for s in shares))
    return [table]
