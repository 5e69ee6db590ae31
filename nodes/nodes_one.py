"""Safe Region: everything in one node, with a row for each concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import saferegion as sr
from ..saferegion.guard.presets import NORMAL, PRESETS
from . import files
from .nodes_guard import ID, looked_at, negative_switch
from .nodes_region import BUNDLED, CATEGORY, REGION, bundled, read
from .progress import show_below
from .rows import Row, chosen

DEFAULT = str(Row(BUNDLED))
UNCONNECTED = object()
"""What the optional MODEL is where nothing is connected; None comes from a checkpoint that has none."""


def offered() -> list[str]:
    """What a row can name: the bundled concepts, all of them or one, and the user's own files."""
    return [BUNDLED, *bundled(), *files.saved()]


class SafeRegionGuard:
    DESCRIPTION = (
        "Keeps what its rows name out of every picture. Put it behind the checkpoint loader: MODEL and CLIP in, both "
        "guarded out. Benign prompts come out bit-identical; other prompts are moved to the nearest safe one. Encode "
        "the negative prompt with the loader's own CLIP: what you wrote there to avoid something keeps its force."
    )
    CATEGORY = CATEGORY
    FUNCTION = "guard"
    RETURN_TYPES = ("MODEL", "CLIP", "BOOLEAN", "STRING", "IMAGE")
    RETURN_NAMES = ("model", "clip", "moved", "report", "heat_map")
    OUTPUT_TOOLTIPS = (
        "A model that is sampled from guarded conditionings only.",
        "A CLIP whose every conditioning is inside the safe region.",
        "Whether the text that is connected is moved; without one: false.",
        "What is kept out and, of the text that is connected, what is moved, how far and why.",
        "How far each word of the text that is connected is from every border; white without one.",
    )
    SEARCH_ALIASES = ["nsfw", "safety", "guard", "filter", "nudity", "censor", "safe region"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "The text encoder, after its LoRA and Set Last Layer nodes."}),
                "concepts": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": DEFAULT,
                        "concepts": offered(),
                        "tooltip": "What to keep out, one concept a line with its strength: 'nudity: 1'. 1 takes an "
                        "unsafe prompt to where benign prompts are, 2 as far again, 0.5 half the way. A # before a "
                        "line switches it off.",
                    },
                ),
                "preset": (
                    list(PRESETS),
                    {
                        "default": NORMAL,
                        "tooltip": "gentle finds less and disturbs less, strict finds more and also moves more that is "
                        "harmless.",
                    },
                ),
            },
            "optional": {
                "model": ("MODEL", {"tooltip": "The diffusion model. Without one the CLIP alone is guarded."}),
                "region": (REGION, {"tooltip": "What to keep out besides: Concept from Words, Load Directions …"}),
                "text": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "A prompt to look at: what 'moved', 'report' and the heat map are about.",
                    },
                ),
                "guard_negative": negative_switch(", where the model samples."),
            },
            "hidden": ID,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, concepts: Any = None) -> bool | str:
        if not isinstance(concepts, str):  # comes through a link
            return True
        try:
            chosen(concepts, offered())
        except sr.SafeRegionError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, concepts: str = "", **_: Any) -> Any:
        named = [line.rpartition(":")[0].strip() for line in concepts.splitlines()] if concepts else []
        return files.stamps(files.NEUTRAL, *(n for n in named if n), *sr.Library().names())

    def guard(
        self,
        clip: Any,
        concepts: str,
        preset: str,
        model: Any = UNCONNECTED,
        region: sr.Selection | None = None,
        text: str | None = None,
        guard_negative: bool = False,
        unique_id: Any = None,
    ) -> Mapping[str, Any]:
        from .clip_guard import guard_both
        from .wrap import require_model

        if model is UNCONNECTED:
            model = None
        else:
            require_model(model)
        selection = selected(concepts, preset, region)
        told = Told(unique_id, selection)
        told.show()
        guarded_model, guarded_clip, fitted = guard_both(model, clip, selection, guard_negative, told.clip, told.model)
        moved, report, image = False, told.head, blank()
        if text is not None and text.strip():
            moved, report, image = looked_at(fitted, selection, clip, text)
            report = f"{told.head}\n{report}"
        return {
            "ui": {"text": (report,)},
            "result": (guarded_model, guarded_clip, moved, report, image),
        }


class Told:
    """The lines below the node: what is kept out, what became of the prompts, and what the model's guard adds."""

    def __init__(self, node: Any, selection: sr.Selection) -> None:
        self.node, self.head = node, f"keeps out {selection}"
        self._clip = self._model = ""

    def clip(self, text: str) -> None:
        self._clip = text
        self.show()

    def model(self, text: str) -> None:
        """What the guard before the sampling did, where the one behind the text encoder had not done it all."""
        self._model = text if "->" in text else ""
        self.show()

    def show(self) -> None:
        show_below(self.node, "\n".join(t for t in (self._clip or self.head, self._model) if t))


def selected(concepts: str, preset: str, region: sr.Selection | None) -> sr.Selection:
    """What the rows and the connected region switch on; a row of its own goes before 'all bundled'.

    Raises:
        SafeRegionError: nothing is on, or a row is wrong.
    """
    rows = sorted(chosen(concepts, offered()), key=lambda r: r.concept != BUNDLED)
    found = sr.Selection(region.choices if region is not None else ())
    names = bundled()
    for row in rows:
        wanted = names if row.concept == BUNDLED else [row.concept]
        found = found.add(*(sr.Choice(c if c in names else read(c), row.strength) for c in wanted))
    if not found.choices:
        raise sr.SafeRegionError("Nothing is switched on: switch a row on, or bypass the node.")
    return replace(found, preset=preset)


def blank() -> Any:
    import torch

    return torch.ones(1, 64, 64, 3)
