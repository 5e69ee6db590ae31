from __future__ import annotations

import base64
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fakes import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

from saferegion import Conditioning, Fingerprint, SafeRegionError, Space
from saferegion.core.errors import EncoderMismatchError
from saferegion.core.fingerprint import PROBES, TOLERANCE, fingerprint_of


@pytest.fixture(scope="module")
def known() -> Fingerprint:
    return Fingerprint.of(FakeEncoder())


def changed(f: Callable[[Conditioning], Conditioning], encoder: FakeEncoder | None = None) -> Fingerprint:
    encoder = encoder or FakeEncoder()
    return Fingerprint.of(lambda prompts: f(encoder(prompts)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_does_not_matter(known: Fingerprint, dtype: torch.dtype) -> None:
    other = Fingerprint.of(FakeEncoder(dtype=dtype))
    assert known.distance(other) < 0.01 and known.matches(other) and other.matches(known)
    known.require(other, "x")


def test_noise_as_of_eight_bit_weights_does_not_matter(known: Fingerprint) -> None:
    gen = torch.manual_seed(0)
    noisy = changed(lambda c: c.replace(c.tokens * (1 + 0.02 * torch.randn(c.tokens.shape, generator=gen)), c.pooled))
    assert 0 < known.distance(noisy) < TOLERANCE


@pytest.mark.parametrize(("noise", "one"), [(0.05, True), (0.3, False), (0.6, False), (0.9, False)])
def test_what_changes_more_than_eight_bit_weights_do_is_another_encoder(
    known: Fingerprint, noise: float, one: bool
) -> None:
    """As measured on a real encoder: fp8 weights .05 to .1; fine-tuned for five steps .107, for twenty .24; one layer
    of six begun anew .26 to .86; three-bit weights .36 to .68, which therefore are another encoder, too."""

    def off(c: Conditioning) -> Conditioning:
        """Every prompt differs from the empty one by ``noise`` of the difference more, in directions of no meaning."""
        gen = torch.Generator().manual_seed(1)
        tokens, pooled = c.tokens.clone(), c.pooled.clone()
        for i in range(1, len(tokens)):
            mean = (tokens[i, 1:] - tokens[0, 1:]).mean(0)
            way = torch.randn(len(mean), generator=gen)
            tokens[i] += noise * mean.norm() * way / way.norm()
            way, apart = torch.randn(len(mean), generator=gen), pooled[i] - pooled[0]
            pooled[i] += noise * apart.norm() * way / way.norm()
        return c.replace(tokens, pooled)

    other = changed(off)
    assert known.distance(other) == pytest.approx(noise, rel=0.8)
    assert known.matches(other) is one
    assert 0.099 < TOLERANCE < 0.107


def test_how_prompts_are_batched_does_not_matter(known: Fingerprint) -> None:
    encoder = FakeEncoder()

    def one_by_one(prompts: list[str]) -> Conditioning:
        rows = [encoder([p]) for p in prompts]
        return Conditioning(
            torch.cat([r.tokens for r in rows]),
            torch.cat([r.movable for r in rows]),
            torch.cat([r.pooled for r in rows]),
        )

    assert known.distance(Fingerprint.of(one_by_one)) < 1e-6
    assert known == Fingerprint.of(FakeEncoder())


@pytest.mark.parametrize("seed", range(1, 9))
def test_another_encoder_is_refused(known: Fingerprint, seed: int) -> None:
    other = Fingerprint.of(FakeEncoder(seed=seed))
    assert not known.matches(other)
    with pytest.raises(EncoderMismatchError) as caught:
        known.require(other, "'fire'")
    text = str(caught.value)
    assert text.startswith("'fire' is made for another text encoder") and text.endswith("for this encoder.")
    assert f"{known.distance(other):.2f}" in text


def test_another_width_is_refused(known: Fingerprint) -> None:
    other = Fingerprint.of(FakeEncoder(width=13))
    assert known.distance(other) == math.inf
    with pytest.raises(EncoderMismatchError, match="tokens of width 12 and pooled of width 12, .* width 13"):
        known.require(other, "'fire'")
    assert known.distance(Fingerprint.of(FakeEncoder(pooled=False))) == math.inf


def test_each_space_counts(known: Fingerprint) -> None:
    """Another pooled projection behind the same tokens is another encoder."""
    assert not known.matches(changed(lambda c: c.replace(c.tokens, -c.pooled)))
    assert not known.matches(changed(lambda c: c.replace(-c.tokens, c.pooled)))


def test_spaces_side_by_side() -> None:
    clip = FakeEncoder(pooled=False)

    def both(prompts: list[str]) -> Conditioning:
        c = clip(prompts)
        spaces = (Space("clip", slice(0, 77)), Space("t5", slice(77, None)))
        return Conditioning(torch.cat([c.tokens, 2 * c.tokens], 1), torch.cat([c.movable] * 2, 1), None, spaces)

    found = Fingerprint.of(both)
    assert found.widths == (("clip", 12), ("t5", 12))
    a, b = np.split(np.asarray(found.sketch), 2)
    np.testing.assert_allclose(a, b, atol=1e-6)  # a sketch does not depend on the scale
    assert Fingerprint.parse(str(found)).matches(found)


@given(st.integers(0, 999), st.lists(st.integers(1, 8192), min_size=1, max_size=4))
def test_written_and_read_back(seed: int, widths: list[int]) -> None:
    names = ("clip_l", "clip_g", "t5", "pooled")
    sketch = np.random.Generator(np.random.PCG64(seed)).uniform(-1, 1, 32 * len(widths))
    given_ = Fingerprint(tuple(zip(names, widths, strict=False)), tuple(sketch.tolist()))
    read = Fingerprint.parse(str(given_))
    assert read.widths == given_.widths and read.distance(given_) < 0.01
    assert str(read) == str(given_) and Fingerprint.parse(str(read)) == read


def encoded(values: list[float], widths: str = "tokens=12") -> str:
    return f"fp1:{widths}:{base64.urlsafe_b64encode(np.asarray(values, dtype='<f2').tobytes()).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fp1",
        "fp1::",
        "fp2:tokens=12:AAAA",
        "fp1:tokens=12:",
        "fp1:tokens:AAAA",
        "fp1:tokens=-1:AAAA",
        "fp1:Tokens=12:AAAA",
        "fp1:tokens=12:A",
        "fp1:tokens=12:AAA=A",
        "fp1:tokens=12:????",
        "fp1:tokens=12:AAAA\n",
        "fp1:tokens=" + "9" * 5000 + ":AAAA",
        encoded([0.5] * 31),
        encoded([0.5] * 33),
        encoded([0.5] * 32, "tokens=12,pooled=4"),
        encoded([0.5] * 31 + [float("nan")]),
        encoded([float("inf")] * 32),
    ],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(SafeRegionError, match="not an encoder fingerprint") as caught:
        Fingerprint.parse(text)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
    assert str(Fingerprint.parse(encoded([0.5] * 32))) == encoded([0.5] * 32)


@given(st.text(max_size=80))
def test_no_text_raises_anything_else(text: str) -> None:
    for candidate in (text, f"fp1:tokens=4:{text}"):
        with pytest.raises(SafeRegionError):
            Fingerprint.parse(candidate)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.replace(c.tokens * math.nan, c.pooled), "non-finite embeddings .* 'tokens'"),
        (lambda c: c.replace(c.tokens, c.pooled / 0), "non-finite embeddings .* 'pooled'"),
        (lambda c: c.replace(torch.ones_like(c.tokens), c.pooled), "the same or .* 'tokens'"),
        (lambda c: c.replace(c.tokens, 0 * c.pooled), "the same or .* 'pooled'"),
        (lambda c: Conditioning(c.tokens[:4]), "4 rows for 5 prompts"),
    ],
)
def test_an_encoder_that_does_not_work(change: Callable[[Conditioning], Conditioning], says: str) -> None:
    with pytest.raises(SafeRegionError, match=says):
        changed(change)


def test_an_encoder_may_carry_its_fingerprint(known: Fingerprint) -> None:
    encoder = FakeEncoder()
    encoder.fingerprint = known  # type: ignore[attr-defined]
    assert fingerprint_of(encoder) is known
    encoder.fingerprint = lambda: known  # type: ignore[attr-defined]
    assert fingerprint_of(encoder) is known and encoder.calls == 0
    encoder.fingerprint = "unknown"  # type: ignore[attr-defined]
    assert fingerprint_of(encoder) == known and (encoder.calls, encoder.prompts) == (1, len(PROBES))
