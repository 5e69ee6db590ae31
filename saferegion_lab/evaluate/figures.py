"""From rows to figures: shares with bootstrap intervals, and arms against the first one, picture by picture."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from ..bench import wilson
from .prompts import tasks_of
from .settings import EvaluationError, Run
from .work import units_of

DRAWS = 2000
"""Bootstrap samples; prompts are drawn, with all their seeds."""
Row = Mapping[str, Any]


def rows_of(run: Run, done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All rows in the order of the run, whoever made them and when. Raises EvaluationError: some are missing."""
    found: list[dict[str, Any]] = []
    for unit in units_of(run):
        entry = done.get(unit.name)
        if entry is None or len(entry["rows"]) != len(unit.tasks):
            raise EvaluationError(f"{unit.name} is not done yet: start the same command again.")
        found += entry["rows"]
    assert len(found) == len(run.arms) * len(tasks_of(run))
    return found


def table_of(run: Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each arm and group of prompts, and one for all groups together where there are several.

    ``shown``: for each thing that is counted: share of pictures with a 95 % interval; what was refused shows nothing;
    what failed or was not judged is left out and counted; where all or none show it, the interval is Wilson's over
    prompts. ``against``: difference to the first arm with its interval,
    and the p of an exact McNemar test over the pairs of one prompt and seed.
    """
    groups = list(dict.fromkeys(r["group"] for r in rows))
    first = run.arms[0].name
    found = []
    for arm in run.arms:
        for group in (*groups, *([""] if len(groups) > 1 else [])):
            mine, base = _of(rows, arm.name, group), _of(rows, first, group)
            line: dict[str, Any] = {"arm": arm.name, "group": group or "all", "pictures": len(mine)}
            for outcome in ("refused", "failed"):
                line[outcome] = sum(r["outcome"] == outcome for r in mine)
            line["moved"] = _mean([r["moved"] for r in mine])
            pairs = [(a, b) for a, b in zip(mine, base, strict=True) if a["picture"] and b["picture"]]
            line["identical"] = _mean([a["picture"] == b["picture"] for a, b in pairs])
            line["shown"] = {s.name: _shown(run, s.name, mine, base, arm.name == first) for s in run.shown}
            found.append(line)
    return found


def _of(rows: Sequence[Row], arm: str, group: str) -> list[Row]:
    return [r for r in rows if r["arm"] == arm and group in ("", r["group"])]


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _value(run: Run, name: str, row: Row) -> bool | None:
    if row["outcome"] == "refused":
        return False
    shown = next(s for s in run.shown if s.name == name)
    return shown.in_(row["answers"])


def _shown(run: Run, name: str, mine: Sequence[Row], base: Sequence[Row], is_first: bool) -> dict[str, Any]:
    values = [_value(run, name, r) for r in mine]
    judged = [(r["prompt"], v) for r, v in zip(mine, values, strict=True) if v is not None]
    seed = zlib.crc32(f"{name}/{len(mine)}".encode())
    found: dict[str, Any] = {"judged": len(judged), "share": None, "low": None, "high": None}
    if judged:
        share, low, high = bootstrap([(p, float(v)) for p, v in judged], seed)
        if share in (0.0, 1.0):  # nothing to draw from
            prompts = len({p for p, _ in judged})
            low, high = wilson(round(share * prompts), prompts)
        found |= {"share": share, "low": low, "high": high}
    if is_first:
        return found
    pairs = [
        (r["prompt"], a, b)
        for r, a, b in zip(mine, values, (_value(run, name, r) for r in base), strict=True)
        if a is not None and b is not None
    ]
    if pairs:
        change = bootstrap([(p, float(a) - float(b)) for p, a, b in pairs], seed)
        found["against"] = dict(zip(("change", "low", "high"), change, strict=True))
        found["against"]["p"] = mcnemar(sum(b and not a for _, a, b in pairs), sum(a and not b for _, a, b in pairs))
    return found


def bootstrap(values: Sequence[tuple[str, float]], seed: int, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean, and its 95 % percentile interval over ``draws`` samples of the prompts, which are named beside the values.

    Where all values are equal, the interval has no width.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(n for n, _ in values))}
    total, count = np.zeros(len(names)), np.zeros(len(names))
    for name, value in values:
        total[names[name]] += value
        count[names[name]] += 1
    draw = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        weight = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))
        means[i] = (weight * total).sum() / (weight * count).sum()
    low, high = np.percentile(means, (2.5, 97.5))
    return float(total.sum() / count.sum()), float(low), float(high)


def mcnemar(fewer: int, more: int) -> float:
    """Two-sided exact p of so many pairs that changed this way and that (McNemar 1947, binomial)."""
    n = fewer + more
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(min(fewer, more) + 1))
    return min(1.0, float(2 * tail / 2**n))
