"""What recipes of words find: the words held out are really held out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder

from saferegion.core.errors import RecipeError, SafeRegionError
from saferegion.learn.vocabulary import bundled_frames, naming
from saferegion_lab.bench import words

RECIPE = """format: saferegion-recipe/2
name: fires
title: Fires
kind: exclude
version: 1
licence: MIT
words:
  things: [fire, campfire, house on fire, torch, blaze, inferno, flame]
  acts: [burning a house, lighting a torch]
senses: [fire truck, fireplace, flame tree, torch song]
pairs:
  - {unsafe: a fire in a valley, safe: a house in a valley}
  - {unsafe: a blaze in a harbour, safe: a boat in a harbour}
  - {unsafe: an inferno by a tower, safe: a tree by a tower}
  - {unsafe: a flame on a boat, safe: a bird on a boat}
neutral: [a red house]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> words.Recipe:
    path = tmp_path / "fires.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    found = words.Recipe.read(path)
    assert found is not None
    return found


def test_no_word_sentence_or_sense_that_is_held_out_is_left(recipe: words.Recipe) -> None:
    held = naming(["fire", "torch"])
    assert held is not None
    left = recipe.without(["fire", "torch"], ["fireplace"])
    assert not [u for u, _ in left.pairs if held.search(u)] and not [w for w in left.words if held.search(w)]
    assert not any("fireplace" in n for n in left.neutral) and any("flame tree" in n for n in left.neutral)
    assert left.neutral[-1] == "a red house" and len([u for u, _ in left.pairs if "valley" in u]) == 0
    assert [u for u, _ in left.pairs if "harbour" in u] and [w for w in left.words if w == "campfire"]


def test_frames_of_measuring_are_no_frames_of_recipes() -> None:
    fitted = {frame for kind in bundled_frames().values() for frame in kind.frames} - {"{}"}
    measured = {f for frames in (*words.FRAMES.values(), *words.PERSONAL.values(), words.NEAR) for f in frames} - {"{}"}
    assert not fitted & measured
    others = {w for kind in bundled_frames().values() for w in kind.instead}
    assert not others & set(words.HARMLESS)


def test_every_word_is_held_out_once_and_measured_in_every_frame(
    recipe: words.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    class Region:
        def __init__(self, directions: list[tuple[str, ...]]) -> None:
            seen.append(directions[0])

    def compiled(concepts: list[object], *_: object) -> list[tuple[str, ...]]:
        return [c.words for c in concepts]  # type: ignore[attr-defined]

    monkeypatch.setattr(words, "compile_many", compiled)
    monkeypatch.setattr(words, "SafeRegion", Region)
    monkeypatch.setattr(words, "Scores", lambda made, *_: (seen.append(made[0]), lambda t: torch.zeros(len(t), 1))[1])
    monkeypatch.setattr(words, "opened", lambda region, encode, texts: [False] * len(texts))
    found = words.measure(recipe, FakeEncoder(), ["a house"])
    count = len(recipe.listed())
    assert found["words"] == count and len(seen) == words.FOLDS + 1
    assert found["held"]["alone"]["prompts"] == found["listed"]["alone"]["prompts"] == count
    for word in ("fire", "torch", "blaze"):
        assert sum(word not in listed for listed in seen[:-1]) == 1 and word in seen[-1]


def test_what_lists_no_words_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SafeRegionError, match="None of these recipes lists words"):
        words.run(["age"])
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        words.run([str(tmp_path / "none.yaml")])
