"""What a run leaves behind: ``report.html`` in one file, ``table.csv``, ``rows.csv`` and ``report.json``."""

from __future__ import annotations

import base64
import csv
import io
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saferegion import __version__
from saferegion.core.writing import write_whole

from ..bench import machine
from .figures import rows_of, table_of
from .settings import EvaluationError, Run
from .store import read_done

TEMPLATE = Path(__file__).with_name("report.html.j2")
SHEET = 24
"""Most pictures of an arm and group in the contact sheet."""
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "nudenet", "accelerate")


def write_report(run: Run, folder: Path, command: Sequence[str] = ()) -> dict[str, Any]:
    """Write the report of a run that is done. Returns what ``report.json`` says. Raises EvaluationError, OSError."""
    try:
        import jinja2
    except ImportError as error:
        raise EvaluationError("The report is written with jinja2: pip install 'saferegion[evaluate]'.") from error
    rows = rows_of(run, read_done(folder))
    table = table_of(run, rows)
    result = {
        "table": table,
        "run": run.plain(),
        "command": list(command),
        "machine": machine(),
        "versions": {"saferegion": __version__, "python": platform.python_version(), **_versions()},
        "failures": _failures(rows),
    }
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    shown = [s.name for s in run.shown]
    html = page.render(run=run, shown=shown, result=result, sheets=_sheets(run, folder, rows), pct=_percent)
    write_whole(folder / "table.csv", _csv(list(map(_flat, table))))
    write_whole(folder / "rows.csv", _csv(list(map(_flat_row, rows))))
    write_whole(folder / "report.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "report.html", html.encode())
    return result


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _failures(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What went wrong, and how often."""
    found: dict[str, int] = {}
    for row in rows:
        for text in (row["error"], *(f"{j}: {e}" for j, e in row["unjudged"].items())):
            if text:
                found[text] = found.get(text, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in line.items() if k != "shown"}
    for name, figures in line["shown"].items():
        found |= {f"{name}, {k}": v for k, v in figures.items() if k != "against"}
        found |= {f"{name}, against, {k}": v for k, v in figures.get("against", {}).items()}
    return found


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in row.items() if k not in ("answers", "unjudged", "opened")}
    found["opened"] = " ".join(row["opened"])
    for judge, answers in row["answers"].items():
        found |= {f"{judge}, {k}": v for k, v in answers.items()}
    found |= {f"{judge}, error": text for judge, text in row["unjudged"].items()}
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(k for r in rows for k in r))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in r.items()} for r in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _sheets(run: Run, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first pictures of every arm and group, for pages in one file."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        sheet = found.setdefault((row["group"], row["arm"]), [])
        path = folder / str(row.get("file", ""))
        if row.get("file") and len(sheet) < SHEET and path.is_file():
            sheet.append(base64.b64encode(path.read_bytes()).decode())
    return [{"group": g, "arm": a, "pictures": p} for (g, a), p in found.items() if p]


def command_line() -> list[str]:
    """How this program was started."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
