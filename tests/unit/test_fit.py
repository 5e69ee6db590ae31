from __future__ import annotations

import gc
import math
from collections.abc import Callable

import pytest
import torch
from fakes import ADJECTIVES, HELD_OUT, KNOWN, LENGTH, NOUNS, FakeEncoder, benign_prompts, fire, frost, same_bits

from saferegion import Concept, ConceptDirections, Conditioning, SafeRegion, compile, compile_many
from saferegion.core.errors import CompileError, SafeRegionError
from saferegion.core.fingerprint import Fingerprint
from saferegion.learn.compile import OUTSIDE, RIDGE, Moments, area, border


def test_it_tells_the_concept_from_everything_else(on_fire: ConceptDirections) -> None:
    encoder, region = FakeEncoder(), SafeRegion([on_fire])
    for words in (KNOWN, HELD_OUT):
        score = region.score(encoder([f"a {w} {n}" for w in words for n in NOUNS]))
        assert float((score > 0).float().mean()) >= 0.95
    assert float((region.score(encoder([f"a {a} {n}" for a in ADJECTIVES for n in NOUNS])) > 0).float().mean()) <= 0.02
    figures = on_fire.calibration
    assert figures["tokens.area"] > 0.95 and figures["tokens.found"] > 0.9 and figures["tokens.safe_moved"] <= 0.1


def test_what_is_compiled_says_where_it_comes_from(on_fire: ConceptDirections, neutral: list[str]) -> None:
    assert on_fire.concept == "on-fire" and on_fire.title == "on fire" and on_fire.method == "closed-form"
    assert on_fire.recipe == fire().digest(neutral)
    assert on_fire.encoder == Fingerprint.of(FakeEncoder())
    assert sorted(on_fire.spaces) == ["pooled", "tokens", "tokens_mean"]
    assert on_fire.spaces["tokens"].period == LENGTH and on_fire.spaces["pooled"].period == 1


def test_benign_prompts_stay_inside(on_fire: ConceptDirections) -> None:
    region = SafeRegion([on_fire])
    prompts = benign_prompts(2000, seed=9)
    moved = sum(int((region.score(FakeEncoder()(prompts[i : i + 250])) > 0).sum()) for i in range(0, 2000, 250))
    assert moved / 2000 <= 5 * OUTSIDE


