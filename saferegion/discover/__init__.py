"""Discovery: what the diffusion model brings without a word for it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ..core.errors import DiscoverError
from .model import Denoiser
from .run import STAGES, SUFFIX, discover
from .settings import METHODS, DiscoverySettings
from .vector import discover_vector

__all__ = [
    "METHODS",
    "STAGES",
    "SUFFIX",
    "Denoiser",
    "DiscoverError",
    "DiscoverySettings",
    "discover",
    "discover_vector",
]


class _Package(ModuleType):
    """``saferegion.discover`` is this package once it is imported, and is called as the function all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return discover(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
