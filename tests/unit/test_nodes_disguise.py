"""What a guarded CLIP remembers of its texts: tokens of those in disguise are found, however nodes arrange them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

PLAIN, SPACED = "a nude woman", "a n u d e woman"
CHUNK = 8
Rows = list[list[tuple[Any, float]]]


class Tokenizer:
    """Two encoders side by side that read chunks of words, as Stable Diffusion XL has them."""

    def __init__(self) -> None:
        words = ["a", "nude", "woman", "house", "blue"]
        self.clip_l = SimpleNamespace(inv_vocab={i: f"{w}</w>" for i, w in enumerate(words)})
        self.asked: list[str] = []

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, weight: float = 1.0) -> dict[str, Rows]:
        self.asked.append(text)
        ids = [hash(w) % 10_000 for w in text.split()]
        parts = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)] or [[]]
        rows = [[(t, weight) for t in [*part, *[0] * (CHUNK - len(part))]] for part in parts]
        return {"l": rows, "g": [list(r) for r in rows]}


@pytest.fixture
def heard(pack: Callable[[str], ModuleType]) -> tuple[Any, Any, Tokenizer]:
    """A tokenizer that is listened to, what is remembered, and the tokenizer itself."""
    module, selection = pack("nodes.disguise"), pack("saferegion.guard.selection").Selection()
    inner = Tokenizer()
    texts = module.Texts(inner, selection)
    return module.listening(inner, texts), texts, inner


def test_a_text_in_disguise_has_the_tokens_of_its_plain_text(heard: tuple[Any, Any, Tokenizer]) -> None:
    tokenizer, texts, inner = heard
    tokens = tokenizer.tokenize_with_weights(SPACED, False, weight=1.5)
    found = texts.plain(tokens)
    assert found.undone == ("spaced letters",)
    assert found.tokens == inner.tokenize_with_weights(PLAIN, weight=1.5)
    assert tokens == inner.tokenize_with_weights(SPACED, weight=1.5)


def test_a_text_without_disguise_costs_nothing(heard: tuple[Any, Any, Tokenizer]) -> None:
    tokenizer, texts, inner = heard
    assert texts.plain(tokenizer.tokenize_with_weights(PLAIN)) is None
    assert inner.asked == [PLAIN]
    assert "tokenize_with_weights" not in vars(inner) and isinstance(tokenizer, Tokenizer)


def test_encoders_with_texts_of_their_own_keep_as_many_rows_as_each_other(heard: tuple[Any, Any, Tokenizer]) -> None:
    tokenizer, texts, inner = heard
    long = " ".join(["a blue house"] * 3)
    tokens = {
        "l": tokenizer.tokenize_with_weights(f"{long} {SPACED}")["l"],
        "g": tokenizer.tokenize_with_weights(long)["g"],
    }
    found = texts.plain(tokens)
    assert len(found.tokens["l"]) == len(found.tokens["g"]) == 2
    assert found.tokens["g"] == tokens["g"]


def test_texts_are_found_among_others_and_with_other_weights(heard: tuple[Any, Any, Tokenizer]) -> None:
    tokenizer, texts, inner = heard
    first, second = tokenizer.tokenize_with_weights("a blue house"), tokenizer.tokenize_with_weights(SPACED)
    lighter = [[(t, 0.5) for t, _ in row] for row in second["l"]]
    found = texts.plain({"l": [*first["l"], *lighter]})
    assert found.tokens["l"] == [*first["l"], *inner.tokenize_with_weights(PLAIN)["l"]]


def test_fewer_rows_are_filled_up_with_blanks(heard: tuple[Any, Any, Tokenizer]) -> None:
    tokenizer, texts, inner = heard
    found = texts.plain(tokenizer.tokenize_with_weights("a n u d e w o m a n a n d a h o u s e"))
    blank = inner.tokenize_with_weights("")["l"][0]
    assert [len(rows) for rows in found.tokens.values()] == [3, 3]
    assert found.tokens["l"][1:] == [blank, blank]


def test_embeddings_among_the_tokens_are_no_matter(heard: tuple[Any, Any, Tokenizer]) -> None:
    _, texts, _ = heard
    row = [(torch.zeros(3), 1.0), (5, 1.0)]
    texts.learn(SPACED, {"l": [row]}, lambda text: {"l": [[(7 if text else 0, 1.0)]]})
    assert texts.plain({"l": [[(torch.zeros(3), 0.3), (5, 1.0)]]}).tokens == {"l": [[(7, 1.0)]]}


def test_an_encoder_that_reads_some_texts_only_is_no_matter(heard: tuple[Any, Any, Tokenizer]) -> None:
    _, texts, _ = heard
    tokens = {"l": [[(5, 1.0)]], "quoted": [[(6, 1.0)]], "other": [[(8, 1.0)]]}
    plain = {"l": [[(7, 1.0)]], "quoted": [[(9, 1.0)]]}
    texts.learn(SPACED, tokens, lambda text: plain if text else {"l": [[(0, 1.0)]]})
    assert texts.plain(tokens).tokens == {**plain, "other": tokens["other"]}


def test_old_texts_are_forgotten_and_what_comes_again_is_not(
    heard: tuple[Any, Any, Tokenizer], pack: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack("nodes.disguise"), "KEPT", 8)
    tokenizer, texts, _ = heard
    first = tokenizer.tokenize_with_weights(SPACED)
    for i in range(40):
        tokenizer.tokenize_with_weights(f"{SPACED} number {i}")
        tokenizer.tokenize_with_weights(SPACED)
    assert len(texts._kept) == 8 and texts.plain(first) is not None
    for i in range(8):
        tokenizer.tokenize_with_weights(f"{SPACED} number {i}")
    assert texts.plain(first) is None


def test_what_cannot_be_read_stops_the_encoding(
    heard: tuple[Any, Any, Tokenizer], pack: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _, _ = heard

    def broken(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(pack("saferegion.guard.normalise").Normaliser, "__call__", broken)
    with pytest.raises(pack("saferegion.core.errors").SafeRegionError, match="could not be read for disguises"):
        tokenizer.tokenize_with_weights("a house")


def test_texts_that_name_a_concept_are_found_among_others(pack: Callable[[str], ModuleType]) -> None:
    selection, recipes = pack("saferegion.guard.selection"), pack("saferegion.learn.recipes")
    clowns = recipes.Concept.from_words("clowns", ["clown"])
    inner = Tokenizer()
    texts = pack("nodes.disguise").Texts(inner, selection.Selection().add(selection.Choice(clowns)))
    tokenizer = pack("nodes.disguise").listening(inner, texts)
    plain, named = tokenizer.tokenize_with_weights("a blue house"), tokenizer.tokenize_with_weights("two clowns")
    assert texts.named(plain) == frozenset() and texts.named(named) == {"clowns"}
    lighter = [[(t, 0.5) for t, _ in row] for row in named["l"]]
    assert texts.named({"l": [*plain["l"], *lighter], "g": plain["g"]}) == {"clowns"}
    disguised = tokenizer.tokenize_with_weights("a c l o w n in a house")
    assert texts.named(disguised) == frozenset() and texts.named(texts.plain(disguised).tokens) == {"clowns"}
