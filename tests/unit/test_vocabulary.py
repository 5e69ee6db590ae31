"""Recipes of words: what they become, and the sentence for each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saferegion.core.errors import RecipeError
from saferegion.learn.places import vectors_folder
from saferegion.learn.recipes import read_recipe
from saferegion.learn.terms import growth
from saferegion.learn.vocabulary import (
    KINDS,
    PER_WORD,
    Vocabulary,
    bundled_frames,
    fill,
    naming,
    read_frames,
    read_vocabulary,
    with_article,
)

HEAD = (
    "format: saferegion-recipe/2\nname: arms\ntitle: Arms\nkind: exclude\nversion: 1\nlicence: MIT\n"
    "description: Arms.\n"
)


def recipe(folder: Path, body: str) -> Path:
    path = folder / "arms.yaml"
    path.write_text(HEAD + body, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("gun", "a gun"),
        ("axe", "an axe"),
        ("AK-47", "an AK-47"),
        ("M16", "an M16"),
        ("uniform", "a uniform"),
        ("hourglass", "an hourglass"),
        ("throwing knives", "throwing knives"),
        ("abyss", "an abyss"),
        ("a bow and arrow", "a bow and arrow"),
        ("🔫", "🔫"),
    ],
)
def test_articles(word: str, written: str) -> None:
    assert with_article(word) == written
    assert fill("a photo of {a}", word) == f"a photo of {written}"


def test_underscores_stand_between_the_words_of_a_tag() -> None:
    assert fill("1girl, {_}, solo", "assault rifle") == "1girl, assault_rifle, solo"


def test_every_word_stands_alone_and_in_other_frames_beside_a_harmless_word(tmp_path: Path) -> None:
    words = [f"gun number {i}" for i in range(13)]
    body = "words:\n  things:\n" + "".join(f"    - {w}\n" for w in words) + "senses:\n  - glue gun\n  - nail gun\n"
    concept = read_recipe(recipe(tmp_path, body))
    assert len(concept.pairs) == PER_WORD * len(words) and concept.words == tuple(words)
    for word in words:
        held = [(u, s) for u, s in concept.pairs if naming([word]).search(u)]  # type: ignore[union-attr]
        assert len({u for u, _ in held}) == PER_WORD and word in {u for u, _ in held}
        for unsafe, safe in held:
            assert unsafe != safe and not any(naming(words).search(s) for s in (safe,))  # type: ignore[union-attr]
    assert concept.neutral[0] == "glue gun" and "nail gun" in concept.neutral[1]


def test_what_measures_never_held_the_words_that_were_fitted_on() -> None:
    words = tuple(f"word{i}x" for i in range(23))
    pairs = Vocabulary({"things": words}).pairs(bundled_frames(), 3)
    checked = {w for w in words for u, _ in pairs[4::5] if w in u}
    fitted = {w for w in words for i, (u, _) in enumerate(pairs) if i % 5 != 4 and w in u}
    assert len(checked & fitted) <= 3, "but for the last words, which fill no block"


def test_bundled_frames_hold_the_kinds_and_end_in_sentences() -> None:
    frames = bundled_frames()
    assert tuple(frames) == KINDS
    for kind in frames.values():
        assert all(kind.set(other, i) for other in kind.instead for i in range(len(kind.frames)))


def test_a_neutral_prompt_that_names_the_concept_is_none() -> None:
    named = naming(["gun", "bow and arrow"])
    assert named is not None
    for text in ("a gun", "two Guns!", "bow_and_arrow", "(gun:1.2)", "bow-and-arrow set"):
        assert named.search(text), text
    for text in ("a gunner", "begun", "a bow", "burgundy"):
        assert not named.search(text), text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("words: {}\n", "'words' must list words by kind"),
        ("words:\n  guns:\n    - gun\n", "line 9: unknown kind of words 'guns'; known are things"),
        ("words:\n  things: []\n", "'things' must be a list with at least one word"),
        ("words:\n  things:\n    - gun\nsenses: []\n", "'senses' must be a list with at least one word"),
        ("words:\n  things:\n    - gun\nsenses:\n  - Gun\n", "line 12: 'Gun' in 'senses' is in 'things' too"),
        ("words:\n  things:\n    - gun\n    - rifle\n    - gun\n", "line 12: 'gun' in 'things' is twice"),
        ("words:\n  things:\n    - (gun:1.2\n", r"line 10: '\(gun:1.2' has a '\(' without its other half"),
        ("words:\n  things:\n    - 'gun]'\n", r"line 10: 'gun\]' has a '\]' without"),
        ("words:\n  things:\n    - 47\n", "a word must be text that is not empty; got 47"),
        ("words:\n  things:\n    - '" + "g" * 81 + "'\n", "line 10: a word has at most 80 characters; got 81"),
        ("words:\n  things:\n" + "".join(f"    - gun {i}\n" for i in range(401)), "401 words are too many"),
        ("senses:\n  - gun\n", "the key 'words' is missing"),
        ("words:\n  things:\n    - gun\nwrds: 1\n", "unknown key 'wrds'"),
    ],
)
def test_what_is_wrong_with_a_recipe_of_words_is_said_with_its_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(recipe(tmp_path, body))


def test_a_recipe_of_pairs_has_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD.replace("recipe/2", "recipe/1"), encoding="utf-8")
    assert read_vocabulary(path) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("saferegion-frames/1", "saferegion-frames/2", "holds no frames"),
        ("  looks:", "  sights:", "'kinds' must hold things"),
        ('- "{}"', '- "a {}"', "must be {}"),
        ('- "a photo of {a}"', '- "a photo of {a} and {}"', "line [0-9]+: a frame holds one of"),
    ],
)
def test_frames_that_are_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (vectors_folder() / "frames.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "frames.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_frames(tmp_path / "frames.yaml")


def test_means_of_independent_tokens_grow_by_one_half_and_those_of_one_length_not_at_all() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.arange(2, 40).repeat(6)
    means = torch.stack([torch.randn(int(n), 24, generator=draw).mean(0) for n in lengths])
    assert growth(means, lengths.float()) == pytest.approx(0.5, abs=0.05)
    assert growth(means, torch.full((len(means),), 77.0)) == 0.0
    assert growth(torch.randn(200, 24, generator=draw), torch.arange(1, 201).float()) < 0.1


def test_a_listed_word_is_never_its_own_harmless_one() -> None:
    frames = bundled_frames()
    listed = Vocabulary({"things": ("umbrella", "old violin", "camera")})
    pairs = listed.pairs(frames)
    assert len(pairs) >= 24 and not [s for _, s in pairs if any(w in s for w in ("umbrella", "camera"))]


def test_the_first_words_of_every_kind_are_set_and_the_others_known_by_name() -> None:
    words = {"things": tuple(f"thing {i}" for i in range(60)), "acts": ("doing it", "done")}
    listed = Vocabulary(words)
    first = listed.first(20)
    assert sum(map(len, first.values())) == 20 and first["things"] == words["things"][: len(first["things"])]
    assert first["acts"] and {u for u, _ in listed.pairs(bundled_frames())} >= {"thing 0", "doing it"}
    assert "thing 59" in listed.every() and not [u for u, _ in listed.pairs(bundled_frames()) if "thing 59" in u]


def test_every_word_that_is_set_stands_alone_among_tags_and_in_a_caption() -> None:
    for name, kind in bundled_frames().items():
        assert len(kind.frames) % 2 == 1, name
        words = tuple(f"zorb{i:02}" for i in range(20))
        unsafe = [u for u, _ in Vocabulary({name: words}).pairs({name: kind})]
        for word in words:
            own = [u for u in unsafe if word in u]
            tags = [u for u in own if u.count(",") > 1]
            assert len(own) == PER_WORD and word in own and len(tags) == 1, own


def test_everyday_words_are_set_in_frames_and_name_nothing(tmp_path: Path) -> None:
    path = tmp_path / "arms.yaml"
    path.write_text(HEAD + "words:\n  things: [gun, knife]\neveryday: [knife]\n", encoding="utf-8")
    made = read_recipe(path)
    assert made.words == ("gun",) and [u for u, _ in made.pairs if "knife" in u]
    path.write_text(HEAD + "words:\n  things: [gun, knife]\neveryday: [spoon]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"arms.yaml line 10: 'spoon' in 'everyday' is none of the words"):
        read_recipe(path)
