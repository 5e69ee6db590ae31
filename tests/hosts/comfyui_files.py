"""What a user of ComfyUI has in `models`, for the microworld: recipes, a LoRA of the text encoder, an embedding."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from saferegion_lab.microworld import DATA, MicroWorld

FOLDERS = ("checkpoints", "controlnet", "embeddings", "loras", "safe_region")
RECIPES = ("fire.yaml", "lightning.yaml", "neutral.yaml")
AXIS = "axis-hat.yaml"
LORA, EMBEDDING = "styled.safetensors", "ember.safetensors"
EMBEDDED = "burning"
"""The word whose own vector the embedding is: a prompt with it says fire without a word for it."""
_RANK = 4
_SIZE = 0.35
"""Size of the LoRA's change of a weight at strength 1, as a share of the weight."""


def write(models: Path, world: MicroWorld) -> None:
    for folder in FOLDERS:
        (models / folder).mkdir(parents=True)
    for recipe in RECIPES:
        shutil.copyfile(DATA / recipe, models / "safe_region" / recipe)
    (models / "safe_region" / "balance").mkdir()
    shutil.copyfile(DATA / AXIS, models / "safe_region" / "balance" / AXIS)
    save_file(lora(world), models / "loras" / LORA)
    save_file({"clip_l": embedding(world, EMBEDDED)}, models / "embeddings" / EMBEDDING)


def lora(world: MicroWorld) -> dict[str, Tensor]:
    """A random LoRA of every attention and feed-forward weight of the text encoder, with kohya's keys."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in world.text.named_parameters():
        if not name.endswith(".weight") or not name.startswith("encoder.layers") or "norm" in name:
            continue
        down = torch.randn(_RANK, weight.shape[1], generator=draw)
        up = torch.randn(weight.shape[0], _RANK, generator=draw)
        up *= _SIZE * weight.detach().norm() / (up @ down).norm()
        key = "lora_te_text_model_" + name.removesuffix(".weight").replace(".", "_")
        found |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        found[f"{key}.alpha"] = torch.tensor(float(_RANK))
    return found


def embedding(world: MicroWorld, word: str) -> Tensor:
    """The vectors of a word, float32 [tokens, width]."""
    ids = world.tokenizer(word, add_special_tokens=False).input_ids
    return world.text.get_input_embeddings().weight.detach()[ids].float().clone()
