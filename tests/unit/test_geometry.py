from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from saferegion.core import geometry


def unit(count: int, width: int, seed: int, alike: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    u = torch.randn(count, width, generator=draw) + alike * torch.randn(1, width, generator=draw)
    return u / u.norm(dim=1, keepdim=True)


@given(st.integers(1, 24), st.integers(0, 10_000), st.floats(0, 1.5))
def test_the_point_is_the_nearest_of_all_half_spaces(count: int, seed: int, alike: float) -> None:
    u = unit(count, 40, seed, alike)
    gram = u @ u.T
    gram.fill_diagonal_(1.0)
    tokens = 2 * torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(seed + 1))
    excess = tokens @ u.T
    got = tokens - geometry.solve(gram, excess, geometry.sweeps(gram)) @ u
    for i in range(2):
        for j in range(3):
            # the dual of the projection: min |c - U^T a| over a >= 0 (the cone's own part is what is taken off)
            a, _ = nnls(u.double().T.numpy(), tokens[i, j].double().numpy())
            nearest = tokens[i, j].double().numpy() - a @ u.double().numpy()
            assert np.abs(nearest - got[i, j].numpy()).max() < 2e-2 * float(excess.abs().max() + 1)
    assert float((got @ u.T).max()) < 2e-2 * float(excess.abs().max() + 1)


def test_orthogonal_displacements_need_no_sweep_and_one_is_a_clamp() -> None:
    assert geometry.sweeps(torch.eye(8)) == 0 and geometry.sweeps(torch.ones(1, 1)) == 0
    excess = torch.tensor([[[1.0, -2.0]]])
    assert geometry.solve(torch.eye(2), excess, 0).tolist() == [[[1.0, 0.0]]]


def test_the_number_of_sweeps_follows_how_alike_displacements_are() -> None:
    counts = [geometry.sweeps(torch.tensor([[1.0, r], [r, 1.0]])) for r in (0.1, 0.5, 0.9, 0.99, 1.0)]
    assert counts == sorted(counts) and counts[-1] == geometry.MOST_SWEEPS


def test_a_concept_named_twice_moves_as_once() -> None:
    gram = torch.ones(2, 2)
    a = geometry.solve(gram, torch.full((1, 1, 2), 3.0), geometry.sweeps(gram))
    assert float(a.sum()) == pytest.approx(3.0, rel=1e-3)


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_the_order_of_half_spaces_changes_nothing(order: list[int], seed: int) -> None:
    u = unit(6, 20, seed, 0.7)
    gram = u @ u.T
    excess = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(seed))
    one = geometry.solve(gram, excess, geometry.sweeps(gram))
    two = geometry.solve(gram[order][:, order], excess[..., order], geometry.sweeps(gram))
    assert torch.allclose(one[..., order], two, atol=1e-5)


def test_half_spaces_that_do_not_count_are_left_alone() -> None:
    gram = torch.tensor([[1.0, 0.4], [0.4, 1.0]])
    a = geometry.solve(gram, torch.tensor([[[2.0, geometry.SHUT]]]), geometry.sweeps(gram))
    assert float(a[0, 0, 1]) == 0.0 and float(a[0, 0, 0]) == pytest.approx(2.0, rel=1e-3)


def test_products_are_float32_under_autocast() -> None:
    rows, forms = torch.randn(2, 3, 64), torch.randn(64, 5)
    plain = geometry.coordinates(rows, forms, torch.zeros(3, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16), geometry.exact(rows.device):
        guarded = geometry.coordinates(rows, forms, torch.zeros(3, 5))
    assert guarded.dtype == torch.float32 and torch.equal(plain, guarded)


def test_the_mean_counts_only_what_is_under_the_mask() -> None:
    values = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[False, True, True, False]])
    assert torch.equal(geometry.mean(values, mask), values[:, 1:3].mean(1))
    assert torch.equal(geometry.mean(values, torch.zeros(1, 4, dtype=torch.bool)), torch.zeros(1, 3))
    assert torch.equal(geometry.mean(values, None), values.mean(1))


@pytest.mark.parametrize("count", [2, 12, 64])
@pytest.mark.parametrize("again", [False, True])
def test_one_product_a_step_says_the_same(count: int, again: bool) -> None:
    u = unit(count, 96, count, 0.5)
    gram = u @ u.T
    gram.fill_diagonal_(1.0)
    draw = torch.Generator().manual_seed(7)
    excess = 3 * torch.randn(2, 5, count, generator=draw)
    excess[1, :, 0] = geometry.SHUT
    start = torch.rand(2, 5, count, generator=draw) if again else None
    sweeps = geometry.sweeps(gram)
    one = geometry.solve(gram, excess, sweeps, start)
    steps = geometry.solve_in_steps(geometry.steps(gram, sweeps), excess, sweeps, start)
    assert sweeps > 1 and steps.shape == one.shape
    assert torch.allclose(steps, one, rtol=1e-5, atol=1e-4) and float(steps.min()) >= 0
