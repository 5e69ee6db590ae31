"""The published vector (Li et al., WWW 2025) on the microworld: β swept, and fairness vectors on skewed words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from saferegion.core.region import SafeRegion
from saferegion.discover import DiscoverySettings, discover_vector
from saferegion.discover.vector import PUBLISHED
from saferegion.guard.library import load_concept
from saferegion.learn.recipes import Concept

from .. import microworld
from ..microworld.prompts import SETS, EvalPrompt, content
from . import machine, wilson
from .microworld import SHOWS, _choose

Progress = Callable[[int, int], None]
BETAS = (0.0, 0.1, 0.25, 0.5, 1.0)
HATS = {"round": "a person with a round hat", "pointed": "a person with a pointed hat"}
WORDS = ("baker", "smith", "gardener", "person")
PEOPLE = ("a person", "a person in a meadow", "a person on a beach", "a person in a city", "a person in a forest")


def run(
    pictures: int = 48, updates: int = 410, rate: float = 0.02, batch: int = 4, progress: Progress | None = None
) -> dict[str, Any]:
    """Train the vectors, paint, judge."""
    world = microworld.load()
    judge = world.judge()
    fire = load_concept(microworld.DATA / "fire.yaml")
    assert isinstance(fire, Concept)
    how: DiscoverySettings = replace(PUBLISHED, steps=updates, group=batch)
    done, total = 0, 3 + 3 * len(BETAS) + 3 * len(WORDS)

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    vector = discover_vector(fire, world.encode, world, settings=how, rate=rate)
    told()
    sets = {name: _choose(SETS[name](), pictures) for name in ("explicit", "association", "benign")}
    rows = []
    for beta in BETAS:
        for name, cases in sets.items():
            c = world.encode([k.prompt for k in cases])
            if beta:
                c, _ = SafeRegion([vector], beta, "steer").apply(c)
            seen = judge(world.decode(world.sample(c, seeds=range(1000, 1000 + len(cases)))))
            fires = seen["fire"] >= SHOWS
            rows.append({
                "beta": beta, "set": name, "pictures": len(cases), "fire": float(fires.mean()),
                "fire_95": wilson(int(fires.sum()), len(fires)), "content": float(content(cases, seen).mean()),
            })  # fmt: skip
            told()
    sides = {}
    for hat, words in HATS.items():
        recipe = Concept.from_pairs(f"{hat}-hat", [(words, "a person")], kind="balance")
        sides[hat] = discover_vector(
            recipe, world.encode, world, settings=replace(how, guidance=4.0), words=words, prompts=PEOPLE, toward=True,
            rate=rate,
        )  # fmt: skip
        told()
    fairness = [r for word in WORDS for r in _fairness(world, judge, word, sides, pictures, told)]
    return {
        "machine": machine(), "pictures": pictures, "updates": updates, "rate": rate, "batch": batch,
        "loss": [float(np.mean(vector.meta.curve[:20])), float(np.mean(vector.meta.curve[-20:]))],
        "rows": rows, "fairness": fairness,
    }  # fmt: skip


def _fairness(
    world: microworld.MicroWorld, judge: Any, word: str, sides: dict[str, Any], pictures: int, told: Callable[[], None]
) -> list[dict[str, Any]]:
    """Hats of pictures of a word: without a guard, with one vector a picture, drawn by quota, and, for what the model
    can paint at all, with the hat said in the prompt."""
    cases: list[EvalPrompt] = [k for k in SETS["figures"]() if k.group == word]
    cases = [cases[i % len(cases)] for i in range(pictures)]
    plain = world.encode([k.prompt for k in cases])
    regions = [SafeRegion([v], 1.0, "steer") for v in sides.values()]
    mixed = torch.cat([
        regions[i % len(regions)].apply(plain[i : i + 1])[0].tokens for i in range(len(cases))
    ])  # fmt: skip
    hats = list(HATS)
    said = world.encode([k.prompt.replace(word, f"{word} with a {hats[i % 2]} hat", 1) for i, k in enumerate(cases)])
    found = []
    for name, c in (("none", plain), ("vectors by quota", plain.replace(mixed, None)), ("said by quota", said)):
        seen = judge(world.decode(world.sample(c, seeds=range(3000, 3000 + len(cases)))))
        round_share = float(np.mean([h == "round" for h in seen["hat"]]))
        pointed = float(np.mean([h == "pointed" for h in seen["hat"]]))
        shares = np.array([round_share, pointed]) / max(round_share + pointed, 1e-9)
        found.append({
            "word": word, "guard": name, "pictures": len(cases), "round": round_share, "pointed": pointed,
            "deviation": float(np.abs(shares - 0.5).max() / 0.5), "content": float(content(cases, seen).mean()),
        })  # fmt: skip
        told()
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    by = {(r["beta"], r["set"]): r for r in result["rows"]}
    first = Table("β", "by word", "association", "benign", "content by word", "association", "benign")
    first.title = f"share of pictures that show fire, and content kept; {result['pictures']} a cell"
    for beta in dict.fromkeys(r["beta"] for r in result["rows"]):
        cells = [by[beta, s] for s in ("explicit", "association", "benign")]
        first.add_row(f"{beta:g}", *(f"{c['fire']:.2f}" for c in cells), *(f"{c['content']:.2f}" for c in cells))
    second = Table("word", "guard", "round hats", "pointed hats", "deviation ratio", "content")
    for r in result["fairness"]:
        shares = (f"{r[k]:.2f}" for k in ("round", "pointed", "deviation", "content"))
        second.add_row(r["word"], r["guard"], *shares)
    return [first, second]
