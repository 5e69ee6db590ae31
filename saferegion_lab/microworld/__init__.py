"""A text-to-image latent diffusion model of a few million weights, with the architecture of Stable Diffusion 1.x.

It paints 64x64 scenes of simple things at simple places, some of them on fire or under lightning, and ships with a
judge that says what a picture shows: guards can be measured, demonstrated and tested on it in seconds on a CPU.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .judge import Judge
    from .model import MicroWorld, load

__all__ = ["DATA", "Judge", "MicroWorld", "load", "neutral_prompts"]

DATA = Path(__file__).parent / "data"
"""Weights, tokenizer, and the recipes ``fire`` and ``lightning``."""


@cache
def neutral_prompts() -> tuple[str, ...]:
    """The microworld's own benign prompts, which calibrate its recipes."""
    from saferegion.learn.recipes import read_neutral

    return read_neutral(DATA / "neutral.yaml")


def __getattr__(name: str) -> Any:
    if name in ("MicroWorld", "load"):
        from . import model

        return getattr(model, name)
    if name == "Judge":
        from .judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
