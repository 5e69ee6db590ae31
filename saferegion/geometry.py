"""The mathematics of a safe region, on plain tensors.

With normals v_k, shifts u_k (v_k·u_k = 1), thresholds τ_k and a token c, the score is z_k = v_k·c and every way to act
is one formula, c ← c − Σ_k a_k u_k:

* project: a is the complementary solution of  a ≥ 0,  z − G a ≤ τ,  a·(z − G a − τ) = 0  with  G_kj = v_k·u_j.
  Where all shifts come from one metric, u_k = Σ v_k / (v_k·Σ v_k), that is the point of
  { c : v_k·c ≤ τ_k for all k } nearest to c in Mahalanobis distance Σ⁻¹; one concept alone gives a = max(0, z − τ).
* steer: a_k = β_k for every token (Li et al., WWW 2025: c + β·(b ⊗ a) with u = −a and weight b by position).
* erase: a = G⁻¹ (z − μ): every score becomes its benign mean (least change: LEACE, Belrose et al. 2023).

Everything is float32 or better whatever the caller's dtype, has no data-dependent control flow and does not
synchronise, so that it may run inside a sampling graph, ``torch.compile`` or a CUDA graph.
"""

from __future__ import annotations

import torch

NEWTON_STEPS = 16
"""Active-set steps of :func:`complementary`. K = 64 normals with condition number 3,000 needed 7."""

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
    excess: torch.Tensor, gram: torch.Tensor, steps: int = NEWTON_STEPS, until_settled: bool = False
) -> torch.Tensor:
    """Coefficients a ≥ 0 with excess − G a ≤ 0 and a·(excess − G a) = 0, for each row of ``excess`` [..., K].

    A primal-dual active-set (semi-smooth Newton) iteration: solve on the active set, drop what became negative, add
    what is still outside; ``steps`` times for all rows at once, or, with ``until_settled`` (which reads the result
    and so synchronises), until no row changes. It ends with two corrections that add what may be missing, so that a
    row on which the active set should cycle is moved too far rather than too little.
    """
    a = excess.clamp_min(0)
    if excess.shape[-1] == 1:
        return a
    kind = torch.float32 if excess.device.type == "mps" else torch.float64
    e, g = excess.to(kind), gram.to(device=excess.device, dtype=kind)
    tolerance = 1e-6 * (1 + e.abs().amax(-1, keepdim=True))
    if until_settled:
        left = e - a.to(kind) @ g.T
        if bool(((left <= tolerance) & ((a == 0) | (left >= -tolerance))).all()):
            return a
    eye = torch.eye(len(g), dtype=kind, device=g.device)
    g_ridge, zero = g + _DUPLICATE_RIDGE * eye, torch.zeros((), dtype=kind, device=g.device)
    active = e > 0
    for _ in range(steps):
        system = torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), g_ridge, eye)
        a = torch.linalg.solve_ex(system, torch.where(active, e, zero), check_errors=False)[0]
        left = e - a @ g.T
        before, active = active, torch.where(active, a > 0, left > tolerance)
        if until_settled and torch.equal(before, active):
            break
    a = torch.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0)
    for _ in range(2):
        left = e - a @ g.T
        a = a + torch.where(left > tolerance, left, zero)
    return a.to(excess.dtype)


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
    """Which of ``z`` [B, T, K] lie over ``threshold`` [T, K], among the tokens that may move: bool [B, T, K]."""
    over = z > threshold
    return over if movable is None else over & movable.unsqueeze(-1)


def amounts(
    z: torch.Tensor,
    over: torch.Tensor,
    gram: torch.Tensor,
    threshold: torch.Tensor,
    mean: torch.Tensor,
    margin: torch.Tensor,
    roundoff: torch.Tensor,
    strength: torch.Tensor,
    until_settled: bool = False,
) -> torch.Tensor:
    """Coefficients a [..., K] of the move of each token; zero where ``over`` has nothing.

    Args:
        z: ``[..., K]`` scores. over: bool ``[..., K]``. gram: ``[K, K]``.
        threshold, mean: broadcastable to z; τ and the benign mean of z.
        margin: ``[..., K]``, how far inside the border a token lands, from :func:`margin`.
        roundoff: ``[]``, the same as a share of the longest move, from :func:`roundoff`.
        strength: ``[K]``; 1 ends on the border, 2 at the benign mean, below 1 goes that part of the way.
    """
    deeper = (strength - 1).clamp_min(0) * (threshold - mean)
    excess = z - threshold + torch.where(over, deeper, 0)
    longest = excess.amax(-1, keepdim=True).clamp_min(0)
    excess = excess + margin + (roundoff + 2 * _SETTLED) * longest + 2 * _SETTLED
    excess = torch.where(over.any(-1, keepdim=True), excess, -1.0)
    return complementary(excess, gram, until_settled=until_settled) * strength.clamp_max(1)


def move(
    tokens: torch.Tensor, amount: torch.Tensor, shift: torch.Tensor, where: torch.Tensor | None = None
) -> torch.Tensor:
    """c − Σ_k a_k u_k for the tokens in ``where`` (bool [B, T]; None: all), in the caller's dtype; the others keep
    every bit. ``amount`` is [B, T, K] or [T, K], ``shift`` [K, D]. A new tensor."""
    moved = (tokens.float() - combine(amount, shift)).to(tokens.dtype)
    return moved if where is None else torch.where(where.unsqueeze(-1), moved, tokens)
