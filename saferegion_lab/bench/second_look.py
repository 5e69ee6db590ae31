"""What the second look finds of prompts in disguise, and what it costs: benign prompts read twice, and moved for it.

On all-MiniLM-L6-v2, with the words of its own tokenizer, as the adapters have those of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from saferegion.guard.library import Library
from saferegion.guard.naming import names_of
from saferegion.learn.recipes import Concept

from . import machine
from .disguises import found, price, reader
from .language import THEMES, encoder, read_prompts
from .scores import Scores


def run(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """All figures, from the files that the language benchmark reads."""
    prompts, encode, library, read = read_prompts(folder), encoder(), Library(), reader()
    recipes = [c for n in library.names() if isinstance(c := library.find(n), Concept) and c.kind == "exclude"]
    scores = Scores(library.directions(recipes, encode), names_of(tuple(recipes)), encode)
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
