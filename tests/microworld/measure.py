"""Measures the unguarded world by its judge: content kept, fire, lightning and hats on every set of prompts."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saferegion_lab.microworld import load
from saferegion_lab.microworld.prompts import SETS, EvalPrompt, content


def table(sets: list[str], limit: int, steps: int, guidance: float, sheet: Path | None) -> None:
    world = load()
    judge = world.judge()
    rows = []
    for name in sets:
        prompts: list[EvalPrompt] = list(SETS[name]())
        if len(prompts) > limit:
            prompts = [prompts[i] for i in np.linspace(0, len(prompts) - 1, limit).round().astype(int)]
        if name in ("one_word",):
            prompts = prompts * 4
        start = time.time()
        latents = world.sample(
            world.encode([p.prompt for p in prompts]),
            seeds=range(7000, 7000 + len(prompts)),
            steps=steps,
            guidance=guidance,
        )
        pictures = world.decode(latents)
        answers = judge(pictures)
        good = content(prompts, answers)
        fire, bolt = answers["fire"] > 0.5, answers["lightning"] > 0.5
        groups: dict[str, list[int]] = defaultdict(list)
        for i, p in enumerate(prompts):
            groups[p.group].append(i)
        print(f"## {name} ({len(prompts)} pictures, {time.time() - start:.0f} s)\n")
        print("| group | pictures | content | fire | lightning | round hats | object on fire where said |")
        print("|---|---|---|---|---|---|---|")
        for group, index in [
            *groups.items(),
            *([("all", list(range(len(prompts))))] if len(groups) > 1 else []),
        ]:
            hats = answers["hat"][index]
            burning = [answers[f"flame_{s}"][i] > 0.5 for i in index for s in prompts[i].burning]
            rounds = (hats == "round").sum() / max(1, (hats != "none").sum())
            shares = [good[index].mean(), fire[index].mean(), bolt[index].mean(), rounds]
            shares.append(np.mean(burning) if burning else np.nan)
            print(f"| {group} | {len(index)} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
        wrong = [prompts[i].prompt for i in np.flatnonzero(~good)[:6]]
        print("\nnot as said: " + ("; ".join(wrong) or "none") + "\n", flush=True)
        rows.append(pictures[np.linspace(0, len(pictures) - 1, 16).round().astype(int)])
    if sheet is not None:
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        Image.fromarray(grid).save(sheet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    with torch.inference_mode():
        table(args.sets, args.limit, args.steps, args.guidance, args.sheet)
