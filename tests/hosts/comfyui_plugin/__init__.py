"""Test-only: teaches ComfyUI the sizes of an exported microworld, so that its own CheckpointLoaderSimple loads it.

ComfyUI knows the widths of Stable Diffusion 1.x by heart; here they come from the `.json` beside the checkpoint.
Some nodes give what no good node gives: broken conditionings, and text where a choice of a list is expected; others do
as packs do that encode through an inner encoder (ADV_CLIP_emb), or keep text in an attention (Attention Couple).
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
import torch


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


class Anything(str):
    """An output type that every input takes."""

    def __ne__(self, _: object) -> bool:
        return False


class AnyText:
    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "give"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}}

    def give(self, text: str) -> tuple[str]:
        return (text,)


class Nothing:
    """What a loader gives for a part that its checkpoint does not have."""

    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "give"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[None]:
        return (None,)


class BrokenConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "give"
    CATEGORY = "test"
    HOW = (
        "NaN", "infinite", "no tensor", "text for a tensor", "empty", "no pairs", "pooled None", "no pooled",
        "pooled of rank 3", "wider", "rank 2", "integers", "another key",
    )  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING", {}), "how": (list(cls.HOW), {})}}

    def give(self, conditioning: Any, how: str) -> tuple[Any]:
        (tensor, options), *_ = conditioning
        spoilt = tensor.clone()
        spoilt[0, 5, 5] = float("inf") if how == "infinite" else float("nan")
        without = {k: v for k, v in options.items() if k != "pooled_output"}
        return (
            {
                "NaN": [[spoilt, options]],
                "infinite": [[spoilt, options]],
                "no tensor": [[None, options]],
                "text for a tensor": [["a red house", options]],
                "empty": [],
                "no pairs": [tensor],
                "pooled None": [[tensor, {**options, "pooled_output": None}]],
                "no pooled": [[tensor, without]],
                "pooled of rank 3": [[tensor, {**options, "pooled_output": tensor}]],
                "wider": [[torch.cat([tensor, tensor], 2), options]],
                "rank 2": [[tensor[0], options]],
                "integers": [[tensor.long(), options]],
                "another key": [[tensor, {**options, "conditioning_of_another": tensor}]],
            }[how],
        )


class InnerEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP", {}), "text": ("STRING", {})}}

    def encode(self, clip: Any, text: str) -> tuple[Any]:
        clip.load_model()
        embedded, pooled, *_ = clip.cond_stage_model.clip_l.encode_token_weights(clip.tokenize(text)["l"])
        return ([[embedded, {"pooled_output": pooled}]],)


class Couple:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "couple"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {}), "conditioning": ("CONDITIONING", {})}}

    def couple(self, model: Any, conditioning: Any) -> tuple[Any]:
        captured = conditioning[0][0]

        def patch(n: Any, context: Any, value: Any, options: Any) -> tuple[Any, Any, Any]:
            rows = context.clone()
            each = len(rows) // len(options["cond_or_uncond"])
            for i, kind in enumerate(options["cond_or_uncond"]):
                if kind == 0:
                    rows[i * each : (i + 1) * each] = captured.to(rows)
            return n, rows, rows

        model = model.clone()
        model.set_model_attn2_patch(patch)
        return (model,)


class StrangeKey:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "give"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING", {}), "key": ("STRING", {})}}

    def give(self, conditioning: Any, key: str) -> tuple[Any]:
        return ([[tensor, {**options, key: torch.ones(1, 4)}] for tensor, options in conditioning],)


NODE_CLASS_MAPPINGS = {
    "TestAnyText": AnyText,
    "TestNothing": Nothing,
    "TestBrokenConditioning": BrokenConditioning,
    "TestInnerEncode": InnerEncode,
    "TestCouple": Couple,
    "TestStrangeKey": StrangeKey,
}

comfy.supported_models.models.append(MicroWorld)
comfy.sd.VAE = MicroVAE
