"""The door to diffusers: real pipelines with tiny random weights, guarded against a concept compiled on each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from fakes import benign_prompts, fire, same_bits

import saferegion as sr
from saferegion.core.errors import ConditioningError, SafeRegionError, UnresolvedError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines as tiny  # noqa: E402

import saferegion.diffusers as door  # noqa: E402
from saferegion.diffusers import table  # noqa: E402

SAME_VERSION = diffusers.__version__ == table.written_for()
pytestmark = pytest.mark.skipif(not SAME_VERSION, reason=f"the table is of diffusers {table.written_for()}")

FAMILIES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("StableDiffusion3Pipeline", "PixArtSigmaPipeline", "WanPipeline", "ZImagePipeline")
    ),
)
UNSAFE, CALM = "a burning house", "a quiet tower in a valley"
NEUTRAL = benign_prompts(60)


@cache
def _whole(name: str) -> tuple[Any, dict[str, Any], sr.Direction]:
    pipe, how = tiny.whole(name)
    return pipe, how, _compiled(pipe)


def _compiled(pipe: Any) -> sr.Direction:
    encode = door.encoder_of(pipe)
    return sr.compile(fire(24), encode, NEUTRAL, settings=encode.settings())


def _calm(encode: Any, direction: sr.Direction) -> str:
    """A benign prompt that a random encoder's concept is not open for."""
    prompts = [CALM, *benign_prompts(8, seed=9)]
    far = sr.SafeRegion([direction]).score(encode(prompts))[:, 0].tolist()
    return next(p for p, f in zip(prompts, far, strict=True) if f <= 0)


