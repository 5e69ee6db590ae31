"""Fit of axes: what each group adds to a token, and how far that must be for a prompt to read as one that says it.

*Displacement* of a group: mean of the group's prompts − mean of all groups, which differ in the group alone; without
what lies along the displacements of the other axes, and along the difference between prompts with and without a person.
*Strength*: all tokens of a prompt move by the same multiple of it, the least by which roles of which nothing is said
reach as far as in the group's own prompts, and by which the detector of the group reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import POOLED
from ..core.detector import Detector
from ..core.errors import NotSeparableError
from ..core.readout import Term
from .displacement import added, displacement
from .encoded import Store
from .gates import Fit, FittedTerm
from .people import AxisRecipe, Said

Tensor = torch.Tensor
Vectors = Mapping[str, Tensor]
"""By space: [D]."""

PROMPTS = 48
"""Of each group."""
SEPARATES = 0.8
"""Least share of prompts, said in ways that the fit has not seen, that read as their own group."""
READS = 0.9
"""Share of the roles of which nothing is said that must read as the group."""
AS_STATED = 0.5
"""Share of the group's own prompts that must score higher than what reads as the group."""
LEAST, MOST = 0.5, 32.0
"""Multiples of the displacement between which the strength is looked for."""
ALONG = 1e-3
"""Part of a displacement that must be left when what lies along others is taken out."""


@dataclass(frozen=True, eq=False)
class Group:
    """A group on one encoder: what all tokens of a prompt move by, by space [D]; its detector; its figures."""

    name: str
    displacement: Vectors
    detector: Detector
    figures: Mapping[str, float]


def group_texts(recipe: AxisRecipe) -> list[list[str]]:
    """Prompts of each group, and without any, last."""
    return [[s.text for s in row] for row in recipe.said(PROMPTS)]


def raw_displacements(store: Store, recipe: AxisRecipe) -> list[dict[str, Tensor]]:
    """Of each group, by space: what its prompts have more, at the tokens that tell, than the mean of all groups."""
    rows = group_texts(recipe)[:-1]
    found: list[dict[str, Tensor]] = [{} for _ in rows]
    for space in store.spaces:
        for k, own in enumerate(rows):
            others = [r for j, r in enumerate(rows) if j != k]
            if space == POOLED:
                parts = [store.vector(space, own).mean(0) - store.vector(space, r).mean(0) for r in others]
            else:
                tokens = store.tokens(space, own)
                parts = [displacement(*added(tokens, store.tokens(space, r))) for r in others]
            found[k][space] = torch.stack(parts).sum(0) / len(rows)
    return found


def without(u: Tensor, others: Sequence[Tensor]) -> Tensor:
    """``u`` [D] without what lies in the span of ``others``."""
    if not others:
        return u
    basis = torch.stack([o.double() for o in others])
    left, values, _ = torch.linalg.svd(basis.T, full_matrices=False)
    left = left[:, values > 1e-6 * values.max()]
    found: Tensor = (u.double() - left @ (left.T @ u.double())).float()
    return found


