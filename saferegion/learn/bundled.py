"""The recipes and benign prompts that come with the package."""

from __future__ import annotations

from functools import cache

from .places import vectors_folder
from .recipes import NEUTRAL, read_neutral


@cache
def neutral_prompts() -> tuple[str, ...]:
    """The bundled benign prompts that calibrate every concept."""
    return read_neutral(vectors_folder() / f"{NEUTRAL}.yaml")
