"""The safe region of several concepts, applied to conditionings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import geometry
from .conditioning import MEAN, POOLED, TOKENS, Conditioning, Space
from .directions import ConceptDirections, Direction
from .errors import ConditioningError, SafeRegionError
from .report import Report, SpaceReport

MODES = ("project", "steer", "erase")
LARGEST = 64
"""Most half-spaces of one region in one space."""
STRONGEST = 10.0
"""Largest strength."""

TURNS = 4
"""Most times that a prompt is looked at as a whole and token by token: either may, rarely, bring the other outside."""

_UNREACHED = 1e5
"""Benign deviations from which a border is one that nothing reaches."""

_PARALLEL = 1e-6
"""Singular values of the Gram matrix below this share of the largest are taken for zero when erasing: they come from
concepts that are nearly the same, and their inverse would be nothing but rounding."""


class _Borders(NamedTuple):
    threshold: torch.Tensor  # [T, K]
    inner: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    steering: torch.Tensor  # [T, K] strength x weight by position


@dataclass(frozen=True, eq=False)
class _Stack:
    """All half-spaces of a region in one space, in canonical order, on one device."""

    directions: tuple[Direction, ...]
    owner: tuple[int, ...]  # concept of each half-space
    place: tuple[tuple[int, int, int], ...]  # concept, number among the concept's half-spaces, how many it has
    calibrated: tuple[bool, ...]  # whether it has a border
    normal: torch.Tensor  # [K, D]
    shift: torch.Tensor
    gram: torch.Tensor  # [K, K] float64 on the CPU, and on the device
    gram_here: torch.Tensor
    inverse: torch.Tensor  # pseudo-inverse of the Gram matrix, float32 on the device
    spread: torch.Tensor  # [K]
    along: torch.Tensor  # [] largest Σ_d |v_d u_d|
    across: torch.Tensor  # [] largest root of Σ_d (v_d u_d)²
    strength: torch.Tensor
    together: torch.Tensor  # [K] border of the sum with the strongest token; infinite where there is none
    sums: tuple[bool, ...]  # which are finite

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Direction, float]], device: torch.device) -> _Stack:
        normal = torch.cat([d.normal for _, d, _ in parts])
        shift = torch.cat([d.shift for _, d, _ in parts])
        gram = geometry.gram(normal, shift)
        spread = [torch.zeros(d.facets) if d.spread is None else d.spread for _, d, _ in parts]
        near = torch.cat([_reached(d) for _, d, _ in parts])
        near = near if bool(near.any()) else ~near
        return cls(
            directions=tuple(d for _, d, _ in parts),
            owner=tuple(i for i, d, _ in parts for _ in range(d.facets)),
            place=tuple((i, f, d.facets) for i, d, _ in parts for f in range(d.facets)),
            calibrated=tuple(d.calibrated for _, d, _ in parts for _ in range(d.facets)),
            normal=normal.to(device),
            shift=shift.to(device),
            gram=gram,
            gram_here=gram.float().to(device) if device.type == "mps" else gram.to(device),
            inverse=torch.linalg.pinv(gram, rtol=_PARALLEL).float().to(device),
            spread=torch.cat(spread).to(device),
            along=geometry.gram(normal[near].abs(), shift[near].abs()).amax().float().to(device),
            across=geometry.gram(normal[near] ** 2, shift[near] ** 2).amax().sqrt().float().to(device),
            strength=torch.tensor([s for _, d, s in parts for _ in range(d.facets)]).to(device),
            together=torch.cat(
                [torch.full((d.facets,), math.inf) if d.together is None else d.together for _, d, _ in parts]
            ).to(device),
            sums=tuple(d.together is not None for _, d, _ in parts for _ in range(d.facets)),
        )

    def borders(self, length: int) -> _Borders:
        device = self.normal.device

        def by_position(name: str, missing: float) -> torch.Tensor:
            columns = []
            for d in self.directions:
                value = getattr(d, name)
                value = d.threshold if value is None and name == "inner" else value
                if value is None:
                    columns.append(torch.full((length, d.facets), missing))
                    continue
                rows = value if value.ndim == 2 else value.expand(d.facets, -1)
                columns.append(rows.T[torch.arange(length) % rows.shape[1]])
            return torch.cat(columns, dim=1).to(device)

        return _Borders(
            by_position("threshold", 0.0),
            by_position("inner", 0.0),
            by_position("mean", 0.0),
            by_position("deviation", 1.0),
            by_position("weight", 1.0) * self.strength,
        )


class SafeRegion:
    """{ c : v_k·c_t ≤ τ_k for every concept k and every token t that may move }.

    A prompt of which one token is outside is unsafe as a whole: all its tokens are then taken to the inner border
    ι_k ≤ τ_k of that concept (compiled directions put it at the benign mean).

    Args:
        directions: what :func:`saferegion.compile`, :func:`saferegion.load_directions` … return; at least one. Their
            order changes nothing. All must belong to one text encoder.
        strength: one number, or concept name -> number (the others keep 1). ``project``: 1 ends on the inner border,
            2 further inside by τ − benign mean, below 1 that part of the way. ``steer``: β, 1 takes the concept off
            once. ``erase``: the part removed. 0 switches a concept off.
        mode: ``project`` moves only prompts that are outside; ``steer`` moves every token, always, by β·u
            (Li et al. 2025); ``erase`` sets every score to its benign mean.

    Raises:
        SafeRegionError: no concept, a strength out of range, an unknown mode, directions of different encoders, or a
            direction without a border in a mode that needs one.
    """

    def __init__(
        self,
        directions: Sequence[ConceptDirections],
        strength: float | Mapping[str, float] = 1.0,
        mode: str = "project",
    ) -> None:
        self.directions = tuple(directions)
        self.mode = mode
        if not self.directions:
            raise SafeRegionError("A safe region needs at least one concept.")
        if mode not in MODES:
            raise SafeRegionError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        self.names = tuple(d.concept for d in self.directions)
        self.strengths = _strengths(self.names, strength)
        for d in self.directions:
            if mode != "steer" and not d.calibrated:
                raise SafeRegionError(
                    f"'{d.concept}' has no calibrated border (it is {d.method}) and can only steer: use mode 'steer'."
                )
            if mode == "project" and d.kind != "exclude":
                raise SafeRegionError(
                    f"'{d.concept}' is an axis to balance, not a concept to keep out: use mode 'erase'."
                )
        known = [d for d in self.directions if d.encoder is not None]
        for d in known[1:]:
            known[0].encoder.require(d.encoder, f"'{known[0].concept}' ({d.concept} beside it)")  # type: ignore[union-attr]
        self.encoder = known[0].encoder if known else None
        order = sorted(range(len(self.directions)), key=lambda i: (self.names[i], digest(self.directions[i])))
        self._parts: dict[str, list[tuple[int, Direction, float]]] = {}
        for i in order:
            for space, direction in self.directions[i].spaces.items():
                parts = self._parts.setdefault(space, [])
                if self.strengths[i] > 0:
                    parts.append((i, direction, self.strengths[i]))
        for space, parts in self._parts.items():
            if len({d.width for _, d, _ in parts}) > 1:
                raise SafeRegionError(
                    f"The concepts disagree on the width of space '{space}': compile them for one encoder."
                )
            if sum(d.facets for _, d, _ in parts) > LARGEST:
                raise SafeRegionError(
                    f"A region holds at most {LARGEST} half-spaces a space; switch some concepts off."
                )
        self._stacks: dict[tuple[str, torch.device], _Stack] = {}
        self._pairs: dict[tuple[str, str, torch.device], torch.Tensor] = {}
        self._borders: dict[tuple[str, torch.device, int], _Borders] = {}
        self._windows: dict[tuple[int, ...], SafeRegion] = {}
        self._partly = any(0 < s < 1 for s in self.strengths)

    def __repr__(self) -> str:
        return f"SafeRegion({', '.join(self.names)}; mode={self.mode})"

    # -- once a generation ---------------------------------------------------------------------------------------

    def apply(self, c: Conditioning) -> tuple[Conditioning, Report]:
        """Guard a conditioning, once a generation; reads the scores back, so it synchronises once.

        Returns:
            The guarded conditioning, which is ``c`` itself where nothing had to move, and the report.

        Raises:
            ConditioningError: a width, space or encoder that the region does not know, NaN or infinite values, or
                concepts that contradict each other so that no point is inside.
        """
        after, reports = c, ()
        came = self._came(c)
        for turn in range(TURNS):
            known: dict[str, torch.Tensor] = {}
            whole, sentences = self._whole(after, known, came)
            if turn and whole is after:
                break
            if whole is after:
                moved, tokens = self._each(whole, known, came)
            else:
                moved, tokens = self._each(whole, {}, came, {} if turn else self._opened(after, known, sentences))
            reports = reports or (*tokens, *sentences)
            if moved is after:
                break
            after = moved
            if not sentences:
                break
        if after is not c and any(r.space.endswith(MEAN) for r in reports):
            self._retell(c, after, reports)
        titles = tuple(d.title or d.concept for d in self.directions)
        return after, Report(self.mode, self.names, titles, self.strengths, reports)

    def _came(self, c: Conditioning) -> dict[str, torch.Tensor]:
        """Scores by space before anything moves, on the CPU; nothing where every strength goes all the way."""
        if self.mode != "project" or not self._partly:
            return {}
        return {
            name: geometry.scores(view.detach().float(), self._stack(name, view.device).normal).cpu()
            for name, view, _, _ in (*self._views(c), *self._means(c))
        }

    def _opened(
        self, c: Conditioning, known: Mapping[str, torch.Tensor], sentences: Sequence[SpaceReport]
    ) -> dict[str, torch.Tensor]:
        """Which concepts a prompt is outside of, by any token or as a whole, by token space [B, 1, K]: such prompts
        go to the inner border, also where moving them as a whole has brought that token inside already."""
        found = {report.space: geometry.outside(report.scores, report.threshold, None) for report in sentences}
        opened = {}
        for name, view, movable, _ in self._views(c):
            if name + MEAN in found:
                stack, b = self._stack(name, view.device), self._at(name, view.device, view.shape[1])
                z = known[name] if name in known else geometry.scores(view.float(), stack.normal)
                over = geometry.outside(z.detach(), b.threshold, movable).any(1, keepdim=True)
                opened[name] = over | self._shared(name, found[name + MEAN].to(view.device), b)
        return opened

    def _shared(self, name: str, whole: torch.Tensor, b: _Borders) -> torch.Tensor:
        """``whole`` [B, 1, half-spaces of the sentence space] -> [B, 1, half-spaces of the token space ``name``]:
        whether one that belongs with it is set. Half-spaces without an inner border have nowhere to go."""
        ours, theirs = self._stack(name, whole.device), self._stack(name + MEAN, whole.device)
        if ours.place != theirs.place:
            whole = (whole.unsqueeze(-2) & self._paired(name, name + MEAN, whole.device)).any(-1)
        return whole & (b.inner < b.threshold).any(0)

    def _each(
        self,
        c: Conditioning,
        known: Mapping[str, torch.Tensor],
        came: Mapping[str, torch.Tensor],
        opened: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[Conditioning, list[SpaceReport]]:
        """Every token space and pooled, guarded token by token; ``c`` itself where nothing had to move. ``known``:
        scores that were computed before; ``came``, ``opened``: see :meth:`_came`, :meth:`_opened`."""
        views = self._views(c)
        opened = opened or {}
        found = [
            self._guard(name, view, movable, scores=known.get(name), opened=opened.get(name), came=came.get(name))
            for name, view, movable, _ in views
        ]
        reports = [r for _, r in found]
        if not any(new is not None for new, _ in found):
            return c, reports
        tokens, pooled = c.tokens, c.pooled
        for (name, _, _, place), (new, _) in zip(views, found, strict=True):
            if new is None:
                continue
            if name == POOLED:
                pooled = new[:, 0]
            elif new.shape == tokens.shape:
                tokens = new
            else:
                tokens = tokens.clone() if tokens is c.tokens else tokens
                tokens[:, place.rows, place.channels] = new
        return c.replace(tokens, pooled), reports

    def score(self, c: Conditioning) -> torch.Tensor:
        """``[B, K]`` float32, K in the order given: distance outside the border in benign standard deviations, the
        largest over tokens, spaces and half-spaces; at most 0 inside. Where words and whole are summed, tokens that are
        inside count through the sum alone, which orders prompts better. Raises ConditioningError as :meth:`apply`.
        """
        columns: list[list[torch.Tensor]] = [[] for _ in self.names]
        known: dict[str, torch.Tensor] = {}
        views = self._views(c)
        means = [
            (name, mean, None, self._lowered(place, c, movable, known)) for name, mean, movable, place in self._means(c)
        ]
        for name, view, movable, lowered in (*((*v[:3], None) for v in views), *means):
            stack = self._stack(name, view.device)
            b = self._at(name, view.device, view.shape[1])
            z = known[name] if name in known else geometry.scores(view.float(), stack.normal)
            far = (z - (b.threshold if lowered is None else lowered)) / b.deviation
            if not bool(torch.isfinite(far).all()):
                raise ConditioningError(_not_finite(name))
            if movable is not None:
                far = far.masked_fill(~movable.to(far.device).unsqueeze(-1), -math.inf)
            if summed := self._summed(name, view.device):
                inner = torch.tensor([owner in summed for owner in stack.owner]).to(far.device)
                far = far.masked_fill((far <= 0) & inner, -math.inf)
            for k, owner in enumerate(stack.owner):
                if stack.calibrated[k]:
                    columns[owner].append(
                        far[:, :, k].amax(1) if far.shape[1] else far.new_full((len(far),), -math.inf)
                    )
        empty = torch.full((c.tokens.shape[0],), -math.inf, device=c.tokens.device)
        return torch.stack([torch.stack([empty, *col]).amax(0) for col in columns], dim=1)

    def _summed(self, name: str, device: torch.device) -> frozenset[int]:
        """Concepts of which a token space's scores count in the border of the prompt as a whole, too."""
        if self.mode != "project" or not self._parts.get(name + MEAN):
            return frozenset()
        whole = self._stack(name + MEAN, device)
        return frozenset(k for k, d in zip(whole.owner, whole.sums, strict=True) if d)

    # -- inside a graph ------------------------------------------------------------------------------------------

    def project(
        self, tokens: torch.Tensor, movable: torch.Tensor | None = None, spaces: tuple[Space, ...] | None = None
    ) -> torch.Tensor:
        """The same as :meth:`apply` on plain tensors ``[B, T, D]``: no synchronisation, no data-dependent control
        flow, a new tensor of the caller's dtype and device, bit-identical where nothing moves."""
        result = tokens
        for space in spaces or TOKENS:
            if space.name not in self._parts:
                raise ConditioningError(_unknown_space(space.name, self._parts))
            if not self._parts[space.name]:
                continue
            view = tokens[:, space.rows, space.channels]
            may = None if movable is None else movable[:, space.rows]
            if self.mode == "project" and self._parts.get(space.name + MEAN):
                new, b = view, self._at(space.name, view.device, view.shape[1])
                came: list[torch.Tensor | None] = [None, None]
                z = geometry.scores(view.float(), self._stack(space.name, view.device).normal)
                opened: torch.Tensor | None = geometry.outside(z, b.threshold, may).any(1, keepdim=True)
                for _ in range(2):
                    mean = geometry.mean(new.float(), may)
                    lowered = self._border_of(space.name, new, may, {})
                    if opened is not None:
                        whole = self._stack(space.name + MEAN, view.device)
                        border = self._at(space.name + MEAN, view.device, 1).threshold if lowered is None else lowered
                        found = geometry.outside(geometry.scores(mean, whole.normal), border, None)
                        opened = opened | self._shared(space.name, found, b)
                    if opened is not None and self._partly:
                        came = [geometry.scores(mean, self._stack(space.name + MEAN, view.device).normal), z]
                    moved = self._in_graph(space.name + MEAN, mean, None, view.dtype, lowered, came=came[0])
                    new = _shifted(new, moved - mean, may)
                    new = self._in_graph(space.name, new, may, opened=opened, came=came[1])
                    opened = None
            else:
                new = self._in_graph(space.name, view, may)
            if new.shape == tokens.shape:
                result = new
            else:
                result = result.clone()
                result[:, space.rows, space.channels] = new
        return result

    def project_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """As :meth:`project`, for a pooled vector ``[B, P]``."""
        if POOLED not in self._parts:
            raise ConditioningError(_unknown_space(POOLED, self._parts))
        return self._in_graph(POOLED, pooled.unsqueeze(1), None)[:, 0] if self._parts[POOLED] else pooled

    def at(self, fraction: float) -> SafeRegion | None:
        """The region of the concepts whose step window holds ``fraction`` of the sampling (0 first step, 1 end)."""
        inside = [
            i
            for i, d in enumerate(self.directions)
            if d.window[0] <= fraction < d.window[1] or (fraction >= 1 and d.window[1] == 1)
        ]
        if len(inside) == len(self.directions):
            return self
        if not inside:
            return None
        key = tuple(inside)
        if key not in self._windows:
            strength = {self.names[i]: self.strengths[i] for i in inside}
            self._windows[key] = SafeRegion([self.directions[i] for i in inside], strength, self.mode)
        return self._windows[key]

    # -- the prompt as a whole -------------------------------------------------------------------------------------

    def _means(self, c: Conditioning) -> list[tuple[str, torch.Tensor, torch.Tensor | None, Space]]:
        """(sentence space, mean token [B, 1, D] float32, which tokens may move, the space's place)."""
        if self.mode != "project":
            return []
        found = []
        for space in c.spaces or TOKENS:
            if self._parts.get(space.name + MEAN):
                movable = None if c.movable is None else c.movable[:, space.rows]
                view = c.tokens[:, space.rows, space.channels].float()
                found.append((space.name + MEAN, geometry.mean(view, movable), movable, space))
        return found

    def _lowered(
        self, place: Space, c: Conditioning, movable: torch.Tensor | None, known: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """The border of each prompt as a whole in one space, [B, 1, K], or None where it is the same for all."""
        return self._border_of(place.name, c.tokens[:, place.rows, place.channels], movable, known)

    def _border_of(
        self, name: str, view: torch.Tensor, movable: torch.Tensor | None, known: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """See :meth:`_lowered`; scores of the tokens are left in ``known``."""
        whole = self._stack(name + MEAN, view.device)
        if not any(whole.sums) or not self._parts.get(name) or not view.shape[1]:
            return None
        stack = self._stack(name, view.device)
        _same_width(name, view, stack)
        b, at = self._at(name, view.device, view.shape[1]), self._at(name + MEAN, view.device, 1)
        known[name] = z = geometry.scores(view.float(), stack.normal)
        far = (z.detach() - b.mean) / b.deviation
        if movable is not None:
            far = far.masked_fill(~movable.to(far.device).unsqueeze(-1), -math.inf)
        strongest = far.amax(1)
        if whole.place != stack.place:
            same = self._paired(name + MEAN, name, view.device)
            strongest = strongest.unsqueeze(1).masked_fill(~same, -math.inf).amax(-1)
        return geometry.together(at.threshold, at.inner, at.mean, at.deviation, whole.together, strongest)

    def _whole(
        self, c: Conditioning, known: dict[str, torch.Tensor], came: Mapping[str, torch.Tensor]
    ) -> tuple[Conditioning, list[SpaceReport]]:
        """Prompts whose mean token is outside: all their tokens are moved alike, so that it comes inside. Scores of
        the tokens, where they were computed, are left in ``known``."""
        reports = []
        for name, mean, movable, place in self._means(c):
            lowered = self._lowered(place, c, movable, known)
            new, report = self._guard(name, mean, None, c.tokens.dtype, lowered, came=came.get(name))
            reports.append(report)
            if new is not None:
                view = c.tokens[:, place.rows, place.channels]
                view = _shifted(view, new - mean, movable)
                tokens = view if view.shape == c.tokens.shape else c.tokens.clone()
                if tokens is not view:
                    tokens[:, place.rows, place.channels] = view
                c = c.replace(tokens, c.pooled)
        return c, reports

    def _retell(self, before: Conditioning, after: Conditioning, reports: Sequence[SpaceReport]) -> None:
        """Where prompts were moved as a whole too, reports tell the scores of what came and of what went."""
        came, went = ({name: view for name, view, _, _ in (*self._views(c), *self._means(c))} for c in (before, after))
        for report in reports:
            old, new = came[report.space], went[report.space]
            stack = self._stack(report.space, old.device)
            report.scores = geometry.scores(old.detach().float(), stack.normal).cpu()
            report.scores_after = lambda new=new, stack=stack: geometry.scores(new.float(), stack.normal).cpu()
            report.moved = old.ne(new).any(-1).cpu()

    # -- parts ---------------------------------------------------------------------------------------------------

    def _in_graph(
        self,
        name: str,
        view: torch.Tensor,
        movable: torch.Tensor | None,
        dtype: torch.dtype | None = None,
        lowered: torch.Tensor | None = None,
        opened: torch.Tensor | None = None,
        came: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = dtype or view.dtype
        stack = self._stack(name, view.device)
        _same_width(name, view, stack)
        b = self._at(name, view.device, view.shape[1])
        if self.mode == "steer":
            return geometry.move(view, b.steering, stack.shift, movable)
        z = geometry.scores(view.float(), stack.normal)
        if self.mode == "erase":
            return geometry.move(view, _erasing(z - b.mean, stack), stack.shift, movable)
        over = geometry.outside(z, b.threshold if lowered is None else lowered, movable)
        over = over if opened is None else over | opened
        limit = geometry.limits(
            over, b.threshold, b.inner, b.mean, stack.strength, z if came is None else came, lowered
        )
        moves = geometry.outside(z, limit, movable).any(-1)
        margin, roundoff = _margin(view, dtype, stack), geometry.roundoff(dtype, stack.along, stack.across)
        amount = geometry.amounts(
            z, limit, moves, stack.gram_here, b.mean, margin, roundoff, stack.strength, stack.inverse
        )
        return geometry.move(view, amount, stack.shift, moves)

    def _guard(
        self,
        name: str,
        view: torch.Tensor,
        movable: torch.Tensor | None,
        dtype: torch.dtype | None = None,
        lowered: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        opened: torch.Tensor | None = None,
        came: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, SpaceReport]:
        """The guarded view, None where nothing moves, and what was seen. ``lowered`` [B, T, K]: the border of each
        prompt where it is not the same for all; ``scores``: of the view, where they are known; ``opened``
        [B, 1, K]: prompts that go to the inner border whatever their tokens score now; ``came`` [B, T, K]: scores
        before anything moved, where they are others."""
        dtype = dtype or view.dtype
        stack, home = self._stack(name, view.device), self._stack(name, torch.device("cpu"))
        z = geometry.scores(view.float(), stack.normal).detach() if scores is None else scores.detach()
        near, size = view.device.type == "cpu", len(stack.owner)
        known = z
        if not near:  # the one synchronisation
            parts = [z, _margin(view, dtype, stack)] + ([] if lowered is None else [lowered])
            known = torch.cat(parts, dim=-1).cpu()
            lowered = None if lowered is None else known[..., 2 * size :]
        seen = known[..., :size]
        if not _finite(seen):
            raise ConditioningError(_not_finite(name))
        here = self._at(name, torch.device("cpu"), view.shape[1])
        may = torch.ones(seen.shape[:2], dtype=torch.bool) if movable is None else movable.cpu()
        border = here.threshold if lowered is None else lowered
        over = geometry.outside(seen, border, may)
        over = over if opened is None else over | opened.cpu()
        inside = self.mode == "project" and not bool(over.any())
        limit = here.threshold
        if not inside:
            start = seen if came is None else came
            limit = geometry.limits(over, here.threshold, here.inner, here.mean, home.strength, start, lowered)
        moves = may
        if self.mode == "project":
            moves = over[..., 0] if inside else geometry.outside(seen, limit, may).any(-1)
        report = SpaceReport(name, seen, border, here.deviation, stack.calibrated, stack.owner, may, moves)
        if self.mode != "project":
            new = self._in_graph(name, view, None if movable is None else movable.to(view.device))
            report.scores_after = lambda: geometry.scores(new.detach().float(), stack.normal).cpu()
            return (new if new.numel() else None), report
        if inside or not bool(moves.any()):
            return None, report
        rows = moves.nonzero(as_tuple=True)
        at, mean = limit[rows], here.mean[rows[1]]
        margin = _margin(view[rows], dtype, stack) if near else known[rows][:, size : 2 * size]
        roundoff = geometry.roundoff(dtype, home.along, home.across)
        amount = geometry.amounts(seen[rows], at, moves[rows], stack.gram, mean, margin, roundoff, home.strength)
        left = seen[rows].double() - amount.double() @ stack.gram.T - at
        if bool((left > 1e-3 * (1 + seen[rows].abs())).any()):
            raise ConditioningError(
                "These concepts contradict each other here: no point is inside all of them; switch one off or lower "
                "its strength."
            )
        whole = torch.zeros_like(seen)
        whole[rows] = amount
        new = geometry.move(view, whole.to(view.device), stack.shift, moves.to(view.device))
        report.scores_after = lambda: geometry.scores(new.detach().float(), stack.normal).cpu()
        return new, report

    def _views(self, c: Conditioning) -> list[tuple[str, torch.Tensor, torch.Tensor | None, Space]]:
        if self.encoder is not None and c.encoder is not None:
            self.encoder.require(c.encoder, "This safe region")
        views: list[tuple[str, torch.Tensor, torch.Tensor | None, Space]] = []
        for space in c.spaces or TOKENS:
            view = c.tokens[:, space.rows, space.channels]
            movable = None if c.movable is None else c.movable[:, space.rows]
            views.append((space.name, view, movable, space))
        if c.pooled is not None and (POOLED in self._parts or self.mode != "steer"):
            views.append((POOLED, c.pooled.unsqueeze(1), None, Space("unused")))
        for name, view, _, _ in views:
            if name not in self._parts:
                raise ConditioningError(_unknown_space(name, self._parts))
            if self._parts[name]:
                _same_width(name, view, self._stack(name, view.device))
        return [view for view in views if self._parts[view[0]]]

    def _stack(self, name: str, device: torch.device) -> _Stack:
        key = (name, device)
        if key not in self._stacks:
            with torch.inference_mode(False):  # kept for later calls, which may want gradients
                self._stacks[key] = _Stack.of(self._parts[name], device)
        return self._stacks[key]

    def _paired(self, name: str, other: str, device: torch.device) -> torch.Tensor:
        """Bool [K, J]: which half-spaces of a token space and its sentence space belong together: those of one concept,
        and where it has as many in both, one with one."""
        key = (name, other, device)
        if key not in self._pairs:
            ours, theirs = self._stack(name, device).place, self._stack(other, device).place
            same = [[i == j and (n != m or f == g) for j, g, m in theirs] for i, f, n in ours]
            with torch.inference_mode(False):
                self._pairs[key] = torch.tensor(same, dtype=torch.bool).to(device)
        return self._pairs[key]

    def _at(self, name: str, device: torch.device, length: int) -> _Borders:
        key = (name, device, length)
        if key not in self._borders:
            if len(self._borders) >= 256:
                self._borders.clear()
            with torch.inference_mode(False):
                self._borders[key] = self._stack(name, device).borders(length)
        return self._borders[key]


def _reached(d: Direction) -> torch.Tensor:
    """Bool [F]: half-spaces whose border something may reach; the others only count in the border of the whole."""
    if d.threshold is None or d.mean is None or d.deviation is None:
        return torch.ones(d.facets, dtype=torch.bool)
    return ((d.threshold - d.mean) / d.deviation < _UNREACHED).any(1)


def _finite(scores: torch.Tensor) -> bool:
    low, high = scores.aminmax() if scores.numel() else (scores.sum(), scores.sum())
    return math.isfinite(low) and math.isfinite(high)


def _shifted(view: torch.Tensor, by: torch.Tensor, movable: torch.Tensor | None) -> torch.Tensor:
    """``view`` [B, T, D] with ``by`` [B, 1, D] added to the tokens that may move; others, and rows of zero, keep every
    bit."""
    where = by.ne(0).any(-1)
    if movable is not None:
        where = where & movable.to(by.device)
    return torch.where(where.unsqueeze(-1), (view.float() + by).to(view.dtype), view)


def _margin(view: torch.Tensor, dtype: torch.dtype, stack: _Stack) -> torch.Tensor:
    return geometry.margin(view.float(), dtype, stack.normal, stack.spread)


def _erasing(away: torch.Tensor, stack: _Stack) -> torch.Tensor:
    return geometry.scores(away, stack.inverse) * stack.strength


def _same_width(name: str, view: torch.Tensor, stack: _Stack) -> None:
    if view.shape[-1] != stack.normal.shape[1]:
        raise ConditioningError(
            f"Space '{name}' of this conditioning is {view.shape[-1]} wide and the directions are "
            f"{stack.normal.shape[1]} wide: compile the concepts for this encoder."
        )


def _not_finite(name: str) -> str:
    return (
        f"The conditioning holds NaN or infinite values in space '{name}', so it cannot be guarded; "
        "check the text encoder and the prompt weights."
    )


def _unknown_space(name: str, known: Mapping[str, object]) -> str:
    return (
        f"The region has no direction for space '{name}' (it has {', '.join(sorted(known))}), so this conditioning "
        "cannot be guarded: compile the concepts for this encoder."
    )


def _strengths(names: tuple[str, ...], strength: float | Mapping[str, float]) -> tuple[float, ...]:
    if isinstance(strength, Mapping):
        unknown = sorted(set(strength) - set(names))
        if unknown:
            raise SafeRegionError(
                f"A strength is given for {unknown[0]!r}, which is not in the region ({', '.join(names)})."
            )
        values = [strength.get(n, 1.0) for n in names]
    else:
        values = [strength] * len(names)
    for name, value in zip(names, values, strict=True):
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= STRONGEST
        if not good:
            raise SafeRegionError(f"The strength of '{name}' must be a number from 0 to {STRONGEST:g}; got {value!r}.")
    return tuple(float(v) for v in values)


def digest(directions: ConceptDirections) -> bytes:
    """Of all tensors of a concept."""
    h = hashlib.sha256()
    for space, direction in sorted(directions.spaces.items()):
        h.update(space.encode())
        for name, tensor in direction.tensors().items():
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return h.digest()