def fit_axis(store: Store, recipe: AxisRecipe, others: Sequence[Vectors]) -> list[Group]:
    """Fit the groups of an axis on prompts that ``store`` holds.

    Args:
        others: what the displacements are to be free of, by space.

    Raises:
        NotSeparableError: with the accuracy, where this encoder does not tell the groups apart.
    """
    rows = recipe.said(PROMPTS)
    ways = [len(g.says) for g in recipe.groups]
    fitted = []
    for k, group in enumerate(rows[:-1]):
        own = [Said(s.text, f"way {i % ways[k]}") for i, s in enumerate(group)]
        rest = [Said(s.text, f"way {i % ways[k]}") for j, r in enumerate(rows) if j != k for i, s in enumerate(r)]
        fitted.append(Fit(store, own, rest, recipe.stated.people.many).best())
    accuracy = _accuracy([f.scores for f in fitted], len(rows[0]))
    if accuracy < SEPARATES:
        raise NotSeparableError(
            f"'{recipe.name}' does not separate on this encoder: it tells the groups {', '.join(recipe.names)} apart "
            f"with an accuracy of {accuracy:.0%}, {SEPARATES:.0%} is needed, so nothing is balanced along it here."
        )
    found = []
    for k, raw in enumerate(raw_displacements(store, recipe)):
        u = {s: without(v, [o[s] for o in others if s in o]) for s, v in raw.items()}
        if not all(float(u[s].norm()) > ALONG * float(raw[s].norm()) for s in u):
            raise NotSeparableError(
                f"'{recipe.name}' does not separate on this encoder: what '{recipe.names[k]}' adds to a prompt is what "
                "another axis adds; balance one of them."
            )
        plain, stated = ([s.text for s in row] for row in (rows[-1], rows[k]))
        strength = max(_as_stated(store, u, plain, stated), _as_read(store, fitted[k], u, plain))
        if strength > MOST:
            raise NotSeparableError(
                f"'{recipe.name}' does not separate on this encoder: nothing that is done to a prompt makes it read as "
                f"'{recipe.names[k]}' (accuracy {accuracy:.0%})."
            )
        strength = max(LEAST, strength)
        figures = {"accuracy": round(accuracy, 4), "strength": round(strength, 4)}
        found.append(
            Group(
                recipe.names[k],
                {s: strength * v.cpu() for s, v in u.items()},
                Detector((fitted[k].term,), torch.tensor([fitted[k].border])),
                figures,
            )
        )
    return found


def _accuracy(scores: Sequence[Tensor], count: int) -> float:
    """Mean share of each group's prompts whose own score, of all groups by fits that have not seen the way they are
    said, is the highest. ``scores``: of each group's fit, its own prompts first, then the others in order."""
    groups = len(scores)
    table = torch.full((groups, groups, count), -torch.inf)  # asked, prompts of, which
    for k in range(groups):
        order = [k, *(j for j in range(groups) if j != k)]
        for place, j in enumerate(order):
            table[k, j] = scores[k][place * count : (place + 1) * count]
    right = [(table[:, j].argmax(0) == j).double().mean() for j in range(groups)]
    return float(torch.stack(right).mean())


def _as_stated(store: Store, u: Vectors, plain: Sequence[str], own: Sequence[str]) -> float:
    """How many displacements make the strongest token of prompts ``plain`` reach as far along it as in those that say
    the group; the largest of all spaces."""
    found = []
    for space, v in u.items():
        unit = v / v.norm()
        if space == POOLED:
            far = [store.vector(space, texts) @ unit for texts in (own, plain)]
        else:
            mean = store.benign[space].statistics()[0] @ unit
            far = [store.tokens(space, texts).scores(unit, mean).amax(1) for texts in (own, plain)]
        gap = torch.quantile(far[0], AS_STATED) - torch.quantile(far[1], 1 - READS)
        found.append(float(gap / v.norm()))
    return max(found)


def _as_read(store: Store, fitted: FittedTerm, u: Vectors, plain: Sequence[str]) -> float:
    """How many displacements make the detector of the group read it."""
    term = fitted.term
    gain = float(term.weight[0] @ u[term.readout.space].cpu())
    gap = fitted.border - float(torch.quantile(_scores(store, term, plain), 1 - READS))
    return gap / gain if gain > 0 else MOST + 1


def _scores(store: Store, term: Term, texts: Sequence[str]) -> Tensor:
    space, weight, offset = term.readout.space, term.weight[0], term.offset[0]
    if space == POOLED or term.readout.reduce == "mean":
        vectors = store.vector(space, texts)
        return (vectors @ weight.to(vectors.device)).cpu() - float(offset[0])
    tokens = store.tokens(space, texts)
    device = tokens.own.device
    return tokens.scores(weight.to(device), offset.to(device)).amax(1).cpu()
