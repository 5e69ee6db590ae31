"""The recipes and benign prompts that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core.errors import RecipeError
from ..core.texts import LONGEST_NAME, is_plain
from .places import vectors_folder
from .recipes import NEUTRAL, read_neutral
from .vocabulary import FRAMES
from .yaml_text import head

RECIPE_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (*RECIPE_SUFFIXES, ".safetensors")
NO_CONCEPTS = frozenset({NEUTRAL, FRAMES, "hard-neutral"})
"""Lists of benign prompts among the bundled files: those that calibrate, and those held out to measure."""


@dataclass(frozen=True)
class Label:
    """What stands at the head of a recipe."""

    name: str
    title: str
    kind: str
    version: str
    licence: str
    description: str


def stems(folder: Path) -> set[str]:
    """Names of the files in a folder that may be concepts; none where it cannot be read."""
    try:
        return {
            p.stem
            for p in folder.iterdir()
            if p.suffix in SUFFIXES and not p.name.startswith(".") and is_plain(p.stem, LONGEST_NAME)
        }
    except OSError:
        return set()


def bundled_names(folder: Path) -> list[str]:
    """The bundled concepts, sorted; ``folder`` is that of :func:`vectors_folder`."""
    return sorted(stems(folder) - NO_CONCEPTS)


def label(path: Path) -> Label:
    """What the head of a bundled recipe says, at once: nothing else of it is read. Raises RecipeError."""
    found = head(path)
    keys = ("name", "title", "kind", "version", "licence", "description")
    if missing := [key for key in keys if key not in found]:
        raise RecipeError(f"{path.name} does not say its '{missing[0]}' before its words and pairs.")
    return Label(*(str(found[key]).strip() for key in keys))


@cache
def neutral_prompts() -> tuple[str, ...]:
    """The bundled benign prompts that calibrate every concept."""
    return read_neutral(vectors_folder() / f"{NEUTRAL}.yaml")
