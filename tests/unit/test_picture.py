"""The heat map: red where a token or the whole prompt is outside, blue inside, grey where nothing may move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saferegion.core.conditioning import Conditioning, Space
from saferegion.core.detector import Detector
from saferegion.core.direction import Direction
from saferegion.core.errors import SafeRegionError
from saferegion.core.fingerprint import Fingerprint
from saferegion.core.movers import HalfSpaces
from saferegion.core.readout import Readout, Term
from saferegion.core.region import SafeRegion
from saferegion.core.report import Report
from saferegion.view.heat_map import BAND, heat_map

WIDTH, BORDER = 8, 2.0
WORDS = ["<begin>", "a", "fire", "end"]


def direction(name: str, reduce: str = "token", *spaces: str) -> Direction:
    """A concept along the first channel of its spaces, told by one readout of the first of them."""
    spaces = spaces or ("tokens",)
    along = torch.eye(1, WIDTH)
    term = Term(Readout(spaces[0], reduce), along.clone(), torch.zeros(1, 1))
    mover = HalfSpaces(along, torch.zeros(1, 1), torch.ones(1), torch.zeros(1))
    mark = Fingerprint(tuple((s, WIDTH) for s in sorted(spaces)), (0.1,) * 32 * len(spaces))
    rest = {s: torch.zeros(1, WIDTH) for s in spaces}
    return Direction(name, mark, Detector((term,), torch.tensor([BORDER])), {s: mover for s in spaces}, rest)


def report(outside: float, *directions: Direction, mode: str = "project") -> Report:
    """Token 2 of four is ``outside`` the border; token 0 may not move."""
    tokens = torch.zeros(1, 4, WIDTH)
    tokens[0, 2, 0] = BORDER + outside
    mask = torch.tensor([[False, True, True, True]])
    return SafeRegion(directions or [direction("fire")], mode=mode).apply(Conditioning(tokens, mask))[1]


def reddest(picture: np.ndarray) -> int:
    p = picture.astype(int)
    return int((p[..., 0] - p[..., 1]).max())


def shares(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(-1).sum())


GREY = (226, 228, 232)


def test_a_token_outside_is_red_and_one_inside_is_not() -> None:
    assert reddest(heat_map(report(20.0), WORDS)) > 120
    assert reddest(heat_map(report(-1.0), ["<begin>", "a", "tree", "end"])) < 30


def test_what_may_not_move_is_grey() -> None:
    one = shares(heat_map(report(1.0), WORDS), GREY)
    assert one > 1000  # before and after, of one token
    assert shares(heat_map(report(1.0, direction("fire"), direction("smoke")), WORDS), GREY) == 2 * one


def test_a_concept_that_no_word_tells_has_a_field_for_the_whole_prompt_alone() -> None:
    both = heat_map(report(40.0, direction("fire"), direction("mood", "mean")), WORDS)
    alone = heat_map(report(40.0, direction("mood", "mean")), WORDS)
    assert reddest(alone) > 120 and shares(alone, GREY) == 0
    assert alone.shape[1] <= both.shape[1] and alone.shape[0] < both.shape[0]
    assert shares(both, GREY) == shares(heat_map(report(40.0), WORDS), GREY)


def test_modes_that_always_move_are_drawn_too() -> None:
    for mode in ("steer", "erase"):
        assert reddest(heat_map(report(20.0, mode=mode), WORDS)) > 120
    mover = direction("vector").movers
    imported = Direction("vector", direction("vector").encoder, None, mover)
    assert reddest(heat_map(report(20.0, imported, mode="steer"), WORDS)) < 30


def test_some_concepts_alone_may_be_drawn() -> None:
    found = report(20.0, direction("fire"), direction("mood", "mean"))
    assert np.array_equal(heat_map(found, WORDS, concepts=["fire"]), heat_map(report(20.0), WORDS))


def test_runs_of_padding_share_a_column() -> None:
    wide = heat_map(report(1.0), ["<begin>", "a", "b", "c"]).shape[1]
    narrow = heat_map(report(1.0), ["<begin>", "a", "pad", "pad"]).shape[1]
    assert narrow <= wide


def test_unprintable_tokens_and_long_titles_are_drawn() -> None:
    assert heat_map(report(1.0), ["\u200b", "火", "😀", "\x00"], title="😀" * 300).dtype == np.uint8


def test_a_prompt_or_space_that_is_not_there_is_refused() -> None:
    with pytest.raises(SafeRegionError, match="prompt 3"):
        heat_map(report(1.0), prompt=3)
    with pytest.raises(SafeRegionError, match="t5"):
        heat_map(report(1.0), space="t5")


def test_one_space_of_several_is_chosen() -> None:
    spaces = (Space("clip", slice(0, 2)), Space("t5", slice(2, 4)))
    tokens = torch.zeros(1, 4, WIDTH)
    tokens[0, 3, 0] = 30
    parts = [direction("fire", "token", "clip", "t5"), direction("smoke", "token", "t5", "clip")]
    found = SafeRegion(parts).apply(Conditioning(tokens, spaces=spaces))[1]
    inside, outside = (heat_map(found, space=name) for name in ("clip", "t5"))
    assert inside.shape == outside.shape and not np.array_equal(inside, outside)


def long_report(tokens: int) -> Report:
    c = torch.zeros(1, tokens, WIDTH)
    c[0, -1, 0] = 40
    return SafeRegion([direction("fire")]).apply(Conditioning(c))[1]


def test_a_long_prompt_wraps_into_bands_and_loses_no_token() -> None:
    names = [f"word{i}" for i in range(BAND * 3)]
    one, two, three = (heat_map(long_report(n), names[:n]) for n in (BAND - 1, BAND, BAND * 3 - 1))
    assert one.shape[1] == two.shape[1] == three.shape[1] < 1400
    band = two.shape[0] - one.shape[0]
    assert 0 < band < one.shape[0] and three.shape[0] == one.shape[0] + 2 * band
    assert reddest(two[-band:]) > 120  # the token that is outside is the last one


def test_every_band_says_which_concept_its_rows_are() -> None:
    names = [f"w{i}" for i in range(BAND)]
    two = heat_map(long_report(BAND), names)
    band = two.shape[0] - heat_map(long_report(BAND - 1), names[:-1]).shape[0]
    labels = two[:, : two.shape[1] - 45 * BAND]  # what stands left of the columns
    first, second = labels[12 : 12 + band], labels[12 + band : 12 + 2 * band]
    assert first.min() < 100 and np.array_equal(first, second)
