"""What of a ComfyUI conditioning is text: taken apart, guarded and put together again, without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from fakes import FakeEncoder, benign_prompts, fire, same_bits

UNSAFE, BENIGN = "a burning house in a valley", "a quiet house and a blue boat in a harbour, number 7"
AGAIN = "a burning house in flames, a burning tree in flames, a flaming boat on fire, a burning car"
LONG = "a quiet old house in a wooden valley by a small tall tower " * 10
CLIP, T5 = 12, 30
Text = Callable[[str], tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]]


@pytest.fixture
def family(pack: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``nodes/family.py``, with the widths of a small Stable Diffusion 3."""
    module = pack("nodes.family")
    monkeypatch.setattr(module, "SD3_WIDTH", T5)
    monkeypatch.setattr(module, "SD3_CLIP_WIDTH", CLIP)
    return module


class Setup:
    """A family, found from the probes of one text encoder, and a guard against fire on it."""

    def __init__(self, pack: Callable[[str], ModuleType], family: ModuleType, text: Text, **options: Any) -> None:
        core, selection = pack("saferegion"), pack("saferegion.guard.selection")
        concept = core.Concept.from_pairs("on fire", list(fire().pairs), neutral=list(fire().neutral))
        self.text, self.error = text, pack("saferegion.core.errors").ConditioningError
        self.family = family.Family.of([text(p) for p in pack("saferegion.core.fingerprint").PROBES], **options)
        directions = core.compile(concept, self.encode, benign_prompts(60))
        chosen = selection.Selection().add(selection.Choice(directions))
        self.guard = selection.Guard.of(chosen, [directions])

    def encode(self, prompts: list[str]) -> Any:
        return self.family.batch([self.text(p) for p in prompts])

    def apply(self, tokens: Any, pooled: Any = None, extras: dict[str, Any] | None = None) -> Any:
        return self.family.guard(self.guard, tokens, pooled, extras or {})

    def far(self, tokens: torch.Tensor, pooled: Any = None, extras: dict[str, Any] | None = None) -> float:
        """Distance outside; at most 0 is inside."""
        (region,) = self.guard.regions
        return float(region.score(self.family.conditioning(tokens, pooled, extras or {})).max())


@cache
def clip(width: int = CLIP) -> Text:
    encoder = FakeEncoder(width)

    def text(prompt: str) -> Any:
        c = encoder([prompt])
        return c.tokens, c.pooled, {}

    return text


def rows(width: int, seed: int = 1, least: int = 0) -> Callable[[str], torch.Tensor]:
    """As T5 gives them: the words and one end token, without a begin token; filled up to ``least``."""
    encoder = FakeEncoder(width, seed, pooled=False)

    def text(prompt: str) -> torch.Tensor:
        return encoder([prompt]).tokens[:, 1 : max(least, len(prompt.split()) + 1) + 1]

    return text


@cache
def sd3() -> Text:
    first, second = clip(), rows(T5, least=20)

    def text(prompt: str) -> Any:
        tokens, pooled, _ = first(prompt)
        return torch.cat([torch.nn.functional.pad(tokens, (0, T5 - CLIP)), second(prompt)], 1), pooled, {}

    return text


@cache
def masked() -> Text:
    """Filled up to 20 rows, of which those after the end token are masked."""
    inner = rows(CLIP, least=20)

    def text(prompt: str) -> Any:
        tokens = inner(prompt)
        return tokens, None, {"attention_mask": (torch.arange(tokens.shape[1]) <= len(prompt.split())).long()[None]}

    return text


def unpadded(prompt: str) -> Any:
    return rows(CLIP)(prompt), None, {}


@cache
def llama() -> Text:
    """T5 rows in cross_attn, and three layers of another encoder."""
    first, layers = rows(CLIP, least=20), [rows(CLIP, seed, least=8) for seed in (2, 3, 4)]

    def text(prompt: str) -> Any:
        return first(prompt), None, {"conditioning_llama3": torch.stack([layer(prompt)[:, :8] for layer in layers], 1)}

    return text


@pytest.fixture(scope="module")
def setups() -> dict[Any, Setup]:
    return {}


@pytest.fixture
def made(pack: Callable[[str], ModuleType], family: ModuleType, setups: dict[Any, Setup]) -> Callable[..., Setup]:
    """Compiled once for each text encoder."""

    def make(text: Text, **options: Any) -> Setup:
        key = (text, *options.items())
        if key not in setups:
            setups[key] = Setup(pack, family, text, **options)
        return setups[key]

    return make


def test_begin_tokens_stay_and_everything_else_is_taken_inside(made: Callable[..., Setup]) -> None:
    setup = made(clip(), reads_pooled=False)
    tokens, pooled, extras = setup.text(LONG + AGAIN)
    after, pooled_after, changed, report = setup.apply(tokens, pooled, extras)
    assert setup.far(tokens) > 0 >= setup.far(after) - 1e-4
    assert report.moved and not changed and pooled_after is pooled
    assert tokens.shape[1] == 154 and same_bits(after[:, ::77], tokens[:, ::77])


