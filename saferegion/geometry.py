"""The mathematics of a safe region, on plain tensors.

With normals v_k, shifts u_k (v_k·u_k = 1), thresholds τ_k and a token c, the score is z_k = v_k·c and every way to act
is one formula, c ← c − Σ_k a_k u_k:

* project: a is the complementary solution of  a ≥ 0,  z − G a ≤ ℓ,  a·(z − G a − ℓ) = 0  with  G_kj = v_k·u_j.
  The limit ℓ_k is the border τ_k where no token of the prompt is over it, so nothing moves then, and the inner border
  ι_k ≤ τ_k where one is: what makes a prompt unsafe is spread over its tokens, and one token tells on all. Where the
  shifts come from one metric, u_k = Σ v_k / (v_k·Σ v_k), that is the point of { c : v_k·c ≤ ℓ_k for all k } nearest to
  c in Mahalanobis distance Σ⁻¹; one concept alone gives a = max(0, z − ℓ).
* project, the prompt as a whole: the same on the mean of the prompt's tokens, with normals, thresholds and shifts of
  its own; all tokens move by what the mean has to move by. It comes first: what a sentence says and no word of it.
  A prompt counts as outside as a whole, too, where its mean and its strongest token say so only together: both scores,
  standardised, are summed (:func:`together`). Such a border is a half-space of the whole prompt's coordinates.
* steer: a_k = β_k for every token (Li et al., WWW 2025: c + β·(b ⊗ a) with u = −a and weight b by position).
* erase: a = G⁻¹ (z − μ): every score becomes its benign mean (least change: LEACE, Belrose et al. 2023).

Everything is float32 or better whatever the caller's dtype, has no data-dependent control flow and does not
synchronise, so that it may run inside a sampling graph, ``torch.compile`` or a CUDA graph.
"""

from __future__ import annotations

import torch

PIVOTS = 24
"""Steps of :func:`complementary` inside a graph."""

MOST_PIVOTS = 1000
"""The same where it may stop when it is done."""

_PATIENCE = 3

ROUNDING = 2.0
"""How far inside the border a moved token lands, in units of eps × root of Σ_d (v_d c_d)² (about six standard
deviations of what rounding to the caller's dtype does to a score), so that projecting twice changes nothing."""

_SUMMING = 8.0
"""The same, in units of float32's eps, against the rounding of the score's own sum."""

_SETTLED = 1e-6
"""How far outside :func:`complementary` takes for inside, relative to 1 + the largest excess."""

_DUPLICATE_RIDGE = 1e-8
"""Relative ridge on the Gram matrix, so that one concept named twice has a solution."""


