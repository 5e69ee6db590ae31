"""Prompts encoded once each: what a fit keeps of them, within a budget of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..core import geometry
from ..core.conditioning import POOLED, Conditioning
from ..core.errors import CompileError
from .settings import CompileSettings, Encode, Progress

Tensor = torch.Tensor

CHUNK = 77
"""Tokens of one CLIP chunk: the period of positions of longer prompts."""
LONGEST = 128
"""Prompts of one length up to this have statistics by position; longer ones that are no chunks have none."""
FEWEST = 8
"""Tokens of a prompt that are kept at least."""
AROUND, FEW = 8, 32
"""Words on either side of a position by which its mean is made up for, as much as by this many words of its own."""
_WORD = re.compile(r"\w+|[^\w\s]+")
"""Words and marks: a text has at least as many tokens."""
_AT_ONCE = 64  # prompts that are made float32 at once
_PART = 64 * 2**20  # bytes of a batch that are read at once
_HALF = 2.0**10  # largest value that is written in half precision


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of several prompts in one space, the same number K each, filled up.

    Attributes:
        own: ``[N, K, D]``, half precision, in units of ``scale``. after: ``[N, K]``, index of each one's successor.
        at: ``[N, K]``, position. real: bool ``[N, K]``.
    """

    own: Tensor
    after: Tensor
    at: Tensor
    real: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.own)

    def hidden(self, which: Tensor) -> Tokens:
        """The same with no token of the prompts ``which``, bool [N]."""
        return replace(self, real=self.real & ~which.to(self.real.device).unsqueeze(1))

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(prompts, their tokens in float32), some at a time."""
        for start in range(0, len(self.own), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            yield part, self.own[part].float() * self.scale

    def scores(self, weight: Tensor, offset: Tensor) -> Tensor:
        """w·x − offset at every position ``[N, K]``, −inf where there is none; ``weight`` [D], or [2D] with the
        successor's part, ``offset`` [L]."""
        width = self.own.shape[2]
        found = torch.full(self.real.shape, -torch.inf, device=self.own.device)
        for part, rows in self.chunks():
            z = rows @ weight[:width] - offset[self.at[part]]
            if len(weight) > width:
                z = z + (rows @ weight[width:]).gather(1, self.after[part])
            found[part] = z.masked_fill(~self.real[part], -torch.inf)
        return found

    def pick(self, index: Tensor, pair: bool) -> tuple[Tensor, Tensor]:
        """Some positions, ``index`` [N, m]: float32 ``[N, m, D]`` (``[N, m, 2D]`` with successors) and positions."""

        def rows(where: Tensor) -> Tensor:
            wide = where.unsqueeze(-1).expand(-1, -1, self.own.shape[2])
            return self.own.gather(1, wide).float() * self.scale

        own = rows(index)
        return (torch.cat([own, rows(self.after.gather(1, index))], -1) if pair else own), self.at.gather(1, index)


@dataclass(eq=False)
class _Kept:
    rows: Tensor  # [K, D] half precision, in units of the space's scale
    after: Tensor  # [K] index of the successor among the rows
    at: Tensor  # [K] position


