"""Products in float32, and the nearest point of several half-spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Tensor = torch.Tensor

SETTLED = 1e-3
"""Part of the largest excess that :func:`solve` may leave."""
MOST_SWEEPS = 64
"""Most sweeps, for displacements that are nearly the same; what is left then is asked about again by *verify*."""
SHUT = -1e9
"""Excess of a half-space that does not count."""


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Products in full float32 meanwhile, whatever autocast and TF32 settings the host has; no synchronisation."""
    kind = device.type
    matmul: Any = torch.backends.cuda.matmul
    full: str | bool | None
    if kind == "cuda" and hasattr(matmul, "fp32_precision"):
        name, value, full = "fp32_precision", matmul.fp32_precision, "ieee"
    elif kind == "cuda":
        name, value, full = "allow_tf32", matmul.allow_tf32, False
    else:
        name, value, full = "", None, None
    if name:
        setattr(matmul, name, full)
    try:
        if _autocasts(kind):
            with torch.autocast(kind, enabled=False):
                yield
        else:
            yield
    finally:
        if name:
            setattr(matmul, name, value)


_compiles: Callable[[], bool] = getattr(torch.compiler, "is_compiling", lambda: True)  # torch < 2.3 cannot tell
_BY_KIND = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 4)  # is_autocast_enabled takes a device


def _autocasts(kind: str) -> bool:
    if _BY_KIND:
        return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    return torch.is_autocast_cpu_enabled() if kind == "cpu" else kind == "cuda" and torch.is_autocast_enabled()


def read(scalars: Sequence[Tensor]) -> list[float]:
    """The values of tensors [] of one device, with one synchronisation."""
    if scalars[0].device.type == "cpu":
        return [float(s) for s in scalars]
    found: list[float] = torch.stack([s.float() for s in scalars]).tolist()
    return found


def none(flags: Tensor) -> bool:
    """Whether no flag is set, where that can be asked without a synchronisation; False elsewhere."""
    return asks_freely(flags.device) and not bool(flags.any())


def asks_freely(device: torch.device) -> bool:
    """Whether values can be read without a synchronisation: on a CPU, outside a graph that is being captured."""
    return device.type == "cpu" and not _compiles()


def coordinates(rows: Tensor, forms: Tensor, bias: Tensor) -> Tensor:
    """rows·forms − bias: ``rows`` [B, T, D] of any floating dtype, ``forms`` [D, M] and ``bias`` [T, M] float32
    -> float32 [B, T, M]. Prompts are multiplied one by one, so that none depends on the batch it is in."""
    batch = rows.shape[0]
    return torch.baddbmm(bias.expand(batch, -1, -1), rows.float(), forms.expand(batch, -1, -1), beta=-1)


def combine(amount: Tensor, vectors: Tensor) -> Tensor:
    """Σ_k a_k u_k: ``amount`` [B, T, K], ``vectors`` [K, D], float32 -> [B, T, D]."""
    if vectors.shape[0] == 1:
        return amount * vectors[0]
    return torch.bmm(amount, vectors.expand(amount.shape[0], -1, -1))


def mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens: ``values`` [B, T, M], ``mask`` bool [B, T] or None -> [B, M]; zero where nothing may move."""
    if mask is None:
        return values.mean(1)
    kept = torch.where(mask.unsqueeze(-1), values, 0.0).sum(1)
    return kept / mask.sum(1, keepdim=True).clamp_min(1)


def sweeps(gram: Tensor) -> int:
    """How many sweeps :func:`solve` needs for this Gram matrix ``[K, K]`` with ones on its diagonal: 0 where the
    displacements are orthogonal. Reads the matrix back, so it is asked once, at construction."""
    if len(gram) < 2:
        return 0
    g = gram.double().cpu()
    apart = (g - torch.eye(len(g), dtype=g.dtype)).abs().max()
    if float(apart) < SETTLED:
        return 0
    most = float(g.abs().sum(1).max())
    least = float(torch.linalg.eigvalsh(g)[0])
    root = math.sqrt(most / least) if least > 0 else math.inf
    return MOST_SWEEPS if not math.isfinite(root) else min(MOST_SWEEPS, math.ceil(root * -math.log(SETTLED)))


def steps(gram: Tensor, count: int) -> Tensor:
    """``count`` sweeps of :func:`solve` as products that are clamped at 0, ``[6K + 1, 4K]``, K > 0.

    A state [a, the a before, excess above 0, excess below 0] is never negative, so what is to stay passes the clamp.
    Rows 0 to K make the first state of an excess, rows K to 2K of the coefficients to go on from beside it, 4K rows
    the next state of a state; the last row is zero.
    """
    most = gram.abs().sum(-1).amax()
    one = torch.eye(len(gram), device=gram.device)
    kept, share, none, carry = one - gram / most, one / most, torch.zeros_like(one), _carry(count)
    rows = [[share, none, one, -one], [kept, one, none, none]]
    rows += [[(1 + carry) * kept, one, none, none], [-carry * kept, none, none, none]]
    rows += [[share, none, one, none], [-share, none, none, one]]
    return torch.cat([*(torch.cat(r, 1) for r in rows), torch.zeros(1, 4 * len(gram), device=gram.device)])


def _carry(count: int) -> float:
    """How far a sweep goes on in the direction of the one before."""
    root = max(1.0, count / -math.log(SETTLED))
    return (root - 1) / (root + 1)


def solve_in_steps(steps: Tensor, excess: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """As :func:`solve`, by :func:`steps`: one kernel a sweep, for devices where starting one costs more than the
    product."""
    size, rows = excess.shape[-1], excess.flatten(0, 1)
    first, step, none = steps[: 2 * size], steps[2 * size : -1], steps[-1]
    if start is None:
        state = torch._addmm_activation(none, rows, first[:size])  # max(0, none + rows first)
    else:
        state = torch._addmm_activation(none, torch.cat([rows, start.flatten(0, 1)], 1), first)
    for _ in range(count - 1):
        state = torch._addmm_activation(none, state, step)
    return state.view(*excess.shape[:2], -1)[..., :size]


def solve(gram: Tensor, excess: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """The nearest point of the half-spaces, as coefficients a ≥ 0: the least Σ a_j a_k G_jk / 2 − Σ a_k e_k.

    The point c − Σ_k a_k u_k is then the one of { c : u_k·c ≤ ι_k for all k } that is nearest to c, e_k = u_k·c − ι_k
    (the dual of the projection; Hildreth 1957). All rows and all half-spaces take a step at once, an accelerated
    projected gradient step (Nesterov 1983), so the order of concepts changes nothing and nothing synchronises.

    Args:
        gram: ``[K, K]`` float32, u_j·u_k of unit vectors; symmetric, so there always is a solution.
        excess: ``[B, T, K]`` float32; :data:`SHUT` for half-spaces that do not count.
        count: sweeps, from :func:`sweeps`.
        start: ``[B, T, K]``, coefficients to go on from.
    """
    size = gram.shape[-1]
    if count == 0 or size == 1:
        return excess.clamp_min(0)
    most = gram.abs().sum(-1).amax()
    kept = (torch.eye(size, device=gram.device) - gram / most).expand(len(excess), -1, -1)
    push = excess / most
    carry = _carry(count)
    a = excess.clamp_min(0) * 0 if start is None else start
    ahead = a
    for _ in range(count):
        new = torch.baddbmm(push, ahead, kept).clamp_min(0)
        ahead = torch.lerp(a, new, 1 + carry)
        a = new
    return a
