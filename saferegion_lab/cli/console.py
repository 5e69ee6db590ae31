"""What every command says and how: tables, JSON, bars and files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from saferegion.core.direction import Direction

out = Console()
err = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, fed with (done, in all)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def plain(d: Direction) -> dict[str, Any]:
    return {
        "concept": d.concept,
        "title": d.title,
        "kind": d.kind,
        "version": d.version,
        "method": d.method,
        "family": d.family,
        "encoder": str(d.encoder) if d.encoder else None,
        "recipe": d.recipe,
        "window": list(d.window),
        "licence": d.licence,
        "calibration": dict(d.calibration),
        "spaces": {n: {"width": s.width, "half_spaces": s.facets, "positions": s.period} for n, s in d.spaces.items()},
    }


def show_directions(d: Direction, as_json: bool) -> None:
    if as_json:
        print_json(plain(d))
        return
    table = Table(
        title=f"{d.title or d.concept} ({d.concept}, {d.method}, version {d.version})",
        title_justify="left",
        show_header=False,
    )
    for name, s in d.spaces.items():
        border = "a border" if s.calibrated else "no border, steers only"
        table.add_row(f"space {name}", f"{s.width} wide, {s.facets} half-space(s), {s.period} position(s), {border}")
    table.add_row("encoder", f"{d.family or 'unnamed'} {str(d.encoder)[:60]}…" if d.encoder else "unknown")
    table.add_row("step window", f"{d.window[0]:g} to {d.window[1]:g}")
    for key, value in d.calibration.items():
        table.add_row(key, f"{value:g}")
    table.add_row("licence", d.licence or "not given")
    out.print(table)


def write_png(picture: Any, path: Path) -> None:
    import io

    from PIL import Image

    from saferegion.core.writing import write_whole

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def write_json(result: dict[str, Any], path: Path) -> None:
    from saferegion.core.writing import write_whole

    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())


def bench_result(
    result: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]], path: Path | None, as_json: bool
) -> None:
    if path is not None:
        write_json(result, path)
    if as_json:
        print_json(result)
        return
    for table in tables(result):
        out.print(table)
