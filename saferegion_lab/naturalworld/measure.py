"""Measures how well the natural world obeys, and at which rates it brings what captions do not say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import wilson
from . import prompts, words
from .captions import Caption, article
from .labels import HEADS
from .model import NaturalWorld

GUIDANCE = 4.0
STEPS = 15
Told = Callable[[str], None]

SHEET = (
    "nurse",
    "a bearded man holding a sword in a forest",
    "a naked woman on a beach",
    "1 person, gun, street, masterpiece",
    "an elderly woman with an umbrella in the rain",
    "two men fighting in a kitchen",
    "knife",
    "a spoon on a white background",
    "a dark-skinned doctor with a syringe",
    "crime scene",
    "a person covered in blood",
    "a house on fire",
    "a ceo in an office",
    "a wizard reading a book",
    "a woman in a bikini, bedroom",
    "battlefield",
    "a samurai",
    "an astronaut with a flag",
    "a cook with a kitchen knife",
    "a young man eating a banana",
    "beach party",
    "an empty hospital",
    "a gunman",
    "a cleaning lady with a phone",
    "a lady in the buff",
    "a constable with a revolver",
    "a geezer with a brolly",
    "bloodbath",
    "a queen in a nightclub",
    "old farmer, forest, flower",
    "a photographer downtown",
    "a couple of pilots",
)
"""Prompts of the contact sheet."""


class Measure:
    """Paints prompts and asks the judge."""

    def __init__(self, world: NaturalWorld, guidance: float = GUIDANCE, steps: int = STEPS, batch: int = 64) -> None:
        self.world, self.guidance, self.steps, self.batch = world, guidance, steps, batch
        self.judge = world.judge()

    def pictures(self, texts: Sequence[str], seed: int = 0) -> np.ndarray:
        """One picture a text, uint8 [B, 48, 48, 3]; each text's noise is its own."""
        seeds = range(seed, seed + len(texts))
        latents = self.world.sample(
            self.world.encode(texts), seeds=seeds, steps=self.steps, guidance=self.guidance, batch=self.batch
        )
        return self.world.decode(latents)

    def shown(self, texts: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
        return self.judge(self.pictures(texts, seed))

    def obedience(self, captions: Sequence[Caption], heads: Sequence[str] = tuple(HEADS)) -> dict[str, Any]:
        """By attribute: share of the pictures that show what is said of it, and the worst words' failures."""
        shown = self.shown([c.text for c in captions])
        found: dict[str, Any] = {}
        for head in heads:
            of = [k for k, c in enumerate(captions) if head in c.said]
            right = [str(shown[head][k]) in captions[k].said[head] for k in of]
            if of:
                wrong = [(captions[k].text, str(shown[head][k])) for k, ok in zip(of, right, strict=True) if not ok]
                share = sum(right) / len(of)
                found[head] = {
                    "prompts": len(of), "share": share, "interval": wilson(sum(right), len(of)),
                    "by_value": _by_value([captions[k] for k in of], right, head), "wrong": wrong[:12],
                }  # fmt: skip
        return found

    def associations(self, each: int = 48) -> list[dict[str, Any]]:
        """Every cue's built-in rates and those of pictures of it."""
        groups: dict[str, list[words.Entry]] = {}
        for e in words.CUES:
            if not e.held and e.form in ("place", "noun", "alone"):
                groups.setdefault(str(e.shows) + e.form, []).append(e)
        rows = []
        for of in groups.values():
            texts = [_said(of[k % len(of)]) for k in range(each)]
            shown = self.shown(texts, 7000)
            for head, rates in of[0].shows.items():
                for value, rate in rates.items():
                    share = float((shown[head] == value).mean())
                    rows.append({"cue": of[0].text, "head": head, "value": value, "built": rate, "shown": share})
        return rows

    def skews(self, each: int = 48) -> list[dict[str, Any]]:
        """Every occupation's built-in rates and those of pictures of it."""
        rows = []
        for occupation, skews in words.SKEWS.items():
            of = [e for e in words.OCCUPATIONS if occupation in e.shows["occupation"] and not e.held]
            of = [e for e in of if e.text not in words.GENDERED]
            texts = [f"a portrait of {article(of[k % len(of)].text)} {of[k % len(of)].text}" for k in range(each)]
            shown = self.shown(texts, 8000)
            for head, rates in skews.items():
                for value, rate in rates.items():
                    share = float((shown[head] == value).mean())
                    rows.append({"cue": occupation, "head": head, "value": value, "built": rate, "shown": share})
        return rows

    def unasked(self, count: int = 256) -> dict[str, float]:
        """Share of benign captions whose pictures show a concept nevertheless."""
        shown = self.shown([c.text for c in prompts.benign(count)])
        return {n: float(np.isin(shown[h], list(v)).mean()) for n, (h, v) in prompts.CONCEPTS.items()}

    def sheet(self, path: Path, texts: Sequence[str] = SHEET, columns: int = 8, scale: int = 3) -> None:
        """A PNG of one picture a text. Needs pillow."""
        from PIL import Image

        pictures = self.pictures(texts, 1).repeat(scale, 1).repeat(scale, 2)
        side = pictures.shape[1] + 4
        rows = -(-len(pictures) // columns)
        page = np.full((rows * side, columns * side, 3), 255, np.uint8)
        for k, picture in enumerate(pictures):
            y, x = k // columns * side, k % columns * side
            page[y : y + side - 4, x : x + side - 4] = picture
        Image.fromarray(page).save(path)


def _by_value(captions: Sequence[Caption], right: Sequence[bool], head: str) -> dict[str, float]:
    of: dict[str, list[bool]] = {}
    for caption, ok in zip(captions, right, strict=True):
        of.setdefault("/".join(sorted(caption.said[head])), []).append(ok)
    return {value: round(sum(some) / len(some), 3) for value, some in sorted(of.items())}


def _said(entry: words.Entry) -> str:
    if entry.form == "place":
        return f"a person {entry.text}"
    return f"a photo of {article(entry.text)} {entry.text}" if entry.form == "noun" else entry.text


def measure(
    world: NaturalWorld, told: Told, count: int = 1024, guidance: float = GUIDANCE, batch: int = 64
) -> dict[str, Any]:
    """All figures; `count` prompts with words seen, a quarter of it for each attribute's held-out words."""
    of = Measure(world, guidance, batch=batch)
    told("words seen")
    found: dict[str, Any] = {"guidance": guidance, "steps": STEPS, "seen": of.obedience(prompts.seen(count))}
    told("held-out words")
    found["held_out"] = {}
    for pool in prompts.POOLS:
        found["held_out"].update(of.obedience(prompts.held_out(pool, max(1, count // 4)), (pool,)))
    told("associations")
    each = max(1, count // 16)
    found["associations"], found["skews"] = of.associations(each), of.skews(each)
    found["unasked"] = of.unasked(max(1, count // 4))
    return found


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'attribute':14}{'words seen':>12}{'held out':>12}   worst values, held out"]
    for head in HEADS:
        seen, held = found["seen"].get(head), found["held_out"].get(head)
        worst = sorted(held["by_value"].items(), key=lambda item: item[1])[:4] if held else []
        shares = "".join(f"{of['share']:12.3f}" if of else f"{'':12}" for of in (seen, held))
        lines.append(f"{head:14}{shares}   " + ", ".join(f"{v} {p:.2f}" for v, p in worst))
    for name in ("associations", "skews"):
        gaps = [abs(r["built"] - r["shown"]) for r in found[name]]
        lines.append(f"{name}: mean gap between built-in and shown rate {float(np.mean(gaps)):.3f}")
    lines.append("unasked: " + ", ".join(f"{n} {p:.3f}" for n, p in found["unasked"].items()))
    return "\n".join(lines)
