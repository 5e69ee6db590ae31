"""What every command says and how: tables, JSON, bars and files."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from saferegion.core.direction import Direction
    from saferegion.core.movers import Mover

WIDE = 200
"""Columns of a table where nobody says how many there are: in a file or a pipe it is not to be cut."""


def _console(stderr: bool = False) -> Console:
    found = Console(stderr=stderr)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = WIDE
    return found


out, err = _console(), _console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


QUIET = 20.0
"""Seconds between two lines of progress where standard error is no terminal."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with the time left, fed with (done, in all); now and then a line where it is no
    terminal."""
    began = said = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= QUIET and 0 < done < total:
            said = now
            left = duration((now - began) * (total - done) / done)
            err.print(f"{what}: {done:,} of {total:,}, about {left} left", highlight=False, markup=False)

    if not err.is_terminal:
        yield line
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def compiling() -> Iterator[Callable[[int, int], None]]:
    """As :func:`progress`, and says with the first batch how many prompts are encoded and about how long it takes;
    nothing where everything was compiled before."""
    began, told = time.monotonic(), False
    with progress("compiling on the text encoder") as bar:

        def step(done: int, total: int) -> None:
            nonlocal told
            if not told and done:
                told = True
                whole = duration((time.monotonic() - began) * total / done)
                err.print(
                    f"compiling: the text encoder reads {total:,} prompts once, about {whole}; the result is kept",
                    highlight=False,
                    markup=False,
                )
            bar(done, total)

        yield step


def duration(seconds: float) -> str:
    """As people say it: "40 s", "3 min", "1 h 20 min"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_json(data: Any) -> None:
    """Valid JSON: a number that is none becomes null."""
    sys.stdout.write(json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def plain(d: Direction) -> dict[str, Any]:
    return {
        "concept": d.concept,
        "title": d.title,
        "kind": d.kind,
        "version": d.meta.version,
        "method": d.method,
        "family": d.meta.family,
        "encoder": str(d.encoder) if d.encoder else None,
        "recipe": d.meta.recipe,
        "window": list(d.window),
        "licence": d.meta.licence,
        "note": d.meta.note,
        "calibration": dict(d.meta.calibration),
        "told_by": _told_by(d),
        "witness": d.witness is not None,
        "moved_by": {n: _mover(m) for n, m in d.movers.items()},
    }


def _told_by(d: Direction) -> list[dict[str, Any]]:
    if d.detector is None:
        return []
    borders = d.detector.thresholds.tolist()
    return [
        {"space": t.readout.space, "of": t.readout.reduce, "threshold": round(border, 4)}
        for t, border in zip(d.detector.terms, borders, strict=True)
    ]


def _mover(m: Mover) -> dict[str, Any]:
    return {"kind": "offset" if hasattr(m, "window") else "half-space", "width": m.width, "facets": m.facets}


def show_directions(d: Direction, as_json: bool) -> None:
    if as_json:
        print_json(plain(d))
        return
    table = Table(
        title=f"{d.title} ({d.concept}, {d.method}, version {d.meta.version})",
        title_justify="left",
        show_header=False,
    )
    told = [f"{t['space']} {t['of']} over {t['threshold']:g}" for t in _told_by(d)]
    table.add_row("told by", ", ".join(told) or "nothing: it steers only")
    for name, m in d.movers.items():
        mover = _mover(m)
        table.add_row(f"space {name}", f"{mover['width']} wide, {mover['facets']} {mover['kind']}(s)")
    table.add_row("encoder", f"{d.meta.family or 'unnamed'} {str(d.encoder)[:60]}…" if d.encoder else "unknown")
    table.add_row("step window", f"{d.window[0]:g} to {d.window[1]:g}")
    for key, value in d.meta.calibration.items():
        table.add_row(key, f"{value:g}")
    table.add_row("licence", d.meta.licence or "not given")
    if d.meta.note:
        table.add_row("note", d.meta.note)
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
