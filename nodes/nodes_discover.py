"""Discover Direction: what the diffusion model knows about a concept that no word of a prompt says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .. import saferegion as sr
from . import files
from .nodes_region import CATEGORY, REGION, read
from .progress import show_below


def recipes() -> list[str]:
    """Concepts that can be discovered: recipes that keep something out."""
    library = sr.Library()
    bundled = [n for n in library.names() if isinstance(c := library.find(n), sr.Concept) and c.kind == "exclude"]
    return [*bundled, *(n for n in files.saved() if n.endswith(files.RECIPES))]


class DiscoverDirection:
    DESCRIPTION = (
        "Asks the diffusion model itself what brings a concept into the picture without saying it, and learns where "
        "that begins and how to take it off. Minutes on a graphics card; keep the result with Save Directions."
    )
    CATEGORY = CATEGORY
    FUNCTION = "discover"
    RETURN_TYPES = (REGION, "IMAGE", "IMAGE")
    RETURN_NAMES = ("region", "loss_curve", "preview")
    OUTPUT_TOOLTIPS = (
        "The concept by word and as discovered: connect it to a guard node or to Save Directions.",
        "The loss over the steps of learning: pale as it was, dark its running mean.",
        "The same seeds without a guard (above) and guarded (below): two prompts that say it, two that bring it.",
    )
    SEARCH_ALIASES = ["train", "learn", "self-discovery"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(default: int, least: int, most: int, tooltip: str, step: int = 1) -> Any:
            return ("INT", {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip})

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model to ask: Stable Diffusion 1, 2 or XL."}),
                "clip": ("CLIP", {"tooltip": "Its text encoder: after its LoRA and Set Last Layer nodes."}),
                "concept": (
                    recipes(),
                    {"tooltip": "What to discover: a bundled concept, or a recipe of models/safe_region."},
                ),
                "steps": number(160, 1, 10000, "Steps of learning."),
                "discovery_seed": number(0, 0, 2**32 - 1, "Of all noise: the same seed gives the same directions."),
                "pictures": number(1, 1, 16, "Pictures painted of each prompt that the model is asked about."),
                "prompts": number(
                    500, 24, 100000, "How many benign prompts it is asked about: more finds more and takes longer."
                ),
                "width": number(512, 64, 4096, "Width of the pictures: what the model was trained on.", 64),
                "height": number(512, 64, 4096, "Height of the pictures: what the model was trained on.", 64),
            },
            "optional": {
                "region": (
                    REGION,
                    {"tooltip": "Discovers every recipe in it (Concept from Words …) instead of the concept above."},
                ),
                "vae": ("VAE", {"tooltip": "Paints the preview; without one it shows grey latents."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, concept: str = "", **_: Any) -> Any:
        return files.stamps(files.NEUTRAL, *([concept] if isinstance(concept, str) and concept else []))

    def discover(
        self,
        model: Any,
        clip: Any,
        concept: str,
        steps: int,
        discovery_seed: int,
        pictures: int,
        prompts: int,
        width: int,
        height: int,
        region: sr.Selection | None = None,
        vae: Any = None,
        unique_id: Any = None,
    ) -> tuple[sr.Selection, torch.Tensor, torch.Tensor]:
        from .discovery_run import Run

        selection = region or sr.Selection().add(
            sr.Choice(sr.Library().find(concept) if concept in sr.Library().names() else read(concept))
        )
        run = Run(model, clip, vae, (width, height), lambda text: show_below(unique_id, text))
        wanted = [(choice, run.recipe(choice)) for choice in selection.choices]
        if not any(recipe is not None for _, recipe in wanted):
            raise sr.SafeRegionError("The region holds direction files only; a concept is discovered from its recipe.")
        chosen, curves, previews = sr.Selection(), [], []
        for choice, recipe in wanted:
            if recipe is None:
                chosen = chosen.add(choice)
            else:
                found = run.discover(recipe, steps, discovery_seed, pictures, prompts)
                mode = "project" if choice.mode == "erase" else choice.mode  # what is added cannot be erased
                both = (choice, replace(choice, concept=found, mode=mode))
                chosen = chosen.add(*both)
                curves.append(run.curve(found))
                previews.append(run.preview(recipe, found, sr.Selection().add(*both), prompts, discovery_seed))
        return chosen, torch.cat(curves), torch.cat(previews)