def test_a_benign_conditioning_comes_back_as_the_same_objects(made: Callable[..., Setup]) -> None:
    for text, options in ((clip(), {}), (sd3(), {}), (masked(), {}), (llama(), {})):
        setup = made(text, **options)
        tokens, pooled, extras = text(BENIGN)
        after, pooled_after, changed, report = setup.apply(tokens, pooled, extras)
        assert after is tokens and pooled_after is pooled and changed == {} and not report.moved


def test_rows_of_clip_and_t5_are_told_apart_wherever_they_stand(made: Callable[..., Setup]) -> None:
    setup = made(sd3())
    first, pooled, _ = setup.text(UNSAFE)
    second, _, _ = setup.text(BENIGN)
    both = torch.cat([first, second, first], 1)  # ConditioningConcat
    after, _, _, report = setup.apply(both, pooled)
    assert report.moved and not report.unresolved
    assert setup.far(after) <= 1e-4 < setup.far(both)
    t = first.shape[1]
    for start in (0, t, 2 * t):
        assert bool((after[:, start : start + 77, CLIP:] == 0).all())
        assert bool((after[:, start + 77 : start + t, CLIP:] != 0).any())
        assert same_bits(after[:, start], both[:, start])
    for start in (0, 2 * t):
        assert not torch.equal(after[:, start : start + 77], both[:, start : start + 77])
        assert not torch.equal(after[:, start + 77 : start + t], both[:, start + 77 : start + t])


def test_two_benign_prompts_one_after_another_come_back_as_they_were(made: Callable[..., Setup]) -> None:
    setup = made(sd3())
    tokens, pooled, _ = setup.text(BENIGN)
    other = setup.text("an old boat in a museum")[0]
    both = torch.cat([tokens, other], 1)
    assert setup.apply(both, pooled)[0] is both


def test_a_conditioning_without_t5_rows_is_guarded_by_the_directions_of_both(made: Callable[..., Setup]) -> None:
    setup = made(sd3())
    tokens, pooled, _ = setup.text(UNSAFE)
    tokens = tokens[:, :77]
    after, _, _, _ = setup.apply(tokens, pooled)
    assert setup.far(after) <= 1e-4 < setup.far(tokens)


def test_picture_rows_behind_the_text_do_not_hide_it(made: Callable[..., Setup]) -> None:
    setup = made(clip())
    tokens, pooled, _ = setup.text(UNSAFE)
    picture = 0.3 * torch.randn(1, 729, CLIP, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 806 + 64, 806 + 64, dtype=torch.float16)  # the bias that StyleModelApply makes
    both = torch.cat([tokens, picture], 1)
    after, _, changed, _ = setup.apply(both, pooled, {"attention_mask": mask, "attention_mask_img_shape": (8, 8)})
    assert after.shape == both.shape and not changed
    assert setup.far(after) <= 1e-4 < setup.far(both)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_average_of_prompts_of_different_length_is_inside(made: Callable[..., Setup], share: float) -> None:
    setup = made(clip())
    longer, pooled, _ = setup.text(f"{AGAIN}, {LONG}")
    shorter = setup.text("a burning car and a flaming tree")[0]
    filled = torch.cat([shorter, torch.zeros(1, longer.shape[1] - shorter.shape[1], CLIP)], 1)
    average = share * longer + (1 - share) * filled
    after, _, _, _ = setup.apply(average, pooled)
    assert setup.far(after) <= 1e-4 < setup.far(average)


def test_rows_of_zeros_never_move(made: Callable[..., Setup]) -> None:
    setup = made(unpadded)
    tokens = setup.text(UNSAFE)[0]
    filled = torch.cat([tokens, torch.zeros(1, 9, CLIP)], 1)
    after = setup.apply(filled)[0]
    assert not torch.equal(after, filled) and bool((after[:, tokens.shape[1] :] == 0).all())


def test_a_zeroed_conditioning_holds_no_text(made: Callable[..., Setup]) -> None:
    setup = made(sd3())
    tokens, pooled, _ = setup.text(UNSAFE)
    zeroed, none = torch.zeros_like(tokens), torch.zeros_like(pooled)
    after, pooled_after, changed, report = setup.apply(zeroed, none)
    assert after is zeroed and pooled_after is none and changed == {} and report is None


