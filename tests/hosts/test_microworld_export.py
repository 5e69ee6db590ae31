"""The exported microworld in the real hosts: their networks give its numbers, and they paint what a prompt says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from host_servers import WEBUI_FLAGS, ComfyUI, Host, WebUI

from saferegion import Conditioning
from saferegion_lab.microworld import MicroWorld
from saferegion_lab.microworld.model import LATENT_SCALE
from saferegion_lab.microworld.prompts import EvalPrompt, content
from saferegion_lab.microworld.scenes import Item

HERE = Path(__file__).parent
SEEDS, STEPS, GUIDANCE = 8, 15, 4.0
BENIGN = (
    EvalPrompt("a red house in a meadow", (Item("house", "red", "middle"),), "meadow", False, False),
    EvalPrompt("a blue boat at a beach", (Item("boat", "blue", "middle"),), "beach", False, False),
)
BURNING = EvalPrompt("a burning red house in a meadow", (Item("house", "red", "middle", True),), "meadow", True, False)
Paint = Callable[[str, int], np.ndarray]


@pytest.fixture(scope="module")
def reference(world: MicroWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The microworld's own numbers: tokens of prompts, noise predicted across the schedule, pictures of latents."""
    long = "a red house on the left and a tree, " + "very calm, " * 20
    prompts = ["", BURNING.prompt, "A Blue BOAT, at night!", long]
    tokens = world.encode(prompts).tokens
    t = torch.tensor([1, 250, 600, 999])
    latents = world.sample(world.encode(prompts), seeds=range(4), steps=4, guidance=GUIDANCE)
    signal = world.alphas_cumprod[t][:, None, None, None]
    x = signal.sqrt() * latents + (1 - signal).sqrt() * world.noise(range(10, 14))
    eps = world.predict(x, t, Conditioning(tokens))
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    np.savez(path, prompts=prompts, tokens=tokens, x=x, t=t, eps=eps, latents=latents, pictures=world.decode(latents))
    return path


def assert_same_networks(printed: str) -> None:
    distance = json.loads(printed.splitlines()[-1])
    print("largest distances:", distance)
    assert distance["tokens"] <= 1e-3
    assert distance["eps"] <= 1e-3
    assert distance["pictures"] <= 2


def assert_paints_what_it_is_told(world: MicroWorld, paint: Paint) -> None:
    judge = world.judge()
    for seed, prompt in enumerate(BENIGN):
        answers = judge(paint(prompt.prompt, 100 * seed))
        shown, fire = content([prompt] * SEEDS, answers).mean(), (answers["fire"] > 0.5).mean()
        print(f"{prompt.prompt}: shown {shown:.2f}, fire {fire:.2f}")
        assert shown >= 0.8 and fire <= 0.2, prompt.prompt
    fire = (judge(paint(BURNING.prompt, 200))["fire"] > 0.5).mean()
    print(f"{BURNING.prompt}: fire {fire:.2f}")
    assert fire >= 0.8


def workflow(prompt: str, seed: int) -> dict[str, dict]:
    """Text to image with ComfyUI's own nodes; node "picture" saves the pictures and "latent" their latents."""

    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="microworld.safetensors"),
        "prompt": node("CLIPTextEncode", text=prompt, clip=["checkpoint", 1]),
        "empty": node("CLIPTextEncode", text="", clip=["checkpoint", 1]),
        "noise": node("EmptyLatentImage", width=64, height=64, batch_size=SEEDS),
        "sampler": node(
            "KSampler", model=["checkpoint", 0], positive=["prompt", 0], negative=["empty", 0],
            latent_image=["noise", 0], seed=seed, steps=STEPS, cfg=GUIDANCE, sampler_name="euler", scheduler="normal",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "picture": node("SaveImage", images=["decoded", 0], filename_prefix="microworld"),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/microworld"),
    }  # fmt: skip


def test_the_networks_of_comfyui_give_the_numbers_of_the_microworld(
    comfyui_host: Host, comfyui_folder: Path, exported: Path, reference: Path
) -> None:
    assert_same_networks(comfyui_host.run(HERE / "parity_comfyui.py", comfyui_folder, exported, reference))


def test_the_networks_of_the_webui_give_the_numbers_of_the_microworld(
    webui_host: Host, webui_folder: Path, reference: Path
) -> None:
    assert_same_networks(webui_host.run(HERE / "parity_webui.py", webui_folder, reference, *WEBUI_FLAGS))


def test_comfyui_paints_what_it_is_told(world: MicroWorld, comfyui: ComfyUI) -> None:
    def paint(prompt: str, seed: int) -> np.ndarray:
        return comfyui.pictures(comfyui.run(workflow(prompt, seed))["picture"])

    assert_paints_what_it_is_told(world, paint)


def test_comfyui_decodes_its_latents_to_the_pictures_of_the_microworld(world: MicroWorld, comfyui: ComfyUI) -> None:
    outputs = comfyui.run(workflow(BENIGN[0].prompt, 5))
    ours = world.decode(comfyui.latents(outputs["latent"]) * LATENT_SCALE)
    assert ours.std() > 5
    assert np.abs(comfyui.pictures(outputs["picture"]).astype(int) - ours).max() <= 2


def test_the_webui_paints_what_it_is_told(world: MicroWorld, webui: WebUI) -> None:
    def paint(prompt: str, seed: int) -> np.ndarray:
        pictures, _ = webui.txt2img(
            prompt=prompt, seed=seed, batch_size=SEEDS, width=64, height=64, steps=STEPS, cfg_scale=GUIDANCE,
            sampler_name="Euler", do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        return pictures[-SEEDS:]

    assert_paints_what_it_is_told(world, paint)
