"""What a judge should say of a scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saferegion_lab.microworld.judge import HEADS
from saferegion_lab.microworld.lexicon import SLOTS
from saferegion_lab.microworld.scenes import Scene


def truth(scene: Scene) -> dict[str, str]:
    """The right label of every head."""
    items = {item.slot: item for item in scene.items}
    figure = next((item for item in scene.items if item.kind == "figure"), None)
    style = "plain" if scene.style == "outline" and not scene.items else scene.style  # lines are drawn around things
    answer = {
        "place": scene.place, "style": style, "weather": scene.sky, "extra": scene.extra,
        "hat": figure.hat if figure else "none", "occupation": figure.word if figure else "none",
        **{concept: "yes" if concept in scene.shown else "no" for concept in ("fire", "smoke", "ghost")},
    }  # fmt: skip
    for slot in SLOTS:
        item = items.get(slot)
        answer[f"kind_{slot}"] = item.kind if item else "none"
        answer[f"colour_{slot}"] = (item.colour or "none") if item else "none"
        answer[f"flame_{slot}"] = "yes" if scene.ground_fire == slot or (item and item.fire) else "no"
    return answer


def labels(scenes: Sequence[Scene]) -> np.ndarray:
    """int8 [B, heads]"""
    answers = [truth(scene) for scene in scenes]
    return np.array([[HEADS[name].index(answer[name]) for name in HEADS] for answer in answers], dtype=np.int8)


def unsaid(scene: Scene) -> set[str]:
    """Heads that a caption with every colour and place leaves open."""
    found = set(scene.brought) | ({"weather"} if "lightning" in scene.brought else set())
    if any(item.kind == "figure" and not item.hat_said for item in scene.items):
        found.add("hat")
    if not scene.slot_said:
        found |= {f"{what}_{slot}" for what in ("kind", "colour", "flame") for slot in SLOTS}
    return found
