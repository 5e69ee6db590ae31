"""The node Safe Region in a real ComfyUI server: rows, what it gives, what it refuses before the queue; and ways past a
guard that other packs take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui_cases import BENIGN, UNSAFE, Graph, Link
from host_servers import ComfyUI, HostError
from torch import Tensor

NODE = "SafeRegionGuard"
GUIDANCE = 4.0
Encode = Callable[[Graph, Link, str], Link]


def saved(g: Graph) -> Graph:
    g.nodes["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [g.result, 0], "filename_prefix": "l"}}
    return g


def one(text: str, concepts: str = "fire.yaml: 1", encode: Encode = Graph.encode, **changed: Any) -> Graph:
    """Text to image through the node; with ``concepts`` empty without it."""
    g = Graph("", text)
    model, clip = g.model, g.clip
    if concepts:
        given = {"preset": "normal", "model": model, "clip": clip, **changed}
        model, clip, *_ = g.add(NODE, 5, concepts=concepts, **given)
    g.ksampler(model, encode(g, clip, text), g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
    return saved(g)


def latent(comfyui: ComfyUI, g: Graph) -> Tensor:
    return comfyui.latents(comfyui.run(g.nodes)["latent"])


def refused(comfyui: ComfyUI, g: Graph) -> str:
    told = comfyui.messages(g.nodes)
    assert "execution_error" in told, "It was not refused."
    return str(told["execution_error"]["exception_message"]).strip()


def by_guard_clip(text: str) -> Graph:
    g = Graph("clip", text)
    g.ksampler(g.model, g.encode(g.guarded(g.clip)), g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
    return saved(g)


def test_one_node_guards_as_guard_clip_does_and_leaves_benign_prompts_alone(comfyui: ComfyUI) -> None:
    plain, guarded = latent(comfyui, one(UNSAFE, "")), latent(comfyui, one(UNSAFE))
    assert not torch.equal(plain, guarded)
    assert torch.equal(guarded, latent(comfyui, by_guard_clip(UNSAFE)))
    assert torch.equal(latent(comfyui, one(BENIGN, "")), latent(comfyui, one(BENIGN)))


def test_rows_that_are_off_are_no_matter_and_strengths_weigh(comfyui: ComfyUI) -> None:
    guarded = latent(comfyui, one(UNSAFE))
    assert torch.equal(guarded, latent(comfyui, one(UNSAFE, "fire.yaml: 1\n# lightning.yaml: 1\n# gone.yaml: 1")))
    assert not torch.equal(guarded, latent(comfyui, one(UNSAFE, "fire.yaml: 3")))
    assert torch.equal(latent(comfyui, one(UNSAFE, "")), latent(comfyui, one(UNSAFE, "lightning.yaml: 1")))


def test_it_guards_a_clip_without_a_model(comfyui: ComfyUI) -> None:
    g = Graph("", UNSAFE)
    clip = g.add(NODE, 5, clip=g.clip, concepts="fire.yaml: 1", preset="normal")[1]
    g.ksampler(g.model, g.encode(clip), g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
    assert torch.equal(latent(comfyui, saved(g)), latent(comfyui, by_guard_clip(UNSAFE)))


@pytest.mark.parametrize(("text", "moved"), [(UNSAFE, True), (BENIGN, False)])
def test_it_says_what_becomes_of_a_text_and_shows_it(comfyui: ComfyUI, text: str, moved: bool) -> None:
    g = Graph("", text)
    given = g.one("TestAnyText", text=text)
    outputs = g.add(NODE, 5, clip=g.clip, concepts="fire.yaml: 1", preset="normal", text=given)
    g.nodes["said"] = {"class_type": "PreviewAny", "inputs": {"source": outputs[3]}}
    g.nodes["moved"] = {"class_type": "PreviewAny", "inputs": {"source": outputs[2]}}
    g.nodes["map"] = {"class_type": "PreviewImage", "inputs": {"images": outputs[4]}}
    told = comfyui.run(g.nodes)
    (said,), (truth,) = told["said"]["text"], told["moved"]["text"]
    assert said.startswith("keeps out fire") and ("Fire: +" in said) == moved
    assert truth.lower() == str(moved).lower()
    assert comfyui.pictures(told["map"])[0].std() > 5


@pytest.mark.parametrize(
    ("concepts", "says"),
    [
        ("gone.yaml: 1", "There is no concept 'gone.yaml'"),
        ("fire.yaml: NaN", "must be a number from 0 to 10; got NaN"),
        ("fire.yaml: 1\nfire.yaml: 2", "'fire.yaml' stands in two rows that are on"),
        ("gender: 1", "There is no concept 'gender'"),
    ],
)
def test_a_wrong_row_does_not_even_enter_the_queue(comfyui: ComfyUI, concepts: str, says: str) -> None:
    with pytest.raises(HostError) as error:
        comfyui.queue(one(UNSAFE, concepts).nodes)
    assert says in str(error.value)


def test_a_node_without_a_row_that_is_on_guards_nothing_and_says_so(comfyui: ComfyUI) -> None:
    assert refused(comfyui, one(UNSAFE, "# fire.yaml: 1")).startswith("Nothing is switched on: switch a row on")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_does_not_even_enter_the_queue(comfyui: ComfyUI, strength: float) -> None:
    g = by_guard_clip(UNSAFE)
    region = next(n for n in g.nodes.values() if n["class_type"] == "SafeRegion")
    region["inputs"]["strength"] = strength
    with pytest.raises(HostError, match="must be a number from 0 to 10|bigger than max"):
        comfyui.queue(g.nodes)


# -- ways past a guard -------------------------------------------------------------------------------------------------


def inner(g: Graph, clip: Link, text: str) -> Link:
    return g.one("TestInnerEncode", clip=clip, text=text)


def test_a_pack_that_encodes_through_an_inner_encoder_is_guarded(comfyui: ComfyUI) -> None:
    plain, guarded = latent(comfyui, one(UNSAFE, "", inner)), latent(comfyui, one(UNSAFE, encode=inner))
    assert not torch.equal(plain, guarded) and torch.equal(guarded, latent(comfyui, by_guard_clip(UNSAFE)))
    assert torch.equal(latent(comfyui, one(BENIGN, "", inner)), latent(comfyui, one(BENIGN, encode=inner)))
    g = Graph("clip", UNSAFE)
    g.ksampler(g.model, inner(g, g.guarded(g.clip), UNSAFE), g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
    assert torch.equal(latent(comfyui, saved(g)), guarded)


@pytest.mark.parametrize("text", [UNSAFE, "a red house under lightning in a meadow", BENIGN])
def test_two_guards_in_a_row_both_hold_for_an_inner_encoder(comfyui: ComfyUI, text: str) -> None:
    def by(encode: Encode) -> Graph:
        g = Graph("clip", text, ("fire.yaml", "lightning.yaml"))
        g.ksampler(g.model, encode(g, g.guarded(g.clip), text), g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
        return saved(g)

    assert torch.equal(latent(comfyui, by(inner)), latent(comfyui, by(Graph.encode)))
    assert torch.equal(latent(comfyui, by(inner)), latent(comfyui, one(text, ""))) == (text == BENIGN)


def coupled(captured: str, model_guarded: bool, guard_captured: bool = False) -> Graph:
    """A benign prompt, and another text that a patch of the attention has kept."""
    g = Graph("model" if model_guarded else "", BENIGN)
    text = g.encode(g.clip, captured)
    if guard_captured:
        text = g.add("SafeRegionGuardConditioning", 3, conditioning=text, clip=g.clip, region=g.regions()[0])[0]
    model, (positive,) = g.ready(g.clip, g.encode(g.clip))
    g.ksampler(
        g.one("TestCouple", model=model, conditioning=text), positive, g.encode(g.clip, ""), steps=2, cfg=GUIDANCE
    )
    return saved(g)


def test_text_that_an_attention_patch_has_captured_is_caught(comfyui: ComfyUI) -> None:
    plain, guarded = latent(comfyui, coupled(UNSAFE, False)), latent(comfyui, coupled(UNSAFE, True))
    wanted = latent(comfyui, coupled(UNSAFE, False, guard_captured=True))
    assert float((plain - wanted).abs().max()) > 100 * float((guarded - wanted).abs().max())
    assert torch.equal(latent(comfyui, coupled(BENIGN, False)), latent(comfyui, coupled(BENIGN, True)))


@pytest.mark.parametrize("text", [UNSAFE, BENIGN])
def test_a_second_and_a_third_guard_change_nothing(comfyui: ComfyUI, text: str) -> None:
    g = Graph("model", text)
    clip = g.one("SafeRegionGuardCLIP", clip=g.clip, region=g.regions()[0])
    made = g.add("SafeRegionGuardConditioning", 3, conditioning=g.encode(clip), clip=g.clip, region=g.regions()[0])[0]
    model, (positive,) = g.ready(clip, made)
    g.ksampler(model, positive, g.encode(g.clip, ""), steps=2, cfg=GUIDANCE)
    assert torch.equal(latent(comfyui, saved(g)), latent(comfyui, by_guard_clip(text)))


@pytest.mark.parametrize(("key", "says"), [("t5xxl_ids", "given text as 't5xxl_ids'"), ("odd", "carries 'odd'")])
def test_a_key_that_may_hold_text_is_refused_by_name(comfyui: ComfyUI, key: str, says: str) -> None:
    def strange(g: Graph, clip: Link, text: str) -> Link:
        return g.one("TestStrangeKey", conditioning=g.encode(clip, text), key=key)

    said = refused(comfyui, one(BENIGN, encode=strange))
    assert says in said and said.endswith(".")