def scores(tokens: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """z = c·v for float32 ``tokens`` [..., D] and ``normal`` [K, D] -> [..., K], in float32 on every device.

    On CUDA a matrix product may be rounded to TF32 or, under autocast, to half precision by settings that belong to
    the host; a multiply and a sum are not.
    """
    if tokens.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return tokens @ normal.T
    return torch.stack([(tokens * v).sum(-1, dtype=torch.float32) for v in normal], dim=-1)


def mean(tokens: torch.Tensor, movable: torch.Tensor | None) -> torch.Tensor:
    """The mean [B, 1, D] of those float32 ``tokens`` [B, T, D] that may move; zero where none may."""
    if movable is None:
        return tokens.mean(1, keepdim=True)
    weight = movable.to(tokens.device, tokens.dtype)
    weight = (weight / weight.sum(1, keepdim=True).clamp_min(1)).unsqueeze(1)
    if tokens.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return weight @ tokens
    return (tokens * weight.mT).sum(1, keepdim=True)


def combine(amount: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Σ_k a_k u_k for ``amount`` [..., K] and ``shift`` [K, D] -> [..., D], in float32 on every device."""
    if len(shift) == 1:
        return amount * shift[0]
    if amount.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return amount @ shift
    moved = amount[..., :1] * shift[0]
    for k in range(1, len(shift)):
        moved = moved + amount[..., k : k + 1] * shift[k]
    return moved


def gram(normal: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """G_kj = v_k·u_j, [K, K] in float64 on the CPU."""
    return normal.double().cpu() @ shift.double().cpu().T


def complementary(
    excess: torch.Tensor, gram: torch.Tensor, steps: int = PIVOTS, until_settled: bool = False
) -> torch.Tensor:
    """Coefficients a ≥ 0 with excess − G a ≤ 0 and a·(excess − G a) = 0, for each row of ``excess`` [..., K].

    Block principal pivoting (Júdice and Pires 1994), all rows at once: start from the largest excess alone (mostly the
    answer), solve on the active set, exchange what became negative with what is still outside; a row whose number of
    exchanges stops falling exchanges one at a time, which cannot cycle. ``steps`` times, or, with ``until_settled``
    (which reads the result and so synchronises), until no row changes.
    """
    if excess.shape[-1] == 1:
        return excess.clamp_min(0)
    kind = torch.float32 if excess.device.type == "mps" else torch.float64
    e, g = excess.to(kind), gram.to(device=excess.device, dtype=kind)
    tolerance = _SETTLED * (1 + e.amax(-1, keepdim=True).clamp_min(0))  # far inside is no excess
    first = torch.arange(e.shape[-1], device=e.device) == e.argmax(-1, keepdim=True)  # one of equals
    active = (e > 0) & first
    a = torch.where(active, e, 0.0)
    wrong = _wrong(e, a, g, active, tolerance)
    if until_settled and not bool(wrong.any()):
        return a.to(excess.dtype)
    eye = torch.eye(len(g), dtype=kind, device=g.device)
    g_ridge = g + _DUPLICATE_RIDGE * eye
    index = torch.arange(1, len(g) + 1, device=g.device)
    fewest = torch.full_like(wrong[..., :1], len(g) + 1, dtype=torch.int64)
    patience = torch.full_like(fewest, _PATIENCE)
    for _ in range(steps):
        count = wrong.sum(-1, keepdim=True)
        fewer = count < fewest
        fewest = torch.where(fewer, count, fewest)
        patience = torch.where(fewer, _PATIENCE, patience - 1)
        last = wrong & (index == (wrong * index).amax(-1, keepdim=True))
        active = active ^ torch.where(patience > 0, wrong, last)
        system = torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), g_ridge, eye)
        a = torch.linalg.solve_ex(system, torch.where(active, e, 0.0), check_errors=False)[0]
        wrong = _wrong(e, a, g, active, tolerance)
        if until_settled and not bool(wrong.any()):
            break
    return torch.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0).to(excess.dtype)


def _wrong(
    e: torch.Tensor, a: torch.Tensor, g: torch.Tensor, active: torch.Tensor, tolerance: torch.Tensor
) -> torch.Tensor:
    """Which half-spaces must leave the active set (a < 0) or enter it (still outside)."""
    return torch.where(active, a < -tolerance, e - a @ g.T > tolerance)


def margin(tokens: torch.Tensor, dtype: torch.dtype, normal: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """How far inside the border float32 ``tokens`` [..., D] must land so that rounding them to ``dtype`` leaves them
    inside -> [..., K]. ``spread`` [K]: the size of a benign token, below which it does not go."""
    tokens = tokens.detach()
    size = scores(tokens * tokens, normal * normal).clamp_min(0).sqrt()
    single = torch.finfo(torch.float32).eps
    return (ROUNDING * torch.finfo(dtype).eps + _SUMMING * single) * torch.maximum(size, spread)


def roundoff(dtype: torch.dtype, along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """What rounding adds to a score, as a share of the longest move; ``along`` and ``across`` are the largest
    Σ_d |v_d u_d| and root of Σ_d (v_d u_d)² of any two half-spaces."""
    return ROUNDING * (torch.finfo(torch.float32).eps * along + torch.finfo(dtype).eps * across)


def outside(z: torch.Tensor, threshold: torch.Tensor, movable: torch.Tensor | None) -> torch.Tensor:
    """Which of ``z`` [B, T, K] lie over ``threshold`` [T, K] or [B, T, K], among the tokens that may move."""
    over = z > threshold
    return over if movable is None else over & movable.unsqueeze(-1)


def together(
    threshold: torch.Tensor,
    inner: torch.Tensor,
    mean: torch.Tensor,
    deviation: torch.Tensor,
    sums: torch.Tensor,
    strongest: torch.Tensor,
) -> torch.Tensor:
    """The border of prompts as a whole, lowered by what their strongest token says already -> [B, 1, K].

    A prompt is outside where the standardised scores of its mean and of its strongest token sum to more than ``sums``
    [K], but never at or below the inner border: a prompt whose words as a whole say less than benign ones do is left
    to its tokens. ``threshold``, ``inner``, ``mean`` and ``deviation`` are [1, K], ``strongest`` [B, K].
    """
    lowered = mean + deviation * (sums - strongest)
    return torch.minimum(threshold, torch.maximum(lowered, inner)).unsqueeze(1)


def limits(
    over: torch.Tensor,
    threshold: torch.Tensor,
    inner: torch.Tensor,
    mean: torch.Tensor,
    strength: torch.Tensor,
    came: torch.Tensor,
    lowered: torch.Tensor | None = None,
) -> torch.Tensor:
    """What each score is held to -> [B, T, K]: τ, and ι for a concept that is outside somewhere in the prompt.

    ``over`` bool ``[B, T, K]``; ``threshold``, ``inner`` and ``mean`` ``[T, K]``; ``strength`` ``[K]``, above 1 goes
    further by that many times τ − mean, below 1 that part of the way from ``came`` ``[B, T, K]``, the scores before
    anything moved. ``lowered`` ``[B, T, K]``: the border of each prompt, where it is not τ.
    """
    limit = inner - (strength - 1).clamp_min(0) * (threshold - mean)
    limit = torch.where(over.any(-2, keepdim=True), limit, threshold if lowered is None else lowered)
    rest = (1 - strength).clamp_min(0)
    return torch.where(rest > 0, limit + rest * (came - limit).clamp_min(0), limit)


def amounts(
    z: torch.Tensor,
    limit: torch.Tensor,
    moves: torch.Tensor,
    gram: torch.Tensor,
    mean: torch.Tensor,
    margin: torch.Tensor,
    roundoff: torch.Tensor,
    strength: torch.Tensor,
    inverse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Coefficients a [..., K] of the move of each token; zero where ``moves`` is not set.

    With ``inverse``, the inverse of the Gram matrix, nothing synchronises: the number of pivots is fixed, and a token
    on which they do not settle (seen with 16 and more half-spaces that nearly contradict each other) goes to the
    benign mean of every score, which is inside of all. Without, pivots go on until they settle.

    Args:
        z, limit: ``[..., K]`` scores and what they are held to. moves: bool ``[...]``. gram: ``[K, K]``.
        mean: broadcastable to z, the benign mean of z.
        margin: ``[..., K]``, how far inside the border a token lands, from :func:`margin`.
        roundoff: ``[]``, the same as a share of the longest move, from :func:`roundoff`.
        strength: ``[K]``; below 1 goes that part of the way to the benign mean too.
    """
    excess = z - limit
    longest = excess.amax(-1, keepdim=True).clamp_min(0)
    excess = excess + margin + (roundoff + 2 * _SETTLED) * longest + 2 * _SETTLED
    excess = torch.where(moves.unsqueeze(-1), excess, -1.0)
    if inverse is None:
        return complementary(excess, gram, MOST_PIVOTS, until_settled=True)
    amount = complementary(excess, gram)
    left = excess - scores(amount, gram.to(amount.dtype))
    settled = (left <= margin + 2 * _SETTLED * (1 + longest)).all(-1, keepdim=True)
    return torch.where(settled, amount, scores(z - mean, inverse) * strength.clamp_max(1))


def move(
    tokens: torch.Tensor, amount: torch.Tensor, shift: torch.Tensor, where: torch.Tensor | None = None
) -> torch.Tensor:
    """c − Σ_k a_k u_k for the tokens in ``where`` (bool [B, T]; None: all), in the caller's dtype; the others keep
    every bit. ``amount`` is [B, T, K] or [T, K], ``shift`` [K, D]. A new tensor."""
    moved = (tokens.float() - combine(amount, shift)).to(tokens.dtype)
    return moved if where is None else torch.where(where.unsqueeze(-1), moved, tokens)
