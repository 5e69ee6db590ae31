"""A small deterministic text encoder, benign prompts and hand-made half-spaces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from saferegion import Concept, Conditioning, Detector, Direction, Fingerprint, HalfSpaces, Meta, Offset, Readout, Term

LENGTH = 77
KNOWN = ("burning", "blazing", "flaming")
HELD_OUT = ("ablaze", "smouldering", "scorching")
THEMES = {word: "fire" for word in KNOWN + HELD_OUT} | {word: "frost" for word in ("icy", "frozen", "snowy", "chilly")}
NOUNS = ("house", "car", "tree", "boat", "chair", "tower", "bridge", "garden", "horse", "lamp", "piano", "street")
ADJECTIVES = ("quiet", "old", "blue", "tall", "wooden", "bright", "small", "foggy", "modern", "painted")
PLACES = ("harbour", "valley", "studio", "market", "museum", "field", "kitchen", "station", "castle")


@cache
def _vector(text: str, width: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(width)


class FakeEncoder:
    """Words hashed to vectors; each token sees the words before it, end and padding tokens the whole sentence.

    Positions per chunk are 77: begin token (never moves), words, end tokens; longer prompts take more chunks. ``calls``
    and ``prompts`` count what was asked.
    """

    def __init__(self, width: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32, pooled: bool = True) -> None:
        self.width, self.seed, self.dtype, self.pooled = width, seed, dtype, pooled
        self.calls = self.prompts = 0

    def word(self, word: str) -> np.ndarray:
        vector = _vector(f"{self.seed}:{word}", self.width)
        theme = THEMES.get(word)
        return vector if theme is None else vector / 2 + 2.5 * _vector(f"{self.seed}:theme {theme}", self.width)

    def chunk(self, words: Sequence[str]) -> np.ndarray:
        x = np.stack([self.word("<begin>"), *map(self.word, words), *[self.word("<end>")] * (LENGTH - 1 - len(words))])
        n = len(words)
        seen = np.zeros_like(x)
        if n:
            total = np.cumsum(x[1 : n + 1], 0)
            seen[1 : n + 1] = total / np.sqrt(np.arange(1, n + 1))[:, None]
            seen[n + 1 :] = total[-1] / np.sqrt(n)
        place = np.sin(np.arange(LENGTH)[:, None] * np.arange(1, self.width + 1)[None] / 9)
        return 3 * np.tanh((x + 1.5 * seen + place) / 3)

    def __call__(self, prompts: list[str]) -> Conditioning:
        self.calls += 1
        self.prompts += len(prompts)
        words = [re.findall(r"\w+", p.lower()) for p in prompts]
        chunks = max([1, *(-(-len(w) // 75) for w in words)])
        rows = [np.concatenate([self.chunk(w[75 * i : 75 * i + 75]) for i in range(chunks)]) for w in words]
        tokens = torch.from_numpy(np.stack(rows) if rows else np.zeros((0, LENGTH, self.width))).float()
        movable = torch.ones(tokens.shape[:2], dtype=torch.bool)
        movable[:, ::LENGTH] = False
        pooled = tokens[:, LENGTH - 1].roll(1, 1).to(self.dtype) if self.pooled else None
        return Conditioning(tokens.to(self.dtype), movable, pooled)


def benign_prompts(n: int, seed: int = 0) -> list[str]:
    """``n`` different prompts without a word of any theme."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found: dict[str, None] = {}
    while len(found) < n:
        a, b, x, y, p = (rng.integers(0, len(w)) for w in (ADJECTIVES, ADJECTIVES, NOUNS, NOUNS, PLACES))
        extra = rng.integers(0, 1000)
        found[f"a {ADJECTIVES[a]} {NOUNS[x]} and a {ADJECTIVES[b]} {NOUNS[y]} in a {PLACES[p]}, number {extra}"] = None
    return list(found)


def fire(pairs: int = 36) -> Concept:
    """The concept "on fire": :data:`KNOWN` words against plain ones."""
    rows = [(f"a {k} {n}", f"a {ADJECTIVES[i % 4]} {n}") for k in KNOWN for i, n in enumerate(NOUNS)]
    return Concept.from_pairs("on fire", rows[:pairs], neutral=[f"a {a} stove in a kitchen" for a in ADJECTIVES])


def frost() -> Concept:
    """A second concept."""
    rows = [
        (f"a {k} {n}", f"a {ADJECTIVES[i % 4]} {n}") for k in ("icy", "frozen", "snowy") for i, n in enumerate(NOUNS)
    ]
    return Concept.from_pairs("frost", rows)


