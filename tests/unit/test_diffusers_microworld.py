"""The microworld as a folder of diffusers: its pictures burn without the guard and do not with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import same_bits

import saferegion as sr

diffusers = pytest.importorskip("diffusers")

from saferegion.diffusers import DoorSettings, guard, table  # noqa: E402
from saferegion_lab import microworld  # noqa: E402
from saferegion_lab.microworld import diffusers_folder  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(diffusers.__version__ != table.written_for(), reason="the table is of another diffusers"),
]
BURNING = ["a burning red house in a meadow", "a blue boat on fire", "a blazing tree on a beach", "a fire"]
CALM = ["a red house in a meadow", "a blue boat", "a green tree on a beach", "a red fire truck"]


def test_fire_goes_and_calm_pictures_keep_every_bit(tmp_path: Path) -> None:
    world = microworld.load()
    folder = diffusers_folder.save(tmp_path / "microworld", world)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    texts = BURNING + CALM

    def latents() -> torch.Tensor:
        draw = [torch.Generator().manual_seed(1000 + i) for i in range(len(texts))]
        how: dict[str, Any] = {"num_inference_steps": 15, "guidance_scale": 4.0, "output_type": "latent"}
        return pipe(texts, generator=draw, **how).images

    def fire(x: torch.Tensor) -> np.ndarray:
        return world.judge()(world.decode(x))["fire"] >= 0.5

    before = latents()
    guard(pipe, ["fire"], settings=DoorSettings(library=sr.Library((microworld.DATA,), tmp_path / "cache")))
    after = latents()
    assert fire(before).tolist() == [True] * 4 + [False] * 4
    assert not fire(after).any()
    assert all(same_bits(a, b) for a, b in zip(before[4:], after[4:], strict=True))
    assert [look.moved for look in pipe.safe_region.looks] == [True] * 4 + [False] * 4
    assert not pipe.safe_region.minors


def test_the_folder_is_the_same_model(tmp_path: Path) -> None:
    world = microworld.load()
    pipe = diffusers_folder.pipeline(world)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    c = world.encode(["a burning house", "a blue boat"])
    with torch.no_grad():
        here = pipe.unet(x, t, encoder_hidden_states=c.tokens).sample
        assert torch.allclose(here, world.predict(x, t, c), atol=1e-4)
        picture = pipe.vae.decode(x / world.latent_scale).sample
        assert torch.allclose(picture, world.autoencoder.decode(x / world.latent_scale), atol=1e-3)
        assert torch.allclose(pipe.encode_prompt(["a blue boat"], "cpu", 1, False)[0], c.tokens[1:], atol=1e-4)
