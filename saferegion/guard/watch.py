"""What the diffusion model reads while it paints, looked at before every pass: nothing that the guard has not seen.

Extensions encode texts of their own (regions, detail prompts) and put them in where no hook of prompts is asked. Every
row that pushes the picture towards its text must be one that the guard returned for this generation; what it has not
seen it looks at now, and what lies outside the safe region is refused.

Rows are told by a few random projections of each token, so a pass costs one small product. On a GPU nothing waits for
the answer: it is read before a later pass, and before the picture is made of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

MOST_BLOCKS = 256
PROJECTIONS = 4
TOLERANCE = 1e-2
"""Of the length of a token: what storage in half precision, and another product, may change."""

Look = Callable[[torch.Tensor, "torch.Tensor | None"], None]
"""Looks at rows ``[T, D]`` and a vector that the guard has not seen; raises SafeRegionRefused for what is outside."""


class Watch:
    """What one generation may paint from."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._known: list[torch.Tensor] = []
        self._tables: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._waiting: list[tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self._negatives: list[torch.Tensor] = []
        self._first = self._away = 0
        """Rows of a step that still push towards their text, and then away, of a host that does not say which do."""

    def allow(self, rows: torch.Tensor) -> None:
        """These, ``[T, D]``, may be painted from."""
        if any(known is rows for known in self._known):
            return
        self._known = [*self._known[-MOST_BLOCKS:], rows]
        self._tables.clear()

    def allow_away(self, rows: torch.Tensor) -> None:
        """These, ``[T, D]``, are the negative prompt's, and may be anything where they push away."""
        if not any(known is rows for known in self._negatives):
            self._negatives = [*self._negatives[-MOST_BLOCKS:], rows]
            self._tables.clear()

    def step(self, towards: int, away: int) -> None:
        """A step of the sampler begins: its first ``towards`` rows push towards their text, ``away`` rows then away.

        Of whatever is read beyond them, as extensions do for their regions, nothing is known.
        """
        self._first, self._away = towards, away

    def step_ends(self) -> None:
        self._first = self._away = 0

    def check(self, context: torch.Tensor, vector: torch.Tensor | None, away: Sequence[bool] | None) -> None:
        """Look at what one pass reads: ``context`` ``[B, T, D]``.

        Args:
            away: for each row, whether it pushes away from its text and may be anything; None: the host does not say,
                and rows are counted as :meth:`step` told.

        Raises:
            SafeRegionRefused: a row of this pass, or of an earlier one, is outside the safe region.
        """
        self._answer(wait=False)
        context = context.reshape(len(context), -1, context.shape[-1])
        unsure = False
        if away is None:
            taken = min(self._first, len(context))
            left = min(self._away, len(context) - taken)
            self._first, self._away = self._first - taken, self._away - left
            away = [taken <= i < taken + left for i in range(len(context))]
            unsure = taken + left < len(context)
        towards = [i for i, a in enumerate(away) if not a]
        if not towards:
            return
        rows = context if len(towards) == len(context) else context[towards]
        vectors = None if vector is None else vector if len(towards) == len(vector) else vector[towards]
        known = self._same(rows, self._known, "towards")
        if unsure and self._negatives:
            known = known | self._same(rows, self._negatives, "away")
        if not known.is_cuda:
            self._unknown(known, rows, vectors)
            return
        answer = known.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((event, answer, rows, vectors))

    def finish(self) -> None:
        """The last pass is over: nothing may be left unanswered. Raises as :meth:`check`."""
        self._answer(wait=True)

    def _answer(self, wait: bool) -> None:
        while self._waiting and (wait or self._waiting[0][0].query()):
            event, known, rows, vectors = self._waiting.pop(0)
            event.synchronize()
            self._unknown(known, rows, vectors)

    def _unknown(self, known: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor | None) -> None:
        for i, seen in enumerate(known.tolist()):
            if not seen:
                one = rows[i].detach().clone()
                self._look(one, None if vectors is None else vectors[i])
                self.allow(one)

    @torch.no_grad()
    def _same(self, rows: torch.Tensor, among: Sequence[torch.Tensor], name: str) -> torch.Tensor:
        """bool ``[B]``: rows that are ``among`` those that are known, which are called ``name``."""
        count = rows.shape[1]
        key = (name, count, rows.shape[2], rows.dtype, rows.device)
        if key not in self._tables:
            self._tables[key] = _table(rows, among)
        signs, lengths = self._tables[key]
        if not len(signs):
            return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        away = (_signs(rows).unsqueeze(1) - signs).abs()  # [B, K, T, P]
        return (away <= TOLERANCE * lengths).flatten(2).all(2).any(1)


_directions: dict[tuple[int, torch.device], torch.Tensor] = {}


def _signs(rows: torch.Tensor) -> torch.Tensor:
    """``[..., P]`` float32: what tells one token from another."""
    key = (rows.shape[-1], rows.device)
    if key not in _directions:
        drawn = torch.randn(rows.shape[-1], PROJECTIONS, generator=torch.Generator().manual_seed(7))
        _directions[key] = drawn.to(rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        return rows.float() @ _directions[key]


def away_of(options: Any, rows: int) -> list[bool] | None:
    """Of each row of a pass, whether the host says that it pushes away from its text; None: it does not say."""
    marks = options.get("cond_or_uncond") if isinstance(options, Mapping) else None
    if not marks or rows % len(marks):
        return None
    each = rows // len(marks)
    return [bool(mark) for mark in marks for _ in range(each)]


def _table(like: torch.Tensor, among: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs ``[K, T, P]`` and lengths ``[K, T, 1]`` of what is known, in the forms that hosts give rows when
    they put prompts of different lengths together."""
    count, width = like.shape[1:]
    known = [rows.to(like) for rows in among if rows.shape[1] == width]
    chunks = [rows for rows in known if len(rows) < count]
    forms = []
    for rows in known:
        t = len(rows)
        if t >= count:
            forms.append(rows[:count])
            continue
        if count % t == 0:
            forms.append(rows.repeat(count // t, 1))
        forms.append(torch.cat([rows, rows[-1:].expand(count - t, -1)]))
        forms.append(torch.cat([rows, rows.new_zeros(count - t, width)]))
        for fill in chunks:
            if (count - t) % len(fill) == 0:
                forms.append(torch.cat([rows, fill.repeat((count - t) // len(fill), 1)]))
    if not forms:
        return like.new_zeros(0, count, PROJECTIONS), like.new_zeros(0, count, 1)
    table = torch.stack(forms)
    return _signs(table), table.float().norm(dim=-1, keepdim=True).clamp_min(1e-6)
