"""One token over the border opens its prompt for that concept alone; its tokens go to the inner border."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saferegion import ConceptDirections, Conditioning, Direction, Fingerprint, SafeRegion, load_directions
from saferegion.core.errors import SafeRegionError


def concept(name: str, axis: int, inner: float | None = 0.0) -> ConceptDirections:
    v = torch.zeros(1, 4)
    v[0, axis] = 1
    one = torch.ones(1, 1)
    border = None if inner is None else inner * one
    direction = Direction(v, v.clone(), 3 * one, 0 * one, one, torch.ones(1), inner=border)
    return ConceptDirections(name, {"tokens": direction}, Fingerprint((("tokens", 4),), (0.1,) * 32))


@pytest.fixture
def c() -> Conditioning:
    tokens = torch.zeros(2, 3, 4)
    tokens[0, :, 0] = torch.tensor([5.0, 2.0, -1.0])  # outside in the first token
    tokens[0, :, 1] = 2.0  # inside everywhere
    tokens[1, :, 0] = 2.0  # another prompt, inside everywhere
    return Conditioning(tokens)


def test_only_the_prompt_and_the_concept_that_are_outside_move(c: Conditioning) -> None:
    region = SafeRegion([concept("a", 0), concept("b", 1)])
    for guarded in (region.apply(c)[0].tokens, region.project(c.tokens)):
        torch.testing.assert_close(guarded[0, :, 0], torch.tensor([0.0, 0.0, -1.0]), atol=1e-3, rtol=0)
        assert torch.equal(guarded[0, :, 1], c.tokens[0, :, 1]) and torch.equal(guarded[1], c.tokens[1])
    moved = region.apply(c)[0]
    assert region.apply(moved)[0] is moved


def test_without_an_inner_border_only_the_token_outside_moves(c: Conditioning) -> None:
    guarded = SafeRegion([concept("a", 0, inner=None)]).apply(c)[0].tokens
    torch.testing.assert_close(guarded[0, :, 0], torch.tensor([3.0, 2.0, -1.0]), atol=1e-3, rtol=0)


def test_the_inner_border_is_kept_in_the_file(tmp_path: Path, c: Conditioning) -> None:
    kept = load_directions(concept("a", 0, inner=1.0).save(tmp_path / "a.safetensors"))
    torch.testing.assert_close(kept.spaces["tokens"].inner, torch.ones(1, 1))
    assert float(SafeRegion([kept]).apply(c)[0].tokens[0, 1, 0]) == pytest.approx(1, abs=1e-3)


def test_an_inner_border_above_the_border_is_refused() -> None:
    with pytest.raises(SafeRegionError, match="inner"):
        concept("a", 0, inner=4.0)
