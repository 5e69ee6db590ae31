from __future__ import annotations

import math

import pytest
import torch
from fakes import concept, concepts, direction, fingerprint, metric, normals, same_bits, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from saferegion import ConceptDirections, Conditioning, Direction, SafeRegion, SafeRegionError, Space
from saferegion.core.errors import ConditioningError, EncoderMismatchError

WIDTH = 80
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
dtypes = st.sampled_from(DTYPES)
kinds = st.sampled_from(["random", "duplicated", "near", "opposite"])
seeds = st.integers(0, 999)
counts = st.one_of(st.integers(1, 4), st.integers(5, 64))


def far(c: torch.Tensor, parts: list[ConceptDirections]) -> torch.Tensor:
    """Distance outside the border of each token, by itself, in double precision."""
    v = torch.cat([d.spaces["tokens"].normal for d in parts]).double()
    return c.double() @ v.T - torch.cat([d.spaces["tokens"].threshold for d in parts])[:, 0].double()


# -- what is inside stays ------------------------------------------------------------------------------------------


@given(counts, seeds, kinds, dtypes)
def test_inside_comes_out_as_it_went_in(count: int, seed: int, kind: str, dtype: torch.dtype) -> None:
    parts, s = concepts(count, WIDTH, seed, kind, threshold=6.0)
    c = Conditioning(tokens(s, 2, 9, seed).to(dtype), pooled=None)
    assert bool((far(c.tokens, parts) < 0).all())
    region = SafeRegion(parts)
    out, report = region.apply(c)
    assert out is c and not report.moved
    assert same_bits(region.project(c.tokens), c.tokens)
    assert bool((region.score(c) <= 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_zeros_and_denormals_keep_their_bits(dtype: torch.dtype) -> None:
    parts, s = concepts(3, WIDTH, 0)
    c = tokens(s, 2, 9, 0, 0.5).to(dtype)
    c[:, :, ::5] = -0.0
    c[:, :, 1::5] = torch.tensor(-torch.finfo(dtype).smallest_normal / 4).to(dtype)
    assert bool((c[:, :, 1::5] != 0).all())
    c[0, 3] += (20 * parts[0].spaces["tokens"].shift[0]).to(dtype)
    before = c.clone()
    region = SafeRegion(parts)
    out, _ = region.apply(Conditioning(c))
    for result in (out.tokens, region.project(c)):
        moved = (result != before).any(-1)
        assert moved[0, 3] and moved.sum() == 1
        assert same_bits(result[~moved], before[~moved])


@given(counts, seeds, kinds, dtypes)
def test_only_tokens_that_are_outside_move(count: int, seed: int, kind: str, dtype: torch.dtype) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = Conditioning(tokens(s, 3, 7, seed, 1.5).to(dtype), torch.rand(3, 7, generator=torch.manual_seed(seed)) < 0.7)
    region = SafeRegion(parts)
    out, report = region.apply(c)
    must = (far(c.tokens, parts) > 1e-5).any(-1) & c.movable
    may = (far(c.tokens, parts) > -1e-5).any(-1) & c.movable
    for result in (out.tokens, region.project(c.tokens, c.movable)):
        moved = (result != c.tokens).any(-1)
        assert bool((moved | ~must).all()) and bool((may | ~moved).all())
        assert same_bits(result[~moved], c.tokens[~moved])
    assert report.moved_prompts() == (out.tokens != c.tokens).flatten(1).any(1).tolist()


# -- what is outside comes inside, and stays there -----------------------------------------------------------------


@given(counts, seeds, kinds, dtypes, st.sampled_from([1.0, 4.0, 30.0]))
@settings(max_examples=50)
def test_the_result_is_inside_and_stays(count: int, seed: int, kind: str, dtype: torch.dtype, scale: float) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = Conditioning(tokens(s, 2, 9, seed, scale).to(dtype))
    region = SafeRegion(parts)
    once, _ = region.apply(c)
    assert bool((region.score(once) <= 0).all())
    assert float(far(once.tokens, parts).max()) < 1e-4
    assert region.apply(once)[0] is once
    graph = region.project(c.tokens)
    assert same_bits(region.project(graph), graph)
    assert once.tokens.dtype == graph.dtype == dtype


@given(st.integers(1, 16), seeds, kinds, dtypes)
def test_extreme_tokens_come_inside_too(count: int, seed: int, kind: str, dtype: torch.dtype) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = Conditioning(tokens(s, 1, 9, seed, 2e3 if dtype == torch.float16 else 1e4).to(dtype))
    region = SafeRegion(parts)
    once, _ = region.apply(c)
    assert bool(torch.isfinite(once.tokens).all()) and bool((region.score(once) <= 0).all())
    assert region.apply(once)[0] is once
    graph = region.project(c.tokens)
    assert same_bits(region.project(graph), graph)


@given(counts, seeds, kinds, dtypes)
def test_apply_and_project_agree(count: int, seed: int, kind: str, dtype: torch.dtype) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = Conditioning(tokens(s, 2, 7, seed, 3.0).to(dtype), torch.rand(2, 7, generator=torch.manual_seed(seed)) < 0.8)
    for mode in ("project", "steer", "erase"):
        region = SafeRegion(parts, mode=mode)
        one, two = region.apply(c)[0].tokens, region.project(c.tokens, c.movable)
        assert torch.equal(one != c.tokens, two != c.tokens) or dtype != torch.float32
        assert torch.equal((one != c.tokens).any(-1), (two != c.tokens).any(-1))
        eps = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(one.float(), two.float(), rtol=eps, atol=eps * float(c.tokens.float().abs().max()))


# -- what must not matter ------------------------------------------------------------------------------------------


@given(st.integers(2, 24), seeds, kinds, dtypes, st.randoms(use_true_random=False))
def test_the_order_of_concepts_changes_no_bit(count: int, seed: int, kind: str, dtype: torch.dtype, random) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = Conditioning(tokens(s, 2, 7, seed, 3.0).to(dtype))
    order = random.sample(range(count), count)
    one, other = SafeRegion(parts), SafeRegion([parts[i] for i in order])
    assert same_bits(one.apply(c)[0].tokens, other.apply(c)[0].tokens)
    assert same_bits(one.project(c.tokens), other.project(c.tokens))
    assert torch.equal(one.score(c)[:, order], other.score(c))


@given(counts, seeds, kinds, dtypes)
def test_prompts_of_a_batch_do_not_touch_each_other(count: int, seed: int, kind: str, dtype: torch.dtype) -> None:
    parts, s = concepts(count, WIDTH, seed, kind)
    c = tokens(s, 3, 7, seed, 2.0).to(dtype)
    region = SafeRegion(parts)
    together = region.apply(Conditioning(c))[0].tokens
    alone = torch.cat([region.apply(Conditioning(row[None]))[0].tokens for row in c])
    assert torch.equal((together != c).any(-1), (alone != c).any(-1))
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(together.float(), alone.float(), rtol=eps, atol=eps * float(c.float().abs().max()))


@given(st.integers(1, 8), seeds, dtypes, st.sampled_from(["project", "steer", "erase"]))
def test_inputs_are_never_changed(count: int, seed: int, dtype: torch.dtype, mode: str) -> None:
    parts, s = concepts(count, WIDTH, seed)
    parts = [concept(p.concept, tokens=p.spaces["tokens"], pooled=p.spaces["tokens"]) for p in parts]
    c = Conditioning(tokens(s, 2, 7, seed, 3.0).to(dtype), pooled=tokens(s, 1, 2, seed, 3.0)[0].to(dtype))
    keep, pooled = c.tokens.clone(), c.pooled.clone()
    region = SafeRegion(parts, mode=mode)
    out, _ = region.apply(c)
    assert not same_bits(out.tokens, keep) and out.pooled.dtype == dtype
    region.project(c.tokens), region.project_pooled(c.pooled)
    region.score(c)
    assert same_bits(c.tokens, keep) and same_bits(c.pooled, pooled)
    assert c.tokens._version == 0 or c.tokens.is_inference()


@pytest.mark.parametrize("mode", ["project", "steer", "erase"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_mode_and_autocast_change_nothing(mode: str, dtype: torch.dtype) -> None:
    parts, s = concepts(4, WIDTH, 3)
    c = Conditioning(tokens(s, 2, 7, 3, 3.0).to(dtype))
    known = SafeRegion(parts, mode=mode).apply(c)[0].tokens
    with torch.inference_mode():
        region, inside = SafeRegion(parts, mode=mode), Conditioning(c.tokens.clone())
        assert same_bits(region.apply(inside)[0].tokens, known)
        graph = region.project(inside.tokens)
    assert same_bits(region.apply(inside)[0].tokens, known)
    assert same_bits(region.project(inside.tokens), graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        region = SafeRegion(parts, mode=mode)
        assert same_bits(region.apply(c)[0].tokens, known)
        assert same_bits(region.project(c.tokens), graph)
        assert same_bits(region.score(c), SafeRegion(parts, mode=mode).score(c))
    assert same_bits(region.apply(c)[0].tokens, known)


@pytest.mark.parametrize("count", [1, 3])
def test_a_region_first_used_in_inference_mode_still_gives_gradients(count: int) -> None:
    parts, s = concepts(count, WIDTH, 3)
    c = tokens(s, 1, 7, 3, 3.0)
    c[0, 0] = 0
    region = SafeRegion(parts)
    with torch.inference_mode():
        region.project(c.clone())
    wanted = c.clone().requires_grad_()
    region.project(wanted).square().sum().backward()
    assert bool(torch.isfinite(wanted.grad).all()) and float(wanted.grad.abs().sum()) > 0


# -- inside a graph ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    torch.__version__.startswith("2.1."), reason="torch 2.1 cannot trace a dictionary whose keys are tuples"
)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("mode", ["project", "steer", "erase"])
def test_project_compiles_into_one_graph(count: int, mode: str) -> None:
    parts, s = concepts(count, WIDTH, 5)
    region = SafeRegion(parts, mode=mode)
    c, movable = tokens(s, 2, 7, 5, 3.0), torch.ones(2, 7, dtype=torch.bool)
    movable[:, 0] = False
    known = region.project(c, movable)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, m: region.project(x, m), backend="eager", fullgraph=True)
    assert same_bits(compiled(c, movable), known)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("mode", ["project", "steer", "erase"])
def test_project_reads_no_value_back(count: int, mode: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    parts, s = concepts(count, WIDTH, 5)
    region = SafeRegion(parts, mode=mode)
    movable = torch.ones(2, 7, dtype=torch.bool)
    for dtype in DTYPES:
        c = tokens(s, 2, 7, 5).to(dtype)
        region.project(c, movable)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # a value that is asked for raises
            out = region.project(fake.from_tensor(c), fake.from_tensor(movable))
        assert out.shape == c.shape and out.dtype == dtype
        out = region.project(c.to("meta"), movable.to("meta"))
        assert out.device.type == "meta" and out.shape == c.shape and out.dtype == dtype


# -- strength and mode ---------------------------------------------------------------------------------------------


def outside_of(parts: list[ConceptDirections], s: torch.Tensor, by: float) -> Conditioning:
    c = tokens(s, 1, 1, 0)
    d = parts[0].spaces["tokens"]
    c += (by + d.threshold[0, 0] - c[0, 0] @ d.normal[0]) * d.shift[0]
    return Conditioning(c)


def test_strength_goes_from_nothing_to_the_benign_mean() -> None:
    parts, s = concepts(1, WIDTH, 1)
    c = outside_of(parts, s, 3.0)
    out = {k: SafeRegion(parts, k).apply(c)[0] for k in (0, 0.5, 1, 1.5, 2)}
    score = {k: float(SafeRegion(parts).score(o)) for k, o in out.items()}
    assert out[0] is c and score[0] == pytest.approx(3, abs=1e-4)
    torch.testing.assert_close(out[0.5].tokens, (c.tokens + out[1].tokens) / 2)
    assert -1e-4 < score[1] <= 0
    assert score[0.5] == pytest.approx(1.5, abs=1e-4)
    assert score[1.5] == pytest.approx(-1, abs=1e-4) and score[2] == pytest.approx(-2, abs=1e-4)
    assert same_bits(SafeRegion(parts, 0).project(c.tokens), c.tokens)


def test_strength_by_concept() -> None:
    s = metric(WIDTH, 2)
    u = torch.linalg.solve(torch.linalg.cholesky(s).T, torch.eye(WIDTH, dtype=torch.float64))  # normals at right angles
    parts = [concept(n, tokens=direction(u[:, i], s)) for i, n in enumerate(("fire", "frost"))]
    c = Conditioning(5 * sum(p.spaces["tokens"].shift for p in parts).reshape(1, 1, -1))
    score = lambda strength: SafeRegion(parts).score(SafeRegion(parts, strength).apply(c)[0])[0].tolist()  # noqa: E731
    assert score({"fire": 0}) == pytest.approx([3, 0], abs=1e-3)
    assert score({"fire": 0.5, "frost": 2}) == pytest.approx([1.5, -2], abs=1e-3)
    assert score(2) == pytest.approx([-2, -2], abs=1e-3)


@pytest.mark.parametrize("strength", [-0.1, 10.5, math.nan, math.inf, "1", True, None, {"frost": 1.0}, {"fire": -1}])
def test_a_strength_that_makes_no_sense_is_refused(strength: object) -> None:
    with pytest.raises(SafeRegionError, match="strength"):
        SafeRegion([concept(tokens=direction(torch.ones(4).double(), metric(4, 0)))], strength)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_steering_is_the_formula(dtype: torch.dtype) -> None:
    s = metric(WIDTH, 4)
    weight = torch.linspace(-1, 2, 77)
    at = torch.full((77,), 2.0)
    d = direction(normals(1, WIDTH, 4)[0], s, at, weight=weight)
    c = tokens(s, 2, 154, 4).to(dtype)
    movable = torch.ones(2, 154, dtype=torch.bool)
    movable[:, ::77] = False
    region = SafeRegion([concept(tokens=d)], 1.5, mode="steer")
    known = (c.float() - (1.5 * weight.repeat(2))[:, None] * d.shift[0]).to(dtype)
    known[~movable] = c[~movable]
    assert same_bits(region.apply(Conditioning(c, movable))[0].tokens, known)
    assert same_bits(region.project(c, movable), known)
    with_two = SafeRegion([concept(tokens=d), concept("frost", tokens=d)], {"frost": 0.5, "fire": 1.0}, mode="steer")
    if dtype == torch.float32:
        torch.testing.assert_close(with_two.project(c, movable), known, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 24), seeds, kinds)
def test_erasing_sets_every_score_to_its_mean(count: int, seed: int, kind: str) -> None:
    s = metric(WIDTH, seed)
    rows = normals(count, WIDTH, seed, "random" if kind == "opposite" else kind)
    parts = [concept(f"c{k}", tokens=direction(v, s, 2.0, 0.25)) for k, v in enumerate(rows)]
    c = Conditioning(tokens(s, 2, 7, seed, 3.0))
    region = SafeRegion(parts, mode="erase")
    once = region.apply(c)[0]
    assert float((far(once.tokens, parts) + 1.75).abs().max()) < 2e-3
    twice = region.apply(once)[0]
    torch.testing.assert_close(twice.tokens, once.tokens, rtol=0, atol=2e-3)
    if kind == "random":
        assert float((far(once.tokens, parts) + 1.75).abs().max()) < 1e-4
        half = SafeRegion(parts, 0.5, mode="erase").apply(c)[0]
        torch.testing.assert_close(half.tokens, (c.tokens + once.tokens) / 2, rtol=1e-4, atol=1e-4)


def test_step_windows() -> None:
    d = direction(torch.ones(4).double(), metric(4, 0))
    early, late, always = (
        ConceptDirections(n, {"tokens": d}, fingerprint(tokens=4), window=w)
        for n, w in (("early", (0.0, 0.4)), ("late", (0.4, 1.0)), ("always", (0.0, 1.0)))
    )
    region = SafeRegion([early, late, always], {"late": 2.0}, mode="steer")
    assert region.at(0).names == ("early", "always") and region.at(0.39).names == ("early", "always")
    assert region.at(0.4).names == ("late", "always") == region.at(1).names
    assert region.at(0.4).strengths == (2.0, 1.0) and region.at(0.4).mode == "steer"
    assert SafeRegion([always]).at(0.7).names == ("always",)
    only = SafeRegion([always])
    assert only.at(0) is only and SafeRegion([early]).at(0.4) is None and SafeRegion([early]).at(1) is None


# -- spaces --------------------------------------------------------------------------------------------------------

SD3 = (Space("clip", slice(0, 77), slice(0, 24)), Space("t5", slice(77, None), slice(None)))


def sd3(batch: int = 2) -> tuple[Conditioning, list[ConceptDirections]]:
    clip, t5, pooled = metric(24, 1), metric(32, 2), metric(16, 3)
    parts = [
        concept(
            f"c{k}",
            clip=direction(normals(2, 24, 1)[k], clip, torch.full((77,), 2.0)),
            t5=direction(normals(2, 32, 2)[k], t5),
            pooled=direction(normals(2, 16, 3)[k], pooled),
        )
        for k in range(2)
    ]
    c = torch.zeros(batch, 77 + 20, 32)
    c[:, :77, :24] = tokens(clip, batch, 77, 1, 0.3)
    c[:, :77, 24:] = -0.0
    c[:, 77:] = tokens(t5, batch, 20, 2, 0.3)
    return Conditioning(c, None, tokens(pooled, 1, batch, 3, 0.2)[0], SD3), parts


@pytest.mark.parametrize("space", ["clip", "t5", "pooled"])
def test_only_the_space_that_is_outside_moves(space: str) -> None:
    c, parts = sd3()
    region = SafeRegion(parts)
    assert region.apply(c)[0] is c
    push = 10 * parts[0].spaces[space].shift[0]
    before, pooled = c.tokens.clone(), c.pooled.clone()
    if space == "clip":
        c.tokens[1, 5, :24] += push
    elif space == "t5":
        c.tokens[1, 80] += push
    else:
        c.pooled[1] += push
    out, report = region.apply(c)
    assert bool((region.score(out) <= 0).all()) and report.moved_prompts() == [False, True]
    assert region.apply(out)[0] is out
    moved = (out.tokens != c.tokens).any(-1)
    assert moved.nonzero().tolist() == {"clip": [[1, 5]], "t5": [[1, 80]], "pooled": []}[space]
    assert same_bits(out.tokens[~moved], before[~moved])
    assert same_bits(out.tokens[:, :77, 24:], before[:, :77, 24:])
    assert same_bits(out.pooled[0], pooled[0])
    assert (out.pooled is c.pooled) == (space != "pooled")
    torch.testing.assert_close(region.project(c.tokens, None, SD3), out.tokens)
    torch.testing.assert_close(region.project_pooled(c.pooled), out.pooled)


@pytest.mark.parametrize("mode", ["steer", "erase"])
def test_padding_channels_never_move(mode: str) -> None:
    c, parts = sd3()
    out, _ = SafeRegion(parts, mode=mode).apply(c)
    assert same_bits(out.tokens[:, :77, 24:], c.tokens[:, :77, 24:])
    assert bool((out.tokens[:, 77:] != c.tokens[:, 77:]).any()) and bool((out.pooled != c.pooled).any())


def test_long_prompts_repeat_the_positions() -> None:
    s = metric(WIDTH, 6)
    at = torch.linspace(0.5, 3.0, 77)
    parts = [concept(f"c{k}", tokens=direction(v, s, at)) for k, v in enumerate(normals(2, WIDTH, 6))]
    c = tokens(s, 2, 154, 6, 1.5)
    region = SafeRegion(parts)
    whole = region.apply(Conditioning(c))[0].tokens
    halves = torch.cat([region.apply(Conditioning(h))[0].tokens for h in c.split(77, 1)], 1)
    assert torch.equal((whole != c).any(-1), (halves != c).any(-1))
    torch.testing.assert_close(whole, halves)
    z = c.double() @ torch.cat([p.spaces["tokens"].normal for p in parts]).double().T
    known = (z > at.repeat(2)[None, :, None]).any(-1)
    assert torch.equal((whole != c).any(-1), known)


def test_facets_are_half_spaces_of_one_concept() -> None:
    parts, s = concepts(3, WIDTH, 7)
    ds = [p.spaces["tokens"] for p in parts]
    fields = ("normal", "shift", "threshold", "mean", "deviation", "spread")
    joint = Direction(**{f: torch.cat([getattr(d, f) for d in ds]) for f in fields})
    one, many = SafeRegion([concept(tokens=joint)]), SafeRegion(parts)
    c = Conditioning(tokens(s, 2, 7, 7, 2.0))
    torch.testing.assert_close(one.apply(c)[0].tokens, many.apply(c)[0].tokens)
    torch.testing.assert_close(one.score(c)[:, 0], many.score(c).amax(1))


# -- what cannot be guarded is refused, never let through ----------------------------------------------------------


@pytest.mark.parametrize("mode", ["project", "steer", "erase"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_are_refused(mode: str, value: float, dtype: torch.dtype) -> None:
    parts, s = concepts(2, 16, 0)
    c = tokens(s, 2, 5, 0).to(dtype)
    c[1, 3, 2] = value
    region = SafeRegion(parts, mode=mode)
    with pytest.raises(ConditioningError, match="NaN or infinite"):
        region.apply(Conditioning(c))
    with pytest.raises(ConditioningError, match="NaN or infinite"):
        region.score(Conditioning(c))


def test_a_bad_pooled_vector_is_refused() -> None:
    c, parts = sd3()
    c.pooled[0, 0] = math.nan
    with pytest.raises(ConditioningError, match="'pooled'"):
        SafeRegion(parts).apply(c)


def test_what_the_region_does_not_know_is_refused() -> None:
    parts, s = concepts(2, 16, 0)
    region = SafeRegion(parts)
    c = tokens(s, 1, 5, 0)
    with pytest.raises(ConditioningError, match="15 wide and the directions are 16 wide"):
        region.apply(Conditioning(c[:, :, 1:]))
    with pytest.raises(ConditioningError, match="15 wide"):
        region.project(c[:, :, 1:])
    with pytest.raises(ConditioningError, match="no direction for space 't5'"):
        region.apply(Conditioning(c, spaces=(Space("t5"),)))
    with pytest.raises(ConditioningError, match="no direction for space 't5'"):
        region.project(c, None, (Space("t5"),))
    with pytest.raises(ConditioningError, match="no direction for space 'pooled'"):
        region.apply(Conditioning(c, pooled=torch.zeros(1, 8)))
    with pytest.raises(ConditioningError, match="no direction for space 'pooled'"):
        region.project_pooled(torch.zeros(1, 8))
    other = fingerprint(tokens=16)
    other = type(other)(other.widths, (-0.5,) * 32)
    with pytest.raises(EncoderMismatchError, match="another text encoder"):
        region.apply(Conditioning(c, encoder=other))
    assert region.apply(Conditioning(c, encoder=fingerprint(tokens=16)))


@given(seeds, st.integers(0, 4), st.sampled_from([1.0, 2.0]))
def test_concepts_that_leave_nothing_are_refused(seed: int, more: int, strength: float) -> None:
    s = metric(WIDTH, seed)
    v = normals(1 + more, WIDTH, seed)
    rows = [v[0], -v[0], *v[1:]]
    parts = [
        concept(f"c{k}", tokens=direction(row, s, -1.0 if k < 2 else 2.0, -3.0 if k < 2 else 0.0))
        for k, row in enumerate(rows)
    ]
    with pytest.raises(ConditioningError, match="contradict"):
        SafeRegion(parts, strength).apply(Conditioning(tokens(s, 1, 5, seed)))


@pytest.mark.parametrize("mode", ["project", "steer", "erase"])
@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (0, 0)])
def test_nothing_comes_out_of_nothing(mode: str, shape: tuple[int, int]) -> None:
    for count in (1, 3):
        parts, _ = concepts(count, 16, 0)
        region = SafeRegion(parts, mode=mode)
        c = Conditioning(torch.zeros(*shape, 16), torch.ones(*shape, dtype=torch.bool))
        out, report = region.apply(c)
        assert out.tokens.shape == (*shape, 16) and not report.moved and report.text() is not None
        assert region.project(c.tokens, c.movable).shape == (*shape, 16)
        score = region.score(c)
        assert score.shape == (shape[0], count) and bool((score <= 0).all())


def steering_only() -> ConceptDirections:
    d = Direction(torch.eye(4)[:1], torch.eye(4)[:1])
    return ConceptDirections("paper", {"tokens": d}, None, method="imported")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SafeRegion([]), "at least one concept"),
        (lambda: SafeRegion(concepts(1, 4)[0], mode="block"), "mode must be one of project, steer, erase"),
        (lambda: SafeRegion([steering_only()]), "can only steer"),
        (lambda: SafeRegion([steering_only()], mode="erase"), "can only steer"),
        (lambda: SafeRegion(concepts(65, 4)[0]), "at most 64"),
        (lambda: SafeRegion([*concepts(1, 4)[0], *concepts(1, 5)[0]]), "encoder with tokens of width 4"),
        (lambda: SafeRegion([*concepts(1, 5)[0], steering_only()], mode="steer"), "disagree on the width"),
        (
            lambda: SafeRegion(
                [
                    ConceptDirections(
                        "gender",
                        {"tokens": direction(torch.ones(4).double(), metric(4, 0))},
                        fingerprint(tokens=4),
                        kind="balance",
                    )
                ]
            ),
            "axis to balance",
        ),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(build, says: str) -> None:
    with pytest.raises(SafeRegionError) as caught:
        build()
    assert says in str(caught.value)


def test_one_concept_more_does_not_weaken_another() -> None:
    parts, s = concepts(6, WIDTH, 8, "near")
    c = Conditioning(tokens(s, 2, 7, 8, 3.0))
    out = SafeRegion(parts).apply(c)[0]
    for part in parts:
        assert bool((SafeRegion([part]).score(out) <= 0).all())
