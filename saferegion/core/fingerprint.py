"""Which text encoder an embedding space belongs to, told from what the encoder does."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from .errors import EncoderMismatchError, SafeRegionError
from .spaces import POOLED, Space

PROBES = (
    "",
    "a photo of a cat sitting on a chair",
    "an oil painting of mountains under a grey sky",
    "two engineers talk in a bright kitchen",
    "1930s poster, red typography",
)
"""Encoded once per encoder. What is kept is how they differ from the empty prompt."""

PROJECTIONS = 8
TOLERANCE = 0.1
"""Relative distance up to which two sketches are one encoder.

Measured on all-MiniLM-L6-v2, weights rounded and widened again, with the share of recipe prompts that three concepts
compiled at full precision find (nudity / weapons / gore; .95 / .82 / .93 there): fp16 .0004, bf16 .004, int8 .012 to
.030, six bits .04 to .05, fp8 e4m3 .048, fp8 e5m2 .099 find the same within .05. Four bits in groups of 32 lie at .20
(.90 / .80 / .95), four bits a row at .35 (.93 / .65 / .82), three bits in groups of 32 at .36 (.85 / .60 / .88), three
bits a row at .68 (.75 / .12 / .68). Other encoders begin below that: fine-tuned for five steps on another task .107,
for twenty .24; one matrix begun anew .19 to .75, one layer of six .26 (.88 / .38 / .82) to .86 (.43 / .03 / .57). No
tolerance lets three bits in and keeps those out, so for an encoder of fewer than five bits concepts are compiled anew.
"""

_FORMAT = re.compile(r"fp1:([a-z0-9_]+=\d+(?:,[a-z0-9_]+=\d+)*):([A-Za-z0-9_-]+={0,2})")


class Embedded(Protocol):
    """What is read of a :class:`~saferegion.Conditioning`."""

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def mask(self) -> torch.Tensor | None: ...
    @property
    def pooled(self) -> torch.Tensor | None: ...
    @property
    def spaces(self) -> tuple[Space, ...]: ...


@dataclass(frozen=True)
class Fingerprint:
    """Widths of the spaces and a sketch of how a few fixed prompts differ in them.

    The sketch is taken from outputs, so it needs no access to weights and is the same in every host; it is compared
    with a tolerance, so it does not depend on dtype, device or batch composition.
    """

    widths: tuple[tuple[str, int], ...]
    sketch: tuple[float, ...]

    @classmethod
    def of(cls, encode: Callable[[list[str]], Embedded]) -> Fingerprint:
        """Take the fingerprint of ``encode``: one batch of five short prompts."""
        c = encode(list(PROBES))
        return cls.from_conditioning(c)

    @classmethod
    def from_conditioning(cls, c: Embedded) -> Fingerprint:
        """As :meth:`of`, from the conditioning of :data:`PROBES`."""
        if c.tokens.shape[0] != len(PROBES):
            raise SafeRegionError(
                f"The encoder returned {c.tokens.shape[0]} rows for {len(PROBES)} prompts; it must return one each."
            )
        widths: list[tuple[str, int]] = []
        sketch: list[float] = []
        for name, vectors in _means(c):
            widths.append((name, vectors.shape[1]))
            part = (vectors[1:] - vectors[:1]) @ _signs(vectors.shape[1])
            norm = float(np.linalg.norm(part))
            if not np.isfinite(norm) or norm == 0:
                raise SafeRegionError(
                    f"The encoder gives the same or non-finite embeddings for different prompts in space '{name}'; "
                    "load a working text encoder."
                )
            sketch.extend((part / norm).ravel().tolist())
        return cls(tuple(widths), tuple(sketch))

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Read what ``str`` wrote. Raises SafeRegionError."""
        match = _FORMAT.fullmatch(text)
        try:
            if match is None:
                raise ValueError("form")
            widths = tuple((n, int(w)) for n, w in (p.split("=") for p in match[1].split(",")))
            raw = base64.urlsafe_b64decode(match[2])
            sketch = np.frombuffer(raw, dtype="<f2").astype(np.float64)
            if len(sketch) != len(widths) * (len(PROBES) - 1) * PROJECTIONS or not np.isfinite(sketch).all():
                raise ValueError("sketch")
        except (ValueError, binascii.Error) as error:
            raise SafeRegionError(f"This is not an encoder fingerprint: {text[:60]!r}.") from error
        return cls(widths, tuple(sketch.tolist()))

    def __str__(self) -> str:
        raw = np.asarray(self.sketch, dtype="<f2").tobytes()
        return f"fp1:{','.join(f'{n}={w}' for n, w in self.widths)}:{base64.urlsafe_b64encode(raw).decode()}"

    def distance(self, other: Fingerprint) -> float:
        """Largest relative distance of the two sketches over the spaces; infinite where the spaces differ."""
        if self.widths != other.widths:
            return float("inf")
        a, b = (np.asarray(f.sketch).reshape(len(self.widths), -1) for f in (self, other))
        return float(np.linalg.norm(a - b, axis=1).max())

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are one encoder."""
        return self.distance(other) <= TOLERANCE

    def require(self, other: Fingerprint, what: str) -> None:
        """Raise EncoderMismatchError unless ``other`` is the same encoder."""
        if self.widths != other.widths:
            raise EncoderMismatchError(
                f"{what} is made for an encoder with {_words(self.widths)}, and this one has {_words(other.widths)}: "
                "compile the concept for this encoder."
            )
        if not self.matches(other):
            raise EncoderMismatchError(
                f"{what} is made for another text encoder of the same size (distance {self.distance(other):.2f}, "
                f"allowed {TOLERANCE}): compile the concept for this encoder."
            )


def fingerprint_of(encode: Any) -> Fingerprint:
    """``encode.fingerprint`` where the encoder carries one (a value or a method), else taken from its outputs."""
    known = getattr(encode, "fingerprint", None)
    if callable(known):
        known = known()
    return known if isinstance(known, Fingerprint) else Fingerprint.of(encode)


def _means(c: Embedded) -> list[tuple[str, np.ndarray]]:
    """(space, [B, D] mean of the tokens that may move), in float64."""
    parts = []
    for space in c.spaces:
        rows = c.tokens[:, space.rows, space.channels].detach().float()
        mask = torch.ones(rows.shape[:2], dtype=torch.bool) if c.mask is None else c.mask[:, space.rows]
        weight = mask.to(rows.device, torch.float32).unsqueeze(-1)
        mean = (rows * weight).sum(1) / weight.sum(1).clamp_min(1)
        parts.append((space.name, mean.double().cpu().numpy() if mean.device.type != "mps" else mean.cpu().numpy()))
    if c.pooled is not None:
        parts.append((POOLED, c.pooled.detach().float().cpu().double().numpy()))
    return parts


def _signs(width: int) -> np.ndarray:
    """[width, PROJECTIONS] of ±1, the same in every version of numpy (raw bits of PCG64)."""
    words = np.random.PCG64(width).random_raw(width * PROJECTIONS)
    return np.where(np.asarray(words, dtype=np.uint64) >> np.uint64(63), 1.0, -1.0).reshape(width, PROJECTIONS)


def _words(widths: tuple[tuple[str, int], ...]) -> str:
    return " and ".join(f"{n} of width {w}" for n, w in widths)
