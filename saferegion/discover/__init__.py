"""Discovery: what the diffusion model brings without a word for it."""

from __future__ import annotations

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
