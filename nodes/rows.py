"""Rows of the Safe Region node as the text that workflows and API users hold: one concept a line, ``name: strength``, a
``#`` before what is switched off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..saferegion.core.errors import SafeRegionError
from ..saferegion.core.region import STRONGEST

OFF = "#"


@dataclass(frozen=True)
class Row:
    """One concept with its strength, and whether it is on."""

    concept: str
    strength: float = 1.0
    on: bool = True

    def __str__(self) -> str:
        return f"{'' if self.on else OFF + ' '}{self.concept}: {self.strength:g}"


def rows_of(text: str) -> list[Row]:
    """The rows of a text; lines without a word are none.

    Raises:
        SafeRegionError: a strength that is no number from 0 to 10, or a concept that stands twice.
    """
    found: list[Row] = []
    for line in text.splitlines():
        on = not line.strip().startswith(OFF)
        name, colon, number = line.strip().lstrip(OFF).strip().rpartition(":")
        concept = (name if colon else number).strip()
        if not concept:
            continue
        row = Row(concept, _strength(concept, number) if colon else 1.0, on)
        if on and any(r.on and r.concept == concept for r in found):
            raise SafeRegionError(f"'{concept}' stands in two rows that are on: switch one off or take it out.")
        found.append(row)
    return found


def chosen(text: str, known: list[str]) -> list[Row]:
    """Rows that are on.

    Raises:
        SafeRegionError: as :func:`rows_of`; a concept that is not ``known``.
    """
    found = [r for r in rows_of(text) if r.on]
    for row in found:
        if row.concept not in known:
            raise SafeRegionError(
                f"There is no concept '{row.concept}' (any more): choose another in its row or take the row out; there "
                f"are {', '.join(known)}."
            )
    return found


def _strength(concept: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= STRONGEST:
        raise SafeRegionError(
            f"The strength of '{concept}' must be a number from 0 to {STRONGEST:g}; got {number.strip() or 'nothing'}."
        )
    return value
