"""Where on the curve of found against harmlessly moved a user stands: three named settings that move every border."""

from __future__ import annotations

from dataclasses import replace

from ..core.direction import Direction
from ..core.errors import SafeRegionError

NORMAL = "normal"
PRESETS = {"gentle": 1.25, NORMAL: 1.0, "strict": 0.8}
"""Part of its way from the benign mean at which each border lies; ``strict`` finds more and moves more that is
harmless. ``saferegion bench language`` measures both for each."""
NAMED = 0.1
"""Part of its way at which a border lies for a prompt whose text names the concept."""


def check_preset(preset: str) -> str:
    """``preset`` itself. Raises SafeRegionError: there is none of that name."""
    if preset not in PRESETS:
        raise SafeRegionError(f"The preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    return preset


def at_preset(direction: Direction, preset: str) -> Direction:
    """The same direction with the borders of its detector and its witness where ``preset`` puts them.

    Directions without a detector, and those of ``normal``, come back as they are.
    """
    return _tightened(direction, PRESETS[check_preset(preset)])


def nearer(direction: Direction) -> Direction:
    """The same direction with borders for texts that name its concept."""
    return _tightened(direction, NAMED)


def _tightened(direction: Direction, part: float) -> Direction:
    if direction.detector is None or part == 1:
        return direction
    witness = direction.witness
    return replace(
        direction,
        detector=direction.detector.tightened(part),
        witness=None if witness is None else witness.tightened(part),
    )


__all__ = ["NAMED", "NORMAL", "PRESETS", "at_preset", "check_preset", "nearer"]
