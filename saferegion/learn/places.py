"""Where bundled files are."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def vectors_folder() -> Path:
    """The bundled concepts: ``vectors/`` beside the package in a checkout, inside it in an installed wheel."""
    inside = _PACKAGE / "vectors"
    return inside if inside.is_dir() else _PACKAGE.parent / "vectors"
