"""Every guard on one model: same prompts, same seeds, same sampler, same judge (``saferegion bench peers``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from saferegion.core.errors import SafeRegionError

from ... import microworld
from .. import machine
from ..microworld import SHOWS
from .attacks import goal
from .base import Guard
from .measure import BENIGN, UNSAFE, Bench, axes_of, cells, frechet, interval, row, validation
from .ours import Ours
from .rows import FAMILIES, Family

Progress = Callable[[int, int], None]
ATTACKS = ("token attack", "soft prompt attack")


def discovers() -> bool:
    """Whether directions can be learned through the model here."""
    try:
        from saferegion.discover import discover  # noqa: F401
    except ImportError:
        return False
    return True


def run(
    pictures: int = 64,
    steps: int = 15,
    guidance: float = 4.0,
    attacked: int | None = None,
    only: Sequence[str] = (),
    progress: Progress | None = None,
    before: dict[str, Any] | None = None,
    written: Callable[[dict[str, Any]], None] | None = None,
    discovered: Path | None = None,
) -> dict[str, Any]:
    """Paint, judge and attack: ``pictures`` a cell, ``attacked`` prompts an attack (default: a quarter; 0: none).

    ``before``: an earlier result of the same options, whose other rows are kept. ``written`` gets the result after
    every row. ``discovered``: a file of ``saferegion discover`` for the rows that need one (None: learned here).
    """
    guards = [g for f in FAMILIES for g in f.guards() if not only or f.name in only or g.name in only]
    if not guards:
        raise SafeRegionError(f"No such guard; there are: {', '.join(f.name for f in FAMILIES)}.")
    learning = {f.name for f in FAMILIES if f.discovers}
    guards = [g for g in guards if discovers() or g.family not in learning]
    world = microworld.load()
    bench = Bench(world, cells(pictures), steps, guidance)
    axes = axes_of(bench.plain[BENIGN].features)
    wanted = max(4, pictures // 4) if attacked is None else attacked
    same = {"pictures": pictures, "attacked": wanted, "steps": steps, "guidance": guidance}
    if before is not None and any(before.get(k) != v for k, v in same.items()):
        raise SafeRegionError("The earlier figures were measured otherwise: give the same options, or another file.")
    aim = goal(bench.bare, wanted, steps, guidance) if wanted else None
    fresh = bench.see(bench.bare, BENIGN, range(9000, 9000 + len(bench.sets[BENIGN].cases)))
    result: dict[str, Any] = {
        "machine": machine(),
        "model": "microworld: 64 x 64 drawings, trained from scratch",
        **same,
        "frechet_floor": frechet(fresh.features, bench.plain[BENIGN].features, axes),
    }
    done = {r["guard"]: r for r in (before or {"rows": []})["rows"]}
    order = [g.name for f in FAMILIES for g in f.guards()]
    for number, guard in enumerate(guards):
        if isinstance(guard, Ours):
            guard.file = discovered
        done[guard.name] = row(bench, guard.prepare(world), aim, axes)
        result["rows"] = [done[name] for name in order if name in done]
        result["missing"] = sorted(learning - {r["family"] for r in result["rows"]})
        if written is not None:
            written(result)
        if progress is not None:
            progress(number + 1, len(guards))
    return result


def tune(
    family: Family, pictures: int = 12, steps: int = 15, guidance: float = 4.0, bench: Bench | None = None
) -> list[dict[str, Any]]:
    """Every setting of a family on the validation draw, best first: least of fire by word, fire by association (mean of
    both), content lost on benign prompts, and drift."""
    bench = bench or Bench(microworld.load(), validation(pictures), steps, guidance)
    from ...microworld.prompts import content

    base = float(content(bench.sets[BENIGN].cases, bench.plain[BENIGN].answers).mean())
    found = []
    for settings in family.grid:
        guard = family.guard("tuning", settings).prepare(bench.world)
        fire = [float((bench.see(guard, n).answers["fire"] >= SHOWS).mean()) for n in ("word", "association")]
        seen = bench.see(guard, BENIGN)
        kept = float(content(bench.sets[BENIGN].cases, seen.answers).mean())
        drift = float((seen.latents - bench.plain[BENIGN].latents).square().mean())
        loss = float(np.mean(fire)) + max(0.0, base - kept) + drift
        found.append({"settings": settings, "fire": fire, "content": kept, "drift": drift, "loss": loss})
    return sorted(found, key=lambda f: f["loss"])


def tune_all(
    pictures: int, steps: int, guidance: float, only: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """:func:`tune` of every family that has a choice."""
    families = [f for f in FAMILIES if f.grid and (not only or f.name in only) and (discovers() or not f.discovers)]
    bench = Bench(microworld.load(), validation(pictures), steps, guidance)
    rows = []
    for number, family in enumerate(families):
        rows += [{"family": family.name, **found} for found in tune(family, bench=bench)]
        if progress is not None:
            progress(number + 1, len(families))
    return {"machine": machine(), "pictures": pictures, "steps": steps, "guidance": guidance, "rows": rows}


def tuning_tables(result: dict[str, Any]) -> list[Table]:
    """One row a setting, the best of each kind first."""
    table = Table("guard", "settings", "by word", "association", "content", "drift", "loss")
    for r in result["rows"]:
        settings = ", ".join(f"{k} {v}" for k, v in r["settings"].items())
        figures = (*r["fire"], r["content"], r["drift"], r["loss"])
        table.add_row(r["family"], settings, *(f"{x:.3f}" for x in figures))
    return [table]


def _share(value: Sequence[float]) -> str:
    return f"{value[0]:.2f} [dim]{value[1]:.2f}-{value[2]:.2f}[/dim]"


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people: what is unsafe, what is spared, what it costs."""
    rows = result["rows"]
    table = Table("guard", "by word", "held-out", "association", *(a for a in ATTACKS if a in rows[0]))
    table.title = (
        f"share of pictures that show fire, with 95 % intervals; {result['pictures']} a cell, "
        f"{result['attacked']} an attack, guidance {result['guidance']:g}, {result['steps']} steps"
    )
    for r in rows:
        table.add_row(r["guard"], *(_share(r[name]) for name in (*UNSAFE, *ATTACKS) if name in r))
    spared = Table(
        "guard", "content, benign", "content, word", "content, association", "identical", "drift (MSE)", "Frechet",
        "fire on benign", "evaluations", "encoder passes", "time",
    )  # fmt: skip
    spared.title = (
        f"what is spared, and what it costs a picture (Frechet of fresh seeds: {result['frechet_floor']:.2f})"
    )
    for r in rows:
        spared.add_row(
            r["guard"], _share(r["content"]), _share(r["word, content"]), _share(r["association, content"]),
            f"{r['identical'][0]:.0%}", f"{r['drift'][0]:.4f}", f"{r['frechet']:.2f}", f"{r['benign fire'][0]:.2f}",
            f"{r['evaluations']:g}", f"{r['passes']:g}", f"{r['time']:.2f}",
        )  # fmt: skip
    if result["missing"]:
        table.caption = "left out, for want of discovery: " + ", ".join(result["missing"])
    return [table, spared]


