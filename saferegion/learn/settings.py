"""What a compilation may be told; every figure that was chosen stands here with why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..core.conditioning import Conditioning

Encode = Callable[[list[str]], Conditioning]
"""Prompts -> conditioning, a row each. It may carry ``fingerprint`` (a value, or a method that returns one)."""
Progress = Callable[[int, int], None]
"""Called with prompts done and prompts in all; raise in it to stop."""

BATCH = 32
METHOD = 16
"""Counts changes of the fit: directions kept from an earlier one are made again."""


@dataclass(frozen=True)
class CompileSettings:
    """Settings of :func:`saferegion.compile`.

    Attributes:
        batch_size: prompts a batch; halved where the device runs out of memory.
        family: encoder family, for people.
        pairs: most pairs of a recipe that are encoded, spread over it. axis: the same of an axis of people's looks,
            which two sides that are told apart easily make.
        neutral: most shared neutral prompts. own: most neutral prompts of a concept's own.
        outside: share of benign prompts that one concept may open, all its terms together.
        keep: bytes of tokens that are kept for the fit, beside the encoder; longer prompts keep those that tell.
        seed: of the fit.
    """

    batch_size: int = BATCH
    family: str = ""
    pairs: int = 150
    axis: int = 40
    neutral: int = 820
    own: int = 20
    outside: float = 2e-3
    keep: int = 500 * 2**20
    seed: int = 0
