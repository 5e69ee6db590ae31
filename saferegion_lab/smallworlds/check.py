"""Whether a small world obeys its words and shows its associations."""

from __future__ import annotations

from .model import SmallWorld
from .scenes import Scene, kept, prompts

SETS = ("said", "held_out", "brings", "benign")


def check(world: SmallWorld, count: int = 96) -> dict[str, dict[str, float]]:
    """By set of prompts: share of pictures that show the concept, and that show what else is said."""
    found = {}
    for kind in SETS:
        said = prompts(world.spec, kind, count, 1)
        shown: list[Scene] = world.judge(world.sample(world.encode([s.prompt for s in said]), range(count)))
        found[kind] = {
            "shown": round(sum(s.shown for s in shown) / count, 3),
            "content": round(sum(kept(a, b) for a, b in zip(said, shown, strict=True)) / count, 3),
        }
    return found
