"""A text-to-image latent diffusion model that reads natural language: all-MiniLM-L6-v2, frozen, stands before its UNet.

It paints 48x48 flat figures of adults with things, in scenes, and ships with a judge that says what a picture shows.
Associations and stereotypes are built in at known rates (:mod:`.words`), so that there is something to find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .judge import Judge
    from .model import NaturalWorld, load

__all__ = ["Judge", "NaturalWorld", "load"]


def __getattr__(name: str) -> Any:
    if name in ("NaturalWorld", "load"):
        from . import model

        return getattr(model, name)
    if name == "Judge":
        from .judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
