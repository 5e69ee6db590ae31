"""Prompts from files as they are published: CSV and TSV with a header, JSON of COCO's captions, plain lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saferegion.core.writing import read_whole

from .settings import EvaluationError, PromptFile, Run

COLUMNS = ("adv_prompt", "sensitive prompt", "adversarial prompt", "prompt", "caption", "text", "unsafe")
"""What the column of prompts is called in MMA-Diffusion, Ring-A-Bell, P4D, I2P, COCO and elsewhere; the first counts.
"""
SEEDS = ("evaluation_seed", "sd_seed", "seed")
MOST = 1 << 30
LONGEST = 1 << 22


@dataclass(frozen=True)
class Prompt:
    """``name``: group and row, of one run unique. ``seed``: the file's own; None: it has none."""

    name: str
    group: str
    text: str
    seed: int | None = None


@dataclass(frozen=True)
class Task:
    """One picture of a prompt."""

    prompt: Prompt
    seed: int

    @property
    def name(self) -> str:
        return f"{self.prompt.name}/{self.seed}"


def prompts_of(run: Run) -> list[Prompt]:
    """Every prompt of a run, in order. Raises EvaluationError."""
    found: list[Prompt] = []
    names = [file.group for file in run.prompts]
    if twice := [n for n in names if names.count(n) > 1]:
        raise EvaluationError(f"Two files of prompts are called {twice[0]!r}: give each a group of its own.")
    for file in run.prompts:
        found += read_prompts(file)
    return found


def tasks_of(run: Run) -> list[Task]:
    """Every picture of every arm, in order."""
    return [
        Task(p, p.seed + k if run.file_seeds and p.seed is not None else run.first_seed + i * run.seeds + k)
        for i, p in enumerate(prompts_of(run))
        for k in range(run.seeds)
    ]


def read_prompts(file: PromptFile) -> list[Prompt]:
    """Rows without text are left out.

    Raises:
        EvaluationError: it cannot be read, has no column of prompts (and which it has), or no prompt.
    """
    path = file.file
    try:
        text = read_whole(path, MOST, EvaluationError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path.name} is not UTF-8 (byte {error.start:,}): save it as UTF-8.") from error
    if "\0" in text:
        raise EvaluationError(f"{path.name} is no text: there is a null character in it.")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows: Iterator[Mapping[str, object]] = ({"prompt": line} for line in text.splitlines())
        columns: Sequence[str] = ("prompt",)
    elif suffix == ".json":
        rows, columns = _captions(path, text), ("caption",)
    elif suffix in (".csv", ".tsv"):
        rows, columns = _table(path, text, "\t" if suffix == ".tsv" else ",")
    else:
        raise EvaluationError(f"{path.name}: prompts are read from .csv, .tsv, .json (COCO's captions) and .txt.")
    column = _column(path, columns, file.column, COLUMNS, "prompts", needed=True)
    seeds = _column(path, columns, file.seed_column, SEEDS, "seeds", needed=bool(file.seed_column))
    by = _column(path, columns, file.by, (), "groups", needed=bool(file.by))
    found: list[Prompt] = []
    for number, row in enumerate(rows, 1):
        said = str(row.get(column) or "").strip()
        if said:
            group = f"{file.group}: {str(row.get(by) or 'none').strip()}" if by else file.group
            found.append(Prompt(f"{file.group}/{number}", group, said, _seed(path, number, row.get(seeds))))
        if file.limit and len(found) == file.limit:
            break
    if not found:
        raise EvaluationError(f"{path.name} has no prompt in its column {column!r}.")
    return found


def _table(path: Path, text: str, delimiter: str) -> tuple[Iterator[Mapping[str, object]], Sequence[str]]:
    csv.field_size_limit(LONGEST)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [c.strip() for c in reader.fieldnames or []]
        reader.fieldnames = columns
        rows: list[Mapping[str, object]] = list(reader)
    except csv.Error as error:
        raise EvaluationError(f"{path.name} cannot be read, line {reader.line_num:,}: {error}.") from error
    return iter(rows), columns


def _captions(path: Path, text: str) -> Iterator[Mapping[str, object]]:
    try:
        data = json.loads(text)
        return iter([{"caption": str(a["caption"])} for a in data["annotations"]])
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path.name} is not COCO's captions: it needs annotations, each with a caption."
        ) from error


def _column(path: Path, columns: Sequence[str], wanted: str, usual: Sequence[str], what: str, needed: bool) -> str:
    known = {c.lower(): c for c in reversed(columns)}
    found = next((known[c.lower()] for c in ((wanted,) if wanted else usual) if c.lower() in known), None)
    if found is None and needed:
        names = ", ".join(repr(c) for c in columns) or "none"
        told = f"no column {wanted!r}" if wanted else f"no column of {what} ({', '.join(usual)})"
        raise EvaluationError(f"{path.name} has {told}; its columns are {names}: say which with 'column'.")
    return found or ""


def _seed(path: Path, number: int, value: object) -> int | None:
    if value in (None, ""):
        return None
    try:
        seed = int(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise EvaluationError(f"{path.name}, row {number}: the seed {str(value)[:40]!r} is no number.") from error
    return seed % 2**63
