"""The region: inside keeps every bit, outside comes inside or is said to be unresolved."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import KINDS, Shape, conditioning, direction, directions, same_bits, within_one_ulp

from saferegion import (
    Conditioning,
    Detector,
    Direction,
    Meta,
    Offset,
    Readout,
    SafeRegion,
    SafeRegionError,
    Space,
    Term,
    UnresolvedError,
)
from saferegion.core import geometry
from saferegion.core.errors import ConditioningError, EncoderMismatchError
from saferegion.core.fingerprint import Fingerprint

SHAPES = st.builds(
    Shape,
    concepts=st.integers(1, 12),
    width=st.sampled_from([6, 16, 40]),
    period=st.sampled_from([1, 3]),
    facets=st.integers(1, 3),
    kinds=st.sampled_from([KINDS, ("token",), ("pair",), ("mean",), ("token", "mean")]),
    joint=st.booleans(),
    witness=st.booleans(),
    offsets=st.booleans(),
    given=st.booleans(),
    pooled=st.sampled_from([0, 5]),
)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(SHAPES, st.integers(0, 10_000), st.floats(0.2, 3.0), DTYPES)
def test_what_comes_out_is_inside_or_said_to_be_unresolved(
    shape: Shape, seed: int, scale: float, dtype: torch.dtype
) -> None:
    region = SafeRegion(directions(shape, seed))
    c = conditioning(shape, seed, scale=scale, dtype=dtype)
    came = region.score(c) > 0
    after, report = region.apply(c)
    went = region.score(after) > 0
    named = {(b, k) for b, k in report.unresolved}
    for b in range(len(came)):
        if not bool(came[b].any()):
            assert not report.moved_prompts()[b] and not bool(went[b].any())
            assert same_bits(after.tokens[b], c.tokens[b])
        for k, concept in enumerate(region.names):
            if bool(went[b, k]):
                assert (b, concept) in named, "silently open"
    if not bool(came.any()):
        assert after is c
    assert after.tokens.dtype == dtype and bool(torch.isfinite(after.tokens).all())
    held = ~c.mask
    assert same_bits(after.tokens[held], c.tokens[held]), "tokens that may not move keep every bit"


@given(SHAPES, st.integers(0, 10_000), DTYPES)
def test_project_does_what_apply_does(shape: Shape, seed: int, dtype: torch.dtype) -> None:
    shape = dataclasses.replace(shape, pooled=0)
    region = SafeRegion(directions(shape, seed))
    c = conditioning(shape, seed, scale=2.0, dtype=dtype)
    before = c.tokens.clone()
    projected = region.project(c.tokens, c.mask)
    applied, _ = region.apply(c)
    assert projected.dtype == dtype and same_bits(projected, applied.tokens)
    assert same_bits(c.tokens, before), "nothing is changed in place"


@given(SHAPES, st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_neither_the_order_of_concepts_nor_the_batch_changes_anything(shape: Shape, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    some = directions(shape, seed)
    c = conditioning(shape, seed, batch=4, scale=2.0)
    whole, report = SafeRegion(some).apply(c)
    mixed = random.sample(some, len(some))
    other, _ = SafeRegion(mixed).apply(c)
    assert same_bits(whole.tokens, other.tokens)
    rows = torch.tensor(random.sample(range(4), 4))
    shuffled, _ = SafeRegion(some).apply(c[rows])
    assert within_one_ulp(shuffled.tokens, whole.tokens[rows])
    for b in range(4):
        alone, single = SafeRegion(some).apply(c[b : b + 1])
        assert within_one_ulp(alone.tokens, whole.tokens[b : b + 1])
        assert single.moved == report.moved_prompts()[b]


@given(SHAPES, st.integers(0, 10_000))
def test_what_is_inside_after_a_guard_is_left_alone_by_the_next(shape: Shape, seed: int) -> None:
    region = SafeRegion(directions(dataclasses.replace(shape, offsets=False), seed))
    once, report = region.apply(conditioning(shape, seed, scale=2.0))
    if not report.unresolved:
        again, second = region.apply(once)
        assert again is once and not second.moved


def test_one_concept_goes_to_the_benign_mean_along_its_displacement() -> None:
    shape = Shape(concepts=1, kinds=("token",), joint=False, witness=False)
    d = direction("fire", shape, 3)
    mover = d.movers["tokens"]
    unit = mover.unit[0]
    c = conditioning(shape, 2, scale=2.0)
    after, report = SafeRegion([d]).apply(c)
    assert report.moved
    z = c.tokens @ unit - mover.mean[0, 0]
    wanted = (
        c.tokens
        - z.clamp_min(0).unsqueeze(-1) * unit * (c.mask & torch.tensor(report.moved_prompts())[:, None])[..., None]
    )
    assert torch.allclose(after.tokens, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_tokens_of_an_open_prompt_move_and_none_of_another(dtype: torch.dtype) -> None:
    shape = Shape(concepts=1, kinds=("token",), witness=False)
    d = direction("fire", shape, 3)
    unit = d.movers["tokens"].unit[0]
    tokens = torch.stack([torch.stack([3 * unit, 0.8 * unit]), torch.stack([0.8 * unit, 0.8 * unit])])
    tokens = tokens.to(dtype) * (1 + torch.finfo(dtype).eps)
    far = SafeRegion([d]).score(Conditioning(tokens))[:, 0]
    assert far[0] > 0 > far[1]
    after, _ = SafeRegion([d]).apply(Conditioning(tokens))
    assert not torch.equal(after.tokens[0, 1], tokens[0, 1]), "the sentence around the word carries it too"
    assert same_bits(after.tokens[1], tokens[1])


def _stubborn(threshold: float) -> Direction:
    """A detector that the mover does not close: it looks along another channel."""
    d = direction("fire", Shape(concepts=1, kinds=("token",), witness=False, joint=False), 3)
    term = d.detector.terms[0]
    weight = torch.zeros_like(term.weight)
    weight[0, 0] = 1.0
    u = torch.zeros_like(d.movers["tokens"].displacement)
    u[0, 1] = 1.0
    mover = dataclasses.replace(d.movers["tokens"], displacement=u)
    told = Detector((dataclasses.replace(term, weight=weight, offset=torch.zeros(1, 1)),), torch.tensor([threshold]))
    return dataclasses.replace(d, detector=told, movers={"tokens": mover}, rest={"tokens": torch.zeros(1, 12)})


def test_the_last_resort_is_the_benign_mean_of_the_tokens_that_hold_it() -> None:
    tokens = torch.zeros(1, 3, 12)
    tokens[0, 1, 0], tokens[0, 2, 2] = 5.0, 5.0
    after, report = SafeRegion([_stubborn(1.0)]).apply(Conditioning(tokens))
    assert not report.unresolved and float(report.after.far) <= 0
    assert torch.equal(after.tokens[0, 1], torch.zeros(12)), "the token that holds it"
    assert float(after.tokens[0, 2, 2]) == 5.0, "and no other"


def test_the_last_resort_reaches_what_only_the_next_token_holds() -> None:
    d = _stubborn(1.0)
    weight = torch.zeros(1, 24)
    weight[0, 0] = weight[0, 12] = 1.0  # a token's first channel, and that of the next
    told = Detector((Term(Readout("tokens", "pair"), weight, torch.zeros(1, 1)),), torch.tensor([1.0]))
    tokens = torch.zeros(1, 5, 12)
    tokens[0, :, 0] = torch.tensor([-9.0, -4.0, 8.0, -9.0, -9.0])
    region = SafeRegion([dataclasses.replace(d, detector=told)])
    after, report = region.apply(Conditioning(tokens))
    assert float(report.before.far) > 0 and not report.unresolved and float(report.after.far) <= 0
    assert after.tokens[0, :, 0].tolist() == [-9.0, -4.0, 0.0, -9.0, -9.0]
    assert torch.equal(region.project(tokens), after.tokens)


def test_what_stays_open_is_unresolved_and_refused_by_name() -> None:
    d = dataclasses.replace(
        _stubborn(1.0), rest={"tokens": torch.full((1, 12), 3.0)}, meta=Meta(method="imported", title="Fire")
    )
    tokens = torch.zeros(2, 3, 12)
    tokens[1, 1, 0] = 5.0
    _, report = SafeRegion([d]).apply(Conditioning(tokens))
    assert report.unresolved == ((1, "fire"),) and report.findings[1].unresolved
    with pytest.raises(UnresolvedError, match=r"Fire.*word it differently"):
        report.require_resolved()
    assert "STILL OPEN" in report.text()


def test_the_witness_is_asked_too() -> None:
    d = direction("fire", Shape(concepts=1, kinds=("token",), witness=False, joint=False), 3)
    other = _stubborn(1.0).detector
    tokens = torch.zeros(1, 3, 12)
    tokens[0, 1] = 4 * d.movers["tokens"].unit[0]
    tokens[0, 1, 0] += 5.0
    alone, _ = SafeRegion([d]).apply(Conditioning(tokens))
    both, report = SafeRegion([dataclasses.replace(d, witness=other)]).apply(Conditioning(tokens))
    assert not report.unresolved and not torch.equal(alone.tokens, both.tokens)
    assert float(other.scores(both)[0, 0]) <= 0 < float(other.scores(alone)[0, 0])


def test_an_offset_is_added_to_open_prompts_only() -> None:
    d = direction("fire", Shape(concepts=1, kinds=("mean",), witness=False, joint=False), 3)
    unit = d.movers["tokens"].unit[0]
    d = dataclasses.replace(d, movers={"tokens": Offset(torch.tensor([-4.0]), unit, (0.0, 0.7))})
    tokens = torch.stack([torch.stack([4 * unit] * 2), torch.zeros(2, 12)])
    after, report = SafeRegion([d]).apply(Conditioning(tokens))
    assert torch.allclose(after.tokens[0], tokens[0] - 4 * unit, atol=1e-5) and same_bits(after.tokens[1], tokens[1])
    assert report.moved_prompts() == [True, False]
    region = SafeRegion([d])
    assert region.at(0.0) is region and region.at(0.9) is None


@pytest.mark.parametrize(("strength", "share"), [(0.5, 0.5), (0.25, 0.25)])
def test_a_strength_below_one_goes_that_part_of_the_way_and_the_report_says_what_stayed(
    strength: float, share: float
) -> None:
    d = direction("fire", Shape(concepts=1, kinds=("token",), witness=False, joint=False), 3)
    c = Conditioning((9 * d.movers["tokens"].unit[0]).expand(1, 2, 12))
    whole, _ = SafeRegion([d]).apply(c)
    part, report = SafeRegion([d], strength).apply(c)
    assert torch.allclose(part.tokens - c.tokens, share * (whole.tokens - c.tokens), atol=1e-5)
    assert report.findings[0].after > 0 and not report.unresolved


def test_a_strength_of_two_goes_one_displacement_further_and_zero_is_off() -> None:
    d = direction("fire", Shape(concepts=1, kinds=("token",), witness=False, joint=False), 3)
    mover = d.movers["tokens"]
    c = Conditioning((9 * mover.unit[0]).expand(1, 2, 12))
    once, twice = (SafeRegion([d], s).apply(c)[0] for s in (1.0, 2.0))
    assert torch.allclose(once.tokens - twice.tokens, mover.displacement[0].expand(1, 2, 12), atol=1e-4)
    assert SafeRegion([d], 0.0).apply(c)[0] is c


def test_steer_takes_the_displacement_off_every_token_always() -> None:
    d = direction("fire", Shape(concepts=1), 3)
    c = conditioning(Shape(), 2)
    after, _ = SafeRegion([d], 0.5, "steer").apply(c)
    wanted = c.tokens - 0.5 * d.movers["tokens"].displacement[0] * c.mask.unsqueeze(-1)
    assert torch.allclose(after.tokens, wanted, atol=1e-6)
    assert torch.equal(SafeRegion([d], 0.5, "steer").project(c.tokens, c.mask), after.tokens)


@given(st.integers(0, 1000))
def test_erase_puts_every_token_on_the_benign_mean_and_never_beyond(seed: int) -> None:
    some = directions(Shape(concepts=3, offsets=False), seed)
    c = conditioning(Shape(), seed)
    for strength in (1.0, 10.0):
        after, _ = SafeRegion(some, strength, "erase").apply(c)
        for d in some:
            z = after.tokens @ d.movers["tokens"].unit.T - d.movers["tokens"].mean[:, 0]
            assert float(z[c.mask].abs().max()) < 1e-3


def test_axes_are_refused_where_they_would_wipe_what_a_prompt_states() -> None:
    axis = dataclasses.replace(direction("gender", Shape(), 1), meta=Meta(kind="balance", method="imported"))
    for mode in ("project", "erase"):
        with pytest.raises(SafeRegionError, match="is for Balance"):
            SafeRegion([axis], 1.0, mode)
    SafeRegion([axis], 1.0, "steer")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_and_goes_to_rest_in_a_graph(bad: float) -> None:
    shape = Shape(kinds=("token",), joint=False)
    some = directions(shape, 1)
    c = conditioning(shape, 2)
    tokens = c.tokens.clone()
    tokens[1, 2, 3] = bad
    with pytest.raises(ConditioningError, match="NaN or infinite"):
        SafeRegion(some).apply(Conditioning(tokens, c.mask))
    with pytest.raises(ConditioningError, match="NaN or infinite"):
        SafeRegion(some).score(Conditioning(tokens, c.mask))
    projected = SafeRegion(some).project(tokens, c.mask)
    rest = torch.stack([d.rest["tokens"] for d in some]).mean(0)[0]
    assert bool(torch.isfinite(projected).all()) and torch.allclose(projected[1, 2], rest)


def test_a_mask_that_hides_everything_is_refused() -> None:
    c = conditioning(Shape(), 2)
    with pytest.raises(ConditioningError, match="hides every token"):
        SafeRegion(directions(Shape(), 1)).apply(Conditioning(c.tokens, torch.zeros_like(c.mask)))


def test_spaces_that_the_region_does_not_know_are_refused() -> None:
    region = SafeRegion(directions(Shape(), 1))
    c = conditioning(Shape(), 2)
    for strange in (Conditioning(c.tokens, c.mask, torch.zeros(3, 5)), Conditioning(c.tokens, spaces=(Space("t5"),))):
        with pytest.raises(ConditioningError, match="no direction for space"):
            region.apply(strange)
    with pytest.raises(ConditioningError, match="13 wide"):
        region.apply(Conditioning(torch.zeros(1, 2, 13)))


def test_a_concept_that_only_an_absent_vector_tells_is_refused() -> None:
    d = direction("fire", Shape(pooled=5), 1)
    pooled = d.detector.terms[-1]
    blind = dataclasses.replace(d, detector=Detector((pooled,), torch.ones(1)), witness=None)
    with pytest.raises(ConditioningError, match="told by pooled alone"):
        SafeRegion([blind]).apply(conditioning(Shape(), 2))


def test_another_encoder_is_refused() -> None:
    def of(seed: int) -> Fingerprint:
        draw = torch.Generator().manual_seed(seed)
        return Fingerprint((("tokens", 12),), tuple((torch.randn(32, generator=draw) / 32**0.5).tolist()))

    mine = dataclasses.replace(direction("fire", Shape(), 1), encoder=of(1), meta=Meta())
    with pytest.raises(EncoderMismatchError, match="another text encoder"):
        SafeRegion([mine]).apply(Conditioning(conditioning(Shape(), 2).tokens, encoder=of(2)))
    with pytest.raises(EncoderMismatchError):
        SafeRegion([mine, dataclasses.replace(mine, concept="other", encoder=of(2))])


def test_a_space_without_a_mover_would_stay_unguarded() -> None:
    d = direction("fire", Shape(), 1)
    encoder = Fingerprint((("tokens", 12), ("t5", 4)), tuple([0.1] * 64))
    with pytest.raises(SafeRegionError, match="this would stay unguarded|would stay unguarded"):
        dataclasses.replace(d, encoder=encoder, meta=Meta())


def test_strengths_and_modes_are_checked() -> None:
    some = directions(Shape(concepts=2), 1)
    for strength in (-1.0, 11.0, float("nan"), True, "1"):
        with pytest.raises(SafeRegionError, match="strength of 'concept-0' must be a number from 0 to 10"):
            SafeRegion(some, {"concept-0": strength})  # type: ignore[dict-item]
    with pytest.raises(SafeRegionError, match="not in the region"):
        SafeRegion(some, {"other": 1.0})
    with pytest.raises(SafeRegionError, match="mode must be"):
        SafeRegion(some, 1.0, "wipe")
    with pytest.raises(SafeRegionError, match="at least one concept"):
        SafeRegion([])


def test_a_word_is_named_with_how_it_was_told() -> None:
    d = direction("fire", Shape(concepts=1, kinds=("token", "mean"), witness=False), 3)
    d = dataclasses.replace(d, meta=Meta(method="imported", title="Fire"))
    tokens = torch.zeros(1, 3, 12)
    tokens[0, 1] = 5 * d.movers["tokens"].unit[0]
    _, report = SafeRegion([d]).apply(Conditioning(tokens))
    (finding,) = report.findings
    assert finding.tokens == {"tokens": (1,)} and "token" in finding.how and finding.before > 0 >= finding.after
    text = report.text([["a", "blaze", "now"]])
    assert "Fire" in text and "a word" in text and "blaze" in text
    assert report.to_dict()["findings"][0]["tokens"] == {"tokens": [1]}


def test_guarding_twelve_concepts_calls_little_python() -> None:
    region = SafeRegion(directions(Shape(concepts=12, width=64, period=7), 1))
    c = Conditioning(torch.zeros(2, 7, 64))
    region.apply(c)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        after, _ = region.apply(c)
    finally:
        sys.setprofile(None)
    assert after is c and calls <= 60


def test_project_compiles_to_one_graph() -> None:
    region = SafeRegion(directions(Shape(concepts=3, period=3), 1))
    c = conditioning(Shape(), 2, scale=2.0)
    wanted = region.project(c.tokens, c.mask)
    compiled = torch.compile(region.project, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(c.tokens, c.mask), wanted, atol=1e-5)


def test_gradients_pass_through_project() -> None:
    region = SafeRegion(directions(Shape(concepts=2), 1))
    tokens = conditioning(Shape(), 2, scale=2.0).tokens.requires_grad_(True)
    region.project(tokens).square().sum().backward()
    assert tokens.grad is not None and bool(torch.isfinite(tokens.grad).all())


@pytest.mark.slow
@settings(max_examples=10_000)
@given(SHAPES, st.integers(0, 1_000_000), st.floats(0.2, 3.0), DTYPES)
def test_ten_thousand_regions_leave_nothing_silently_open(
    shape: Shape, seed: int, scale: float, dtype: torch.dtype
) -> None:
    region = SafeRegion(directions(shape, seed))
    after, report = region.apply(conditioning(shape, seed, scale=scale, dtype=dtype))
    named = set(report.unresolved)
    open_ = [(b, region.names[k]) for b, k in (region.score(after) > 0).nonzero().tolist()]
    assert all(o in named for o in open_)


def test_erase_is_never_said_to_be_stronger_than_whole() -> None:
    region = SafeRegion(directions(Shape(concepts=2), 3), strength=7.0, mode="erase")
    assert region.strengths == (1.0, 1.0)
    assert region.apply(conditioning(Shape(), 4))[1].strengths == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_graph_says_what_is_said_where_it_may_end_early(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(concepts=1 + 2 * seed, width=16, facets=1 + seed % 2, given=seed % 3 == 2)
    region = SafeRegion(directions(shape, seed))
    batch = conditioning(shape, seed, batch=6, length=9, scale=1.5)
    wanted = region.project(batch.tokens, batch.mask)
    monkeypatch.setattr(geometry, "asks_freely", lambda _: False)
    assert same_bits(region.project(batch.tokens, batch.mask), wanted)
    assert same_bits(region.apply(batch)[0].tokens, wanted)


def test_a_token_that_stays_keeps_the_sign_of_its_zeros() -> None:
    shape = Shape(concepts=1, kinds=("token",), witness=False)
    region = SafeRegion([direction("fire", shape, 3)])
    tokens = torch.stack([3 * region.directions[0].movers["tokens"].unit[0], -torch.zeros(12)])[None]
    mask = torch.tensor([[True, False]])
    after, report = region.apply(Conditioning(tokens, mask))
    assert report.moved and same_bits(after.tokens[0, 1], tokens[0, 1])
