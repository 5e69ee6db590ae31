"""Nodes that say what is switched on: Safe Region, Concept from Words, Load and Save Directions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .. import saferegion as sr
from . import files

CATEGORY = "conditioning/safe region"
REGION = "SAFE_REGION"
BUNDLED = "all bundled"

STRENGTH = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 10.0,
        "step": 0.05,
        "tooltip": "1 takes an unsafe prompt to where benign prompts are, 2 as far again, 0.5 half the way; 0 switches "
        "it off. In the mode steer: how many times the concept is taken off.",
    },
)
MODE = (
    ["project", "steer", "erase"],
    {
        "default": "project",
        "tooltip": "project moves only prompts that are outside the safe region, and leaves all others bit-identical. "
        "steer takes the concept off every prompt, always. erase removes it linearly from every prompt.",
    },
)
ADD_TO = (
    REGION,
    {"tooltip": "A region that this one is added to. A concept that is in both takes the strength given here."},
)


def bundled() -> list[str]:
    """Names of the bundled concepts that keep something out."""
    library = sr.Library()
    return [n for n in library.names() if getattr(library.find(n), "kind", "") == "exclude"]


def everything() -> sr.Selection:
    """All bundled concepts at strength 1: what a guard without a region uses."""
    return sr.Selection().add(*(sr.Choice(name) for name in bundled()))


def read(name: str) -> sr.Concept | sr.Direction:
    """A recipe or a direction file of the user's folder."""
    path = files.path_of(name)
    return sr.load_directions(path) if path.suffix == files.SUFFIX else own(sr.read_recipe(path))


def own(concept: sr.Concept) -> sr.Concept:
    """A recipe of the user's own, which must not stand in for a bundled one.

    Raises:
        SafeRegionError: it has the name of a bundled concept.
    """
    library = sr.Library()
    if concept.name in library.names() and not library.is_bundled(concept):
        raise sr.SafeRegionError(f"'{concept.name}' is the name of a bundled concept; call your own one otherwise.")
    return concept


def number(strength: Any) -> bool | str:
    """Whether a strength can be one, else what is wrong with it: NaN is neither smaller nor bigger than anything."""
    if strength is None or not isinstance(strength, int | float):  # comes through a link
        return True
    if not strength >= 0:
        return f"strength must be a number from 0 to 10; got {strength} (smaller than min, or none)."
    return True if strength <= 10 else f"strength must be a number from 0 to 10; got {strength} (bigger than max)."


class SafeRegionNode:
    DESCRIPTION = (
        "Chooses what is kept out of the picture. Connect it to a guard node; chain several to choose more. Compiled "
        "for the connected text encoder on first use, and kept."
    )
    CATEGORY = CATEGORY
    FUNCTION = "choose"
    RETURN_TYPES = (REGION,)
    RETURN_NAMES = ("region",)
    OUTPUT_TOOLTIPS = ("What is switched on: connect it to a guard node, to Inspect, or to the next region.",)
    SEARCH_ALIASES = ["nsfw", "safety", "guard", "filter", "nudity", "censor"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "concept": (
                    [BUNDLED, *sr.Library().names(), *files.saved()],
                    {
                        "default": BUNDLED,
                        "tooltip": "What to keep out: everything this pack brings, one concept of it, or a recipe or "
                        "direction file of models/safe_region.",
                    },
                ),
                "strength": STRENGTH,
                "mode": MODE,
            },
            "optional": {"region": ADD_TO},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, strength: Any = None) -> bool | str:
        return number(strength)

    @classmethod
    def IS_CHANGED(cls, concept: str, **_: Any) -> Any:
        return files.stamps(*(sr.Library().names() if concept == BUNDLED else [concept]))

    def choose(
        self, concept: str, strength: float, mode: str, region: sr.Selection | None = None
    ) -> tuple[sr.Selection]:
        if concept == BUNDLED:
            chosen: list[Any] = list(bundled())
        else:
            chosen = [concept if concept in sr.Library().names() else read(concept)]
        return ((region or sr.Selection()).add(*(sr.Choice(c, strength, mode) for c in chosen)),)


