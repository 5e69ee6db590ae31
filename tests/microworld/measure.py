"""Measures the unguarded world by its judge: every set of prompts, and how well each attribute is obeyed."""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saferegion_lab.microworld import MicroWorld, load
from saferegion_lab.microworld.captions import Wording, caption
from saferegion_lab.microworld.judge import HEADS
from saferegion_lab.microworld.lexicon import CONCEPTS
from saferegion_lab.microworld.prompts import SETS, EvalPrompt, content
from saferegion_lab.microworld.scenes import sample_scene

from .truth import truth, unsaid

SHOWS = 0.5
HEAD = ("group", "pictures", "content", *CONCEPTS, "round hats", "object on fire where said")


def paint(
    world: MicroWorld, prompts: list[str], steps: int, guidance: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures with seeds 7000 and on, and what the judge says of them."""
    latents = world.sample(
        world.encode(prompts), seeds=range(7000, 7000 + len(prompts)), steps=steps, guidance=guidance,
        batch=64 if world.device.type == "cpu" else 512,
    )  # fmt: skip
    pictures = world.decode(latents)
    return pictures, world.judge()(pictures)


def table(world: MicroWorld, name: str, limit: int, steps: int, guidance: float) -> tuple[str, np.ndarray]:
    """One set of prompts as a table for RESULTS.md, and sixteen of its pictures."""
    prompts: list[EvalPrompt] = list(SETS[name]())
    if len(prompts) > limit:
        prompts = [prompts[i] for i in np.linspace(0, len(prompts) - 1, limit).round().astype(int)]
    if name == "one_word":
        prompts = prompts * 4
    start = time.time()
    pictures, answers = paint(world, [p.prompt for p in prompts], steps, guidance)
    good = content(prompts, answers)
    shown = {concept: answers[concept] > SHOWS for concept in CONCEPTS}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[p.group].append(i)
    if len(groups) > 1:
        groups["all"] = list(range(len(prompts)))
    lines = [f"## {name} ({len(prompts)} pictures, {time.time() - start:.0f} s)", "", "| " + " | ".join(HEAD) + " |"]
    lines.append("|---" * len(HEAD) + "|")
    for group, index in groups.items():
        hats = answers["hat"][index]
        burning = [answers[f"flame_{s}"][i] > SHOWS for i in index for s in prompts[i].burning]
        rounds = (hats == "round").sum() / max(1, (hats != "none").sum())
        shares = [good[index].mean(), *(shown[concept][index].mean() for concept in CONCEPTS), rounds]
        text = " | ".join(f"{share:.3f}" for share in shares)
        lines.append(f"| {group} | {len(index)} | {text} | {f'{np.mean(burning):.3f}' if burning else '-'} |")
    wrong = [prompts[i].prompt for i in np.flatnonzero(~good)[:6]]
    lines += ["", "not as said: " + ("; ".join(wrong) or "none"), ""]
    return "\n".join(lines), pictures[np.linspace(0, len(pictures) - 1, 16).round().astype(int)]


def obedience(world: MicroWorld, count: int, steps: int, guidance: float, seed: int = 91) -> str:
    """How often each attribute is painted as a caption says it, by attribute and by what is said; and the judge's own
    share of right answers on drawings of the same scenes."""
    from .draw import draw

    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    texts = [caption(scene, rng, Wording(omit=False, padding=0.1, tags=0.2)) for scene in scenes]
    _, answers = paint(world, texts, steps, guidance)
    drawn = world.judge()(np.stack([draw(scene, rng) for scene in scenes]))
    right: dict[str, dict[str, list[tuple[bool, bool]]]] = {name: defaultdict(list) for name in HEADS}
    which: list[bool] = []
    for i, scene in enumerate(scenes):
        skip = unsaid(scene)
        for name, wanted in truth(scene).items():
            if name in skip:
                continue
            both = tuple(
                bool((found[name][i] > SHOWS) == (wanted == "yes"))
                if HEADS[name] == ("no", "yes")
                else bool(found[name][i] == wanted)
                for found in (answers, drawn)
            )
            right[name][wanted].append((both[0], both[1]))
        burning = [item.slot for item in scene.items if item.fire]
        if len(scene.items) == 2 and burning:
            other = next(item.slot for item in scene.items if not item.fire)
            which.append(bool(answers[f"flame_{burning[0]}"][i] > SHOWS and answers[f"flame_{other}"][i] <= SHOWS))
    lines = [f"## Obedience ({count} scenes, said with every colour and place)", ""]
    lines += ["| attribute | as said | judge on drawings | the worst of what is said |", "|---|---|---|---|"]
    for name, values in right.items():
        rows = [hit for hits in values.values() for hit in hits]
        if not rows:
            continue
        shares = {value: np.mean([hit for hit, _ in hits]) for value, hits in values.items()}
        worst = sorted(shares, key=lambda value: shares[value])[:4]
        detail = ", ".join(f"{value} {shares[value]:.3f} of {len(values[value])}" for value in worst)
        lines.append(
            f"| {name} | {np.mean([a for a, _ in rows]):.4f} | {np.mean([b for _, b in rows]):.4f} | {detail} |"
        )
    lines.append(f"| which of two burns, and it alone | {np.mean(which) if which else 0:.4f} | - | of {len(which)} |")
    return "\n".join(lines) + "\n"


def main(sets: list[str], limit: int, count: int, steps: int, guidance: float, device: str, sheet: Path | None) -> None:
    world = load(device)
    print(obedience(world, count, steps, guidance), flush=True)
    rows = []
    for name in sets:
        text, pictures = table(world, name, limit, steps, guidance)
        print(text, flush=True)
        rows.append(pictures)
    if sheet is not None and rows:
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        Image.fromarray(grid).save(sheet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--scenes", type=int, default=1000, help="scenes that obedience is measured on")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path, help="writes sixteen pictures of each set as PNG")
    args = parser.parse_args()
    with torch.inference_mode():
        main(args.sets, args.limit, args.scenes, args.steps, args.guidance, args.device, args.sheet)