@pytest.fixture(autouse=True)
def _without_minors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline for minors is not what is tested, and costs a thousand prompts an encoder."""
    monkeypatch.setattr(sr.Library, "guarding", lambda library, c, e, *a: (library.directions(c, e, NEUTRAL, *a), []))


@pytest.fixture
def sd() -> Iterator[tuple[Any, dict[str, Any], sr.Direction]]:
    pipe, how, direction = _whole("StableDiffusionPipeline")
    yield pipe, how, direction
    door.unguard(pipe)


def _seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def _paint(pipe: Any, how: dict[str, Any], count: int, **call: Any) -> torch.Tensor:
    return pipe(generator=_seeds(count), return_dict=False, **{**how, **call})[0]


# -- families ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_guarded_and_benign_pictures_keep_every_bit(name: str) -> None:
    pipe, how, direction = _whole(name)
    texts = [UNSAFE, _calm(door.encoder_of(pipe), direction)]
    before = _paint(pipe, how, 2, prompt=texts)
    guarded = door.guard(pipe, [direction])
    try:
        assert guarded is pipe and type(pipe).__name__ == name and isinstance(pipe, getattr(diffusers, name))
        after = _paint(pipe, how, 2, prompt=texts)
        assert [look.moved for look in pipe.safe_region.looks] == [True, False]
        assert "fire" in pipe.safe_region.text()
        assert not torch.equal(before[0], after[0]) and same_bits(before[1], after[1])
    finally:
        door.unguard(pipe)
    assert not hasattr(pipe, "safe_region") and type(pipe) is getattr(diffusers, name)
    again = _paint(pipe, how, 2, prompt=texts)
    assert all(same_bits(a, b) for a, b in zip(before, again, strict=True))


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "QwenImagePipeline"])
def test_several_pictures_of_a_prompt_are_told_apart(name: str) -> None:
    pipe, _, direction = _whole(name)
    how = {"num_images_per_prompt": 2, "device": torch.device("cpu")}
    bare = pipe.encode_prompt(prompt=[CALM, UNSAFE], **how)
    door.guard(pipe, [direction])
    try:
        found = pipe.encode_prompt(prompt=[CALM, UNSAFE], **how)
        looks = pipe.safe_region.looks
    finally:
        door.unguard(pipe)
    assert [look.moved for look in looks] == [False, False, True, True]
    assert [look.texts[0] for look in looks] == [CALM, CALM, UNSAFE, UNSAFE]
    assert same_bits(found[0][:2], bare[0][:2]) and not torch.equal(found[0][2], bare[0][2])
    assert torch.equal(found[0][2], found[0][3])


# -- texts -------------------------------------------------------------------------------------------------------------


def test_embeddings_that_come_ready_are_guarded(sd: Any) -> None:
    pipe, how, direction = sd
    positive, negative = pipe.encode_prompt([UNSAFE], torch.device("cpu"), 1, True)
    kept = positive.clone()
    door.guard(pipe, [direction])
    own = _paint(pipe, how, 1, prompt=[UNSAFE])
    ready = _paint(pipe, how, 1, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert same_bits(own, ready) and pipe.safe_region.looks[0].texts == ()
    assert same_bits(positive, kept), "the caller's tensor was changed"


def test_embeddings_of_several_chunks_are_guarded(sd: Any) -> None:
    """As libraries of long and weighted prompts make them."""
    pipe, how, direction = sd
    parts = [pipe.encode_prompt([p], torch.device("cpu"), 1, True) for p in (CALM, UNSAFE)]
    long, negative = (torch.cat([p[i] for p in parts], 1) for i in (0, 1))
    calm = torch.cat([parts[0][0]] * 2, 1)
    bare = _paint(pipe, how, 1, prompt_embeds=calm, negative_prompt_embeds=negative)
    door.guard(pipe, [direction])
    _paint(pipe, how, 1, prompt_embeds=long, negative_prompt_embeds=negative)
    assert pipe.safe_region.moved
    assert same_bits(bare, _paint(pipe, how, 1, prompt_embeds=calm, negative_prompt_embeds=negative))


def test_negative_prompts_are_left_alone_unless_asked(sd: Any) -> None:
    pipe, _, direction = sd
    how = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    bare = pipe.encode_prompt([CALM], negative_prompt=[UNSAFE], **how)
    door.guard(pipe, [direction])
    found = pipe.encode_prompt([CALM], negative_prompt=[UNSAFE], **how)
    assert all(a is not None and same_bits(a, b) for a, b in zip(found, bare, strict=True))
    door.guard(pipe, [direction], settings=door.DoorSettings(negative=True))
    found = pipe.encode_prompt([CALM], negative_prompt=[UNSAFE], **how)
    assert same_bits(found[0], bare[0]) and not torch.equal(found[1], bare[1])


def test_a_pipeline_that_encodes_one_prompt_at_a_time_knows_its_negative_one() -> None:
    pipe, how, direction = _whole("QwenImagePipeline")
    bare = _paint(pipe, how, 1, prompt=[CALM], negative_prompt=[UNSAFE])
    door.guard(pipe, [direction])
    try:
        found = _paint(pipe, how, 1, prompt=[CALM], negative_prompt=[UNSAFE])
        assert same_bits(bare, found) and len(pipe.safe_region.looks) == 1
        _paint(pipe, how, 1, prompt=[UNSAFE], negative_prompt=[UNSAFE])
        assert all(look.moved for look in pipe.safe_region.looks)
    finally:
        door.unguard(pipe)


def test_every_text_of_a_prompt_counts() -> None:
    pipe, how, direction = _whole("StableDiffusionXLPipeline")
    door.guard(pipe, [direction])
    try:
        _paint(pipe, how, 1, prompt=[CALM], prompt_2=[UNSAFE])
        assert pipe.safe_region.moved
    finally:
        door.unguard(pipe)


def test_a_prompt_in_disguise_is_painted_as_a_reader_understands_it(sd: Any) -> None:
    pipe, how, direction = sd
    door.guard(pipe, [fire(24)])
    found = _paint(pipe, how, 2, prompt=[CALM, "a b.u.r.n.i.n.g house"])
    calm, hidden = pipe.safe_region.looks
    assert not calm.moved and hidden.moved and hidden.texts == (UNSAFE,) and "spaced letters" in hidden.text()
    assert same_bits(found, _paint(pipe, how, 2, prompt=[CALM, UNSAFE]))


def test_a_prompt_that_stays_open_is_refused(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, how, direction = sd
    door.guard(pipe, [direction])
    monkeypatch.setattr(sr.SafeRegion, "verify", lambda self, over, opened: opened)
    with pytest.raises(UnresolvedError, match="fire"):
        _paint(pipe, how, 2, prompt=[CALM, UNSAFE])
    assert _paint(pipe, how, 1, prompt=[CALM]) is not None


# -- the encoder, and what stands around it ----------------------------------------------------------------------------


def test_another_layer_of_the_encoder_is_another_encoder() -> None:
    pipe, how, direction = _whole("StableDiffusionXLPipeline")
    try:
        door.guard(pipe, [fire(24)])
        _paint(pipe, how, 1, prompt=[UNSAFE], clip_skip=1)
        assert pipe.safe_region.moved
        door.guard(pipe, [direction])
        with pytest.raises(SafeRegionError, match="text encoder"):
            _paint(pipe, how, 1, prompt=[UNSAFE], clip_skip=1)
    finally:
        door.unguard(pipe)


def test_embeddings_are_guarded_when_the_encoder_was_taken_away(sd: Any) -> None:
    pipe, how, direction = sd
    positive, negative = pipe.encode_prompt([UNSAFE], torch.device("cpu"), 1, True)
    door.guard(pipe, [direction])
    encoder, pipe.text_encoder = pipe.text_encoder, None
    try:
        _paint(pipe, how, 1, prompt_embeds=positive, negative_prompt_embeds=negative)
        assert pipe.safe_region.moved
        door.unguard(pipe)
        with pytest.raises(ConditioningError, match="guard it before its text encoder is taken away"):
            door.guard(pipe, [direction])
    finally:
        pipe.text_encoder = encoder


def test_embeddings_of_another_width_are_refused(sd: Any) -> None:
    pipe, _, direction = sd
    door.guard(pipe, [direction])
    with pytest.raises(SafeRegionError, match="wide"):
        pipe.encode_prompt(None, torch.device("cpu"), 1, False, prompt_embeds=torch.randn(1, 77, 48))


def test_nan_is_refused(sd: Any) -> None:
    pipe, _, direction = sd
    door.guard(pipe, [direction])
    with pytest.raises(SafeRegionError):
        pipe.encode_prompt(None, torch.device("cpu"), 1, False, prompt_embeds=torch.full((1, 77, 32), float("nan")))


def test_half_precision_stays_half_precision() -> None:
    pipe, _, direction = _whole("StableDiffusionPipeline")
    positive, _ = pipe.encode_prompt([UNSAFE], torch.device("cpu"), 1, False)
    door.guard(pipe, [direction])
    try:
        for dtype in (torch.float16, torch.bfloat16):
            pipe.text_encoder.to(dtype)
            found, _ = pipe.encode_prompt(None, torch.device("cpu"), 1, False, prompt_embeds=positive.to(dtype))
            assert found.dtype == dtype and pipe.safe_region.moved
    finally:
        pipe.text_encoder.to(torch.float32)
        door.unguard(pipe)


@pytest.mark.slow
def test_a_compiled_denoiser_paints_the_same(sd: Any) -> None:
    pipe, how, direction = sd
    bare = _paint(pipe, how, 1, prompt=[CALM])
    door.guard(pipe, [direction])
    inner, pipe.unet = pipe.unet, torch.compile(pipe.unet, backend="eager")
    try:
        assert torch.allclose(_paint(pipe, how, 1, prompt=[CALM]), bare, atol=1e-5)
        _paint(pipe, how, 1, prompt=[UNSAFE])
        assert pipe.safe_region.moved
    finally:
        pipe.unet = inner


def test_a_guarded_pipeline_is_saved_as_what_it_is(sd: Any, tmp_path: Any) -> None:
    pipe, _, direction = sd
    door.guard(pipe, [direction])
    pipe.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_a_guard_that_was_replaced_paints_nothing(sd: Any) -> None:
    pipe, how, direction = sd
    door.guard(pipe, [direction])
    pipe.encode_prompt = lambda *a, **k: None
    try:
        with pytest.raises(SafeRegionError, match="not in its place"):
            _paint(pipe, how, 1, prompt=[UNSAFE])
        with pytest.raises(SafeRegionError, match="in the place of encode_prompt"):
            door.guard(pipe, [direction])
    finally:
        del vars(pipe)["encode_prompt"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_is_no_pipeline_of_diffusers_is_refused(sd: Any) -> None:
    pipe, _, direction = sd
    with pytest.raises(SafeRegionError, match="object is no pipeline that Safe Region knows"):
        door.guard(object(), [direction])
    stranger = type("StableDiffusionPipeline", (), {"encode_prompt": lambda self: None})
    with pytest.raises(SafeRegionError, match="is no pipeline"):
        door.guard(stranger(), [direction])
    mended = type("Mended", (type(pipe),), {"encode_prompt": lambda self, *a, **k: None})
    pipe.__class__ = mended
    try:
        with pytest.raises(SafeRegionError, match="Mended changes encode_prompt"):
            door.guard(pipe, [direction])
    finally:
        pipe.__class__ = mended.__mro__[1]


@pytest.mark.parametrize("what", ["takes", "gives", "calls"])
def test_a_changed_signature_is_refused_by_name(sd: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    pipe, _, direction = sd
    entry = table.entries()["StableDiffusionPipeline"]
    changed = {**vars(entry.signature), what: (*getattr(entry.signature, what), "prompt_9")}
    rows = {**table.entries(), entry.name: table.Entry(entry.name, table.Signature(**changed))}
    monkeypatch.setattr(table, "entries", lambda: rows)
    with pytest.raises(SafeRegionError, match="StableDiffusionPipeline is not what it is in diffusers .* no prompt_9"):
        door.guard(pipe, [direction])
    assert type(pipe) is diffusers.StableDiffusionPipeline


@pytest.mark.parametrize(
    ("concepts", "options", "sentence"),
    [
        ("fire", {}, "list of names"),
        ([], {}, "choose at least one"),
        (["no-such-thing"], {}, "no concept 'no-such-thing'"),
        ([3], {}, "got int"),
        (["nudity"], {"strength": {"gore": 1.0}}, "'gore', which is not among"),
        (["nudity"], {"strength": 11}, "0 to 10"),
        (["nudity"], {"mode": "burn"}, "mode must be"),
        (["nudity"], {"preset": "wild"}, "preset must be"),
    ],
)
def test_a_wrong_choice_is_a_sentence(sd: Any, concepts: Any, options: Any, sentence: str) -> None:
    pipe, _, _ = sd
    with pytest.raises(SafeRegionError, match=sentence):
        door.guard(pipe, concepts, **options)
    assert type(pipe) is diffusers.StableDiffusionPipeline and not hasattr(pipe, "safe_region")


def test_a_policy_is_not_passed_over(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, _, direction = sd
    monkeypatch.setenv("SAFE_REGION_POLICY", "/etc/safe-region/policy.yaml")
    with pytest.raises(SafeRegionError, match="policy"):
        door.guard(pipe, [direction])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_class_that_takes_text_is_in_the_table() -> None:
    names = [n for n in dir(diffusers) if n.endswith("Pipeline") and "prompt" in _called_with(n)]
    assert len(names) > 150
    assert not [n for n in names if n not in table.entries()]


def _called_with(name: str) -> Any:
    try:
        cls = getattr(diffusers, name)
        return inspect.signature(cls.__call__).parameters if inspect.isclass(cls) else ()
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError):
        return ()


def test_the_table_says_what_is_installed() -> None:
    wrong = []
    for name, entry in table.entries().items():
        if entry.refused or entry.signature is None:
            continue
        try:
            cls = getattr(diffusers, name)
            installed = getattr(cls, "encode_prompt", None) is not None
        except (ImportError, RuntimeError, AttributeError):  # needs what is not here
            continue
        if not installed or table.Signature.of(cls) != entry.signature:
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("name", sorted(n for n, e in table.entries().items() if e.refused))
def test_a_refused_class_is_refused_by_name(name: str) -> None:
    try:
        cls = getattr(diffusers, name)
        cls.__mro__  # noqa: B018
    except (ImportError, RuntimeError, AttributeError):
        pytest.skip("it is not installed whole")
    if not cls.__module__.startswith("diffusers."):
        pytest.skip("it is not installed whole")
    with pytest.raises(SafeRegionError, match=name):
        table.signature_of(cls)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n, e in table.entries().items() if not e.refused))
def test_every_guarded_class_is_guarded(name: str) -> None:
    try:
        cls = getattr(diffusers, name)
        if not tiny.can_be_built(cls):
            pytest.skip("no tiny text encoder of its kind")
        pipe = tiny.build(cls)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    except AttributeError:
        pytest.skip("it cannot be made of text encoders alone")
    try:
        direction = _compiled(pipe)
    except ConditioningError as error:
        if "'ftfy' is not defined" not in str(error):
            raise
        pytest.skip("ftfy is not installed")
    encode = door.encoder_of(pipe)
    texts = [UNSAFE, _calm(encode, direction)]
    bare = encode.raw(texts)
    door.guard(pipe, [direction])
    found = pipe.encode_prompt(**encode.arguments(texts))
    looks = pipe.safe_region.looks
    assert [look.moved for look in looks] == [True, False], pipe.safe_region.text()
    flat = (lambda x: list(x)) if isinstance(found, tuple) else (lambda x: [x])
    for slot, a, b in zip(encode.layout.slots, flat(found), flat(bare), strict=True):
        if slot.kind == "tokens" and not slot.negative:
            assert not torch.equal(a[0], b[0]) and same_bits(a[1], b[1])
