"""Shares of groups as whole numbers of pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saferegion.core.errors import BalanceError
from saferegion.core.quota import Quota, Shares, largest_remainder

SEEDS = st.integers(0, 2**63)
NAMES = tuple("abcdefgh")


@st.composite
def shares(draw: st.DrawFn, axis: str = "look", most: int = 8) -> Shares:
    count = draw(st.integers(2, most))
    parts = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count).filter(any))
    return Shares(axis, NAMES[:count], tuple(Fraction(p, sum(parts)) for p in parts))


def counts(quota: Quota, cells: list[tuple[int, ...]], j: int = 0) -> list[int]:
    seen = Counter(c[j] for c in cells)
    return [seen[k] for k in range(len(quota.axes[j].groups))]


@given(shares(), SEEDS, st.integers(1, 60))
def test_a_batch_of_one_axis_is_the_largest_remainder(axis: Shares, seed: int, n: int) -> None:
    quota = Quota((axis,))
    have = counts(quota, quota.batch(range(seed, seed + n)))
    assert have == largest_remainder(axis.parts, n, have)
    assert all(abs(h - p * n) < 1 for h, p in zip(have, axis.parts, strict=True))
    assert all(h == 0 for h, p in zip(have, axis.parts, strict=True) if p == 0)


@given(st.integers(2, 8), SEEDS, st.integers(1, 60))
def test_even_shares_are_the_seed_alone(groups: int, seed: int, n: int) -> None:
    quota = Quota((Shares.even("look", NAMES[:groups]),))
    batch = quota.batch(range(seed, seed + n))
    assert batch == [((seed + i) % groups,) for i in range(n)]
    assert batch == [quota.alone(seed + i) for i in range(n)]


@given(shares(), SEEDS)
def test_single_pictures_of_a_round_of_seeds_hit_the_shares_exactly(axis: Shares, seed: int) -> None:
    quota = Quota((axis,))
    n = len(quota.round)
    seen = Counter(quota.alone(seed + i)[0] for i in range(n))
    assert [seen[k] for k in range(len(axis.groups))] == [p * n for p in axis.parts]


@given(shares(), st.integers(1, 200))
def test_seeds_from_the_first_of_a_round_are_never_a_picture_away(axis: Shares, n: int) -> None:
    seen = Counter(Quota((axis,)).alone(i)[0] for i in range(n))
    assert all(abs(seen[k] - p * n) < 1 for k, p in enumerate(axis.parts))


@given(shares(), SEEDS, st.integers(1, 40))
def test_the_same_batch_is_always_the_same(axis: Shares, seed: int, n: int) -> None:
    assert Quota((axis,)).batch(range(seed, seed + n)) == Quota((axis,)).batch(range(seed, seed + n))


@settings(max_examples=60)
@given(shares("look", 4), shares("age", 5), SEEDS, st.integers(1, 40))
def test_every_axis_of_several_is_within_one_picture(first: Shares, second: Shares, seed: int, n: int) -> None:
    quota = Quota((first, second))
    cells = quota.batch(range(seed, seed + n))
    for j, axis in enumerate(quota.axes):
        have = counts(quota, cells, j)
        assert all(abs(h - p * n) <= 1 for h, p in zip(have, axis.parts, strict=True))
        assert all(h == 0 for h, p in zip(have, axis.parts, strict=True) if p == 0)


@settings(max_examples=60)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=3), SEEDS)
def test_even_cells_come_up_once_each_in_a_round(sizes: list[int], seed: int) -> None:
    quota = Quota(tuple(Shares.even(f"axis {j}", NAMES[:k]) for j, k in enumerate(sizes)))
    count = len(quota.cells)
    alone = [quota.alone(seed + i) for i in range(count)]
    assert sorted(alone) == sorted(itertools.product(*map(range, sizes)))
    assert quota.batch(range(seed, seed + count)) == alone


def test_cells_of_uneven_shares() -> None:
    quota = Quota((Shares.of("look", ("a", "b"), {"a": 70, "b": 30}), Shares.even("age", ("young", "old"))))
    assert Counter(quota.batch(range(5, 25))) == {(0, 0): 7, (0, 1): 7, (1, 0): 3, (1, 1): 3}
    assert quota.names((1, 0)) == ("b", "young")


def test_shares_as_people_write_them() -> None:
    third = Shares.of("look", ("a", "b", "c"), [33.3, 33.3, 33.4])
    assert sum(third.parts) == 1
    assert Shares.of("look", ("a", "b"), {"a": 1}).parts == (1, 0)
    assert Shares.of("look", ("a", "b"), [0.25, 0.75]) == Shares.of("look", ("a", "b"), {"b": 75, "a": 25})
    assert str(Shares.of("look", ("a", "b"))) == "a 50 %, b 50 %"
    assert [Quota((third,)).alone(i) for i in range(3)] == [(2,), (0,), (1,)]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"a": 50, "b": 40}, "add up to 90; make them add up to 100"),
        ({"a": 0, "b": 0}, "All shares of 'look' are 0"),
        ({"a": 120, "b": -20}, "share of 'b' in 'look' is -20; a share is 0 or more"),
        ({"a": 50, "z": 50}, "no group 'z'; its groups are a, b"),
        ([50, 25, 25], "has 2 groups .* and got 3 shares"),
        ([float("nan"), 1], "share of 'a' in 'look' must be a number"),
        ([float("inf"), 1], "must be a number"),
        (["half", "half"], "must be a number; got 'half'"),
        ([True, False], "must be a number"),
        ([], "got 0 shares"),
    ],
)
def test_shares_that_make_no_sense(wanted: object, said: str) -> None:
    with pytest.raises(BalanceError, match=said):
        Shares.of("look", ("a", "b"), wanted)  # type: ignore[arg-type]


def test_axes_that_cannot_be_balanced() -> None:
    with pytest.raises(BalanceError, match="9 groups; an axis has 2 to 8"):
        Shares.even("look", tuple("abcdefghi"))
    with pytest.raises(BalanceError, match="1 groups; an axis has 2 to 8"):
        Shares.even("look", ("a",))
    with pytest.raises(BalanceError, match="two groups of one name"):
        Shares.even("look", ("a", "a"))
    with pytest.raises(BalanceError, match="at least one axis"):
        Quota(())
    with pytest.raises(BalanceError, match="'look' is chosen twice"):
        Quota((Shares.even("look", "ab"), Shares.even("look", "ab")))
    with pytest.raises(BalanceError, match="4,096 combinations of groups"):
        Quota(tuple(Shares.even(f"axis {j}", NAMES) for j in range(4)))


def test_one_group_alone_is_every_picture() -> None:
    quota = Quota((Shares.of("look", ("a", "b"), {"b": 100}),))
    assert quota.batch(range(7)) == [(1,)] * 7


def test_a_batch_of_no_pictures() -> None:
    assert Quota((Shares.even("look", "ab"),)).batch([]) == []
