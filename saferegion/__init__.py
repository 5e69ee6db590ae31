"""Keep a prompt's embedding inside a safe region of the text-embedding space."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.conditioning import Conditioning as Conditioning
    from .core.conditioning import Space as Space
    from .core.detector import Detector as Detector
    from .core.direction import Direction as Direction
    from .core.direction import Meta as Meta
    from .core.errors import DiscoverError as DiscoverError
    from .core.errors import SafeRegionError as SafeRegionError
    from .core.errors import UnresolvedError as UnresolvedError
    from .core.fingerprint import Fingerprint as Fingerprint
    from .core.movers import HalfSpaces as HalfSpaces
    from .core.movers import Offset as Offset
    from .core.readout import Readout as Readout
    from .core.readout import Term as Term
    from .core.region import MODES as MODES
    from .core.region import STRONGEST as STRONGEST
    from .core.region import SafeRegion as SafeRegion
    from .core.report import Report as Report
    from .discover import Denoiser as Denoiser
    from .discover import DiscoverySettings as DiscoverySettings
    from .discover import discover as discover
    from .discover import discover_vector as discover_vector
    from .guard.files import load_directions as load_directions
    from .guard.library import Library as Library
    from .guard.library import load_concept as load_concept
    from .guard.presets import PRESETS as PRESETS
    from .guard.selection import Choice as Choice
    from .guard.selection import Guard as Guard
    from .guard.selection import Selection as Selection
    from .learn.compile import compile as compile
    from .learn.compile import compile_many as compile_many
    from .learn.paper_vector import import_paper_vector as import_paper_vector
    from .learn.recipes import Concept as Concept
    from .learn.recipes import read_recipe as read_recipe
    from .learn.settings import CompileSettings as CompileSettings

__version__ = "0.4.0"

_HOME = {
    "Conditioning": "core.conditioning",
    "Space": "core.conditioning",
    "Detector": "core.detector",
    "Direction": "core.direction",
    "Meta": "core.direction",
    "HalfSpaces": "core.movers",
    "Offset": "core.movers",
    "Readout": "core.readout",
    "Term": "core.readout",
    "DiscoverError": "core.errors",
    "SafeRegionError": "core.errors",
    "UnresolvedError": "core.errors",
    "Fingerprint": "core.fingerprint",
    "MODES": "core.region",
    "STRONGEST": "core.region",
    "SafeRegion": "core.region",
    "Report": "core.report",
    "Denoiser": "discover",
    "DiscoverySettings": "discover",
    "discover": "discover",
    "discover_vector": "discover",
    "load_directions": "guard.files",
    "Library": "guard.library",
    "load_concept": "guard.library",
    "PRESETS": "guard.presets",
    "Choice": "guard.selection",
    "Guard": "guard.selection",
    "Selection": "guard.selection",
    "CompileSettings": "learn.settings",
    "compile": "learn.compile",
    "compile_many": "learn.compile",
    "import_paper_vector": "learn.paper_vector",
    "Concept": "learn.recipes",
    "read_recipe": "learn.recipes",
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
