"""The recipes and benign prompts that come with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .recipes import NEUTRAL, read_neutral

_PACKAGE = Path(__file__).parent.parent


def vectors_folder() -> Path:
    """The bundled concepts: ``vectors/`` beside the package in a checkout, inside it in an installed wheel."""
    inside = _PACKAGE / "vectors"
    return inside if inside.is_dir() else _PACKAGE.parent / "vectors"


@cache
def neutral_prompts() -> tuple[str, ...]:
    """The bundled benign prompts that calibrate every concept."""
    return read_neutral(vectors_folder() / f"{NEUTRAL}.yaml")
