"""Readouts: what of a conditioning a term looks at, and all linear forms of one space in a single product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .errors import SafeRegionError

Tensor = torch.Tensor

REDUCTIONS = ("token", "pair", "mean", "pooled")
USUAL = 10
"""Tokens of a prompt of usual length, where ``growth`` changes nothing."""
LONGEST = 64
"""Lengths for which a panel keeps its biases."""


class Readout(NamedTuple):
    """Features of a conditioning.

    ``token``: each token. ``pair``: each token with its successor, ``[2D]`` (a causal encoder gives "fire" the same
    bits in "a fire" and in "a fire truck"; the next token tells them apart). ``mean``: the mean of the tokens under
    the mask. ``pooled``: the pooled vector. Token and pair terms take the strongest position: a prompt is bad if any
    part of it is (multiple-instance learning, Dietterich et al. 1997).
    """

    space: str
    reduce: str


@dataclass(frozen=True, eq=False)
class Term:
    """One readout and one score: the largest over positions t and facets f of w_f·x_t − offset_f[t].

    Scores are in benign deviations: over benign prompts they have mean 0 and deviation 1.

    Attributes:
        weight: ``[F, D]`` float32, ``[F, 2D]`` for ``pair`` (own token first). offset: ``[F, L]`` by position;
            positions repeat with period L (77 for CLIP's chunks, 1 where they carry nothing).
        growth: of a ``mean`` term, the score is that of the mean times (tokens / :data:`USUAL`) ^ growth: the mean of
            many tokens varies less than that of few, and one border is to serve both.
    """

    readout: Readout
    weight: Tensor
    offset: Tensor
    growth: float = 0.0

    def __post_init__(self) -> None:
        if self.readout.reduce not in REDUCTIONS:
            raise SafeRegionError(f"A readout is one of {', '.join(REDUCTIONS)}; got {self.readout.reduce!r}.")
        for name in ("weight", "offset"):
            check_tensor(f"{name} of a term", getattr(self, name), 2)
        if len(self.weight) != len(self.offset):
            raise SafeRegionError("weight and offset of a term must have as many facets.")
        if self.readout.reduce == "pair" and self.weight.shape[1] % 2:
            raise SafeRegionError("The weight of a pair term must be twice as wide as a token.")
        if self.readout.reduce == "pooled" and self.offset.shape[1] != 1:
            raise SafeRegionError("A pooled term has one position.")
        if not 0 <= self.growth <= 1 or (self.growth and self.readout.reduce != "mean"):
            raise SafeRegionError(f"Only a mean term grows, by an exponent from 0 to 1; got {self.growth}.")
        if not bool((self.weight.double().norm(dim=1) > 0).all()):
            raise SafeRegionError("A term whose weight is zero tells nothing.")

    @property
    def width(self) -> int:
        """Of one token."""
        return self.weight.shape[1] // (2 if self.readout.reduce == "pair" else 1)


def check_tensor(name: str, value: object, dims: int) -> None:
    """Refuse what is no finite float32 tensor of ``dims`` dimensions with at least one entry, or is too large."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.layout != torch.strided:
        raise SafeRegionError(f"{name} must be a float32 tensor.")
    if value.ndim != dims or 0 in value.shape:
        raise SafeRegionError(f"{name} must have {dims} dimensions, none of them empty; got {list(value.shape)}.")
    if not bool(torch.isfinite(value).all()):
        raise SafeRegionError(f"{name} holds NaN or infinity.")
    if float(value.abs().max()) > LARGEST_VALUE:
        raise SafeRegionError(f"{name} holds values above {LARGEST_VALUE:g}, whose products would overflow.")


LARGEST_VALUE = 1e12


class Places(NamedTuple):
    """What the tokens of a batch that may move have in common for all forms of a space.

    Attributes:
        mask: bool ``[B, T]``. successor: ``[B, T]``, place of the token that makes a pair with each, itself at the end
            of a chunk and before one that may not move. number: ``[B, 1]`` float32, how many may move, at least 1.
        share: ``[B, 1, T]``, of each token in the mean.
    """

    mask: Tensor
    successor: Tensor
    number: Tensor
    share: Tensor


class Forms:
    """All linear forms that are asked of one space: of token terms, of pair terms (own, then next), of mean and pooled
    terms, and last the coordinates along the movers' vectors; with the biases of every position."""

    def __init__(self, space: str, terms: Sequence[tuple[int, Term]], vectors: Tensor, bias: Tensor) -> None:
        """``terms``: (number, term) of this space. ``vectors`` [K, D] and ``bias`` [K, L]: of the movers."""
        by = {r: [(i, t) for i, t in terms if t.readout.reduce == r] for r in REDUCTIONS}
        width = vectors.shape[1]
        if wrong := [t for _, t in terms if t.width != width]:
            raise SafeRegionError(
                f"The concepts disagree on the width of space '{space}' ({wrong[0].width} and {width}): compile them "
                "for one encoder."
            )
        tokens, pairs, whole = by["token"], by["pair"], by["mean"] + by["pooled"]
        rows = [t.weight for _, t in tokens]
        rows += [t.weight[:, :width] for _, t in pairs] + [t.weight[:, width:] for _, t in pairs]
        rows += [t.weight for _, t in whole] + [vectors]
        none = [torch.zeros(len(t.weight), 1) for _, t in pairs]
        offsets = [*(t.offset for _, t in tokens), *(t.offset for _, t in pairs), *none]
        self._offsets = [*offsets, *(t.offset for _, t in whole), bias]
        self.weight = torch.cat(rows).T.contiguous()  # [D, M]
        self.period = max(o.shape[1] for o in self._offsets)
        n, p, w = (sum(len(t.weight) for _, t in part) for part in (tokens, pairs, whole))
        self.token, self.own, self.next = slice(0, n), slice(n, n + p), slice(n + p, n + 2 * p)
        self.whole, self.along = slice(n + 2 * p, n + 2 * p + w), slice(n + 2 * p + w, None)
        self.facets = n + p + w
        self.growth = torch.tensor([t.growth for _, t in whole for _ in range(len(t.weight))])
        self._grows = bool((self.growth != 0).any())
        self.pairs = p > 0
        self.owner = [i for i, t in (*tokens, *pairs, *whole) for _ in range(len(t.weight))]
        """Number of the term of each facet."""
        self.columns = [i for i, t in (*tokens, *pairs, *pairs, *whole) for _ in range(len(t.weight))]
        """Number of the term of each coordinate before those along the movers."""
        self.size = torch.tensor(
            [float(t.weight[f].norm()) for _, t in (*tokens, *pairs, *whole) for f in range(len(t.weight))]
        )
        self._at: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}
        self._exponent: dict[torch.device, Tensor] = {}

    def bias(self, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Biases ``[T, M]``, each token's successor ``[T]``, itself at the end of a chunk, and all places ``[T]``."""
        key = (length, device)
        found = self._at.get(key)
        if found is None:
            if len(self._at) >= LONGEST:
                self._at.clear()
            with torch.inference_mode(False):
                at = torch.arange(length)
                columns = [o.T[at % o.shape[1]] for o in self._offsets]
                last = (at + 1 == length) | ((self.period > 1) & ((at + 1) % self.period == 0))
                bias, after = torch.cat(columns, 1), torch.where(last, at, at + 1)
                found = bias.to(device), after.to(device), at.to(device)
            self._at[key] = found
        return found

    def places(self, mask: Tensor | None) -> Places | None:
        """Of the tokens under a ``mask`` bool [B, T]."""
        if mask is None:
            return None
        _, after, at = self.bias(mask.shape[1], mask.device)
        successor = torch.where(mask.index_select(1, after), after, at) if self.pairs else at
        number = mask.sum(1, keepdim=True, dtype=torch.float32).clamp_min(1)
        return Places(mask, successor, number, (mask / number).unsqueeze(1))

    def held(self, x: Tensor, places: Places | None) -> tuple[Tensor, Tensor]:
        """Scores of each position: ``x`` [B, T, M] -> of token and pair facets [B, T, n], of the whole [B, w]."""
        if self.pairs:
            own, following = x[..., self.own], x[..., self.next]
            if places is None:
                shifted = following.index_select(1, self.bias(x.shape[1], x.device)[1])
            else:
                shifted = following.gather(1, places.successor.unsqueeze(-1).expand_as(following))
            each = own + shifted
            if self.token.stop:
                each = torch.cat([x[..., self.token], each], -1)
        else:
            each = x[..., self.token]
        if places is None:
            whole = x[..., self.whole].mean(1)
        else:
            each = torch.where(places.mask.unsqueeze(-1), each, -torch.inf)
            whole = torch.bmm(places.share, x[..., self.whole])[:, 0]
        return each, whole * self._grown(x, places) if self._grows else whole

    def _grown(self, x: Tensor, places: Places | None) -> Tensor:
        """What the scores of the whole are multiplied by, for the length of each prompt [B, w]."""
        if x.device not in self._exponent:
            with torch.inference_mode(False):
                self._exponent[x.device] = self.growth.to(x.device)
        tokens = x.new_full((len(x), 1), x.shape[1]) if places is None else places.number
        found: Tensor = (tokens / USUAL) ** self._exponent[x.device]
        return found

    def strongest(self, x: Tensor, places: Places | None) -> list[Tensor]:
        """Score of every facet: ``x`` [B, T, M] -> [B, F] in parts; −inf where no token may move."""
        if not x.shape[1]:
            return [x.new_full((len(x), self.facets), -torch.inf)]
        each, whole = self.held(x, places)
        return [each.amax(1), whole]
