"""The heat map: red where a token is outside, white on the border after, grey where nothing may move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saferegion.conditioning import Conditioning
from saferegion.directions import ConceptDirections, Direction
from saferegion.errors import SafeRegionError
from saferegion.fingerprint import Fingerprint
from saferegion.picture import heat_map
from saferegion.region import SafeRegion


def report(outside: float):
    v = torch.eye(1, 8)
    direction = Direction(v, v.clone(), torch.full((1, 1), 2.0), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
    mark = Fingerprint((("tokens", 8),), (0.1,) * 32)
    tokens = torch.zeros(1, 4, 8)
    tokens[0, 2, 0] = 2 + outside
    movable = torch.tensor([[False, True, True, True]])
    return SafeRegion([ConceptDirections("fire", {"tokens": direction}, mark)]).apply(Conditioning(tokens, movable))[1]


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