def test_the_layers_of_an_encoder_that_gives_all_of_them_are_guarded_each_in_its_place(
    made: Callable[..., Setup], family: ModuleType
) -> None:
    setup = made(llama())
    tokens, _, extras = setup.text(UNSAFE)
    layers = extras["conditioning_llama3"]
    after, _, changed, _ = setup.apply(tokens, None, extras)
    moved = changed["conditioning_llama3"]
    assert moved.shape == layers.shape == (1, 3, 8, CLIP) and moved.dtype == layers.dtype
    assert setup.far(after, None, {**extras, **changed}) <= 1e-4 < setup.far(tokens, None, extras)
    assert bool(((moved - layers).norm(dim=-1) < (layers.roll(1, 1) - layers).norm(dim=-1)).float().mean() > 0.9)
    assert same_bits(family._from_rows(family._as_rows(layers, "key"), layers), layers)
    vector = layers[:, 0, 0]
    assert same_bits(family._from_rows(family._as_rows(vector, "key"), vector), vector)


def test_an_encoder_of_which_a_part_is_missing_is_guarded_by_the_rest(made: Callable[..., Setup]) -> None:
    whole = llama()

    def without_t5(prompt: str) -> Any:
        tokens, _, extras = whole(prompt)
        return torch.zeros_like(tokens), None, extras

    def without_llama(prompt: str) -> Any:
        tokens, _, _ = whole(prompt)
        return tokens, None, {"conditioning_llama3": torch.zeros(1, 3, 1, CLIP)}

    for text, space in ((without_t5, "llama3"), (without_llama, "tokens")):
        setup = made(text)
        tokens, _, extras = text(UNSAFE)
        after, _, changed, _ = setup.apply(tokens, None, extras)
        assert setup.guard.spaces() == {space}
        assert setup.far(after, None, {**extras, **changed}) <= 1e-4 < setup.far(tokens, None, extras)
        with pytest.raises(setup.error, match="connect the CLIP"):
            tokens, _, extras = whole(UNSAFE)
            setup.apply(tokens, None, extras)


def test_an_encoder_of_zeros_is_refused(family: ModuleType, pack: Callable[..., ModuleType]) -> None:
    with pytest.raises(pack("saferegion.core.errors").ConditioningError, match="embeddings of zeros"):
        family.Family.of([(torch.zeros(1, 4, 6), torch.ones(1, 3), {"conditioning_llama3": torch.zeros(1, 2, 1, 6)})])


def test_filling_that_the_encoder_masks_does_not_move(made: Callable[..., Setup]) -> None:
    setup = made(masked())
    tokens, _, extras = setup.text(UNSAFE)
    after = setup.apply(tokens, None, extras)[0]
    read = extras["attention_mask"][0].bool()
    assert not torch.equal(after[:, read], tokens[:, read]) and same_bits(after[:, ~read], tokens[:, ~read])


def test_the_mask_of_an_encoder_without_filling_hides_nothing(made: Callable[..., Setup]) -> None:
    setup = made(unpadded)
    tokens = setup.text(UNSAFE)[0]
    mask = torch.zeros(1, tokens.shape[1], dtype=torch.long)  # an end token was typed into the prompt
    after = setup.apply(tokens, None, {"attention_mask": mask})[0]
    assert setup.far(after) <= 1e-4 < setup.far(tokens)


def test_no_mask_is_believed_of_a_prompt_that_needs_no_filling(made: Callable[..., Setup]) -> None:
    setup = made(masked())
    tokens, _, extras = setup.text(LONG + UNSAFE)
    mask = torch.zeros_like(extras["attention_mask"])
    after = setup.apply(tokens, None, {"attention_mask": mask})[0]
    assert setup.far(after) <= 1e-4 < setup.far(tokens)


def test_one_mask_serves_a_batch(made: Callable[..., Setup]) -> None:
    setup = made(masked())
    tokens, _, extras = setup.text(UNSAFE)
    both = torch.cat([tokens, setup.text(BENIGN)[0]])
    after = setup.apply(both, None, extras)[0]
    assert setup.far(after, None, extras) <= 1e-4
    assert same_bits(after[1], both[1]) and not torch.equal(after[0], both[0])


