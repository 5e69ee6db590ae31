"""Keep a prompt's embedding inside a safe region of the text-embedding space."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditioning import Conditioning as Conditioning
    from .conditioning import Space as Space
    from .directions import ConceptDirections as ConceptDirections
    from .directions import Direction as Direction
    from .discovery import Denoiser as Denoiser
    from .discovery import discover as discover
    from .discovery import discover_vector as discover_vector
    from .errors import DiscoverError as DiscoverError
    from .errors import SafeRegionError as SafeRegionError
    from .fingerprint import Fingerprint as Fingerprint
    from .fit import compile as compile
    from .fit import compile_many as compile_many
    from .guard.files import load_directions as load_directions
    from .guard.library import Library as Library
    from .guard.library import load_concept as load_concept
    from .guard.selection import Choice as Choice
    from .guard.selection import Guard as Guard
    from .guard.selection import Selection as Selection
    from .learn.paper_vector import import_paper_vector as import_paper_vector
    from .learn.recipes import Concept as Concept
    from .learn.recipes import read_recipe as read_recipe
    from .region import MODES as MODES
    from .region import STRONGEST as STRONGEST
    from .region import SafeRegion as SafeRegion
    from .report import Report as Report

__version__ = "0.3.0"

_HOME = {
    "Conditioning": "conditioning",
    "Space": "conditioning",
    "ConceptDirections": "directions",
    "Direction": "directions",
    "Denoiser": "discovery",
    "DiscoverError": "errors",
    "discover": "discovery",
    "discover_vector": "discovery",
    "SafeRegionError": "errors",
    "load_directions": "guard.files",
    "Fingerprint": "fingerprint",
    "compile": "fit",
    "compile_many": "fit",
    "Library": "guard.library",
    "load_concept": "guard.library",
    "import_paper_vector": "learn.paper_vector",
    "Concept": "learn.recipes",
    "read_recipe": "learn.recipes",
    "MODES": "region",
    "STRONGEST": "region",
    "SafeRegion": "region",
    "Report": "report",
    "Choice": "guard.selection",
    "Guard": "guard.selection",
    "Selection": "guard.selection",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
