"""What a user of the webui has in its data directory, for the microworld."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forge_files
import torch
import yaml
from comfyui_files import AXIS, EMBEDDED, RECIPES, embedding, lora
from host_servers import Host
from safetensors.torch import load_file, save_file

from saferegion_lab.microworld import DATA, MicroWorld

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
OTHER = "mirrored"
"""A checkpoint that paints the same pictures as the microworld from another embedding space."""
LORA, EMBEDDING, HARMLESS = "styled", "ember", "azure"
"""A LoRA, and embeddings: of the word burning, and of the word blue."""
AFLAME, CALM = "aflame", "calm"
"""Styles of the user's own."""
NO_CONCEPT, BROKEN, STRANGE = "no-concept", "broken", "strange"


def write(host: Host, data: Path, world: MicroWorld, exported: Path, more: tuple[str, ...] = ()) -> Path:
    """``data`` as a data directory of a host of the family: the microworld's checkpoint (``exported``) with what the
    host needs to load it, another one, a LoRA, an embedding, recipes, this project as an extension, and extensions for
    the tests (``more``: further ones)."""
    models = data / "models"
    checkpoints = models / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    (data / "extensions").mkdir()
    sizes = json.loads(exported.with_suffix(".json").read_text(encoding="utf-8"))
    settings = {"live_previews_enable": False, "sd_model_checkpoint": exported.name, "CLIP_stop_at_last_layers": 1}
    if (host.root / "backend").is_dir():
        forge_files.write(data, host.root, sizes)
        settings.update(forge_files.agreed(host.root))
    else:
        _write_configurations(data, host.root, sizes, exported)
    (checkpoints / exported.name).symlink_to(exported)
    save_file(mirrored(load_file(exported)), checkpoints / f"{OTHER}.safetensors")
    (data / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (data / "extensions" / "safe-region").symlink_to(PROJECT)
    styles = (
        f"name,prompt,negative_prompt\n{AFLAME},a burning red house in a meadow,\n{CALM},a red house in a meadow,\n"
    )
    (data / "styles.csv").write_text(styles, encoding="utf-8")
    embeddings = [data / "embeddings", models / "embeddings"]
    for folder in (models / "Lora", models / "safe_region", *embeddings):
        folder.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        shutil.copyfile(DATA / recipe, models / "safe_region" / recipe)
    (models / "safe_region" / "balance").mkdir()
    shutil.copyfile(DATA / AXIS, models / "safe_region" / "balance" / AXIS)
    save_file(lora(world), models / "Lora" / f"{LORA}.safetensors")
    for folder in embeddings:
        for name, word in ((EMBEDDING, EMBEDDED), (HARMLESS, "blue")):
            save_file({"emb_params": embedding(world, word)}, folder / f"{name}.safetensors")
    for name in ("counter", "injector", *more):
        scripts = data / "extensions" / name / "scripts"
        scripts.mkdir(parents=True)
        shutil.copyfile(HERE / f"webui_{name}.py", scripts / f"{name}.py")
    return data


def _write_configurations(data: Path, checkout: Path, sizes: dict[str, Any], exported: Path) -> None:
    """AUTOMATIC1111's own configuration of Stable Diffusion 1.x with the microworld's widths, for both checkpoints."""
    clip = data / "clip"
    shutil.copytree(exported.with_name(f"{exported.stem}-tokenizer"), clip)
    text = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], **sizes["text"]}
    (clip / "config.json").write_text(json.dumps(text), encoding="utf-8")
    config = yaml.safe_load((checkout / "configs" / "v1-inference.yaml").read_text(encoding="utf-8"))
    params = config["model"]["params"]
    params.update(sizes["schedule"], scale_factor=sizes["scale_factor"])
    params["unet_config"]["params"].update(sizes["unet"], use_checkpoint=False)
    autoencoder = {key: value for key, value in sizes["first_stage"].items() if key != "embed_dim"}
    first_stage = params["first_stage_config"]["params"]
    first_stage.update(embed_dim=sizes["first_stage"]["embed_dim"], ddconfig=autoencoder)
    params["cond_stage_config"]["params"] = {"version": str(clip), "device": "cpu"}
    for name in (exported.stem, OTHER):
        (data / "models" / "Stable-diffusion" / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


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
