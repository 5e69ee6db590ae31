"""What people are told of a report: in a line, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferegion.core.report import Finding, Report
from saferegion.guard.minors import BESIDE
from saferegion.guard.selection import GuardReport

MOST_WORDS = 6
"""Words that are named of what was found."""


def shown(region: Report, row: int) -> list[Finding]:
    """What is shown of row ``row``: every concept that is on, and the baseline for minors where it was open."""
    on = {name for name, strength in zip(region.concepts, region.strengths, strict=True) if strength > 0}
    mine = [f for f in region.findings if f.prompt == row and f.concept in on]
    return [f for f in mine if f.open or not f.concept.endswith(BESIDE)]


def told(report: GuardReport, row: int, words: Mapping[str, Sequence[str]]) -> str:
    """One line: each concept that row ``row`` was outside of, or that is always moved, and by which words."""
    lines = []
    for region in report.reports:
        for f in shown(region, row):
            if f.open:
                lines.append(f"{f.title} was kept out ({_found_in(f, words)})")
            elif region.mode != "project":
                lines.append(f"{f.title} was pushed away")
    lines += [report.found_after] if report.undone else []
    lines += [report.names] if report.named and lines else []
    return "; ".join(lines) or "nothing to keep out was found, nothing was changed"


def _found_in(finding: Finding, words: Mapping[str, Sequence[str]]) -> str:
    """Where a concept was found, in the words of the prompt where they tell."""
    named = [words[s][t] for s, places in finding.tokens.items() if s in words for t in places if t < len(words[s])]
    said = [word for word in dict.fromkeys(named) if word and not word.startswith("<")]
    return f"found in: {', '.join(said[:MOST_WORDS])}" if said else "found in the prompt as a whole"


def pictures(report: GuardReport, row: int, words: Mapping[str, Sequence[str]], title: str) -> list[Any]:
    """Heat maps of one prompt as Pillow images, one a region."""
    from PIL import Image

    from saferegion.view.heat_map import heat_map

    found = []
    for region in report.reports:
        if concepts := [f.concept for f in shown(region, row)]:
            space = next(iter(region.before.held()), None)
            own = None if space is None else words.get(space)
            found.append(Image.fromarray(heat_map(region, own, row, space, title, concepts)))
    return found
