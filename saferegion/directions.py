"""A direction: one concept in one embedding space; and all the directions of one concept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .conditioning import MEAN
from .core.writing import write_whole
from .errors import SafeRegionError
from .file_format import FORMAT, check_text, fields_of, spaces_of
from .fingerprint import Fingerprint

KINDS = ("exclude", "balance")
METHODS = ("closed-form", "discovered", "imported")


@dataclass(frozen=True, eq=False)
class Direction:
    """One concept in one space of width D, as F half-spaces (facets; the concept is outside where any facet is).

    All tensors are float32 on the CPU. Scores are in benign standard deviations: z = v·c has variance one over benign
    tokens, around a mean that depends on the position. Positions repeat with period L (77 for CLIP's chunks; 1 where
    positions carry no statistics of their own).

    Attributes:
        normal: ``[F, D]``, v: what is looked along.
        shift: ``[F, D]``, u: what is moved along; v_f·u_f = 1.
        threshold: ``[F, L]``, τ: a prompt is outside where any of its tokens is above; None for a direction that can
            only steer.
        inner: ``[F, L]``, ι ≤ τ: where the tokens of a prompt that is outside are taken; None: to τ.
        mean, deviation: ``[F, L]``, benign mean and standard deviation of z by position; None as above.
        spread: ``[F]``, root of Σ_d (v_d c_d)² over benign tokens; None as above.
        weight: ``[L]``, factor by position when steering; None: 1 everywhere.
        together: ``[F]``, of a sentence space: the prompt is outside, too, where the standardised scores of its mean
            and of its strongest token sum to more; None: they are not summed.
    """

    normal: torch.Tensor
    shift: torch.Tensor
    threshold: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    deviation: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    together: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._check()

    @property
    def calibrated(self) -> bool:
        """Whether the direction knows a border, so that it can project and erase."""
        return self.threshold is not None

    @property
    def facets(self) -> int:
        return self.normal.shape[0]

    @property
    def width(self) -> int:
        return self.normal.shape[1]

    @property
    def period(self) -> int:
        for t in (self.threshold, self.weight):
            if t is not None:
                return t.shape[-1]
        return 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Field name -> tensor, those that are not None."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: t for name, t in found.items() if t is not None}

    def _check(self) -> None:
        for name, t in self.tensors().items():
            if not isinstance(t, torch.Tensor) or t.dtype != torch.float32:
                raise SafeRegionError(f"'{name}' of a direction must be a float32 tensor.")
            if not bool(torch.isfinite(t).all()):
                raise SafeRegionError(f"'{name}' of a direction holds NaN or infinity.")
        v, u = self.normal, self.shift
        if v.ndim != 2 or 0 in v.shape or u.shape != v.shape:
            raise SafeRegionError(
                f"normal and shift must both be [facets, width]; got {list(v.shape)} and {list(u.shape)}."
            )
        border = (self.threshold, self.mean, self.deviation, self.spread)
        if any(t is None for t in border) and any(t is not None for t in border):
            raise SafeRegionError("threshold, mean, deviation and spread belong together: all or none.")
        if (
            self.threshold is not None
            and self.mean is not None
            and self.deviation is not None
            and self.spread is not None
        ):
            if self.threshold.ndim != 2 or self.threshold.shape[0] != len(v) or self.threshold.shape[1] == 0:
                raise SafeRegionError(f"threshold must be [{len(v)}, positions]; got {list(self.threshold.shape)}.")
            if not (self.threshold.shape == self.mean.shape == self.deviation.shape):
                raise SafeRegionError("threshold, mean and deviation must have one shape.")
            if self.spread.shape != (len(v),):
                raise SafeRegionError(f"spread must be [{len(v)}]; got {list(self.spread.shape)}.")
            if not bool((self.deviation > 0).all()) or not bool((self.threshold > self.mean).all()):
                raise SafeRegionError("deviation must be positive and threshold above the benign mean.")
        if self.inner is not None and (
            self.threshold is None
            or self.inner.shape != self.threshold.shape
            or not bool((self.inner <= self.threshold).all())
        ):
            raise SafeRegionError("inner must have the shape of threshold and lie at or below it.")
        if self.weight is not None and (
            self.weight.ndim != 1
            or len(self.weight) == 0
            or (self.threshold is not None and len(self.weight) != self.threshold.shape[1])
        ):
            raise SafeRegionError("weight must be [positions], as many as threshold has.")
        if self.together is not None and (self.threshold is None or self.together.shape != (len(v),)):
            raise SafeRegionError(f"together must be [{len(v)}] and needs a threshold beside it.")
        unit = (v.double() * u.double()).sum(1)
        if not bool(((unit - 1).abs() < 1e-3).all()):
            raise SafeRegionError("normal·shift must be 1 for every facet.")


@dataclass(frozen=True, eq=False)
class ConceptDirections:
    """One concept in all spaces of one text encoder: what a direction file holds.

    Attributes:
        concept: name. title: what people read.
        kind: ``exclude`` or ``balance``. version: of the recipe.
        spaces: space name -> :class:`Direction`.
        encoder: fingerprint of the text encoder; None only for imported vectors, which carry none.
        family: encoder family as its loader names it, for people.
        recipe: SHA-256 of recipe and neutral prompts, hex, or "".
        method: ``closed-form``, ``discovered`` or ``imported``. seed: of the method.
        window: part of the sampling in which it acts, as fractions from 0 (first step) to 1.
        calibration: figures measured while fitting (name -> number).
        licence: SPDX identifier or text.
        curve: losses of the steps by which a discovered direction was learned.
    """

    concept: str
    spaces: Mapping[str, Direction]
    encoder: Fingerprint | None
    title: str = ""
    kind: str = "exclude"
    version: int = 1
    family: str = ""
    recipe: str = ""
    method: str = "closed-form"
    seed: int = 0
    window: tuple[float, float] = (0.0, 1.0)
    calibration: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    curve: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.concept:
            raise SafeRegionError("A concept needs a name.")
        if not self.spaces:
            raise SafeRegionError(f"The concept '{self.concept}' has no direction.")
        if self.kind not in KINDS:
            raise SafeRegionError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if self.method not in METHODS:
            raise SafeRegionError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise SafeRegionError(f"The step window must be 0 <= start < end <= 1; got {self.window}.")
        if self.encoder is None and self.method != "imported":
            raise SafeRegionError("Only imported directions may lack the fingerprint of their encoder.")
        if self.encoder is not None:
            known = dict(self.encoder.widths)
            missing = sorted(set(known) - set(self.spaces))
            if missing and self.method != "imported":
                raise SafeRegionError(
                    f"The encoder has a space '{missing[0]}' for which '{self.concept}' has no direction, so it would "
                    "stay unguarded."
                )
            for name, direction in self.spaces.items():
                if known.get(name.removesuffix(MEAN)) != direction.width:
                    raise SafeRegionError(
                        f"Space '{name}' is {direction.width} wide; the encoder's fingerprint says {known.get(name)}."
                    )

    @property
    def calibrated(self) -> bool:
        """Whether every space has a border."""
        return all(d.calibrated for d in self.spaces.values())

    @classmethod
    def of_file(cls, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> ConceptDirections:
        """From what a direction file holds.

        Raises:
            DirectionFileError: a tensor or string that is unknown, missing or not what its field is.
            SafeRegionError: fields that do not fit together.
        """
        check_text(metadata)
        spaces = spaces_of(tensors)
        fields = fields_of(metadata)
        return cls(spaces={space: Direction(**found) for space, found in spaces.items()}, **fields)

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file, whole or not at all (temporary file in the same folder, then renamed).

        Raises:
            OSError: the folder cannot be written or the disk is full; nothing is left behind.
            DirectionFileError: it holds what loading would refuse (a title of two lines, a figure that is not finite);
                nothing is written.
        """
        from safetensors.torch import save as to_bytes

        path = Path(path)
        metadata, tensors = self._metadata(), self._tensors()
        self.of_file(metadata, tensors)
        write_whole(path, to_bytes(tensors, metadata=metadata))
        return path

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{space}.{name}": t.detach().to("cpu", torch.float32).contiguous().clone()  # tensors may share memory
            for space, direction in self.spaces.items()
            for name, t in direction.tensors().items()
        }

    def _metadata(self) -> dict[str, str]:
        metadata = {
            "format": FORMAT,
            "concept": self.concept,
            "title": self.title,
            "kind": self.kind,
            "version": str(self.version),
            "family": self.family,
            "encoder": "" if self.encoder is None else str(self.encoder),
            "recipe": self.recipe,
            "method": self.method,
            "seed": str(self.seed),
            "window": json.dumps(list(self.window)),
            "calibration": json.dumps(dict(self.calibration), sort_keys=True),
            "licence": self.licence,
        }
        if self.curve:
            metadata["curve"] = json.dumps([float(f"{v:.6g}") for v in self.curve])
        return metadata
