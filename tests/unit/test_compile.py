"""Compiling: each text once, what is found and what is spared, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ADJECTIVES, LENGTH, NOUNS, FakeEncoder, benign_prompts, fire, frost
from hypothesis import given
from hypothesis import strategies as st

from saferegion import CompileSettings, Concept, Conditioning, Direction, Library, SafeRegion, compile, compile_many
from saferegion.core.errors import CompileError, NotSeparableError
from saferegion.learn.bundled import neutral_prompts
from saferegion.learn.calibrate import BEYOND, CLEAR, NEAR, Scored, area, border, thresholds
from saferegion.learn.prompts import Plan, filling, neutral_halves

HELD_OUT = [f"a {word} {noun}" for word in ("blazing", "scorched") for noun in NOUNS]


class Counting(FakeEncoder):
    def __init__(self, **rest: object) -> None:
        super().__init__(**rest)  # type: ignore[arg-type]
        self.seen: Counter[str] = Counter()

    def __call__(self, prompts: list[str]) -> Conditioning:
        self.seen.update(prompts)
        return super().__call__(prompts)


def test_recipe_words_are_found_and_closed_and_benign_prompts_keep_every_bit(on_fire: Direction) -> None:
    encode, region = FakeEncoder(), SafeRegion([on_fire])
    unsafe, benign = encode([u for u, _ in fire().pairs]), encode(benign_prompts(200, seed=9))
    assert float((region.score(unsafe) > 0).float().mean()) > 0.95
    after, report = region.apply(unsafe)
    assert not report.unresolved and float(region.score(after).max()) <= 0
    same, quiet = region.apply(benign)
    assert sum(quiet.moved_prompts()) <= 2
    kept = ~torch.tensor(quiet.moved_prompts())
    assert torch.equal(same.tokens[kept], benign.tokens[kept])


def test_near_neighbours_of_the_concept_stay_inside(on_fire: Direction) -> None:
    c = FakeEncoder()([f"a {a} stove in a kitchen" for a in ADJECTIVES] + [s for _, s in fire().pairs])
    assert float((SafeRegion([on_fire]).score(c) > 0).float().mean()) <= 0.05


def test_each_distinct_text_is_encoded_once(neutral: list[str]) -> None:
    encode = Counting()
    compile_many([fire(), frost()], encode, neutral)
    assert encode.seen.most_common(1)[0][1] == 1 + (encode.seen.most_common(1)[0][0] == "")
    texts = {t for c in (fire(), frost()) for p in c.pairs for t in p} | set(fire().neutral) | set(neutral)
    assert texts <= set(encode.seen)


def test_all_bundled_concepts_cost_at_most_four_thousand_rows() -> None:
    library, settings = Library(), CompileSettings()
    names = [n for n in library.names() if library.find(n).kind == "exclude"]
    halves = neutral_halves(neutral_prompts(), settings)
    rows = {t for texts in (*halves, filling(halves[0])) for t in texts} | {""}
    for name in [*names, "age"]:
        rows |= set(Plan.of(library.find(name), settings).texts())
    assert len(rows) <= 4000


def test_the_file_says_what_each_set_of_terms_found(on_fire: Direction) -> None:
    figures = on_fire.meta.calibration
    assert {"found", "area"} <= set(figures) and any(k.endswith(".found") for k in figures)
    kept = {t.readout.reduce for t in on_fire.detector.terms}
    assert kept <= {"token", "pair", "mean", "pooled"} and on_fire.witness is not None
    assert {t.readout for t in on_fire.witness.terms} == {t.readout for t in on_fire.detector.terms}


def test_concepts_do_not_depend_on_what_is_compiled_beside_them(neutral: list[str], on_fire: Direction) -> None:
    both = compile_many([frost(), fire()], FakeEncoder(), neutral)
    for name, tensor in on_fire.tensors().items():
        assert torch.allclose(both[1].tensors()[name], tensor, rtol=1e-2, atol=1e-3), name


def test_what_is_kept_of_long_prompts_stays_in_the_budget(neutral: list[str]) -> None:
    few = compile(fire(), FakeEncoder(), neutral, settings=CompileSettings(keep=400 * 12 * 2 * 20))
    c = FakeEncoder()([u for u, _ in fire().pairs])
    assert float((SafeRegion([few]).score(c) > 0).float().mean()) > 0.9


def test_progress_is_told_and_can_stop(neutral: list[str]) -> None:
    told: list[tuple[int, int]] = []
    compile(fire(), FakeEncoder(), neutral, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and [d for d, _ in told] == sorted(d for d, _ in told)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile(fire(), FakeEncoder(), neutral, stop)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encoders_compile(neutral: list[str], dtype: torch.dtype) -> None:
    d = compile(fire(), FakeEncoder(dtype=dtype), neutral)
    c = FakeEncoder(dtype=dtype)([u for u, _ in fire().pairs])
    after, report = SafeRegion([d]).apply(c)
    assert after.tokens.dtype == dtype and report.moved and not report.unresolved


class Short(FakeEncoder):
    """Prompts of different lengths, without padding that may move."""

    def __call__(self, prompts: list[str]) -> Conditioning:
        c = super().__call__(prompts)
        longest = max(1 + max(len(p.split()) for p in prompts), 2)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for i, p in enumerate(prompts):
            mask[i, 1 : 1 + len(p.split())] = True
        return Conditioning(c.tokens[:, :longest], mask)


def test_encoders_without_padding_compile(neutral: list[str]) -> None:
    d = compile(fire(), Short(pooled=False), [*neutral, *(n.split(" and ")[0] for n in neutral)])
    assert d.rest["tokens"].shape[0] == 1, "positions carry nothing where lengths differ"
    c = Short(pooled=False)([u for u, _ in fire().pairs])
    assert float((SafeRegion([d]).score(c) > 0).float().mean()) > 0.9


class Broken(FakeEncoder):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __call__(self, prompts: list[str]) -> Conditioning:
        c = super().__call__(prompts)
        if len(prompts) <= 5:
            return c
        if self.how == "nan":
            return c.replace(c.tokens * float("nan"), c.pooled)
        if self.how == "rows":
            return c[:1]
        if self.how == "spaces":
            return Conditioning(c.tokens, c.mask) if "a" in prompts[0][:1] else c
        return c.replace(torch.zeros_like(c.tokens), torch.zeros_like(c.pooled))


@pytest.mark.parametrize(("how", "says"), [("nan", "NaN"), ("rows", "one row"), ("same", "same embedding")])
def test_an_encoder_that_cannot_be_used_is_refused(neutral: list[str], how: str, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        compile(fire(), Broken(how), neutral)


def test_a_recipe_without_contrast_for_this_encoder_is_refused(neutral: list[str]) -> None:
    rows = [
        (f"a {n}, number {31 * i * i + k + 1}", f"a {n}, number {37 * i * i + 7 * k}")
        for i in range(9)
        for k, n in enumerate(NOUNS)
    ]
    with pytest.raises(NotSeparableError, match="does not separate|same embeddings"):
        compile(Concept.from_pairs("nothing", rows), FakeEncoder(), neutral)


def test_too_few_neutral_prompts_are_refused() -> None:
    with pytest.raises(CompileError, match="At least 8 neutral prompts"):
        compile(fire(), FakeEncoder(), ["a cat", " ", "a dog"])


def test_memory_that_runs_out_halves_the_batch(neutral: list[str]) -> None:
    class Small(FakeEncoder):
        def __call__(self, prompts: list[str]) -> Conditioning:
            if len(prompts) > 8:
                raise torch.cuda.OutOfMemoryError
            return super().__call__(prompts)

    compile(fire(), Small(), neutral)


@given(st.integers(20, 400), st.floats(0.001, 0.2), st.integers(0, 1000))
def test_the_border_lets_about_the_asked_share_out(count: int, outside: float, seed: int) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    at = border(scores, outside)
    assert float((scores > at).double().mean()) <= max(outside, 1 / (2 * count)) + 1 / count
    assert at >= border(scores, min(0.5, outside * 2)) - 1e-9, "a smaller share lies further out"


def test_the_area_is_the_chance_of_the_right_order() -> None:
    assert area(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert area(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5


def test_a_border_spares_the_empty_prompt_and_nearly_all_near_neighbours() -> None:
    column = torch.linspace(-2, 2, 400).unsqueeze(1)
    calm = Scored(column, torch.zeros(0, 1), torch.tensor([-5.0]), torch.full((9, 1), 9.0))
    usual = float(thresholds(calm, [1.0], 0.01)[0])
    empty = float(thresholds(replace(calm, empty=torch.tensor([usual + 1])), [1.0], 0.01)[0])
    assert empty == pytest.approx(usual + 1 + CLEAR)
    near = torch.linspace(0, 10, 101).unsqueeze(1)
    raised = float(thresholds(replace(calm, near=near), [1.0], 0.01)[0])
    assert float((near > raised).double().mean()) == pytest.approx(1 - NEAR, abs=0.01)


def test_a_border_lies_further_out_only_where_unsafe_prompts_do_not_stand_clear() -> None:
    column = torch.linspace(-2, 2, 400).unsqueeze(1)
    clear = Scored(column, torch.zeros(0, 1), torch.tensor([-5.0]), torch.full((9, 1), 9.0))
    usual = thresholds(clear, [1.0], 0.01)
    assert float(usual[0]) == pytest.approx(border(column[:, 0], 0.01))
    mixed = replace(clear, unsafe=torch.cat([torch.full((8, 1), 9.0), torch.zeros(4, 1)]))
    assert torch.allclose(thresholds(mixed, [1.0], 0.01), BEYOND * usual)


class Filling(FakeEncoder):
    """Every word reads the same wherever it stands, and the rest of a chunk is filled with one that is like no word."""

    def chunk(self, words: Sequence[str]) -> np.ndarray:
        filling = [6 * self.word("<end>")] * (LENGTH - 1 - len(words))
        return np.stack([self.word("<begin>"), *map(self.word, words), *filling])


def test_a_word_far_back_in_a_chunk_counts_as_much_as_in_front(neutral: list[str]) -> None:
    encode = Filling(pooled=False)
    (direction,) = compile_many([fire()], encode, neutral)
    calm = " ".join(benign_prompts(12, seed=5)).replace(",", "").split()
    late = encode([" ".join([*calm[:n], "burning"]) for n in (1, 30, 60, 70)])
    (term, *_) = (t for t in direction.detector.terms if t.readout.reduce in ("token", "pair"))
    alone = replace(direction.detector, terms=(term,), thresholds=torch.zeros(1), joint=(), sums=None)
    scores = alone.scores(late)[:, 0]
    assert float(scores.min()) > 0.75 * float(scores.max()), scores
