from __future__ import annotations

import dataclasses

import pytest
import torch

from saferegion import Conditioning, SafeRegionError, Space
from saferegion.core.errors import ConditioningError

TOKENS = torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tokens": [[1.0]]}, "tokens must be a floating tensor"),
        ({"tokens": torch.zeros(5, 4)}, "[batch, tokens, width]; got float32 [5, 4]"),
        ({"tokens": torch.zeros(2, 5, 4, dtype=torch.long)}, "got int64"),
        ({"movable": torch.ones(2, 5)}, "mask must be a bool tensor (2, 5)"),
        ({"movable": torch.ones(2, 4, dtype=torch.bool)}, "mask must be a bool tensor"),
        ({"movable": [True]}, "got list"),
        ({"pooled": torch.zeros(3, 4)}, "pooled must be a floating tensor [2, width]"),
        ({"pooled": torch.zeros(2, 1, 4)}, "pooled must be"),
        ({"pooled": torch.zeros(2, 4, dtype=torch.int32)}, "pooled must be"),
        ({"spaces": ()}, "non-empty"),
        ({"spaces": (Space("clip"), Space("clip"))}, "distinct names"),
        ({"spaces": (Space("pooled"),)}, "not 'pooled'"),
        ({"spaces": (Space("Clip L"),)}, "'Clip L'"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict, says: str) -> None:
    with pytest.raises(ConditioningError) as caught:
        Conditioning(**{"tokens": TOKENS, **arguments})
    assert says in str(caught.value)
    assert isinstance(caught.value, SafeRegionError) and isinstance(caught.value, ValueError)


def test_one_space_of_that_name_unless_said_otherwise() -> None:
    assert [s.name for s in Conditioning(TOKENS).spaces] == ["tokens"]
    assert Conditioning(TOKENS, spaces=(Space("t5"),)).spaces[0].name == "t5"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_and_empty_batches(dtype: torch.dtype) -> None:
    assert Conditioning(TOKENS.to(dtype)).tokens.dtype == dtype
    Conditioning(torch.zeros(0, 77, 4, dtype=dtype), torch.zeros(0, 77, dtype=torch.bool), torch.zeros(0, 8))
    Conditioning(torch.zeros(2, 0, 4, dtype=dtype))


def test_replace_keeps_all_but_the_values() -> None:
    movable = torch.ones(2, 5, dtype=torch.bool)
    c = Conditioning(TOKENS, movable, torch.zeros(2, 3), (Space("clip"),))
    new = c.replace(TOKENS + 1, torch.ones(2, 3))
    assert new.movable is movable and new.spaces == c.spaces and new.encoder is c.encoder
    assert float(new.tokens.sum()) == 40 and float(new.pooled.sum()) == 6 and float(c.tokens.sum()) == 0


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Conditioning(TOKENS).tokens = TOKENS  # type: ignore[misc]


def test_spaces_are_disjoint_and_cover_everything() -> None:
    tokens = torch.ones(1, 4, 6)
    clip, t5 = Space("clip", slice(0, 2), slice(0, 4)), Space("t5", slice(2, 4))
    with pytest.raises(ConditioningError, match="rows 0 to 1, channels 4 to 5"):
        Conditioning(tokens, spaces=(clip, t5))
    tokens[:, :2, 4:] = 0.0
    assert len(Conditioning(tokens, spaces=(clip, t5)).views()) == 2, "what is filled up with zeros needs no space"
    with pytest.raises(ConditioningError, match="rows 2 to 3"):
        Conditioning(tokens, spaces=(Space("clip", slice(0, 2)),))
    with pytest.raises(ConditioningError, match="'clip' and 't5' overlap"):
        Conditioning(tokens, spaces=(Space("clip", slice(0, 3)), Space("t5", slice(2, 4))))
    with pytest.raises(ConditioningError, match="neighbouring"):
        Conditioning(tokens, spaces=(Space("clip", slice(0, 4, 2)), Space("t5", slice(1, 4, 2))))


def test_eight_bit_tokens_are_refused() -> None:
    with pytest.raises(ConditioningError, match="8-bit"):
        Conditioning(TOKENS.to(torch.float8_e4m3fn))


def test_movable_is_another_name_of_mask() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert Conditioning(TOKENS, movable=mask).mask is mask and Conditioning(TOKENS, mask).movable is mask
    with pytest.raises(ConditioningError, match="one thing"):
        Conditioning(TOKENS, mask, movable=mask)


def test_some_prompts_of_a_batch_keep_everything_else() -> None:
    c = Conditioning(TOKENS + 1, torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 3), (Space("clip"),))
    one = c[1:2]
    assert one.tokens.shape == (1, 5, 4) and one.spaces is c.spaces and one.pooled.shape == (1, 3)
    assert one.expand(3).tokens.shape == (3, 5, 4) and one.expand(3).spaces is c.spaces
