"""What a prompt's text says to the gates of balance: words cost no pass of any model, and are what people mean.

The text can only hold back. Words of a gate's recipe hold it, but within a phrase that the recipe spares ("in a heavy
coat"); so do two people in one prompt, and a role in the plural.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..learn.people import GateRecipe, People
from ..learn.vocabulary import naming
from .naming import Named, Names

ONE = "one"
"""The gate that asks whether a prompt is about one person in a generic role."""
_MARKS = re.compile(r"[()\[\]{}:|\\]+")


@dataclass(frozen=True)
class TextGates:
    """Numbers of the gates that a text holds back."""

    names: Names
    one: int | None
    roles: re.Pattern[str] | None
    singular: frozenset[str]

    @classmethod
    def of(cls, gates: Sequence[GateRecipe]) -> TextGates:
        """Of gates, in order."""
        each = []
        for i, gate in enumerate(gates):
            said = naming(gate.holds.every())
            if gate.opens or said is None:
                continue
            heads = frozenset(_first(w) for w in gate.holds.every())
            each.append(Named(str(i), said, naming(gate.spares.every()), heads))
        people: People | None = next((g.people for g in gates if g.opens), None)
        one = next((i for i, g in enumerate(gates) if g.name == ONE), None)
        roles = () if people is None else people.roles
        return cls(Names(tuple(each)), one, naming(roles), frozenset(r.lower() for r in roles))

    def __call__(self, text: str) -> frozenset[int]:
        found = {int(n) for n in self.names(text)}
        if self.one is not None and self._several(text):
            found.add(self.one)
        return frozenset(found)

    def _several(self, text: str) -> bool:
        if self.roles is None:
            return False
        plain = " ".join(_MARKS.sub(" ", text).split())
        said = [m[0].lower().replace("_", " ") for m in self.roles.finditer(plain)]
        return len(set(said)) > 1 or any(w not in self.singular for w in said)


def _first(word: str) -> str:
    found = re.search(r"[^\W_]+", word.lower())
    return found[0] if found else ""
