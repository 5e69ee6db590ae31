"""Random regions and conditionings, for tests of the core."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saferegion import Conditioning, Detector, Direction, HalfSpaces, Meta, Offset, Readout, Space, Term

KINDS = ("token", "pair", "mean")


@dataclass(frozen=True)
class Shape:
    """What a random region is made of."""

    concepts: int = 3
    width: int = 12
    period: int = 1
    facets: int = 1
    kinds: tuple[str, ...] = KINDS
    joint: bool = True
    witness: bool = True
    offsets: bool = False
    given: bool = False
    pooled: int = 0


def detector(u: torch.Tensor, shape: Shape, draw: torch.Generator, given: Detector | None = None) -> Detector:
    """One that reads more or less along u [D]."""
    terms = []
    for kind in shape.kinds:
        wide = 2 if kind == "pair" else 1
        toward = torch.cat([u, u * 0.1])[: wide * shape.width] / u.norm()
        weight = toward + 0.3 * torch.randn(shape.facets, wide * shape.width, generator=draw) / shape.width**0.5
        terms.append(
            Term(Readout("tokens", kind), weight, 0.1 * torch.randn(shape.facets, shape.period, generator=draw))
        )
    if shape.pooled:
        weight = torch.randn(1, shape.pooled, generator=draw)
        terms.append(Term(Readout("pooled", "pooled"), weight, torch.zeros(1, 1)))
    joint = ((0, len(shape.kinds) - 1),) if shape.joint and len(shape.kinds) > 1 else ()
    return Detector(
        tuple(terms), 1.5 + torch.rand(len(terms), generator=draw), joint, torch.tensor([3.0]) if joint else None, given
    )


def direction(name: str, shape: Shape, seed: int) -> Direction:
    """A random concept."""
    draw = torch.Generator().manual_seed(seed)
    u = 2 * torch.randn(shape.facets, shape.width, generator=draw)
    given = detector(torch.randn(shape.width, generator=draw), shape, draw) if shape.given else None
    mover: HalfSpaces | Offset = HalfSpaces(
        u,
        0.1 * torch.randn(shape.facets, shape.period, generator=draw),
        torch.ones(shape.facets),
        torch.zeros(shape.facets),
    )
    if shape.offsets and seed % 2:
        mover = Offset(-1.5 * torch.ones(shape.period), u[0], (0.0, 0.7))
    movers: dict[str, HalfSpaces | Offset] = {"tokens": mover}
    rest = {"tokens": 0.05 * torch.randn(shape.period, shape.width, generator=draw)}
    if shape.pooled:
        v = torch.randn(1, shape.pooled, generator=draw)
        movers["pooled"] = HalfSpaces(v, torch.zeros(1, 1), torch.ones(1), torch.zeros(1))
        rest["pooled"] = torch.zeros(1, shape.pooled)
    return Direction(
        concept=name,
        encoder=None,
        detector=detector(u[0], shape, draw, given),
        movers=movers,
        rest=rest,
        witness=detector(u[0], shape, draw) if shape.witness else None,
        meta=Meta(method="imported"),
    )


def directions(shape: Shape, seed: int) -> list[Direction]:
    """Several."""
    return [direction(f"concept-{i}", shape, 1000 * seed + i) for i in range(shape.concepts)]


def conditioning(
    shape: Shape, seed: int, batch: int = 3, length: int = 6, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Conditioning:
    """Random tokens; the first may not move, and the last ones of odd seeds neither."""
    draw = torch.Generator().manual_seed(seed)
    tokens = (scale * torch.randn(batch, length, shape.width, generator=draw)).to(dtype)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[:, 0] = False
    if seed % 2:
        mask[:, length - 1] = False
    pooled = (scale * torch.randn(batch, shape.pooled, generator=draw)).to(dtype) if shape.pooled else None
    return Conditioning(tokens, mask, pooled, (Space("tokens"),))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool((a.contiguous().view(torch.uint8) == b.contiguous().view(torch.uint8)).all())
    )


def within_one_ulp(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by at most one unit in the last place."""
    a, b = a.double(), b.double()
    eps = torch.finfo(torch.float32).eps
    return bool(((a - b).abs() <= 1.01 * eps * torch.maximum(a.abs(), b.abs()).clamp_min(1e-3)).all())