def plot(result: dict[str, Any], path: Path) -> None:
    """Fire by word and by association against the drift of benign pictures, with the guards that none beats in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [
        (r["drift"][0], (r["word"][0] + r["association"][0]) / 2, r["guard"], r["family"]) for r in result["rows"]
    ]
    best = sorted(
        p[:2] for p in points
        if not any(q[0] <= p[0] and q[1] <= p[1] and q[:2] != p[:2] for q in points)
    )  # fmt: skip
    figure, axis = pyplot.subplots(figsize=(11, 6), layout="constrained")
    families = list(dict.fromkeys(p[3] for p in points))
    colours = pyplot.get_cmap("tab20")
    for i, family in enumerate(families):
        mine = [p for p in points if p[3] == family]
        ours = family.startswith("safe region")
        axis.scatter(
            [p[0] for p in mine], [p[1] for p in mine], s=140 if ours else 55, marker="*" if ours else "o",
            color=colours(i % 20), label=family, zorder=3,
        )  # fmt: skip
    for number, (x, y, name, family) in enumerate(points):
        label = name.removeprefix(family).strip(", ")
        if label:
            axis.annotate(label, (x, y), xytext=(5, 4 if number % 2 else -9), textcoords="offset points", fontsize=7)
    axis.step([b[0] for b in best], [b[1] for b in best], where="post", color="grey", lw=1, ls="--", zorder=1)
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_xlim(left=-1e-4)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("drift of benign pictures (mean squared error of latents)")
    axis.set_ylabel("pictures with fire: mean of by word and by association")
    axis.set_title(f"microworld, {result['pictures']} pictures a cell, same seeds")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


__all__ = ["FAMILIES", "Bench", "Guard", "interval", "plot", "run", "tables", "tune", "validation"]
