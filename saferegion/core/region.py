"""The safe region of several concepts: detect, move, verify.

Everything happens in coordinates (:mod:`saferegion.core.atlas`), so *verify* asks the detectors again without a second
look at the tokens, and ``apply`` (which may synchronise once) and ``project`` (which never does) are the same three
functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from . import geometry
from .atlas import Atlas, Motion
from .conditioning import POOLED, TOKENS, Conditioning, Space
from .detector import Panel, Seen
from .direction import Direction
from .errors import ConditioningError, SafeRegionError
from .fingerprint import Fingerprint
from .movers import Fleet, HalfSpaces
from .reading import reading
from .readout import Places
from .report import Reading, Report

Tensor = torch.Tensor

MODES = ("project", "steer", "erase")
LARGEST = 64
"""Most half-spaces and offsets of one region in one space."""
STRONGEST = 10.0
"""Largest strength."""
FURTHER = (1.0,)
"""How much further in than the target a concept goes that is still open, in its own displacements, step by step."""


class SafeRegion:
    """{ c : no detector of a concept that is switched on is open }.

    Args:
        directions: what :func:`saferegion.compile`, :func:`saferegion.load_directions` … return; at least one. Their
            order changes nothing. All must belong to one text encoder.
        strength: one number, or concept name -> number (the others keep 1). ``project``: 1 takes an open prompt to its
            target (a little beyond the benign mean), 2 one displacement of the concept further, below 1 that part of
            the way (such a concept may stay open, which the report says). ``steer``: how many times the concept is
            taken off. ``erase``: the part removed, from 0 to 1. 0 switches a concept off.
        mode: ``project`` moves only prompts that are open; ``steer`` moves every token, always (Li et al. 2025);
            ``erase`` sets every token to the benign mean along the concepts.

    Raises:
        SafeRegionError: no concept, a strength out of range, an unknown mode, directions of different encoders, or a
            direction that cannot be used in this mode.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        strength: float | Mapping[str, float] = 1.0,
        mode: str = "project",
    ) -> None:
        self.directions, self.mode = tuple(directions), mode
        if not self.directions:
            raise SafeRegionError("A safe region needs at least one concept.")
        if mode not in MODES:
            raise SafeRegionError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        self.names = tuple(d.concept for d in self.directions)
        self.titles = tuple(d.title for d in self.directions)
        self.strengths = _strengths(self.names, strength, mode)
        self.encoder = _one_encoder(self.directions)
        for d in self.directions:
            _usable(d, mode)
        order = sorted(range(len(self.names)), key=lambda i: (self.names[i], self.directions[i].digest()))
        self._sorted = [self.directions[i] for i in order]
        self._power = [self.strengths[i] for i in order]
        self._all_on, self._partial = all(p > 0 for p in self._power), any(p < 1 for p in self._power)
        self._place = [order.index(i) for i in range(len(order))]
        fleets = {s: self._fleet(s) for s in dict.fromkeys(s for d in self._sorted for s in d.movers)}
        asked = [d.detector for d in self._sorted if d.detector is not None]
        self._asks = len(asked) == len(self._sorted)
        witnesses = [(k, d.witness) for k, d in enumerate(self._sorted) if d.witness is not None and self._asks]
        self._second = [k for k, _ in witnesses]
        detectors = [*asked, *(w for _, w in witnesses)] if self._asks else []
        self._atlas = Atlas(fleets, detectors)
        self._first = self._atlas  # what is asked of every prompt: no witness, and nothing along the movers
        if self._asks and mode == "project" and all(any(s in d.spaces() for d in asked) for s in fleets):
            self._first = Atlas(fleets, asked, along=False)
        self._constants: dict[torch.device, dict[str, Tensor]] = {}
        self._windows: dict[tuple[int, ...], SafeRegion] = {}
        self._known: dict[object, None] = {}

    def __repr__(self) -> str:
        return f"SafeRegion({', '.join(self.names)}; mode={self.mode})"

    # -- detect, move, verify ------------------------------------------------------------------------------------

    def detect(self, panel: Panel, seen: Seen) -> Tensor:
        """Distance of every concept over its border ``[B, K]``, in the region's own order; at most 0 inside."""
        return panel.distances(panel.scores(seen))[:, : len(self._sorted)]

    def _open(self, far: Tensor) -> Tensor:
        """Which concepts are open and switched on: bool [B, K]."""
        opened = far > 0
        return opened if self._all_on else opened & self._on(far.device)["on"]

    def move(self, seen: Seen, opened: Tensor, depth: Tensor | None = None, before: Motion | None = None) -> Motion:
        """The nearest point inside the half-spaces of the open concepts, and their offsets.

        Args:
            opened: bool [B, K]. depth: [B, K], how much further in than the target, in displacements (None: not).
            before: the motion to go on from.
        """
        amounts = {}
        for space, (x, places) in seen.items():
            start = None if before is None else before.amounts[space]
            a = self._atlas.fleets[space].amounts(self._atlas.along(space, x), opened, depth, start)
            amounts[space] = _under(places, a)
        return Motion(amounts, {} if before is None else before.rests)

    def verify(self, over: Tensor, opened: Tensor) -> Tensor:
        """What is open now in the prompts that move: bool [B, K], by what is ``over`` its border. Of the concepts that
        were open their witness is asked too; others may be opened by the move. Concepts of a strength below 1 are not
        asked: they go part of the way."""
        here, count = self._on(over.device), len(self._sorted)
        still = self._atlas.panel.open(over)
        open_ = still[:, :count]
        if len(self._second) == count:
            open_ = open_ | still[:, count : 2 * count] & opened
        elif self._second:
            open_ = open_ | still.index_select(1, here["witness"]) & here["witnessed"] & opened
        if self._partial:
            open_ = open_ & here["closes"]
        return open_ & opened.any(1, keepdim=True)

    def close(self, seen: Seen, opened: Tensor, borders: Tensor) -> Motion:
        """Move and verify, further in by :data:`FURTHER` where a concept is open still, then the tokens that hold it
        to rest; it ends early where asking costs no synchronisation. ``borders``: those to be cleared."""
        motion, depth = self.move(seen, opened), None
        after, over, still = self._look(seen, motion, opened, borders)
        for further in FURTHER:
            if geometry.none(still):
                return motion
            depth = torch.where(still & opened, further, 0.0 if depth is None else depth)
            opened = opened | still
            motion = _where(still.any(1), self.move(seen, opened, depth, motion), motion)
            after, over, still = self._look(seen, motion, opened, borders)
        if geometry.none(still):
            return motion
        over = over & still.index_select(1, self._on(still.device)["concept"])
        return Motion(motion.amounts, self._atlas.holding(after, over))

    def _look(self, seen: Seen, motion: Motion, opened: Tensor, borders: Tensor) -> tuple[Seen, Tensor, Tensor]:
        """What the detectors see after a motion, what is over its border, and which concepts are open."""
        after = self._atlas.after(seen, motion)
        over = self._atlas.panel.over(self._atlas.panel.scores(after), borders)
        return after, over, self.verify(over, opened)

    # -- once a generation ---------------------------------------------------------------------------------------

    def apply(self, c: Conditioning) -> tuple[Conditioning, Report]:
        """Guard a conditioning, once a generation; reads back whether anything is open, so it synchronises once.

        Returns:
            The guarded conditioning, which is ``c`` itself where nothing had to move, and the report.

        Raises:
            ConditioningError: a width, space or encoder that the region does not know, NaN or infinite values, or a
                mask that hides every token.
        """
        self._fits(c)
        with geometry.exact(c.tokens.device):
            first = self._first.panel
            seen = first.read(c)
            if self.mode != "project":
                return self._always(c, seen)
            far = self.detect(first, seen)
            opened = self._open(far)
            flags = [opened.any(), *(x.sum() for x, _ in seen.values())]
            if c.mask is not None:
                flags.append(c.mask.any())
            is_open, *sums = geometry.read(flags)
            _require_finite(sums[: len(seen)], seen)
            if c.mask is not None and not sums[-1] and c.pooled is None:
                raise ConditioningError("The mask hides every token, so nothing could be guarded; give a mask of text.")
            before = self._reading(first, far, seen)
            if not is_open:
                return c, self._report(before, before, opened.any(1), None)
            panel = self._atlas.panel
            seen = seen if panel is first else panel.read(c)
            moved = self._atlas.moved(c, self.close(seen, opened, self._atlas.cleared(c)))
            now = panel.read(moved)
            scores = panel.scores(now)
            after = self._reading(panel, panel.distances(scores)[:, : len(self._sorted)], now)
            unresolved = self.verify(panel.over(scores), opened)
            return moved, self._report(before, after, opened.any(1), unresolved)

    def score(self, c: Conditioning) -> Tensor:
        """``[B, K]`` float32, K in the order given: distance over the border in benign deviations; at most 0 inside.

        Raises ConditioningError as :meth:`apply`.
        """
        self._fits(c)
        if not self._asks:
            raise SafeRegionError("Directions that can only steer have no border to score against.")
        with geometry.exact(c.tokens.device):
            seen = self._first.panel.read(c)
            _require_finite([float(x.sum()) for x, _ in seen.values()], seen)
            return self._told(self.detect(self._first.panel, seen))

    # -- inside a graph ------------------------------------------------------------------------------------------

    def project(self, tokens: Tensor, mask: Tensor | None = None, spaces: tuple[Space, ...] | None = None) -> Tensor:
        """The same as :meth:`apply` on plain tensors ``[B, T, D]``: no synchronisation, no data-dependent control
        flow (but on a CPU outside a graph, where it ends early), a new tensor of the caller's dtype and device,
        bit-identical where nothing moves. Tokens that are not finite go to rest, as nothing can be raised here."""
        c = object.__new__(Conditioning)
        c._set(tokens, mask, None, TOKENS if spaces is None else spaces, None)
        return self._projected(c).tokens

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """As :meth:`project`, for a pooled vector ``[B, P]``."""
        if POOLED not in self._atlas.fleets:
            raise ConditioningError(_unknown_space(POOLED, self._atlas.fleets))
        rows = pooled.unsqueeze(1)
        c = object.__new__(Conditioning)
        c._set(rows, None, None, (Space(POOLED),), None)
        return self._projected(c).tokens[:, 0]

    def _projected(self, c: Conditioning) -> Conditioning:
        self._spaces_fit(c)
        with geometry.exact(c.tokens.device):
            if self.mode != "project":
                return self._atlas.moved(c, self._everywhere(self._atlas.panel.read(c)))
            first = self._first if geometry.asks_freely(c.tokens.device) else self._atlas
            seen, broken = first.whole(c)
            opened = self._open(self.detect(first.panel, seen))
            if geometry.none(opened):
                return self._atlas.moved(c, Motion({}, broken))
            if first is not self._atlas:
                seen, broken = self._atlas.whole(c)
            motion = self.close(seen, opened, self._atlas.cleared(c))
            rests = {s: b | motion.rests[s] if s in motion.rests else b for s, b in broken.items()}
            return self._atlas.moved(c, Motion(motion.amounts, rests))

    def at(self, fraction: float) -> SafeRegion | None:
        """The region of the concepts whose step window holds ``fraction`` of the sampling (0 first step, 1 end)."""
        windows = [d.window for d in self.directions]
        inside = [i for i, (a, b) in enumerate(windows) if a <= fraction < b or (fraction >= 1 and b == 1)]
        if len(inside) == len(self.directions):
            return self
        if not inside:
            return None
        key = tuple(inside)
        if key not in self._windows:
            chosen = [self.directions[i] for i in inside]
            strength = {self.names[i]: self.strengths[i] for i in inside}
            self._windows[key] = SafeRegion(chosen, strength, self.mode)
        return self._windows[key]

    # -- the other modes -----------------------------------------------------------------------------------------

    def _everywhere(self, seen: Seen) -> Motion:
        """Steer: every token, always, by strength displacements. Erase: to the benign mean along all concepts."""
        amounts = {}
        for space, (x, places) in seen.items():
            fleet = self._atlas.fleets[space]
            here, half = fleet.on(x.device), fleet.half
            if self.mode == "erase":
                a = geometry.combine(self._atlas.along(space, x), here["inverse"]) * here["part"]
            else:
                b, _ = fleet.at(x.shape[1], x.device)
                fixed = (here["length"][:half] * here["strength"][:half]).expand(len(x), x.shape[1], -1)
                given = (-b * here["strength"][half:]).expand(len(x), -1, -1)
                a = torch.cat([fixed, given], -1)
            amounts[space] = _under(places, a)
        return Motion(amounts, {})

    def _always(self, c: Conditioning, seen: Seen) -> tuple[Conditioning, Report]:
        _require_finite([float(x.sum()) for x, _ in seen.values()], seen)
        moved = self._atlas.moved(c, self._everywhere(seen))
        nothing = torch.full((len(c.tokens), len(self.names)), -math.inf)
        blank = Reading(nothing, lambda: [[] for _ in self.names], dict)
        before = after = blank
        if self._asks:
            panel = self._atlas.panel
            now = panel.read(moved)
            before = self._reading(panel, self.detect(panel, seen), seen)
            after = self._reading(panel, self.detect(panel, now), now)
        touched = [(v.rows != w.rows).flatten(1).any(1) for v, w in zip(c.views(), moved.views(), strict=True)]
        which = torch.stack([t.to(touched[0].device) for t in touched]).any(0)
        if not bool(which.any()):
            moved = c
        return moved, self._report(before, after, which, None)

    # -- reports -------------------------------------------------------------------------------------------------

    def _reading(self, panel: Panel, far: Tensor, seen: Seen) -> Reading:
        return reading(panel, seen, self._told(far), self._place)

    def _told(self, values: Tensor) -> Tensor:
        """``[B, K]`` in the order in which the concepts were given."""
        return values.index_select(1, self._on(values.device)["place"])

    def _report(self, before: Reading, after: Reading, touched: Tensor, unresolved: Tensor | None) -> Report:
        if unresolved is not None:
            unresolved = self._told(unresolved)
        notes = tuple(d.meta.note for d in self.directions if d.meta.note)
        return Report(self.mode, self.names, self.titles, self.strengths, before, after, touched, unresolved, notes)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _fleet(self, space: str) -> Fleet:
        movers = [(k, d.movers[space]) for k, d in enumerate(self._sorted) if space in d.movers]
        if len({m.width for _, m in movers}) > 1:
            raise SafeRegionError(
                f"The concepts disagree on the width of space '{space}': compile them for one encoder."
            )
        if sum(m.facets for _, m in movers) > LARGEST:
            raise SafeRegionError(f"A region holds at most {LARGEST} half-spaces a space; switch some concepts off.")
        return Fleet(movers, [d.rest[space] for d in self._sorted if space in d.rest], self._power)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        here = self._constants.get(device)
        if here is None:
            count, panel = len(self._sorted), self._atlas.panel
            witness = [count + self._second.index(k) if k in self._second else 0 for k in range(count)]
            detector = [slot // panel.most for slot in range(panel.most * panel.asked)]
            concept = [d if d < count else self._second[d - count] if d < panel.count else 0 for d in detector]
            with torch.inference_mode(False):
                here = {
                    "on": torch.tensor([s > 0 for s in self._power]),
                    "closes": torch.tensor([s >= 1 for s in self._power]),
                    "place": torch.tensor(self._place, dtype=torch.int64),
                    "witness": torch.tensor(witness, dtype=torch.int64),
                    "witnessed": torch.tensor([k in self._second for k in range(count)]),
                    "concept": torch.tensor(concept, dtype=torch.int64),
                }
                here = {k: v.to(device) for k, v in here.items()}
            self._constants[device] = here
        return here

    def _fits(self, c: Conditioning) -> None:
        if self.encoder is not None and c.encoder is not None and c.encoder is not self.encoder:
            self.encoder.require(c.encoder, "This safe region")
        self._spaces_fit(c)

    def _spaces_fit(self, c: Conditioning) -> None:
        key = (None if c.spaces is TOKENS else tuple([s.name for s in c.spaces]), c.pooled is None)
        if key in self._known:
            return
        names = [v.space for v in c.views()]
        for name in names:
            if name not in self._atlas.fleets and (name != POOLED or self.mode != "steer"):
                raise ConditioningError(_unknown_space(name, self._atlas.fleets))
        alone = c.spaces[0].name == POOLED if len(c.spaces) == 1 else False
        for d in self._sorted if self.mode == "project" and not alone else ():
            if d.detector is not None and not d.detector.spaces() & set(names):
                missing = ", ".join(sorted(d.detector.spaces()))
                raise ConditioningError(
                    f"'{d.concept}' is told by {missing} alone, which this conditioning lacks, so it cannot be guarded."
                )
        self._known[key] = None


def _under(places: Places | None, amounts: Tensor) -> Tensor:
    """The amounts of tokens that may move, 0 of others."""
    return amounts if places is None else torch.where(places.mask.unsqueeze(-1), amounts, 0.0)


def _where(prompts: Tensor, one: Motion, other: Motion) -> Motion:
    """One motion for ``prompts`` (bool [B]), the other for the rest, to the bit."""
    pick = prompts.reshape(-1, 1, 1)
    return Motion({s: torch.where(pick, a, other.amounts[s]) for s, a in one.amounts.items()}, one.rests)


def _require_finite(sums: Sequence[float], seen: Seen) -> None:
    for total, space in zip(sums, seen, strict=True):
        if not math.isfinite(total):
            raise ConditioningError(
                f"The conditioning holds NaN or infinite values in space '{space}', so it cannot be guarded; "
                "check the text encoder and the prompt weights."
            )


def _unknown_space(name: str, known: Mapping[str, object]) -> str:
    return (
        f"The region has no direction for space '{name}' (it has {', '.join(sorted(known))}), so this conditioning "
        "cannot be guarded: compile the concepts for this encoder."
    )


def _one_encoder(directions: Sequence[Direction]) -> Fingerprint | None:
    known = [(d.concept, d.encoder) for d in directions if d.encoder is not None]
    for concept, encoder in known[1:]:
        known[0][1].require(encoder, f"'{known[0][0]}' ({concept} beside it)")
    return known[0][1] if known else None


def _usable(d: Direction, mode: str) -> None:
    if mode != "steer" and d.detector is None:
        raise SafeRegionError(f"'{d.concept}' has no detector (it is {d.method}) and can only steer: use mode 'steer'.")
    if mode != "steer" and d.kind != "exclude":
        raise SafeRegionError(
            f"'{d.concept}' is for Balance, which shares groups of people out over the pictures: it cannot be kept out "
            "or erased, as that would take away what a prompt says; it can only be steered along."
        )
    if mode == "erase" and not all(isinstance(m, HalfSpaces) for m in d.movers.values()):
        raise SafeRegionError(f"'{d.concept}' is an offset, which can be projected or steered, but not erased.")


def _strengths(names: tuple[str, ...], strength: float | Mapping[str, float], mode: str) -> tuple[float, ...]:
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
    most = 1.0 if mode == "erase" else STRONGEST  # erasing more than all puts the concept in
    return tuple(min(float(v), most) for v in values)
