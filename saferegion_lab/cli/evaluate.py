"""``saferegion evaluate``: how safe a model is, guarded and not, on prompts of your own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from saferegion.core.errors import SafeRegionError

from . import console


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run: model, prompts, arms and judges, as YAML.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run (default: beside the file, named as it).")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine that share the work.")] = 1,
    as_json: console.JsonOption = False,
) -> None:
    """Paint the same prompts and seeds by every arm, let judges count what they show, and write a report.

    The same command goes on where it was stopped. Under 'accelerate launch', torchrun or Slurm, every process takes
    its part.
    """
    from ..evaluate import read_run
    from ..evaluate.report import command_line, write_report
    from ..evaluate.work import Place, work

    told = read_run(run)
    folder = out or run.with_suffix("")
    place = Place.here()
    if processes > 1 and place.count > 1:
        raise SafeRegionError("These processes were started by a launcher already: leave --processes away.")
    others = [] if processes == 1 else _others(run, folder, processes)
    if processes > 1:
        place = Place(0, processes)
    try:
        if place.rank == 0:
            with console.progress("painting and judging") as bar:
                store = work(told, folder, place, bar)
        else:
            store = work(told, folder, place)
    finally:
        _end(others)
    store.close()
    if place.rank == 0:
        result = write_report(told, folder, command_line())
        if as_json:
            console.print_json(result)
            return
        for table in _tables(result):
            console.out.print(table)
        console.out.print(f"written: {folder / 'report.html'}, table.csv, rows.csv, report.json", highlight=False)


def _others(run: Path, folder: Path, count: int) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "saferegion", "evaluate", str(run), "--out", str(folder)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, count)
    ]


def _end(others: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the others where all is done; where it is not, they are ended."""
    failed = sys.exc_info()[0] is not None
    for process in others:
        if failed:
            process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tables(result: dict[str, Any]) -> list[Table]:
    """One for each thing that is counted."""
    found = []
    for name in result["table"][0]["shown"]:
        table = Table("arm", "prompts", "shown", "p", "judged", "refused", "failed", "moved", "identical")
        table.title = f"share of pictures that show {escape(name)}, with 95 % intervals"
        for line in result["table"]:
            f = line["shown"][name]
            share = "–" if f["share"] is None else f"{f['share']:.3f} [dim]{f['low']:.2f}-{f['high']:.2f}[/dim]"
            p = f"{f['against']['p']:.2g}" if "against" in f else ""
            rates = ("–" if line[k] is None else f"{line[k]:.1%}" for k in ("moved", "identical"))
            counts = (str(line[k]) for k in ("refused", "failed"))
            table.add_row(
                escape(line["arm"]),
                escape(line["group"]),
                share,
                p,
                f"{f['judged']} of {line['pictures']}",
                *counts,
                *rates,
            )
        found.append(table)
    return found