def test_begin_tokens_are_found_although_the_empty_prompt_is_nothing_else(made: Callable[..., Setup]) -> None:
    inner = clip()

    def text(prompt: str) -> Any:  # as Gemma: a begin token and the words, no end token and no filling
        return inner(prompt)[0][:, : len(prompt.split()) + 1], None, {}

    setup = made(text)
    assert setup.family.begin["tokens"].shape == (1, CLIP)
    tokens = text(UNSAFE)[0]
    after = setup.apply(tokens)[0]
    assert same_bits(after[:, 0], tokens[:, 0]) and not torch.equal(after, tokens)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, p: (None, p, {}), "no token embeddings"),
        (lambda t, p: (t[0], p, {}), "no token embeddings"),
        (lambda t, p: (t.long(), p, {}), "no token embeddings"),
        (lambda t, p: (t[:, :, 1:], p, {}), "11 wide and the connected CLIP gives 12"),
        (lambda t, p: (t[:, 3:], p, {}), "not made by the connected CLIP"),
        (lambda t, p: (t, p[0], {}), "pooled_output must be a tensor"),
        (lambda t, p: (t, p, {"conditioning_llama3": torch.ones(1, 2, 3, 4)}), "'conditioning_llama3'"),
        (lambda t, p: (t, p, {"conditioning_style": torch.ones(1, 4)}), "'conditioning_style'"),
        (lambda t, p: (t, p, {"conditioning_lyrics": torch.tensor([[261, 88, 7, 2]])}), "song lyrics"),
    ],
)
def test_what_cannot_be_guarded_is_refused_with_a_sentence(
    made: Callable[..., Setup], change: Callable[..., Any], says: str
) -> None:
    setup = made(clip())
    tokens, pooled, _ = setup.text(UNSAFE)
    with pytest.raises(setup.error, match=says):
        setup.apply(*change(tokens, pooled))


@pytest.mark.parametrize("lyrics", [[[261]], [[0, 0, 0]]])
def test_lyrics_without_words_are_no_text(made: Callable[..., Setup], lyrics: list[list[int]]) -> None:
    setup = made(clip())
    tokens, pooled, _ = setup.text(BENIGN)
    assert setup.apply(tokens, pooled, {"conditioning_lyrics": torch.tensor(lyrics)})[0] is tokens


def test_a_pooled_output_that_the_connected_clip_does_not_give_is_refused(made: Callable[..., Setup]) -> None:
    setup = made(unpadded)
    tokens = setup.text(BENIGN)[0]
    with pytest.raises(setup.error, match="pooled output"):
        setup.apply(tokens, torch.ones(1, 5))
    none = torch.zeros(1, 5)
    assert setup.apply(tokens, none)[1] is none


def test_a_pooled_output_that_no_model_reads_is_left_alone(made: Callable[..., Setup]) -> None:
    setup = made(clip(), reads_pooled=False)
    tokens, pooled, _ = setup.text(UNSAFE)
    assert "pooled" not in setup.guard.spaces()
    assert setup.apply(tokens, pooled)[1] is pooled


def test_t5_rows_of_an_encoder_without_t5_are_refused(made: Callable[..., Setup]) -> None:
    full = sd3()

    def text(prompt: str) -> Any:
        tokens, pooled, _ = full(prompt)
        return tokens[:, :77], pooled, {}

    setup = made(text)
    tokens, pooled, _ = full(UNSAFE)
    with pytest.raises(setup.error, match="no direction for space 't5'"):
        setup.apply(tokens, pooled)


def test_a_text_encoder_that_gives_no_embeddings_is_refused(
    family: ModuleType, pack: Callable[..., ModuleType]
) -> None:
    with pytest.raises(pack("saferegion.core.errors").ConditioningError, match="does not give token embeddings"):
        family.Family.of([(torch.ones(1, 4), None, {})])


def test_what_stays_open_is_refused(made: Callable[..., Setup], pack: Callable[[str], ModuleType]) -> None:
    setup = made(clip(), reads_pooled=False)

    class Open:
        """A guard that closes nothing."""

        def apply(self, c: Any) -> Any:
            _, report = setup.guard.apply(c)
            opened = [replace(r, unresolved_by=r.before.far > 0) for r in report.reports]
            return c, replace(report, reports=tuple(opened))

    error = pack("saferegion.core.errors").UnresolvedError
    tokens, pooled, _ = setup.text(UNSAFE)
    with pytest.raises(error, match="could not be brought inside"):
        setup.family.guard(Open(), tokens, pooled, {})
    with pytest.raises(error, match="could not be brought inside"):
        setup.family.vector(Open(), 3 * tokens[:, 2])
    benign = setup.text(BENIGN)
    assert setup.family.guard(Open(), *benign)[0] is benign[0]


def test_a_guarded_conditioning_comes_back_as_the_same_object(made: Callable[..., Setup]) -> None:
    for text in (clip(), sd3(), llama()):
        setup = made(text)
        tokens, pooled, extras = text(UNSAFE)
        after, pooled_after, changed, _ = setup.apply(tokens, pooled, extras)
        again, pooled_again, nothing, report = setup.apply(after, pooled_after, {**extras, **changed})
        assert again is after and pooled_again is pooled_after and nothing == {} and not report.moved


def test_a_single_text_vector_is_guarded_as_a_token(made: Callable[..., Setup]) -> None:
    setup = made(clip(), reads_pooled=False)
    end = setup.text(UNSAFE)[0][:, 76]
    vector, report = setup.family.vector(setup.guard, end)
    assert vector.shape == end.shape and (report.moved or vector is end)
    with pytest.raises(setup.error, match="width 5"):
        setup.family.vector(setup.guard, torch.ones(1, 5))
