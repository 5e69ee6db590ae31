"""The sentence space: a prompt whose tokens are all inside, and which is outside as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, concept, direction, fingerprint, fire, metric, same_bits, tokens
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from saferegion import ConceptDirections, Conditioning, Direction, SafeRegion, Space, load_directions
from saferegion.core.errors import ConditioningError, SafeRegionError
from saferegion.learn.compile import PENALTY, discriminant

WIDTH = 6
COVARIANCE = metric(WIDTH, 3)
NORMAL = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def sentence(token_threshold: float = 4.0, threshold: float = 1.0) -> ConceptDirections:
    """Tokens are outside beyond 4 benign deviations, their mean beyond 1."""
    return concept(
        "fire",
        encoder=fingerprint(tokens=WIDTH),
        tokens=direction(NORMAL, COVARIANCE, token_threshold),
        tokens_mean=direction(NORMAL, COVARIANCE, threshold),
    )


def shifted(batch: int, length: int, by: float, seed: int = 0) -> torch.Tensor:
    """Benign tokens, every one of them moved ``by`` deviations toward the concept."""
    d = direction(NORMAL, COVARIANCE)
    return tokens(COVARIANCE, batch, length, seed, scale=0.3) + by * d.shift[0]


def test_a_prompt_that_says_it_nowhere_and_everywhere_is_moved_as_a_whole() -> None:
    region = SafeRegion([sentence()])
    c = Conditioning(shifted(2, 20, 2.0))
    after, report = region.apply(c)
    assert report.moved_prompts() == [True, True] and (region.score(c) > 0).all()
    assert (region.score(after) <= 0).all()
    step = (after.tokens - c.tokens)[0]
    assert torch.allclose(step, step[:1].expand_as(step), atol=1e-5)  # all tokens alike: what tells them apart stays
    whole = next(f for f in report.findings if f.space == "tokens_mean")
    assert whole.before > 0.5 and whole.after <= 0
    part = next(f for f in report.findings if f.space == "tokens")
    assert part.tokens == () and part.after < part.before
    assert "(the prompt as a whole)" in report.text()


def test_prompts_that_are_inside_keep_every_bit_beside_one_that_is_not() -> None:
    region = SafeRegion([sentence()])
    both = torch.cat([shifted(1, 20, 2.0), shifted(1, 20, 0.0)])
    after, report = region.apply(Conditioning(both))
    assert report.moved_prompts() == [True, False]
    assert same_bits(after.tokens[1], both[1]) and same_bits(region.project(both)[1], both[1])
    inside = Conditioning(both[1:])
    assert region.apply(inside)[0] is inside


@given(
    seed=st.integers(0, 2**16),
    by=st.floats(-1, 6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    strength=st.sampled_from([1.0, 2.0]),
)
def test_what_comes_out_is_inside_and_stays_so(seed: int, by: float, dtype: torch.dtype, strength: float) -> None:
    region = SafeRegion([sentence()], strength)
    movable = torch.ones(2, 12, dtype=torch.bool)
    movable[:, 0] = False
    c = Conditioning(shifted(2, 12, by, seed).to(dtype), movable)
    after, _ = region.apply(c)
    assert after.tokens.dtype == dtype and same_bits(after.tokens[:, 0], c.tokens[:, 0])
    assert (region.score(after) <= 0).all()
    again, report = region.apply(after)
    assert again is after and not report.moved
    inside_a_graph = region.project(c.tokens, movable)
    assert torch.allclose(inside_a_graph.float(), after.tokens.float(), atol=2e-2 if dtype != torch.float32 else 1e-4)


def test_padding_of_a_batch_does_not_count() -> None:
    region = SafeRegion([sentence()])
    alone = shifted(1, 10, 2.0)
    padded = torch.cat([alone, torch.zeros(1, 30, WIDTH)], 1)
    movable = torch.arange(40).expand(1, -1) < 10
    after = region.apply(Conditioning(padded, movable))[0].tokens
    assert torch.allclose(after[:, :10], region.apply(Conditioning(alone))[0].tokens, atol=1e-5)
    assert not after[:, 10:].any()


def test_a_token_outside_and_the_whole_outside_are_both_seen_to() -> None:
    region = SafeRegion([sentence()])
    x = shifted(1, 20, 2.0)
    x[0, 5] += 5 * direction(NORMAL, COVARIANCE).shift[0]
    after, report = region.apply(Conditioning(x))
    assert (region.score(after) <= 0).all() and report.moved
    part = next(f for f in report.findings if f.space == "tokens")
    assert 5 in part.tokens and part.before > 2  # told as the prompt came


def test_spaces_side_by_side_have_sentences_of_their_own() -> None:
    d = direction(NORMAL, COVARIANCE, 4.0)
    m = direction(NORMAL, COVARIANCE, 1.0)
    directions = concept("fire", encoder=fingerprint(clip=WIDTH, t5=WIDTH), clip=d, clip_mean=m, t5=d, t5_mean=m)
    region = SafeRegion([directions])
    spaces = (Space("clip", slice(0, 8)), Space("t5", slice(8, None)))
    c = Conditioning(torch.cat([shifted(1, 8, 2.0), shifted(1, 8, 0.0, 1)], 1), spaces=spaces)
    after, report = region.apply(c)
    assert {r.space for r in report.spaces} == {"clip", "t5", "clip_mean", "t5_mean"}
    assert not same_bits(after.tokens[:, :8], c.tokens[:, :8]) and same_bits(after.tokens[:, 8:], c.tokens[:, 8:])
    assert torch.allclose(region.project(c.tokens, None, spaces), after.tokens, atol=1e-5)


@pytest.mark.parametrize("mode", ["steer", "erase"])
def test_modes_that_move_every_token_anyway_look_at_tokens_only(mode: str) -> None:
    c = Conditioning(shifted(1, 20, 2.0))
    with_it, without = sentence(), concept("fire", tokens=sentence().spaces["tokens"])
    assert same_bits(
        SafeRegion([with_it], mode=mode).apply(c)[0].tokens, SafeRegion([without], mode=mode).apply(c)[0].tokens
    )


def test_concepts_with_and_without_a_sentence_space_go_together() -> None:
    both = SafeRegion([sentence(), concept("frost", tokens=direction(-NORMAL, COVARIANCE, 4.0))])
    c = Conditioning(shifted(1, 20, 2.0))
    assert both.apply(c)[1].moved and (both.score(both.apply(c)[0]) <= 0).all()


def test_no_space_of_a_conditioning_may_be_called_like_a_sentence_space() -> None:
    with pytest.raises(ConditioningError, match="without '_mean'"):
        Conditioning(torch.zeros(1, 4, 3), spaces=(Space("tokens_mean"),))


def test_compiled_directions_have_one_and_keep_it_in_the_file(on_fire: ConceptDirections, tmp_path: Path) -> None:
    assert set(on_fire.spaces) == {"tokens", "tokens_mean", "pooled"}
    kept = load_directions(on_fire.save(tmp_path / "fire.safetensors"))
    encode = FakeEncoder()
    c = encode(["a burning house in a field", "a quiet house in a field"])
    ours, theirs = SafeRegion([on_fire]).apply(c)[0], SafeRegion([kept]).apply(c)[0]
    assert same_bits(ours.tokens, theirs.tokens) and SafeRegion([kept]).apply(c)[1].moved_prompts() == [True, False]
    assert on_fire.calibration["tokens_mean.area"] > 0.9 and fire().name == on_fire.concept


def test_the_discriminant_is_the_optimum_of_the_penalised_likelihood() -> None:
    gen = torch.Generator().manual_seed(0)
    unsafe = torch.randn(40, 5, generator=gen) + torch.tensor([1.0, 0.0, -0.5, 0.0, 0.0])
    benign = torch.randn(90, 5, generator=gen) * torch.tensor([1.0, 3.0, 0.1, 1.0, 1.0])
    x = torch.cat([unsafe, benign]).double().numpy()
    scale = x.std(0, ddof=1)
    z = np.c_[(x - x.mean(0)) / scale, np.ones(len(x))]
    y, w = np.r_[np.ones(40), np.zeros(90)], np.r_[np.full(40, 0.5 / 40), np.full(90, 0.5 / 90)]
    size = np.r_[np.full(5, PENALTY), 1e-6]

    def loss(b: np.ndarray) -> float:
        m = z @ b
        return float(w @ (np.logaddexp(0, m) - y * m) + 0.5 * size @ b**2)

    best = minimize(loss, np.zeros(6), tol=1e-12).x
    assert np.allclose(discriminant(unsafe, benign).numpy() * scale, best[:5], atol=2e-3)


def test_the_empty_prompt_is_inside_as_a_whole_too(on_fire: ConceptDirections) -> None:
    c = FakeEncoder()([""])
    region = SafeRegion([on_fire])
    assert region.apply(c)[0] is c and float(region.score(c).max()) <= -0.2


# -- words and whole together -----------------------------------------------------------------------------------------


def summed(together: float) -> ConceptDirections:
    """Neither a token (4) nor the whole (2.5) is outside easily; their sum may be."""
    whole = replace(direction(NORMAL, COVARIANCE, 2.5), together=torch.tensor([together]))
    return concept(
        "fire",
        encoder=fingerprint(tokens=WIDTH),
        tokens=direction(NORMAL, COVARIANCE, 4.0),
        tokens_mean=replace(whole, inner=whole.mean),
    )


def leaning(strongest: float, whole: float) -> Conditioning:
    """Two prompts of four tokens, scores made to measure: one leans to the concept, one is plain."""
    u = direction(NORMAL, COVARIANCE).shift[0]
    rest = (4 * whole - strongest) / 3
    return Conditioning(torch.stack([torch.tensor([strongest, rest, rest, rest]), torch.zeros(4)]).unsqueeze(-1) * u)


@pytest.mark.parametrize("device_free", [True, False])
def test_a_prompt_that_leans_to_it_in_words_and_whole_is_outside_where_they_sum_to_enough(device_free: bool) -> None:
    c, region = leaning(3.0, 1.5), SafeRegion([summed(4.0)])
    assert not SafeRegion([summed(5.0)]).apply(c)[1].moved, "3.0 + 1.5 is not more than 5"
    assert float(region.score(c)[0]) == pytest.approx(0.5, abs=1e-4) and float(region.score(c)[1]) < 0
    if device_free:
        after = region.project(c.tokens)
    else:
        guarded, report = region.apply(c)
        after = guarded.tokens
        assert report.moved_prompts() == [True, False] and "(the prompt as a whole)" in report.text()
    assert same_bits(after[1], c.tokens[1]) and not same_bits(after[0], c.tokens[0])
    moved = Conditioning(after)
    assert float(region.score(moved)[0]) <= 0
    assert same_bits(region.project(after), after) and region.apply(moved)[0] is moved


def test_a_prompt_whose_whole_says_less_than_benign_ones_is_left_to_its_tokens() -> None:
    region = SafeRegion([summed(2.0)])
    c = leaning(3.5, -0.1)
    assert not region.apply(c)[1].moved and same_bits(region.project(c.tokens), c.tokens)


def test_strength_reaches_as_far_where_only_the_sum_is_outside() -> None:
    c = leaning(3.0, 1.5)
    once, twice = (SafeRegion([summed(4.0)], s).apply(c)[0].tokens[0].mean(0) for s in (1.0, 2.0))
    v = direction(NORMAL, COVARIANCE).normal[0]
    assert float(once @ v) == pytest.approx(0.0, abs=1e-3) and float(twice @ v) == pytest.approx(-2.5, abs=1e-3)


def test_compiled_directions_sum_words_and_whole(on_fire: ConceptDirections, tmp_path: Path) -> None:
    known = load_directions(on_fire.save(tmp_path / "fire.safetensors"))
    kept, made = (d.spaces["tokens_mean"].together for d in (known, on_fire))
    assert kept is not None and made is not None and same_bits(kept, made)
    assert on_fire.spaces["tokens"].together is None
    with pytest.raises(SafeRegionError, match="together must be"):
        replace(on_fire.spaces["tokens_mean"], together=torch.zeros(2))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("device_free", [True, False])
def test_half_spaces_of_words_and_whole_belong_together_one_with_one(beside: bool, device_free: bool) -> None:
    eye, ones = torch.eye(WIDTH), torch.ones(2, 1)
    words = Direction(eye[:2], eye[:2], 1e6 * ones, 0 * ones, ones / 32, torch.ones(2))  # no border of their own
    whole = Direction(
        eye[[2, 2]], eye[[2, 2]], 50 * ones, 0 * ones, ones, torch.ones(2),
        inner=torch.tensor([[-1.0], [-3.0]]), together=torch.tensor([64.0, 64.0]),
    )  # fmt: skip
    found = concept("fire-discovered", encoder=fingerprint(tokens=WIDTH), tokens=words, tokens_mean=whole)
    other = concept("frost", encoder=fingerprint(tokens=WIDTH), tokens=direction(NORMAL, COVARIANCE, 1e4))
    region = SafeRegion([other, found] if beside else [found])
    tokens = torch.zeros(4, 5, WIDTH)
    tokens[0, 1, 0], tokens[1, 2, 1], tokens[2, 3, :2] = 3.0, 3.0, 1.9
    c = Conditioning(tokens)
    after = region.project(tokens) if device_free else region.apply(c)[0].tokens
    expected = tokens.clone()
    expected[0, :, 2], expected[1, :, 2] = -1.0, -3.0
    assert torch.allclose(after, expected, atol=1e-3) and same_bits(after[2:], tokens[2:])
    assert region.apply(Conditioning(after))[0].tokens is after and same_bits(region.project(after), after)
    assert (region.score(c)[:, region.names.index("fire-discovered")] > 0).tolist() == [True, True, False, False]
    deeper = SafeRegion(region.directions, {"fire-discovered": 2.0}).apply(c)[0].tokens
    assert float(deeper[0, 1, 0]) == 3.0 and float(deeper[0, 1, 2]) == pytest.approx(-51.0, abs=0.1)


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("device_free", [True, False])
def test_a_strength_below_one_goes_that_part_of_the_way_once(strength: float, device_free: bool) -> None:
    found = sentence(4.0, 3.0)
    spaces = {n: replace(d, inner=d.mean) for n, d in found.spaces.items()}
    region = SafeRegion([replace(found, spaces=spaces)], strength)
    c = Conditioning(shifted(1, 20, 10.0))
    after = region.project(c.tokens) if device_free else region.apply(c)[0].tokens
    v = direction(NORMAL, COVARIANCE).normal[0]
    assert torch.allclose((after @ v).mean(), (1 - strength) * (c.tokens @ v).mean(), atol=0.1)
    assert ((after @ v) <= (1 - strength) * (c.tokens @ v).clamp_min(0) + 0.02 + 0.5 * (1 - strength)).all()


@pytest.mark.parametrize("device_free", [True, False])
def test_a_border_that_nothing_reaches_changes_nothing_for_the_others(device_free: bool) -> None:
    far = replace(
        direction(-NORMAL, COVARIANCE, 1e6),
        normal=-100 * direction(NORMAL, COVARIANCE).normal,
        shift=-direction(NORMAL, COVARIANCE).shift / 100,
    )
    u = torch.linalg.solve(COVARIANCE, torch.randn(WIDTH, generator=torch.Generator().manual_seed(8)).double())
    other = concept("frost", encoder=fingerprint(tokens=WIDTH), tokens=direction(u, COVARIANCE, 1.0))
    unreached = concept("never", encoder=fingerprint(tokens=WIDTH), tokens=far)
    c = Conditioning(shifted(3, 20, 1.0, seed=4).to(torch.bfloat16) * 1.3)
    alone, both = SafeRegion([sentence(1.0), other]), SafeRegion([sentence(1.0), other, unreached])
    if device_free:
        one, two = (r.project(c.tokens) for r in (alone, both))
    else:
        one, two = (r.apply(c)[0].tokens for r in (alone, both))
    assert not same_bits(one, c.tokens) and same_bits(one, two)


@pytest.mark.parametrize("beside", [0.5, 1.0])
def test_concepts_that_contradict_each_other_are_refused_whatever_the_strength_of_a_third(beside: float) -> None:
    gen = torch.Generator().manual_seed(1)
    other = torch.randn(WIDTH, generator=gen, dtype=torch.float64)
    made = [
        concept(name, encoder=fingerprint(tokens=WIDTH), tokens=replace(d, inner=d.mean))
        for name, d in (
            ("a", direction(NORMAL, COVARIANCE, 2.0)),
            ("b", direction(-NORMAL, COVARIANCE, 2.0)),
            ("c", direction(other, COVARIANCE, 3.0)),
        )
    ]
    u = direction(NORMAL, COVARIANCE).shift[0]
    c = Conditioning(torch.stack([6.0 * u, -6.0 * u, 0.5 * u]).unsqueeze(0))
    with pytest.raises(ConditioningError, match="contradict each other"):
        SafeRegion(made, {"a": 2.0, "b": 2.0, "c": beside}).apply(c)
