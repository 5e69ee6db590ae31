"""The node Balance in a real ComfyUI server: who is in which picture of a batch, and what stays as it is."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from comfyui_cases import BENIGN, Graph, Link
from host_servers import ComfyUI, HostError

PERSON, STATED = "a baker at sunset", "a baker with a round hat"
SEED = 100
SAME = 0.1
"""Of latents of some tens: a network rounds a batch otherwise than one picture."""


def graph(text: str, count: int = 16, axes: str = "my/hat", only: int | None = None, **changed: Any) -> Graph:
    """Text to image through the node; with ``axes`` empty without it. ``only``: one picture of the batch, alone."""
    g = Graph("", text)
    latent: Link = g.latent(count=count)
    if only is not None:
        latent = g.one("LatentFromBatch", samples=latent, batch_index=only, length=1)
    positive = g.encode(g.clip)
    if axes:
        given = {"seed": SEED, "strength": 1.0, "text": g.one("TestAnyText", text=text), **changed}
        positive, report, groups = g.add(
            "SafeRegionBalance", 3, conditioning=positive, clip=g.clip, latent=latent, axes=axes, **given
        )
        g.nodes["report"] = {"class_type": "PreviewAny", "inputs": {"source": report}}
        g.nodes["groups"] = {"class_type": "PreviewAny", "inputs": {"source": groups}}
    g.ksampler(g.model, positive, g.encode(g.clip, ""), latent, seed=SEED, steps=2)
    g.nodes["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [g.result, 0], "filename_prefix": "l"}}
    return g


def groups(outputs: dict[str, Any]) -> list[str]:
    return [g.get("hat", "") for g in json.loads(outputs["groups"]["text"][0])]


def test_the_groups_of_a_batch_equal_the_quota_and_a_picture_is_the_same_alone(comfyui: ComfyUI) -> None:
    batch = comfyui.run(graph(PERSON).nodes)
    assert groups(batch) == ["round", "pointed"] * 8
    assert "Hat: round 8 (pictures 1, 3, 5" in batch["report"]["text"][0]
    plain = comfyui.latents(comfyui.run(graph(PERSON, axes="").nodes)["latent"])
    painted = comfyui.latents(batch["latent"])
    assert painted.shape == plain.shape
    assert all(not torch.equal(a, b) for a, b in zip(plain, painted, strict=True))
    alone = comfyui.run(graph(PERSON, only=3).nodes)
    assert groups(alone) == ["pointed"]
    again = comfyui.latents(alone["latent"])[0]
    assert float((again - painted[3]).abs().max()) < SAME < float((plain[3] - painted[3]).abs().max())


def test_shares_of_the_user_s_own(comfyui: ComfyUI) -> None:
    asked = graph(PERSON, axes="my/hat: round 75, pointed 25")
    assert Counter(groups(comfyui.run(asked.nodes))) == {"round": 12, "pointed": 4}


@pytest.mark.parametrize(("text", "why"), [(BENIGN, "no person in it"), (STATED, "the prompt says it already")])
def test_what_a_gate_holds_back_is_painted_as_without_the_node(comfyui: ComfyUI, text: str, why: str) -> None:
    held = comfyui.run(graph(text, count=2).nodes)
    plain = comfyui.run(graph(text, count=2, axes="").nodes)
    assert why in held["report"]["text"][0]
    assert torch.equal(comfyui.latents(held["latent"]), comfyui.latents(plain["latent"]))


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ("race", "There is no axis 'race' to balance"),
        ("my/hat: round", "write every group with its share"),
        ("# my/hat", "Choose at least one axis to balance"),
    ],
)
def test_wrong_axes_do_not_even_enter_the_queue(comfyui: ComfyUI, axes: str, says: str) -> None:
    with pytest.raises(HostError) as error:
        comfyui.queue(graph(PERSON, axes=axes).nodes)
    assert says in str(error.value)


def test_wrong_shares_are_refused(comfyui: ComfyUI) -> None:
    told = comfyui.messages(graph(PERSON, axes="my/hat: round 50, pointed 40").nodes)
    assert "add up to 90" in str(told["execution_error"]["exception_message"])