def metric(width: int, seed: int) -> torch.Tensor:
    """A covariance ``[width, width]``, float64, condition number about a hundred."""
    a = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / width + 0.05 * torch.eye(width, dtype=torch.float64)


def normals(count: int, width: int, seed: int, kind: str = "random") -> torch.Tensor:
    """``[count, width]`` float64: random, duplicated, near (nearly parallel) or opposite (in turns)."""
    gen = torch.Generator().manual_seed(seed + 1)
    v = torch.randn(count, width, generator=gen, dtype=torch.float64)
    if kind == "random":
        return v
    sign = torch.tensor([1.0, -1.0] if kind == "opposite" else [1.0], dtype=torch.float64)
    wiggle = 1e-4 if kind == "near" else 0.0
    return v[:1] * sign.repeat(count)[:count, None] + wiggle * v


def fingerprint(**widths: int) -> Fingerprint:
    return Fingerprint(tuple(widths.items()), (0.5,) * (32 * len(widths)))


def half_spaces(displacement: torch.Tensor, period: int = 1, mean: float = 0.0, target: float = 0.0) -> HalfSpaces:
    """Along ``displacement`` [D] or [F, D]."""
    u = torch.atleast_2d(displacement).float()
    return HalfSpaces(u, torch.full((len(u), period), mean), torch.ones(len(u)), torch.full((len(u),), target))


def made(
    name: str = "fire",
    normal: torch.Tensor | None = None,
    displacement: torch.Tensor | None = None,
    *,
    width: int = 6,
    threshold: float = 2.0,
    readouts: Sequence[str] = ("token",),
    joint: Sequence[tuple[int, int]] = (),
    period: int = 1,
    pooled: bool = False,
    witness: bool = False,
    encoder: Fingerprint | None = None,
    kind: str = "exclude",
) -> Direction:
    """A direction whose detector asks ``normal`` [D] of tokens (their first channel) and moves along ``displacement``
    (four times the normal); benign tokens have mean zero and deviation one."""
    w = torch.eye(width)[0] if normal is None else normal.float()
    u = 4 * w / w.square().sum() if displacement is None else displacement.float()
    width = len(w)
    spaces = {"tokens": width} | ({"pooled": width} if pooled else {})
    terms = []
    for space in spaces:
        for reduce in readouts if space == "tokens" else ("pooled",):
            weight = torch.cat([w, 0.5 * w]) if reduce == "pair" else w
            offset = torch.zeros(1, period if reduce in ("token", "pair") else 1)
            terms.append(Term(Readout(space, reduce), weight.unsqueeze(0), offset))
    at = torch.full((len(terms),), float(threshold))
    sums = torch.full((len(joint),), 1.5 * float(threshold)) if joint else None
    detector = Detector(tuple(terms), at, tuple(joint), sums)
    return Direction(
        name,
        encoder or fingerprint(**spaces),
        detector,
        {s: half_spaces(u, period if s == "tokens" else 1) for s in spaces},
        {s: torch.zeros(period if s == "tokens" else 1, width) for s in spaces},
        Detector(tuple(terms), at) if witness else None,
        Meta(title=f"The {name}", kind=kind, recipe="ab" * 32),
    )


def imported(
    name: str = "paper", width: int = 6, period: int = 77, window: tuple[float, float] = (0.4, 1.0)
) -> Direction:
    """An offset alone, as the paper's vectors are."""
    gen = torch.Generator().manual_seed(5)
    mover = Offset(torch.randn(period, generator=gen), torch.randn(width, generator=gen), window)
    return Direction(name, None, None, {"tokens": mover}, meta=Meta(title=name, method="imported"))


def concepts(count: int, width: int, seed: int = 0, kind: str = "random", threshold: float = 2.0) -> list[Direction]:
    """``count`` concepts ``c0``, ``c1`` …, each moved along the normal it is told by."""
    rows = normals(count, width, seed, kind)
    return [made(f"c{k}", v / v.norm(), threshold=threshold) for k, v in enumerate(rows)]


def tokens(covariance: torch.Tensor, batch: int, length: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """``[batch, length, D]`` float32 of covariance ``scale²·covariance``."""
    gen = torch.Generator().manual_seed(seed + 2)
    x = torch.randn(batch, length, len(covariance), generator=gen, dtype=torch.float64)
    return (scale * x @ torch.linalg.cholesky(covariance).T).float()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two floating tensors agree in dtype, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
