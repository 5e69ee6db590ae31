"""The heat map: red where a token is outside, white on the border after, grey where nothing may move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saferegion.core.conditioning import Conditioning
from saferegion.core.direction import Direction, Direction
from saferegion.core.errors import SafeRegionError
from saferegion.core.fingerprint import Fingerprint
from saferegion.core.region import SafeRegion
from saferegion.view.heat_map import BAND, heat_map


def report(outside: float):
    v = torch.eye(1, 8)
    direction = Direction(v, v.clone(), torch.full((1, 1), 2.0), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
    mark = Fingerprint((("tokens", 8),), (0.1,) * 32)
    tokens = torch.zeros(1, 4, 8)
    tokens[0, 2, 0] = 2 + outside
    movable = torch.tensor([[False, True, True, True]])
    return SafeRegion([Direction("fire", {"tokens": direction}, mark)]).apply(Conditioning(tokens, movable))[1]


def reddest(picture: np.ndarray) -> int:
    p = picture.astype(int)
    return int((p[..., 0] - p[..., 1]).max())


def test_a_token_outside_is_red_and_one_inside_is_not() -> None:
    assert reddest(heat_map(report(20.0), ["<begin>", "a", "fire", "end"])) > 120
    assert reddest(heat_map(report(-1.0), ["<begin>", "a", "tree", "end"])) < 30


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


def long_report(tokens: int):
    v = torch.eye(1, 8)
    direction = Direction(v, v.clone(), torch.full((1, 1), 2.0), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
    mark = Fingerprint((("tokens", 8),), (0.1,) * 32)
    region = SafeRegion([Direction("fire", {"tokens": direction}, mark)])
    c = torch.zeros(1, tokens, 8)
    c[0, -1, 0] = 40
    return region.apply(Conditioning(c, torch.ones(1, tokens, dtype=torch.bool)))[1]


def test_a_long_prompt_wraps_into_bands_and_loses_no_token() -> None:
    names = [f"word{i}" for i in range(BAND * 3)]
    one, two, three = (heat_map(long_report(n), names[:n]) for n in (BAND, BAND + 1, BAND * 3))
    assert one.shape[1] == two.shape[1] == three.shape[1] < 1400
    band = two.shape[0] - one.shape[0]
    assert 0 < band < one.shape[0] and three.shape[0] == one.shape[0] + 2 * band
    assert reddest(two) > 120  # the token that is outside is the last one


def test_every_band_says_which_concept_its_rows_are() -> None:
    names = [f"w{i}" for i in range(BAND + 1)]
    two = heat_map(long_report(BAND + 1), names)
    band = two.shape[0] - heat_map(long_report(BAND), names[:BAND]).shape[0]
    labels = two[:, : two.shape[1] - 45 * BAND]  # what stands left of the columns
    first, second = labels[12 : 12 + band], labels[12 + band : 12 + 2 * band]
    assert first.min() < 100 and np.array_equal(first, second)