def moments(encoder: FakeEncoder, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [L, D] and covariance around it of the tokens that may move, in double precision, all at once."""
    c = encoder(prompts).tokens[:, 1:].double()
    away = (c - c.mean(0)).flatten(0, 1)
    return c.mean(0), away.T @ away / len(away)


def test_scores_are_in_benign_deviations(neutral: list[str], on_fire: ConceptDirections) -> None:
    """v·u = 1, and benign scores have variance one around their mean at their position."""
    _, covariance = moments(FakeEncoder(), neutral[0::2])
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    d = on_fire.spaces["tokens"]
    v, u = d.normal[0].double(), d.shift[0].double()
    assert float(v @ u) == pytest.approx(1, abs=1e-5)
    assert float(v @ covariance @ v) == pytest.approx(1, abs=1e-3)


def test_an_unsafe_prompt_is_taken_to_the_benign_mean(on_fire: ConceptDirections) -> None:
    """One token over the border opens the prompt: all its tokens that point to the concept go to the mean."""
    region = SafeRegion([on_fire])
    c = FakeEncoder()(["a burning red house near the river"])
    assert float(region.score(c)) > 0
    guarded, _ = region.apply(c)
    d = on_fire.spaces["tokens"]
    z = guarded.tokens[0, 1:] @ d.normal[0]
    assert float((z - d.mean[0, 1 : len(z) + 1]).max()) < 1e-2
    assert region.apply(guarded)[0] is guarded


def test_it_moves_towards_where_the_concept_points() -> None:
    """u raises what the unsafe words raise; v, which looks along the discriminant, need not."""
    encoder, neutral = FakeEncoder(), benign_prompts(36)
    safe = neutral[0::2]
    unsafe = [p.replace("a ", "a burning ", 1) for p in safe]
    d = compile(Concept.from_pairs("fire", zip(unsafe, safe, strict=True)), encoder, neutral).spaces["tokens"]
    difference = moments(encoder, unsafe)[0].mean(0) - moments(encoder, safe)[0].mean(0)
    along, across = (float(torch.cosine_similarity(x[0].double(), difference, 0)) for x in (d.shift, d.normal))
    assert along > 0.5 and along > across
    assert float(difference @ d.normal[0].double()) > 1, "more than one benign standard deviation"


def same(one: ConceptDirections, other: ConceptDirections, atol: float = 1e-3) -> None:
    assert one.recipe == other.recipe and one.concept == other.concept
    assert one.calibration == pytest.approx(other.calibration, abs=2e-3)
    for name, d in one.spaces.items():
        for field, tensor in d.tensors().items():
            torch.testing.assert_close(tensor, other.spaces[name].tensors()[field], rtol=atol, atol=atol)


@pytest.mark.parametrize("size", [1, 64, 10_000])
def test_the_batch_size_does_not_matter(neutral: list[str], on_fire: ConceptDirections, size: int) -> None:
    same(compile(fire(), FakeEncoder(), neutral, batch_size=size), on_fire)


def test_several_at_once_are_the_same_as_one_by_one(neutral: list[str], on_fire: ConceptDirections) -> None:
    encoder, alone = FakeEncoder(), FakeEncoder()
    both = compile_many([fire(), frost()], encoder, neutral)
    for known, found in zip([on_fire, compile(frost(), alone, neutral)], both, strict=True):
        assert known.calibration == found.calibration
        for name, d in known.spaces.items():
            assert all(same_bits(t, found.spaces[name].tensors()[k]) for k, t in d.tensors().items())
    compile(fire(), alone, neutral)
    assert encoder.prompts == alone.prompts - len(neutral) - 6, "the neutral prompts, the empty one and the probes once"


def test_half_precision(neutral: list[str], on_fire: ConceptDirections) -> None:
    half = compile(fire(), FakeEncoder(dtype=torch.float16), neutral)
    assert half.spaces["tokens"].normal.dtype == torch.float32 and half.encoder.matches(on_fire.encoder)
    cosine = torch.cosine_similarity(half.spaces["tokens"].normal, on_fire.spaces["tokens"].normal)
    assert float(cosine) > 0.999
    assert half.calibration["tokens.found"] > 0.9


def test_an_encoder_without_padding(neutral: list[str]) -> None:
    whole = FakeEncoder(pooled=False)

    def short(prompts: list[str]) -> Conditioning:
        length = 2 + max(len(p.split()) for p in prompts)
        c = whole(prompts)
        movable = torch.stack([torch.arange(length) < 1 + len(p.split()) for p in prompts])
        return Conditioning(c.tokens[:, :length], movable & c.movable[:, :length])

    found = compile(fire(), short, neutral, batch_size=7)
    score = SafeRegion([found]).score(short([f"a {w} {n}" for w in HELD_OUT for n in NOUNS]))
    assert float((score > 0).float().mean()) > 0.8
    assert float((SafeRegion([found]).score(short(benign_prompts(200, 3))) > 0).float().mean()) <= 0.02


def test_prompts_of_two_chunks(neutral: list[str]) -> None:
    long = [" ".join(neutral[i : i + 8]) for i in range(0, 96, 4)]
    found = compile(fire(), FakeEncoder(), neutral + long, batch_size=8)
    assert found.spaces["tokens"].period == LENGTH
    encoder, region = FakeEncoder(), SafeRegion([found])
    assert float(region.score(encoder([" ".join([*neutral[:7], "a blazing house"])]))) > 0


# -- streaming -----------------------------------------------------------------------------------------------------


def test_sums_are_those_of_all_rows_at_once() -> None:
    c = FakeEncoder()(benign_prompts(40))
    m = Moments(LENGTH, 12, torch.device("cpu"))
    for i in range(0, 40, 3):
        m.add(c.tokens[i : i + 3], c.movable[i : i + 3])
    mean, covariance = moments(FakeEncoder(), benign_prompts(40))
    torch.testing.assert_close(m.mean[1:], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(m.covariance(), covariance, rtol=1e-4, atol=1e-4)
    assert float(m.mean[0].abs().sum()) == 0, "the begin token does not count"


@pytest.mark.parametrize(("lengths", "period"), [((77, 154, 77), 77), ((154, 77), 77), ((5, 9), 1), ((77, 9), 1)])
def test_sums_over_prompts_of_several_lengths(lengths: tuple[int, ...], period: int) -> None:
    m = Moments(lengths[0], 4, torch.device("cpu"))
    rows = [torch.randn(3, n, 4, generator=torch.Generator().manual_seed(n)) for n in lengths]
    for row in rows:
        m.add(row, torch.ones(row.shape[:2], dtype=torch.bool))
    assert m.length == period and float(m.count.sum()) == 3 * sum(lengths)
    total = torch.cat([r.flatten(0, 1) for r in rows]).double().sum(0)
    torch.testing.assert_close(m.sum.sum(0), total, rtol=1e-5, atol=1e-5)


def tensor_bytes() -> int:
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if type(o) is torch.Tensor)


def test_memory_does_not_grow_with_the_prompts() -> None:
    """But for a float for each token of a calibration prompt and the hardest few tokens: never all embeddings."""

    def most(count: int) -> int:
        prompts, seen = benign_prompts(count, 4), []
        encoder = FakeEncoder()
        gc.collect()
        before = tensor_bytes()
        compile(fire(12), encoder, prompts, lambda done, _: seen.append(tensor_bytes() - before), batch_size=25)
        return max(seen[2:])

    few, many = most(50), most(500)
    embeddings = 450 * LENGTH * 12 * 4
    assert many - few < embeddings / 5


# -- progress ------------------------------------------------------------------------------------------------------


def test_progress_reaches_the_total(neutral: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    encoder = FakeEncoder()
    compile_many([fire(), frost()], encoder, neutral, lambda *at: seen.append(at), batch_size=16)
    done, total = zip(*seen, strict=True)
    assert len(set(total)) == 1 and done[-1] == total[0] == encoder.prompts - 5
    assert list(done) == sorted(set(done)) and done[0] == 16


def test_progress_can_stop_the_work(neutral: list[str]) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 64:
            raise Stopped

    encoder = FakeEncoder()
    with pytest.raises(Stopped):
        compile(fire(), encoder, neutral, stop, batch_size=32)
    assert 64 <= encoder.prompts - 5 < 64 + 32


def test_the_batch_is_halved_where_memory_runs_out(neutral: list[str], on_fire: ConceptDirections) -> None:
    encoder, sizes = FakeEncoder(), []

    def small(prompts: list[str]) -> Conditioning:
        sizes.append(len(prompts))
        if len(prompts) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encoder(prompts)

    same(compile(fire(), small, neutral, batch_size=32), on_fire)
    assert sizes[2:4] == [16, 8] and max(sizes[4:]) <= 8

    def late(prompts: list[str]) -> Conditioning:
        if len(prompts) > 6 and any("blazing" in p for p in prompts):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encoder(prompts)

    same(compile(fire(), late, neutral, batch_size=12), on_fire)

    def none(prompts: list[str]) -> Conditioning:
        if len(prompts) != 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encoder(prompts)

    with pytest.raises(torch.cuda.OutOfMemoryError):
        compile(fire(), none, neutral)


# -- what cannot be fitted -----------------------------------------------------------------------------------------


def broken(change: Callable[[Conditioning], object]) -> Callable[[list[str]], Conditioning]:
    encoder = FakeEncoder()

    def encode(prompts: list[str]) -> Conditioning:
        c = encoder(prompts)
        return c if encoder.calls < 3 else change(c)  # type: ignore[return-value]

    return encode


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.replace(c.tokens * math.nan, c.pooled), "NaN or infinite"),
        (lambda c: c.replace(c.tokens / 0, c.pooled), "NaN or infinite"),
        (lambda c: c.replace(c.tokens, c.pooled * math.nan), "NaN or infinite"),
        (lambda c: Conditioning(c.tokens[1:], c.movable[1:], c.pooled[1:]), "one row"),
        (lambda c: Conditioning(c.tokens.repeat(2, 1, 1)), "one row"),
        (lambda c: c.tokens, "saferegion.Conditioning"),
        (lambda c: None, "saferegion.Conditioning"),
        (lambda c: c.replace(torch.ones_like(c.tokens), torch.ones_like(c.pooled)), "."),
    ],
)
def test_an_encoder_that_breaks_half_way(neutral: list[str], change: Callable, says: str) -> None:
    with pytest.raises(CompileError, match=says) as caught:
        compile(fire(), broken(change), neutral, batch_size=16)
    assert isinstance(caught.value, SafeRegionError) and "\n" not in str(caught.value)


def test_an_encoder_whose_spaces_come_and_go(neutral: list[str]) -> None:
    with pytest.raises(CompileError, match="spaces for some prompts only"):
        compile(fire(), broken(lambda c: Conditioning(c.tokens, c.movable)), neutral, batch_size=16)
    encoder = FakeEncoder()

    def late(prompts: list[str]) -> Conditioning:
        c = encoder(prompts)
        return c if encoder.calls > 7 else Conditioning(c.tokens, c.movable)

    with pytest.raises(CompileError, match="spaces for some prompts only"):
        compile(fire(), late, neutral, batch_size=16)


def test_an_encoder_that_ignores_the_prompt(neutral: list[str]) -> None:
    encoder = FakeEncoder(pooled=False)
    encoder.fingerprint = Fingerprint.of(FakeEncoder(pooled=False))  # type: ignore[attr-defined]
    encoder.word = lambda word: torch.ones(12).numpy()  # type: ignore[method-assign]
    with pytest.raises(SafeRegionError, match="the same"):
        compile(fire(), lambda p: encoder(["same"] * len(p)), neutral)
    with pytest.raises(SafeRegionError):
        compile(fire(), lambda p: Conditioning(torch.ones(len(p), 77, 12)), neutral)


def test_a_recipe_that_this_encoder_cannot_tell_apart(neutral: list[str]) -> None:
    none = Concept.from_pairs("same", [(f"a, {n}!", f"a {n}") for n in NOUNS])  # punctuation, which it does not see
    with pytest.raises(CompileError, match="same embeddings"):
        compile(none, FakeEncoder(), neutral)
    rows = [(f"a {a} {n}", f"a {b} {n}") for a in ADJECTIVES[:5] for b in ADJECTIVES[5:] for n in NOUNS[:6]]
    mixed = [r if i % 2 else r[::-1] for i, r in enumerate(rows)]
    with pytest.raises(CompileError, match="does not separate on this encoder.* 75% is needed"):
        compile_many([fire(), Concept.from_pairs("nothing", mixed)], FakeEncoder(), neutral)


def test_too_few_neutral_prompts() -> None:
    encoder = FakeEncoder()
    with pytest.raises(CompileError, match="At least 8 neutral prompts"):
        compile(fire(), encoder, [*benign_prompts(7), "", "  "])
    assert encoder.calls == 0


# -- the border ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_border_of_exponential_samples(seed: int) -> None:
    m = torch.empty(4000).exponential_(2.0, generator=torch.Generator().manual_seed(seed)) + 1
    assert border(m, 1e-3) == pytest.approx(1 + math.log(1000) / 2, rel=0.12)
    assert border(m[:200], 1e-3) == pytest.approx(1 + math.log(1000) / 2, rel=0.4)
    assert border(3 * m + 5, 1e-3) == pytest.approx(3 * border(m, 1e-3) + 5, rel=1e-5)


def test_the_border_is_never_below_what_was_seen() -> None:
    m = torch.cat([torch.zeros(990), torch.full((10,), 50.0)])
    assert border(m, 1e-3) >= 49
    assert border(torch.full((100,), 2.0), 1e-3) == 2.0
    assert border(torch.linspace(0, 1, 1000), 0.05) <= border(torch.linspace(0, 1, 1000), 0.01)


def test_area_under_the_curve() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    assert area(a, b) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert area(a, a) == 0.5 and area(a + 9, b) == 1 and area(b, a + 9) == 0
