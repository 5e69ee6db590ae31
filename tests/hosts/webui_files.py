"""What a user of the webui has in its data directory, for the microworld."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from comfyui_files import EMBEDDED, RECIPES, embedding, lora
from safetensors.torch import load_file, save_file

from saferegion_lab.microworld import DATA, MicroWorld

OTHER = "mirrored"
"""A checkpoint that paints the same pictures as the microworld from another embedding space."""
LORA, EMBEDDING = "styled", "ember"
NO_CONCEPT, BROKEN, STRANGE = "no-concept", "broken", "strange"


def write(data: Path, world: MicroWorld, checkpoint: Path) -> None:
    models = data / "models"
    for folder in (models / "Lora", models / "safe_region", data / "embeddings"):
        folder.mkdir(parents=True)
    for recipe in RECIPES:
        shutil.copyfile(DATA / recipe, models / "safe_region" / recipe)
    save_file(lora(world), models / "Lora" / f"{LORA}.safetensors")
    save_file({"emb_params": embedding(world, EMBEDDED)}, data / "embeddings" / f"{EMBEDDING}.safetensors")
    save_file(mirrored(load_file(checkpoint)), models / "Stable-diffusion" / f"{OTHER}.safetensors")
    shutil.copyfile(models / "Stable-diffusion" / "microworld.yaml", models / "Stable-diffusion" / f"{OTHER}.yaml")
    counter = data / "extensions" / "counter" / "scripts"
    counter.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("webui_counter.py"), counter / "counter.py")


def mirrored(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every second channel of the embedding space with the other sign, and the UNet told of it."""
    norm = "cond_stage_model.transformer.text_model.final_layer_norm"
    sign = torch.ones(len(weights[f"{norm}.weight"]))
    sign[::2] = -1
    found = dict(weights)
    for name, value in weights.items():
        if name.startswith(f"{norm}."):
            found[name] = value * sign
        elif name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            found[name] = value * sign
    return found


def write_bad_concepts(folder: Path) -> None:
    """A recipe that has no concept in it, a direction file that is damaged, and one of another encoder."""
    nouns = ("a red house", "a blue boat", "a green tree", "a yellow car", "a white dog", "a black cat")
    pairs = [[a, b] for i, a in enumerate(nouns) for b in (nouns[i - 1], nouns[i - 2])]
    pairs += [[b, a] for a, b in pairs if [b, a] not in pairs]
    head = f"format: saferegion-recipe/1\nname: {NO_CONCEPT}\ntitle: Nothing\nkind: exclude\nversion: 1\nlicence: MIT\n"
    lines = "".join(f"- {{unsafe: {a}, safe: {b}}}\n" for a, b in pairs)
    (folder / f"{NO_CONCEPT}.yaml").write_text(f"{head}pairs:\n{lines}", encoding="utf-8")
    (folder / f"{BROKEN}.safetensors").write_bytes(b"\x00" * 64)