class Benign:
    """Sums of benign tokens by position, in one space: ``sum``, ``square``, ``count`` of all of them, ``said`` and
    ``times`` of those that surely are words and no filling."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.kind = torch.float32 if device.type == "mps" else torch.float64
        self.sum = torch.zeros(0, width, dtype=self.kind, device=device)
        self.square = torch.zeros(0, width, dtype=self.kind, device=device)
        self.count = torch.zeros(0, dtype=self.kind, device=device)
        self.said = torch.zeros(0, width, dtype=self.kind, device=device)
        self.times = torch.zeros(0, dtype=self.kind, device=device)
        self.lengths: set[int] = set()
        self.counts: set[int] = set()

    def say(self, rows: Tensor, mask: Tensor | None, words: Tensor) -> None:
        """``rows`` [B, T, D] float32, ``mask`` [B, T] or None, ``words`` [B]: how many words each text has, which is at
        most how many tokens are no filling."""
        grow = rows.shape[1] - len(self.times)
        if grow > 0:
            self.said = torch.nn.functional.pad(self.said, (0, 0, 0, grow))
            self.times = torch.nn.functional.pad(self.times, (0, grow))
        real = torch.arange(rows.shape[1], device=rows.device) <= words.to(rows.device).unsqueeze(1)
        real = real if mask is None else real & mask
        self.said[: rows.shape[1]] += torch.where(real.unsqueeze(-1), rows, 0.0).sum(0)
        self.times[: rows.shape[1]] += real.sum(0)

    def add(self, rows: Tensor, mask: Tensor | None) -> None:
        """``rows`` [B, T, D] float32, ``mask`` [B, T] or None."""
        self.lengths.add(rows.shape[1])
        grow = rows.shape[1] - len(self.count)
        if grow > 0:
            pad = torch.nn.functional.pad
            self.sum, self.square = pad(self.sum, (0, 0, 0, grow)), pad(self.square, (0, 0, 0, grow))
            self.count = pad(self.count, (0, grow))
        if mask is None:
            mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        self.counts.update(mask.sum(1).unique().tolist())
        kept = torch.where(mask.unsqueeze(-1), rows, 0.0)
        self.sum[: rows.shape[1]] += kept.sum(0)
        self.square[: rows.shape[1]] += kept.square().sum(0)
        self.count[: rows.shape[1]] += mask.sum(0)

    @property
    def period(self) -> int:
        """After how many tokens positions repeat."""
        if all(n % CHUNK == 0 for n in self.lengths):
            return CHUNK
        filled = len(self.lengths) == 1 and len(self.counts) == 1  # every prompt is filled up to one length
        return max(self.lengths) if filled and max(self.lengths) <= LONGEST else 1

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean by position ``[L, D]`` and deviation around it ``[D]``, float32."""
        sum_, square, count = (self._folded(t) for t in (self.sum, self.square, self.count))
        mean = _mean(sum_, count)
        within = (square - count.unsqueeze(1) * mean.square()).clamp_min(0).sum(0) / count.sum().clamp_min(1)
        return mean.float(), within.sqrt().float()

    def words(self) -> Tensor:
        """Mean by position of what is a word there ``[L, D]``, float32: where most prompts have ended, their filling is
        no measure of the words of a longer one. That of all tokens where a prompt hides its filling."""
        if self.period == 1:
            return self.statistics()[0]
        total, count = self._folded(self.said), self._folded(self.times)
        at = torch.arange(1, len(count), device=count.device)  # the first token begins a chunk and is like no other
        near = ((at.unsqueeze(1) - at).abs() <= AROUND).to(total.dtype)
        around = _mean(near @ total[1:], near @ count[1:])
        mean = total.clone()
        mean[1:] = (total[1:] + FEW * around) / (count[1:].unsqueeze(1) + FEW)
        mean[0] = total[0] / count[0].clamp_min(1)
        return mean.float()

    def _folded(self, by_position: Tensor) -> Tensor:
        """Sums by position ``[length, …]`` -> ``[period, …]``."""
        at = torch.arange(len(by_position), device=by_position.device) % self.period
        empty = torch.zeros(self.period, *by_position.shape[1:], dtype=by_position.dtype, device=by_position.device)
        return empty.index_add_(0, at, by_position)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean by position; that of all where there is none."""
    everywhere = total.sum(0) / count.sum().clamp_min(1)
    seen = count.unsqueeze(1)
    return torch.where(seen > 0, total / seen.clamp_min(1), everywhere)


class Store:
    """Every distinct prompt, encoded once: tokens of each space in half precision, their mean, the pooled vector."""

    def __init__(
        self, encode: Encode, texts: Sequence[str], settings: CompileSettings, progress: Progress | None
    ) -> None:
        self.encode, self.settings, self.progress = encode, settings, progress
        self.texts = list(dict.fromkeys(texts))
        self.place = {t: i for i, t in enumerate(self.texts)}
        self.spaces: tuple[str, ...] = ()
        self.kept: dict[str, dict[int, _Kept]] = {}
        self.vectors: dict[str, dict[int, Tensor]] = {}  # mean of each token space, and pooled
        self.counts: dict[str, dict[int, int]] = {}  # tokens under the mask
        self.benign: dict[str, Benign] = {}
        self.scale: dict[str, float] = {}
        self.most: dict[str, int] = {}

    def beside(self, encode: Encode, texts: Sequence[str]) -> Store:
        """Other prompts, or the same otherwise encoded, measured by the benign statistics of these."""
        other = Store(encode, texts, self.settings, None)
        other.benign, other.scale, other.most = self.benign, self.scale, self.most
        other.fill(frozenset())
        return other

    def fill(self, benign: frozenset[str], long: frozenset[str] = frozenset()) -> None:
        """Encode every prompt; those in ``benign`` make the statistics by position, and with those in ``long``, which
        fill a chunk, the means of words. Raises CompileError."""
        order = sorted(range(len(self.texts)), key=lambda i: (len(self.texts[i]), i))
        size, done = max(1, self.settings.batch_size), 0
        while done < len(order):
            which = order[done : done + size]
            batch = [self.texts[i] for i in which]
            try:
                c = self.encode(batch)
                self._check(c, len(batch))
                self._keep(c, which, benign, long)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                continue
            done += len(batch)
            if self.progress is not None:
                self.progress(done, len(order))

    def _check(self, c: object, count: int) -> None:
        if not isinstance(c, Conditioning) or c.tokens.shape[0] != count:
            raise CompileError(f"encode must return one row of a saferegion.Conditioning for each of {count} prompts.")
        if not bool(torch.isfinite(c.tokens).all()) or (
            c.pooled is not None and not bool(torch.isfinite(c.pooled).all())
        ):
            raise CompileError("The encoder returned NaN or infinite values; load a working text encoder.")
        spaces = tuple(v.space for v in c.views())
        if self.spaces not in ((), spaces):
            raise CompileError("The encoder returns some spaces for some prompts only; it must return the same always.")
        self.spaces = spaces

    def _keep(self, c: Conditioning, which: list[int], benign: frozenset[str], long: frozenset[str]) -> None:
        """Keep the prompts numbered ``which``, a few at a time: a batch of long prompts is large."""
        each = 4 * c.tokens[0].numel()
        size = max(1, _PART // max(1, each))
        for start in range(0, len(which), size):
            part = slice(start, start + size)
            self._keep_part(c[part], which[part], benign, long)

    def _keep_part(self, c: Conditioning, which: list[int], benign: frozenset[str], long: frozenset[str]) -> None:
        counted = torch.tensor([self.texts[i] in benign for i in which])
        words = torch.tensor([len(_WORD.findall(self.texts[i])) for i in which])
        said = counted | torch.tensor([self.texts[i] in long for i in which])
        for view in c.views():
            rows = view.rows.detach().float()
            means = rows[:, 0] if view.space == POOLED else geometry.mean(rows, view.mask)
            if view.space != POOLED:
                self._measure(view.space, rows)
                if bool(counted.any()):
                    some = counted.to(rows.device)
                    self.benign[view.space].add(rows[some], None if view.mask is None else view.mask[some])
                if bool(said.any()):
                    some = said.to(rows.device)
                    mask = None if view.mask is None else view.mask[some]
                    self.benign[view.space].say(rows[some], mask, words[said])
                found, counts = self.kept.setdefault(view.space, {}), self.counts.setdefault(view.space, {})
                whole = [rows.shape[1]] * len(which) if view.mask is None else view.mask.sum(1).tolist()
                for i, row in enumerate(which):
                    counts[row] = whole[i]
                    found[row] = self._of(view.space, rows[i], None if view.mask is None else view.mask[i])
            values = self.vectors.setdefault(view.space, {})
            for i, row in enumerate(which):
                values[row] = means[i].clone()

    def _measure(self, space: str, rows: Tensor) -> None:
        """From the first tokens of a space: the unit they are kept in, and how many of a prompt fit into the budget."""
        if space not in self.benign:
            self.benign[space] = Benign(rows.shape[2], rows.device)
            self.scale[space] = max(float(rows.abs().max()), 1e-6) / _HALF
            each = 2 * rows.shape[2] * len(self.texts) * len([s for s in self.spaces if s != POOLED])
            self.most[space] = max(FEWEST, self.settings.keep // max(1, each))

    def _of(self, space: str, rows: Tensor, mask: Tensor | None) -> _Kept:
        """The tokens of a prompt that are kept: all, or those that differ most from the last, and some between."""
        real = torch.arange(len(rows), device=rows.device) if mask is None else mask.nonzero()[:, 0]
        most = self.most[space]
        if len(real) > most:
            step = (rows[real] - rows[(real - 1).clamp_min(0)]).norm(dim=1)
            news = step.topk(most - most // 4).indices
            between = torch.linspace(0, len(real) - 1, most // 4, device=rows.device).round().long()
            real = real[torch.cat([news, news + 1, between]).clamp_max(len(real) - 1).unique()]
        index = torch.arange(len(real), device=rows.device)
        follows = torch.zeros_like(index, dtype=torch.bool)
        if len(real) > 1:
            follows[:-1] = real[1:] == real[:-1] + 1
        kept = (rows[real] / self.scale[space]).clamp(-6e4, 6e4).half()
        return _Kept(kept, torch.where(follows, index + 1, index), real)

    def tokens(self, space: str, texts: Sequence[str]) -> Tokens:
        """Of some prompts, in order."""
        found = [self.kept[space][self.place[t]] for t in texts]
        device, width = self.benign[space].sum.device, self.benign[space].sum.shape[1]
        shape = len(found), max((len(k.at) for k in found), default=1)
        own = torch.zeros(*shape, width, dtype=torch.float16, device=device)
        at, after = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        real = torch.zeros(shape, dtype=torch.bool, device=device)
        period = self.benign[space].period
        for i, k in enumerate(found):
            n = len(k.at)
            last = (k.at + 1) % period == 0 if period > 1 else torch.zeros_like(k.at, dtype=torch.bool)
            own[i, :n], at[i, :n], real[i, :n] = k.rows, k.at % period, True
            after[i, :n] = torch.where(last, torch.arange(n, device=device), k.after)
        return Tokens(own, after, at, real, self.scale[space])

    def vector(self, space: str, texts: Sequence[str]) -> Tensor:
        """Mean of the tokens, or the pooled vector, of some prompts: float32 ``[N, D]``."""
        values = self.vectors[space]
        if not texts:
            one = next(iter(values.values()))
            return one.new_zeros(0, len(one))
        return torch.stack([values[self.place[t]] for t in texts])

    def lengths(self, space: str, texts: Sequence[str]) -> Tensor:
        """Tokens under the mask of some prompts, at least 1: float32 ``[N]``."""
        device = self.benign[space].sum.device
        return torch.tensor([max(1, self.counts[space][self.place[t]]) for t in texts], device=device).float()
