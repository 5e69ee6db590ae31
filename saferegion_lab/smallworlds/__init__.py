"""Three small text-to-image models to try discovery on: other latents, predictions, schedules, encoders and words.

Each is trained from scratch in minutes on one processor core (``python -m saferegion_lab.smallworlds train NAME``);
its judge is the nearest of all drawings. None of them was used to choose a setting.
"""

from __future__ import annotations

from .model import SmallWorld, load, train
from .scenes import SPECS

NAMES = tuple(SPECS)

__all__ = ["NAMES", "SPECS", "SmallWorld", "load", "train"]