class ConceptFromWords:
    DESCRIPTION = (
        "A concept of your own: the words to avoid, and what may stand in their place. The more words and sentences, "
        "the better it tells them from everything else."
    )
    CATEGORY = CATEGORY
    FUNCTION = "describe"
    RETURN_TYPES = (REGION,)
    RETURN_NAMES = ("region",)
    OUTPUT_TOOLTIPS = ("The concept, added to the region it came with.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": ("STRING", {"default": "my concept", "tooltip": "What reports call it."}),
                "avoid": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "placeholder": "to avoid: fire, in flames, burning",
                        "tooltip": "Words or phrases to keep out, one a line or with commas between.",
                    },
                ),
                "instead": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "placeholder": "instead (optional)",
                        "tooltip": "What may stand in their place, one a line or with commas between; empty: nothing.",
                    },
                ),
                "strength": STRENGTH,
                "mode": MODE,
            },
            "optional": {
                "sentences": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "placeholder": "sentences (optional): a house {} by a lake",
                        "tooltip": "Sentences in which the words may stand, one a line, with {} where they go. Empty: "
                        "a dozen general ones.",
                    },
                ),
                "region": ADD_TO,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, strength: Any = None) -> bool | str:
        return number(strength)

    def describe(
        self,
        name: str,
        avoid: str,
        instead: str,
        strength: float,
        mode: str,
        sentences: str = "",
        region: sr.Selection | None = None,
    ) -> tuple[sr.Selection]:
        concept = own(sr.Concept.from_words(name, words(avoid), words(instead), sentences.splitlines()))
        return ((region or sr.Selection()).add(sr.Choice(concept, strength, mode)),)


def words(text: str) -> list[str]:
    """Words or phrases, one a line or with commas between."""
    return [w for w in re.split(r"[,\uff0c\u3001\n]", text) if w.strip()]


class LoadDirections:
    DESCRIPTION = (
        "Reads a direction file from models/safe_region: compiled here or elsewhere, for the text encoder that is "
        "connected to the guard. Files of another encoder and files that cannot be trusted are refused."
    )
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (REGION,)
    RETURN_NAMES = ("region",)
    OUTPUT_TOOLTIPS = ("The concept of the file, added to the region it came with.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "file": (
                    files.saved_directions(),
                    {"tooltip": "A .safetensors direction file in models/safe_region. Nothing is ever unpickled."},
                ),
                "strength": STRENGTH,
                "mode": MODE,
            },
            "optional": {"region": ADD_TO},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, strength: Any = None) -> bool | str:
        return number(strength)

    @classmethod
    def IS_CHANGED(cls, file: str, **_: Any) -> Any:
        return files.stamps(file)

    def load(self, file: str, strength: float, mode: str, region: sr.Selection | None = None) -> tuple[sr.Selection]:
        path = files.path_of(file)
        return ((region or sr.Selection()).add(sr.Choice(sr.load_directions(path), strength, mode)),)


class SaveDirections:
    DESCRIPTION = (
        "Compiles everything in the region for the connected text encoder and writes one direction file a concept into "
        "models/safe_region, to keep and to share."
    )
    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES = (REGION, "STRING")
    RETURN_NAMES = ("region", "files")
    OUTPUT_TOOLTIPS = ("The same region, compiled.", "The files that were written, one a line.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "The text encoder to compile for."}),
                "region": (REGION, {"tooltip": "What to save."}),
                "prefix": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Goes before the concept's name in the file name; with a slash, a folder.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Whether files of the same name are replaced."},
                ),
            },
        }

    def save(self, clip: Any, region: sr.Selection, prefix: str, overwrite: bool) -> dict[str, Any]:
        from .encoder import TextEncoder
        from .progress import Progress

        paths = [files.new_path(prefix + choice.name) for choice in region.choices]
        there = [p.name for p in paths if p.exists()]
        if there and not overwrite:
            raise sr.SafeRegionError(
                f"{there[0]} is in models/{files.FOLDER} already; switch 'overwrite' on or give another prefix."
            )
        encoder = TextEncoder.of(clip)
        compiled = files.library().directions(
            [c.concept for c in region.choices], encoder, progress=Progress(), settings=encoder.settings()
        )
        for directions, path in zip(compiled, paths, strict=True):
            try:
                directions.save(path)
            except OSError as error:
                raise sr.SafeRegionError(
                    f"{_below(path)} cannot be written into models/{files.FOLDER} ({error.strerror or error}): make "
                    "room or free the folder for writing, and run again."
                ) from None
        names = "\n".join(_below(p) for p in paths)
        chosen = sr.Selection().add(
            *(sr.Choice(d, c.strength, c.mode) for d, c in zip(compiled, region.choices, strict=True))
        )
        return {"ui": {"text": (names,)}, "result": (chosen, names)}


def _below(path: Path) -> str:
    return path.relative_to(files.folders()[0]).as_posix()
