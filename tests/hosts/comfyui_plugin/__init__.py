"""Test-only: teaches ComfyUI the sizes of an exported microworld, so that its own CheckpointLoaderSimple loads it.

ComfyUI knows the widths of Stable Diffusion 1.x by heart; here they come from the `.json` beside the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import folder_paths

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def _sizes() -> dict[str, Any]:
    for folder in folder_paths.get_folder_paths("checkpoints"):
        for path in sorted(Path(folder).glob("*.json")):
            sizes = json.loads(path.read_text(encoding="utf-8"))
            if {"unet", "first_stage", "text"} <= sizes.keys():
                return sizes
    raise FileNotFoundError("There is no exported microworld with its .json among the checkpoints.")


SIZES = _sizes()


class MicroClipL(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device, dtype=dtype, return_projected_pooled=False, textmodel_json_config=dict(SIZES["text"]),
            model_options=model_options or {},
        )  # fmt: skip


class MicroClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=MicroClipL)


class MicroWorld(comfy.supported_models.SD15):
    unet_config = {
        **comfy.supported_models.SD15.unet_config,
        "context_dim": SIZES["unet"]["context_dim"],
        "model_channels": SIZES["unet"]["model_channels"],
    }
    unet_extra_config = {**comfy.supported_models.SD15.unet_extra_config, "num_heads": SIZES["unet"]["num_heads"]}

    def clip_target(self, state_dict: Any = None) -> Any:
        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, MicroClip)


class MicroVAE(comfy.sd.VAE):
    """The host's VAE, told the widths where the weights are those of a microworld."""

    def __init__(self, sd: Any = None, device: Any = None, config: Any = None, dtype: Any = None, **rest: Any) -> None:
        sizes = dict(SIZES["first_stage"])
        first = (sd or {}).get("encoder.conv_in.weight")
        if config is None and first is not None and first.shape[0] == sizes["ch"]:
            config = {"params": {"embed_dim": sizes.pop("embed_dim"), "ddconfig": sizes}}
        super().__init__(sd=sd, device=device, config=config, dtype=dtype, **rest)


comfy.supported_models.models.append(MicroWorld)
comfy.sd.VAE = MicroVAE
