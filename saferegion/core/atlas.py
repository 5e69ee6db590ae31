"""Coordinates of every space: what a conditioning is to the detectors and movers of a region, and what a motion does.

One product a space gives each token's coordinates along what the detectors ask and along what the movers move. All of
it is linear, so what a motion does to the coordinates is a small product more, without a second look at the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from . import geometry
from .conditioning import Conditioning, View
from .detector import Detector, Panel, Seen
from .movers import Fleet
from .readout import Places

Tensor = torch.Tensor

KEPT = 64
"""Lengths for which the coordinates of the benign mean are kept."""


class Motion(NamedTuple):
    """What is done, by space: amounts [B, T, K] along the movers' vectors, and tokens [B, T] that go to rest."""

    amounts: dict[str, Tensor]
    rests: dict[str, Tensor]


class Atlas:
    """The detectors' panel and the movers' fleets of a region, by space; without ``along``, coordinates along the
    movers' vectors are left out and nothing can be moved."""

    def __init__(self, fleets: Mapping[str, Fleet], detectors: Sequence[Detector], along: bool = True) -> None:
        self.fleets = dict(fleets)
        self.panel = Panel(detectors, {s: (f.vectors, f.bias) for s, f in fleets.items()} if along else None)
        self._shifts: dict[tuple[str, torch.device], Tensor] = {}
        self._rests: dict[tuple[str, int, torch.device], Tensor] = {}
        self._parts: dict[tuple[str, torch.device], Tensor] = {}

    def along(self, space: str, x: Tensor) -> Tensor:
        """The coordinates along the movers' vectors ``[B, T, K]``."""
        return x[..., self.panel.forms[space].along]

    def after(self, seen: Seen, motion: Motion) -> Seen:
        """What the detectors see after a motion: the coordinates but for those along the movers."""
        found: dict[str, tuple[Tensor, Places | None]] = {}
        for space, (x, places) in seen.items():
            asked = x[..., : self.panel.forms[space].along.start]
            shift = self._shift(space, x.device).expand(len(x), -1, -1)
            new = torch.baddbmm(asked, motion.amounts[space], shift, alpha=-1)
            if space in motion.rests:
                new = self.at_rest(space, new, motion.rests[space])
            found[space] = (new, places)
        return found

    def moved(self, c: Conditioning, motion: Motion) -> Conditioning:
        """The conditioning after a motion; tokens that did not move keep every bit."""
        known = motion.amounts.keys() | motion.rests.keys()
        return c.with_views({v.space: self._moved(v, motion) for v in c.views() if v.space in known})

    def _moved(self, view: View, motion: Motion) -> Tensor:
        new, rows, fleet = view.rows, view.rows, self.fleets[view.space]
        amount = motion.amounts.get(view.space)
        if amount is not None:
            new = (rows - geometry.combine(amount, fleet.on(rows.device)["vectors"])).to(rows.dtype)
            new = torch.where(amount.any(-1, keepdim=True), new, rows)
        if view.space not in motion.rests:
            return new
        _, rest = fleet.at(rows.shape[1], rows.device)
        return torch.where(motion.rests[view.space].unsqueeze(-1), rest.to(rows.dtype), new)

    def at_rest(self, space: str, x: Tensor, where: Tensor) -> Tensor:
        """Coordinates with those of the benign mean of each position for the tokens in ``where`` [B, T]."""
        rest = self._at_rest(space, x.shape[1], x.device)
        return torch.where(where.unsqueeze(-1), rest[:, : x.shape[-1]], x)

    def holding(self, seen: Seen, over: Tensor) -> dict[str, Tensor]:
        """By space, tokens [B, T] that hold a term that is over (bool ``over`` of :meth:`Panel.over`): those that lie
        above the benign mean of their position in any part of it. Where they rest, every term is at most what it is at
        rest."""
        found = {}
        for space, (x, places) in seen.items():
            forms = self.panel.forms[space]
            if not forms.facets:
                continue
            asked = forms.along.start
            above = x[..., :asked] > self._at_rest(space, x.shape[1], x.device)[:, :asked]
            holds = above & (over.float() @ self._asked(space, x.device) > 0).unsqueeze(1)
            found[space] = holds.any(-1) if places is None else holds.any(-1) & places.mask
        return found

    def _at_rest(self, space: str, length: int, device: torch.device) -> Tensor:
        """Coordinates of the benign mean of each position ``[T, M]``."""
        key = (space, length, device)
        rest = self._rests.get(key)
        if rest is None:
            if len(self._rests) >= KEPT:
                self._rests.clear()
            with torch.inference_mode(False):
                _, mean = self.fleets[space].at(length, device)
                bias = self.panel.forms[space].bias(length, device)[0]
                weight = self.panel.weight(space, device)
                rest = self._rests[key] = geometry.coordinates(mean.unsqueeze(0), weight, bias)[0]
        return rest

    def whole(self, c: Conditioning) -> tuple[Seen, dict[str, Tensor]]:
        """Coordinates as if tokens that are not finite were at rest, and by space which are not, bool [B, T]."""
        seen = self.panel.read(c)
        broken = {s: (x.sum(-1) * 0).ne(0) for s, (x, _) in seen.items()}  # NaN where any of them is not finite
        return {s: (self.at_rest(s, x, broken[s]), places) for s, (x, places) in seen.items()}, broken

    def cleared(self, c: Conditioning) -> Tensor:
        """The borders that must be cleared, for the dtype and size of these tokens; see :meth:`Panel.cleared`."""
        rows = [v.rows for v in c.views()]
        sizes = [
            torch.linalg.vector_norm(r.float() if r.dtype is torch.float64 else r, dtype=torch.float32) for r in rows
        ]
        per = [max(1, r.numel()) ** -0.5 for r in rows]
        size = sizes[0] if len(sizes) == 1 else torch.stack([s * p for s, p in zip(sizes, per, strict=True)]).amax()
        each = per[0] if len(sizes) == 1 else 1.0
        return self.panel.cleared(c.tokens.dtype, size.nan_to_num(), each, tuple(self.panel.forms))

    def _shift(self, space: str, device: torch.device) -> Tensor:
        """``[K, M]``: what a step along each vector does to the coordinates that detectors ask."""
        key = (space, device)
        if key not in self._shifts:
            with torch.inference_mode(False):
                forms = self.panel.forms[space]
                weight = forms.weight[:, : forms.along.start].double()
                self._shifts[key] = (self.fleets[space].vectors.double() @ weight).float().to(device)
        return self._shifts[key]

    def _asked(self, space: str, device: torch.device) -> Tensor:
        """``[K · most, M]``: 1 where a coordinate is part of what detectors ask, in their order."""
        key = (space, device)
        if key not in self._parts:
            with torch.inference_mode(False):
                terms = self.panel.on(torch.device("cpu"))["of terms"]
                self._parts[key] = terms[:, self.panel.forms[space].columns].to(device)
        return self._parts[key]
