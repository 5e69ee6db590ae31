"""Nodes that guard: Guard CLIP, Guard Model, Guard Conditioning, and Inspect, which shows what they would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import saferegion as sr
from . import files
from .nodes_region import CATEGORY, REGION, everything
from .progress import show_below

CLIP_TIP = "The CLIP that makes the conditionings: after its LoRA and Set Last Layer nodes."
REGION_TIP = "What is switched on; nothing connected: every bundled concept."
ID = {"unique_id": "UNIQUE_ID"}


def negative_switch(where: str = "") -> tuple[str, dict[str, Any]]:
    """The switch that guards the negative prompt too; ``where``: more words of its tooltip."""
    tip = f"Whether the negative prompt is guarded too{where}"
    return "BOOLEAN", {"default": False, "tooltip": tip}


def looked_at(fitted: Any, selection: sr.Selection, clip: Any, text: str) -> tuple[bool, str, Any]:
    """Whether a text is moved, the report of it, and its heat map ``[1, H, W, 3]``."""
    from .clip_guard import look
    from .encoder import TextEncoder
    from .pictures import heat_maps, token_strings

    seen = look(fitted, selection, TextEncoder.of(clip), clip, text)
    strings = token_strings(clip.tokenizer, seen.tokens, seen.conditioning)
    return seen.report.moved, seen.report.text([strings]), heat_maps(seen.report, strings, " ".join(text.split()))


class _Guarding:
    """What the nodes below depend on besides their inputs."""

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> Any:
        return files.stamps(files.NEUTRAL)


class GuardCLIP(_Guarding):
    DESCRIPTION = (
        "Put it behind the checkpoint loader: every prompt that is encoded further down is guarded, through LoRA "
        "loaders, Set Last Layer and scheduled hooks. Benign prompts come out bit-identical. Directions with a step "
        "window act all the time here."
    )
    CATEGORY = CATEGORY
    FUNCTION = "guard"
    RETURN_TYPES = ("CLIP",)
    OUTPUT_TOOLTIPS = ("A CLIP whose every conditioning is inside the safe region.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip": ("CLIP", {"tooltip": "The text encoder to guard. The one connected stays as it is."})},
            "optional": {"region": (REGION, {"tooltip": REGION_TIP})},
            "hidden": ID,
        }

    def guard(self, clip: Any, region: sr.Selection | None = None, unique_id: Any = None) -> tuple[Any]:
        from .clip_guard import guard_clip

        selection = region or everything()
        show_below(unique_id, f"guards against {selection}")
        return (guard_clip(clip, selection, lambda text: show_below(unique_id, text)),)


class GuardModel(_Guarding):
    DESCRIPTION = (
        "Guards every sampling of this model, whatever made its conditionings: regions, masks, schedules, hooks and "
        "ControlNet included. Once a sampling, no further evaluation of the model."
    )
    CATEGORY = CATEGORY
    FUNCTION = "guard"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A model that is sampled from guarded conditionings only.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model to guard. The one connected stays as it is."}),
                "clip": ("CLIP", {"tooltip": CLIP_TIP}),
                "guard_negative": negative_switch(". Off: what you wrote there to avoid something keeps its force."),
            },
            "optional": {"region": (REGION, {"tooltip": REGION_TIP})},
            "hidden": ID,
        }

    def guard(
        self, model: Any, clip: Any, guard_negative: bool, region: sr.Selection | None = None, unique_id: Any = None
    ) -> tuple[Any]:
        from .encoder import TextEncoder
        from .wrap import fit, guard_model

        selection = region or everything()
        fitted = fit(selection, TextEncoder.of(clip))
        show_below(unique_id, f"guards against {selection}")
        return (guard_model(model, fitted, guard_negative, lambda text: show_below(unique_id, text)),)


class GuardConditioning(_Guarding):
    DESCRIPTION = "Guards one conditioning, and says what it did. For a positive prompt; a negative one needs no guard."
    CATEGORY = CATEGORY
    FUNCTION = "guard"
    RETURN_TYPES = ("CONDITIONING", "STRING", "BOOLEAN")
    RETURN_NAMES = ("conditioning", "report", "moved")
    OUTPUT_TOOLTIPS = (
        "The conditioning inside the safe region.",
        "What was moved, how far, and why.",
        "Whether anything was moved.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING", {"tooltip": "The conditioning to guard, all of its parts."}),
                "clip": ("CLIP", {"tooltip": CLIP_TIP}),
            },
            "optional": {"region": (REGION, {"tooltip": REGION_TIP})},
            "hidden": ID,
        }

    def guard(
        self, conditioning: Any, clip: Any, region: sr.Selection | None = None, unique_id: Any = None
    ) -> tuple[Any, str, bool]:
        from .encoder import TextEncoder
        from .wrap import fit, guard_conditioning, told

        fitted = fit(region or everything(), TextEncoder.of(clip))
        guarded, reports = guard_conditioning(fitted, conditioning)
        text = told(reports)
        show_below(unique_id, text)
        return guarded, text, any(r.moved for r in reports)


class Inspect(_Guarding):
    DESCRIPTION = (
        "Shows how far every token of a prompt is from the border of every concept, before and after guarding: blue "
        "is inside, red is outside."
    )
    CATEGORY = CATEGORY
    FUNCTION = "inspect"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("heat_map", "report")
    OUTPUT_TOOLTIPS = ("The heat map.", "What would be moved, how far, and why.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "The text encoder; a guarded one is inspected without its guard."}),
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "default": "",
                        "placeholder": "a prompt",
                        "tooltip": "The prompt to look at, with weights and embeddings as in a text encode node.",
                    },
                ),
            },
            "optional": {"region": (REGION, {"tooltip": REGION_TIP})},
            "hidden": ID,
        }

    def inspect(
        self, clip: Any, text: str, region: sr.Selection | None = None, unique_id: Any = None
    ) -> Mapping[str, Any]:
        from nodes import PreviewImage

        from .encoder import TextEncoder
        from .wrap import fit

        selection = region or everything()
        _, said, image = looked_at(fit(selection, TextEncoder.of(clip)), selection, clip, text)
        show_below(unique_id, said)
        shown = PreviewImage().save_images(image)["ui"]["images"]
        return {"ui": {"images": shown, "text": (said,)}, "result": (image, said)}
