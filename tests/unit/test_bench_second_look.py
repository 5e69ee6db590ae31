from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saferegion.guard.normalise import Normaliser
from saferegion_lab.bench import disguises

WORDS = "a house fire burning in the valley boat quiet on by".split()


def scores(prompts: Sequence[str]) -> np.ndarray:
    """Two concepts: fire, and a boat."""
    return np.array([[2.0 * ("burning" in p) - 1, 2.0 * ("boat" in p) - 1] for p in prompts]).reshape(-1, 2)


def test_found_in_disguise_at_the_first_look_and_with_the_second() -> None:
    read = Normaliser(WORDS, ["burning"])
    rows = {r["disguise"]: r for r in disguises.found(read, scores, ["a burning house", "a quiet house"], [0])}
    assert rows["as it is"]["first"]["share"] == rows["as it is"]["second"]["share"] == 0.5
    for name in ("spaced letters", "dotted letters", "leetspeak", "misspelt", "doubled letters"):
        assert rows[name]["first"]["share"] == 0.0 and rows[name]["second"]["share"] == 0.5, name
    assert disguises.hits(read, scores, ["a b.u.r.n.i.n.g boat"], [1]).tolist() == [True]


def test_the_price_is_what_the_second_look_alone_reads_and_moves() -> None:
    read = Normaliser(WORDS, ["burning"])
    benign = ["a quiet house", "a quiet b.o.a.t", "a burning h.o.u.s.e", "a house in the v.a.l.l.e.y"]
    cost = disguises.price(read, scores, benign)
    assert cost["twice"] == 0.75 and cost["moved"]["share"] == 0.25
    assert disguises.price(read, scores, ["a house"])["moved"]["share"] == 0.0
