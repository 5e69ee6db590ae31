from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import metric, normals, same_bits, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from saferegion import geometry

KINDS = ("random", "duplicated", "near", "opposite")
WIDTH = 96


def half_spaces(
    count: int, seed: int, kind: str, width: int = WIDTH
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    s = metric(width, seed)
    v = normals(count, width, seed, kind)
    v = v / torch.einsum("kd,de,ke->k", v, s, v).sqrt()[:, None]
    return v.float(), (v @ s).float(), s


def nearest(point: np.ndarray, normal: np.ndarray, border: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The point of {normal·x <= border} nearest in Mahalanobis distance: least-distance programming by
    non-negative least squares (Lawson and Hanson, Solving Least Squares Problems, chapter 23)."""
    root = np.linalg.cholesky(covariance)
    g, h = -normal @ root, normal @ point - border
    e = np.vstack([g.T, h[None]])
    f = np.zeros(len(e))
    f[-1] = 1
    r = e @ nnls(e, f, maxiter=50 * len(h))[0] - f
    return point + root @ (-r[:-1] / r[-1])


@given(st.integers(1, 64), st.integers(0, 99), st.sampled_from(KINDS), st.sampled_from([1.0, 5.0, 1e4]))
@settings(max_examples=40)
def test_the_amounts_solve_the_complementary_problem(count: int, seed: int, kind: str, scale: float) -> None:
    v, u, s = half_spaces(count, seed, kind)
    g = geometry.gram(v, u)
    excess = tokens(s, 1, 12, seed, scale)[0].double() @ v.double().T - 2
    for settled in (False, True):
        a = geometry.complementary(excess, g, until_settled=settled)
        left = excess - a @ g.T
        size = 1 + excess.abs().amax(-1, keepdim=True)
        assert bool((a >= 0).all())
        assert float((left / size).max()) <= 2e-6, "still outside"
        assert float((a * left / size**2).abs().max()) <= 1e-5, "moved further than to the border"


@given(st.integers(1, 24), st.integers(0, 99), st.sampled_from(["random", "near", "opposite"]))
@settings(max_examples=30)
def test_the_move_ends_at_the_nearest_point(count: int, seed: int, kind: str) -> None:
    v, u, s = half_spaces(count, seed, kind, width=32)
    points = tokens(s, 1, 6, seed, 3.0)[0].double()
    a = geometry.complementary(points @ v.double().T - 2, geometry.gram(v, u))
    root = np.linalg.cholesky(s.numpy())
    for point, moved in zip(points, points - a @ u.double(), strict=True):
        known = nearest(point.numpy(), v.double().numpy(), np.full(count, 2.0), s.numpy())
        away = np.linalg.solve(root, moved.numpy() - known)
        assert np.abs(away).max() < 1e-4


@given(st.integers(2, 16), st.integers(0, 99), st.sampled_from(KINDS))
def test_rows_do_not_depend_on_each_other(count: int, seed: int, kind: str) -> None:
    v, u, s = half_spaces(count, seed, kind)
    excess = tokens(s, 1, 5, seed, 4.0)[0].double() @ v.double().T - 2
    g = geometry.gram(v, u)
    together = geometry.complementary(excess, g)
    alone = torch.stack([geometry.complementary(row, g) for row in excess])
    torch.testing.assert_close(together @ g.T, alone @ g.T, rtol=1e-6, atol=1e-6)


def test_one_half_space_is_a_difference_and_keeps_its_dtype() -> None:
    excess = torch.tensor([[-1.0], [0.0], [2.5]])
    assert torch.equal(geometry.complementary(excess, torch.ones(1, 1)), torch.tensor([[0.0], [0.0], [2.5]]))
    assert geometry.complementary(torch.ones(3, 2), torch.eye(2)).dtype == torch.float32


def test_contradicting_half_spaces_give_finite_amounts() -> None:
    g = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    a = geometry.complementary(torch.tensor([[1.0, 1.0], [1.0, -3.0]]), g)
    assert bool(torch.isfinite(a).all())
    assert float(a[1, 0]) == pytest.approx(1, abs=1e-5) and float(a[1, 1]) == 0


@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 0)])
def test_no_rows(shape: tuple[int, int]) -> None:
    assert geometry.complementary(torch.zeros(*shape, 3), torch.eye(3)).shape == (*shape, 3)


def test_scores_and_moves_are_float32_under_autocast() -> None:
    v, u, s = half_spaces(5, 0, "random")
    c = tokens(s, 2, 7, 0)
    z = geometry.scores(c, v)
    away = geometry.combine(z, u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(geometry.scores(c, v), z)
        assert same_bits(geometry.combine(z, u), away)
    torch.testing.assert_close(z.double(), c.double() @ v.double().T, rtol=1e-5, atol=1e-5)


def test_the_gram_matrix_is_double() -> None:
    v, u, _ = half_spaces(3, 1, "random")
    g = geometry.gram(v, u)
    assert g.dtype == torch.float64
    torch.testing.assert_close(g.diagonal(), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(g[0, 2], v[0].double() @ u[2].double())


def test_what_is_over_the_border_among_what_may_move() -> None:
    z = torch.tensor([[[3.0, 0.0], [2.0, 2.5]]])
    border = torch.tensor([[2.0, 1.0], [2.0, 3.0]])
    assert geometry.outside(z, border, None).tolist() == [[[True, False], [False, False]]]
    assert not bool(geometry.outside(z, border, torch.tensor([[False, True]])).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_move_touches_only_what_it_names(dtype: torch.dtype) -> None:
    c = tokens(metric(8, 0), 2, 3, 0).to(dtype)
    where = torch.tensor([[True, False, False], [False, False, True]])
    moved = geometry.move(c, torch.ones(2, 3, 1), torch.full((1, 8), 0.5), where)
    assert moved.dtype == dtype and moved is not c
    assert same_bits(moved[~where], c[~where])
    assert same_bits(moved[where], (c[where].float() - 0.5).to(dtype))
    assert same_bits(geometry.move(c, torch.ones(3, 1), torch.full((1, 8), 0.5)), (c.float() - 0.5).to(dtype))


def test_the_margin_grows_with_the_token_and_the_dtype() -> None:
    v, _, s = half_spaces(3, 0, "random")
    c, spread = tokens(s, 1, 4, 0)[0], torch.full((3,), 0.1)
    small, large = (geometry.margin(k * c, torch.float16, v, spread) for k in (1.0, 1e4))
    torch.testing.assert_close(large, 1e4 * small, rtol=1e-4, atol=0)
    assert bool((geometry.margin(c, torch.bfloat16, v, spread) > small).all())
    assert bool((geometry.margin(0 * c, torch.float32, v, spread) > 0).all())
