"""Compile what balance needs for a text encoder: its gates, and the groups of its axes; every prompt is encoded once.

Gates and groups become directions, as concepts do: their displacement is what saying it adds to a prompt. All axes of a
compilation are free of each other, so they belong together: :func:`digest` names the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.detector import Detector
from ..core.direction import Direction, Meta
from ..core.errors import NotSeparableError
from ..core.fingerprint import Fingerprint, fingerprint_of
from ..core.movers import HalfSpaces
from .axes import fit_axis, group_texts, raw_displacements
from .encoded import Store
from .gates import FittedGate, fit_gate
from .people import AxisRecipe, GateRecipe, bundled_gates
from .settings import CompileSettings, Encode, Progress

Tensor = torch.Tensor

FIT = 1
"""Counts changes of the fit: what was kept from an earlier one is made again."""


@dataclass(frozen=True)
class Set:
    """Axes and gates that are compiled together."""

    axes: tuple[AxisRecipe, ...]
    gates: tuple[GateRecipe, ...]

    @classmethod
    def of(cls, axes: Sequence[AxisRecipe]) -> Set:
        """With the gates that the axes bring, else with the bundled ones."""
        own = next((a.gates for a in axes if a.gates is not None), None)
        return cls(tuple(axes), bundled_gates() if own is None else own)

    def texts(self) -> list[str]:
        """Every prompt."""
        recipes = [*self.gates, *(a.stated for a in self.axes)]
        found = [s.text for r in recipes for side in r.said() for s in side]
        return list(dict.fromkeys([*found, *(t for a in self.axes for row in group_texts(a) for t in row)]))

    def names(self, axes: Sequence[str]) -> list[str]:
        """Of the directions of some axes, in order: gates, then of each axis its own gate and its groups."""
        found = [gate_name(g.name) for g in self.gates]
        for axis in (a for a in self.axes if a.name in axes):
            found += [gate_name(f"{axis.name} stated"), *(group_name(axis.name, g) for g in axis.names)]
        return found

    def digest(self) -> str:
        """SHA-256, hex, of what the directions depend on."""
        parts = [*(g.digest() for g in self.gates), *(a.digest() for a in self.axes), str(FIT)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def gate_name(gate: str) -> str:
    """Of a gate's direction."""
    return f"gate: {gate}"


def group_name(axis: str, group: str) -> str:
    """Of a group's direction."""
    return f"{axis}: {group}"


@dataclass(frozen=True)
class Compiled:
    """Directions of the gates and of every axis that separates; and why the other axes do not, by name."""

    directions: tuple[Direction, ...]
    refused: Mapping[str, NotSeparableError]


def compile_balance(
    wanted: Set, encode: Encode, progress: Progress | None = None, settings: CompileSettings | None = None
) -> Compiled:
    """Compile a set, each distinct prompt is encoded once.

    Raises:
        NotSeparableError: a gate that this encoder does not tell apart, with its accuracy.
        CompileError: the encoder returns something unusable.
    """
    settings = settings or CompileSettings()
    with torch.no_grad():
        encoder = fingerprint_of(encode)
        texts = wanted.texts()
        store = Store(encode, texts, settings, progress)
        store.fill(frozenset(texts))
        made = _Made(store, encoder, settings.family, wanted.digest())
        gates = {g.name: fit_gate(store, g) for g in wanted.gates}
        found = [made.gate(g.name, gates[g.name]) for g in wanted.gates]
        person = [made.apart(g.recipe) for g in gates.values() if g.recipe.opens]
        raw = {a.name: raw_displacements(store, a) for a in wanted.axes}
        refused = {}
        for axis in wanted.axes:
            others = [u for name, groups in raw.items() if name != axis.name for u in groups]
            try:
                found += made.axis(axis, [*others, *person])
            except NotSeparableError as error:
                refused[axis.name] = error
        return Compiled(tuple(found), refused)


@dataclass(frozen=True, eq=False)
class _Made:
    store: Store
    encoder: Fingerprint
    family: str
    recipe: str

    def apart(self, recipe: GateRecipe) -> dict[str, Tensor]:
        """By space: mean of the prompts that say it − mean of those that do not."""
        holds, spares = ([s.text for s in side] for side in recipe.said())
        return {
            s: self.store.vector(s, holds).mean(0) - self.store.vector(s, spares).mean(0) for s in self.store.spaces
        }

    def axis(self, axis: AxisRecipe, others: Sequence[Mapping[str, Tensor]]) -> list[Direction]:
        """The gate of an axis and its groups. Raises NotSeparableError."""
        groups = fit_axis(self.store, axis, others)
        found = [self.gate(f"{axis.name} stated", fit_gate(self.store, axis.stated))]
        plain = group_texts(axis)[-1]
        for g in groups:
            name = group_name(axis.name, g.name)
            found.append(self.direction(name, g.displacement, g.detector, plain, g.figures, axis.title))
        return found

    def gate(self, name: str, fitted: FittedGate) -> Direction:
        recipe = fitted.recipe
        spares = [s.text for s in recipe.said()[1]]
        figures = fitted.answers.figures()
        return self.direction(
            gate_name(name), self.apart(recipe), fitted.detector, spares, figures, recipe.title, "gate"
        )

    def direction(
        self,
        name: str,
        displacement: Mapping[str, Tensor],
        detector: Detector,
        rest: Sequence[str],
        figures: Mapping[str, float],
        title: str,
        kind: str = "balance",
    ) -> Direction:
        """``rest``: prompts that do not say it."""
        movers, calm = {}, {}
        for space, each in displacement.items():
            vectors, u = self.store.vector(space, rest).cpu(), each.cpu()
            z = vectors @ (u / u.norm())
            movers[space] = HalfSpaces(
                u.unsqueeze(0), z.mean().reshape(1, 1), z.std().clamp_min(1e-9).reshape(1), torch.zeros(1)
            )
            calm[space] = vectors.mean(0, keepdim=True)
        meta = Meta(title, kind, 1, self.family, self.recipe, "compiled", 0, dict(figures), "MIT")
        return Direction(name, self.encoder, detector, movers, calm, None, meta)
