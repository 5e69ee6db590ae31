"""All settings of a discovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import DiscoverError

METHODS = ("region", "vector")

Progress = Callable[[int, int], None]
Told = Callable[[str, float], None]


@dataclass(frozen=True)
class DiscoverySettings:
    """How a discovery runs. None of the numbers is tied to one model: what depends on the model (noise levels, κ, the
    form of the evidence, borders, the penalty of the ridge, the length of Δ) is measured on it.

    Attributes:
        method: ``region``, or ``vector`` for the published method.
        seed: of all noise; the same seed on the same machine gives the same bits, also after an interruption.
        steps: gradient steps of Δ. pictures: painted of each neutral prompt.
        sampling_steps, guidance: of painting (DDIM, classifier-free guidance).
        pairs: most pairs of the recipe that are painted to choose the evidence. levels: noise levels that are tried,
            spread over the window. place: side of what counts as one place of a picture, in sides of the picture.
            group: prompts a gradient step.
        rate: of Adam, in units of the tokens' own deviation. past: ½ of ½‖d‖, how far behind nothing Δ is to take the
            concept. keep: how much more what else a prompt says weighs than the concept. held_out: share of the
            prompts found that Δ is not trained on and by which the best Δ is kept.
        rounds: times that Δ is judged while it is trained.
        brings: evidence from which a prompt counts as bringing the concept: 0 is usual of calm prompts, 1 of the
            recipe's unsafe sides. doubt: share of calm prompts that may count so at first. settling: times that who is
            found is foretold anew from who was found. budget: share of calm prompts that the detector may open.
        least_area: least area under the evidence's ROC curve on the recipe's pairs, below which the model is said to
            lack the concept.
        window: part of the sampling in which Δ acts.
        batch_size: rows a pass of the denoiser; halved where the device runs out of memory.
        checkpoint: file that a broken run goes on from; remove it once the result is kept.
        progress: called with passes of the denoiser done and in all. told: with the stage and the loss of a step.
        stop: asked at every gradient step; once it says True, the best Δ so far is kept.
        autocast: dtype of mixed precision; None: the model's own. recompute: gradient checkpointing.
        family: encoder family as its loader names it, for the result.
    """

    method: str = "region"
    seed: int = 0
    steps: int = 160
    pictures: int = 1
    sampling_steps: int = 10
    guidance: float = 4.0
    pairs: int = 16
    levels: int = 5
    place: float = 0.375
    group: int = 8
    rate: float = 0.05
    past: float = 0.5
    keep: float = 3.0
    held_out: float = 0.25
    rounds: int = 8
    brings: float = 0.3
    doubt: float = 0.02
    settling: int = 3
    budget: float = 0.005
    least_area: float = 0.75
    window: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 32
    checkpoint: str | Path | None = None
    progress: Progress | None = None
    told: Told | None = None
    stop: Callable[[], bool] | None = None
    autocast: torch.dtype | None = None
    recompute: bool = False
    family: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DiscoverError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        least = {"steps": 1, "pictures": 1, "sampling_steps": 2, "pairs": 2, "levels": 1, "group": 1, "rounds": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise DiscoverError(f"{name} must be at least {value}; got {getattr(self, name)}.")
        for name in ("rate", "past", "keep", "held_out", "brings", "doubt", "budget", "place", "batch_size"):
            if not getattr(self, name) > 0:
                raise DiscoverError(f"{name} must be above 0; got {getattr(self, name)}.")
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise DiscoverError(f"window must be 0 <= start < end <= 1; got {self.window}.")

    def tell(self, stage: str, loss: float = float("nan")) -> None:
        """Tell the stage, and the loss where there is one."""
        if self.told is not None:
            self.told(stage, loss)

    def stopped(self) -> bool:
        """Whether the caller wants an end."""
        return self.stop is not None and self.stop()
