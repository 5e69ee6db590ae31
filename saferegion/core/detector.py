"""Who is open? A detector: a few terms under one false-alarm budget; and a panel of detectors asked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from . import geometry
from .conditioning import Conditioning
from .errors import ConditioningError, SafeRegionError
from .readout import Forms, Places, Readout, Term, check_tensor

Tensor = torch.Tensor
Seen = Mapping[str, tuple[Tensor, "Places | None"]]
"""By space: coordinates [B, T, M] and the tokens that may move (None: all)."""

FURTHEST = 1e3
"""Largest threshold, in benign deviations: a border that nothing reaches switches a concept off."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A concept is open for a prompt where any term is over its threshold, or a joint term is.

    Attributes:
        terms: at least one. thresholds: ``[n]`` float32, in benign deviations.
        joint: pairs of terms whose scores are summed. sums: ``[m]``, their thresholds.
        given: another detector that must be open too (None: none).
    """

    terms: tuple[Term, ...]
    thresholds: Tensor
    joint: tuple[tuple[int, int], ...] = ()
    sums: Tensor | None = None
    given: Detector | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise SafeRegionError("A detector needs at least one term.")
        check_tensor("thresholds", self.thresholds, 1)
        if len(self.thresholds) != len(self.terms):
            raise SafeRegionError("A detector has one threshold a term.")
        if (self.sums is None) != (not self.joint) or (self.sums is not None and len(self.sums) != len(self.joint)):
            raise SafeRegionError("A detector has one sum a joint term.")
        if self.sums is not None:
            check_tensor("sums", self.sums, 1)
        borders = [self.thresholds] if self.sums is None else [self.thresholds, self.sums]
        if float(torch.cat(borders).abs().max()) > FURTHEST:
            raise SafeRegionError(f"A threshold lies beyond {FURTHEST:g} benign deviations, where nothing reaches it.")
        if any(i == j or not 0 <= i < len(self.terms) or not 0 <= j < len(self.terms) for i, j in self.joint):
            raise SafeRegionError("A joint term sums two different terms of its detector.")
        if self.given is not None and self.given.given is not None:
            raise SafeRegionError("A given detector cannot have one of its own.")

    def scores(self, c: Conditioning) -> Tensor:
        """``[B, n + m]`` float32: distance over the threshold in benign deviations, terms first; at most 0 inside.
        Terms of spaces that ``c`` lacks are −inf."""
        panel = Panel([replace(self, given=None)])
        seen = panel.read(c)
        if not seen:
            return torch.full((len(c.tokens), len(self.terms) + len(self.joint)), -torch.inf, device=c.tokens.device)
        return panel.columns(panel.scores(seen))

    def tightened(self, part: float) -> Detector:
        """The same with every border at ``part`` of its way from the benign mean."""
        return replace(self, thresholds=self.thresholds * part, sums=None if self.sums is None else self.sums * part)

    def spaces(self) -> frozenset[str]:
        """Names of the spaces that are looked at."""
        return frozenset(t.readout.space for t in self.terms)


class Panel:
    """Several detectors, asked together: one product a space. ``vectors``: by space, what movers move along [K, D]
    and their bias [K, L], whose coordinates are read in the same product."""

    def __init__(
        self, detectors: Sequence[Detector], vectors: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        given = [d.given for d in detectors if d.given is not None]
        asked = [*detectors, *given]
        self.count, self.asked = len(detectors), len(asked)
        terms = [t for d in asked for t in d.terms]
        first = [sum(len(d.terms) for d in asked[:i]) for i in range(len(asked))]
        self.terms = tuple(terms)
        self.first = tuple(first)
        sums = [(first[n] + i, first[n] + j) for n, d in enumerate(asked) for i, j in d.joint]
        columns, at = [], len(terms)
        for n, d in enumerate(asked):
            columns.append([*range(first[n], first[n] + len(d.terms)), *range(at, at + len(d.joint))])
            at += len(d.joint)
        most = max((len(c) for c in columns), default=0)
        borders = torch.cat(
            [torch.zeros(0), *(d.thresholds for d in asked), *(d.sums for d in asked if d.sums is not None)]
        )
        pairs = torch.tensor([*((i, len(terms)) for i in range(len(terms))), *sums], dtype=torch.int64).view(-1, 2).T
        slots = torch.tensor([[*c, *c[:1] * (most - len(c))] for c in columns], dtype=torch.int64)
        self.joint, self.most = bool(sums), most
        summed = torch.zeros(len(borders), dtype=torch.bool).scatter(0, pairs[:, len(terms) :].flatten(), True)
        self._home: dict[str, Tensor] = {
            "columns": slots,
            "place": torch.tensor([slots.flatten().tolist().index(i) for i in range(len(borders))], dtype=torch.int64),
            "borders": borders[slots.flatten()],
            "pairs": pairs[:, slots.flatten()].flatten(),  # terms that are summed, N for nothing
            "floor": torch.where(summed, 0.0, -torch.inf)[slots.flatten()],
            "of terms": _incidence(pairs[:, slots.flatten()], len(terms)),
        }
        if given:
            order = iter(range(self.count, len(asked)))
            own = [next(order) if d.given is not None else i for i, d in enumerate(detectors)]
            self._home["given"] = torch.tensor(own, dtype=torch.int64)
        self.given = bool(given)
        vectors = vectors or {}
        spaces = dict.fromkeys([*(t.readout.space for t in terms), *vectors])
        self.forms: dict[str, Forms] = {}
        for space in spaces:
            own_terms = [(i, t) for i, t in enumerate(terms) if t.readout.space == space]
            width = vectors[space][0].shape[1] if space in vectors else own_terms[0][1].width
            along = vectors.get(space, (torch.zeros(0, width), torch.zeros(0, 1)))
            self.forms[space] = Forms(space, own_terms, *along)
        self._orders: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self._here: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._home}
        self._weights: dict[tuple[str, torch.device], Tensor] = {}

    def detector_of(self, term: int) -> int:
        """Number of the detector that a term belongs to; given ones come last."""
        return max(n for n, first in enumerate(self.first) if first <= term)

    def terms_border(self, term: int) -> float:
        """Threshold of a term."""
        return float(self._home["borders"][self._home["place"][term]])

    def names(self, detector: int) -> list[tuple[int, list[Readout]]]:
        """Columns of a detector: number, and the readouts that it sums."""
        own = self._home["columns"][detector].tolist()
        pairs = self._home["pairs"].view(2, self.asked, self.most)[:, detector].T.tolist()
        named = {
            i: [self.terms[t].readout for t in pair if t < len(self.terms)] for i, pair in zip(own, pairs, strict=True)
        }
        return list(named.items())

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Constants on ``device``."""
        found = self._here.get(device)
        if found is None:
            with torch.inference_mode(False):
                found = {k: v.to(device) for k, v in self._home.items()}
            self._here[device] = found
        return found

    def weight(self, space: str, device: torch.device) -> Tensor:
        """``[D, M]`` of a space on ``device``."""
        key = (space, device)
        found = self._weights.get(key)
        if found is None:
            with torch.inference_mode(False):
                found = self._weights[key] = self.forms[space].weight.to(device)
        return found

    def read(self, c: Conditioning) -> dict[str, tuple[Tensor, Places | None]]:
        """Coordinates of every space of ``c`` that is known here; others are left out."""
        with geometry.exact(c.tokens.device):
            known = [v for v in c.views() if v.space in self.forms]
            return {v.space: (self._read(v.space, v.rows), self.forms[v.space].places(v.mask)) for v in known}

    def _read(self, space: str, rows: Tensor) -> Tensor:
        forms, device = self.forms[space], rows.device
        weight = self.weight(space, device)
        if rows.shape[2] != weight.shape[0]:
            raise ConditioningError(
                f"Space '{space}' of this conditioning is {rows.shape[2]} wide and the directions are "
                f"{weight.shape[0]} wide: compile the concepts for this encoder."
            )
        return geometry.coordinates(rows, weight, forms.bias(rows.shape[1], device)[0])

    def scores(self, seen: Seen) -> Tensor:
        """What detectors ask for, in their order: of a term its score, in benign deviations, and 0, of a joint term the
        scores that it sums; ``[B, 2 · K · most]``, first all of the first, then all of the second."""
        parts = [part for space, (x, places) in seen.items() for part in self.forms[space].strongest(x, places)]
        index, ends = self._order(tuple(seen), parts[0].device)
        return _strongest_of(torch.cat([*parts, ends.expand(len(parts[0]), 2)], -1), index)

    def _order(self, spaces: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Columns of the facets of what detectors ask for ``[2 · K · most, facets]``; and what stands in the last two
        columns ``[1, 2]``: the zero, and −inf for terms that have no facet here."""
        key = (spaces, device)
        found = self._orders.get(key)
        if found is None:
            owner = [i for space in spaces for i in self.forms[space].owner]
            count = len(owner)
            facets = [[f for f, i in enumerate(owner) if i == n] or [count + 1] for n in range(len(self.terms))]
            most = max((len(f) for f in facets), default=1)
            rows = [[*f, *f[:1] * (most - len(f))] for f in [*facets, [count]]]
            with torch.inference_mode(False):
                index = torch.tensor(rows, dtype=torch.int64)[self._home["pairs"]]
                ends = torch.tensor([[0.0, -torch.inf]])
                found = self._orders[key] = index.to(device), ends.to(device)
        return found

    def columns(self, scores: Tensor) -> Tensor:
        """Distances over the borders of terms and joint terms ``[B, N + J]``."""
        here = self.on(scores.device)
        return (_sums(scores) - here["borders"]).index_select(1, here["place"])

    def over(self, scores: Tensor, borders: Tensor | None = None) -> Tensor:
        """Which terms and joint terms are over their borders, or over those of :meth:`cleared`, as detectors ask for
        them: bool ``[B, K · most]``."""
        return _sums(scores) > (self.on(scores.device)["borders"] if borders is None else borders)

    def open(self, over: Tensor) -> Tensor:
        """Which detectors are open, by :meth:`over`: bool ``[B, K]``."""
        found = over if self.most == 1 else over.view(len(over), -1, self.most).any(-1)
        if self.given:
            found = found[:, : self.count] & found.index_select(1, self.on(over.device)["given"])
        return found

    def distances(self, scores: Tensor) -> Tensor:
        """``[B, K]``: how far each detector is over its border, in benign deviations; at most 0 inside. Inside, terms
        that a joint term sums count through the sum alone, which orders prompts better."""
        here = self.on(scores.device)
        columns = _sums(scores) - here["borders"]
        if self.joint:
            columns = torch.where(columns > here["floor"], columns, -torch.inf)
        found = columns if self.most == 1 else columns.view(len(columns), -1, self.most).amax(-1)
        if self.given:
            own = found[:, : self.count]
            found = torch.minimum(own, found.index_select(1, here["given"]))
        return found

    def cleared(self, dtype: torch.dtype, size: Tensor, per: float, spaces: tuple[str, ...]) -> Tensor:
        """Borders ``[K · most]``, as detectors ask for them, lowered so that rounding to ``dtype`` does not bring back
        what clears them; ``size`` [] times ``per`` is the root mean square of the tokens' channels."""
        device = size.device
        here = self.on(device)
        key = f"lowered {dtype} {spaces}"
        if key not in here:
            with torch.inference_mode(False):
                norm = torch.zeros(len(self.terms) + 1)
                for space in spaces:
                    forms = self.forms[space]
                    for f, i in enumerate(forms.owner):
                        norm[i] = max(norm[i], forms.size[f])
                pairs = self._home["pairs"].view(2, -1)
                here[key] = (-ROUNDING * torch.finfo(dtype).eps * norm[pairs].sum(0)).to(device)
                here["lowered"] = here["borders"] - MARGIN
        return torch.addcmul(here["lowered"], here[key], size, value=per)


def _sums(scores: Tensor) -> Tensor:
    """``[B, 2 · C]`` -> [B, C]."""
    left, right = scores.chunk(2, 1)
    return left + right


def _incidence(pairs: Tensor, count: int) -> Tensor:
    """``[C, N]``: 1 where a term is in a column, 0 elsewhere."""
    found = torch.zeros(pairs.shape[1], count + 1)
    for side in pairs:
        found.scatter_(1, side.unsqueeze(1), 1.0)
    return found[:, :count].contiguous()


def _strongest_of(values: Tensor, index: Tensor) -> Tensor:
    """Largest of some columns: ``values`` [B, M], ``index`` [N, most] -> [B, N]."""
    picked = values.index_select(1, index.flatten())
    return picked if index.shape[1] == 1 else picked.view(-1, *index.shape).amax(-1)


MARGIN = 0.05
"""Benign deviations by which a border is cleared at least."""
ROUNDING = 2.0
"""Rounding of a score, in units of eps × root mean square of the channels × length of the weight."""
