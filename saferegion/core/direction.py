"""A direction: one concept on one text encoder; what a direction file holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import file_format
from .detector import Detector
from .errors import DirectionFileError, SafeRegionError
from .fingerprint import Fingerprint
from .movers import HalfSpaces, Mover, Offset
from .readout import check_tensor
from .texts import DIRECTION_KINDS
from .writing import write_whole

METHODS = ("compiled", "discovered", "imported")


@dataclass(frozen=True)
class Meta:
    """What people read, and where a direction comes from.

    Attributes:
        title: what people read. kind: ``exclude``, ``balance`` (of an axis) or ``gate``. version: of the recipe.
        family: encoder family as its loader names it. recipe: SHA-256 of recipe and neutral prompts, hex, or "".
        method: ``compiled``, ``discovered`` or ``imported``. seed: of the method.
        calibration: figures measured while fitting. licence: SPDX identifier or text.
        curve: losses of the steps by which it was learned. note: what else must be said of it, or "".
    """

    title: str = ""
    kind: str = "exclude"
    version: int = 1
    family: str = ""
    recipe: str = ""
    method: str = "compiled"
    seed: int = 0
    calibration: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    curve: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in DIRECTION_KINDS:
            raise SafeRegionError(f"kind must be one of {', '.join(DIRECTION_KINDS)}; got {self.kind!r}.")
        if self.method not in METHODS:
            raise SafeRegionError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")


@dataclass(frozen=True, eq=False)
class Direction:
    """One concept in all spaces of one text encoder.

    Attributes:
        concept: name.
        encoder: fingerprint of the text encoder; None only for imported vectors, which carry none.
        detector: who is open; None: the direction can only steer.
        movers: space -> what changes there; every space of the encoder has one.
        rest: space -> ``[L, D]``, benign mean by position, where tokens go in the last resort.
        witness: a second detector, fitted on other prompts, which *verify* asks too.
        meta: the rest of it.
    """

    concept: str
    encoder: Fingerprint | None
    detector: Detector | None
    movers: Mapping[str, Mover]
    rest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    witness: Detector | None = None
    meta: Meta = Meta()

    def __post_init__(self) -> None:
        if not self.concept:
            raise SafeRegionError("A concept needs a name.")
        if not self.movers:
            raise SafeRegionError(f"The concept '{self.concept}' has no direction.")
        if self.encoder is None and self.meta.method != "imported":
            raise SafeRegionError("Only imported directions may lack the fingerprint of their encoder.")
        widths = {space: m.width for space, m in self.movers.items()}
        if self.encoder is not None:
            known = dict(self.encoder.widths)
            missing = sorted(set(known) - set(widths))
            if missing and self.meta.method != "imported":
                raise SafeRegionError(
                    f"The encoder has a space '{missing[0]}' for which '{self.concept}' has no direction, so it would "
                    "stay unguarded."
                )
            if wrong := sorted(s for s, w in widths.items() if known.get(s) != w):
                raise SafeRegionError(
                    f"'{self.concept}' does not fit its encoder in space '{wrong[0]}': its width is "
                    f"{widths[wrong[0]]}, the encoder's {known.get(wrong[0])}."
                )
        if self.detector is None:
            return
        for space, width in widths.items():
            if space not in self.rest:
                raise SafeRegionError(f"'{self.concept}' lacks the benign mean of space '{space}'.")
            check_tensor(f"rest of space '{space}'", self.rest[space], 2)
            if self.rest[space].shape[1] != width:
                raise SafeRegionError(f"rest of space '{space}' must be [positions, {width}].")
        for detector in (self.detector, self.witness, self.detector.given):
            for term in () if detector is None else detector.terms:
                if widths.get(term.readout.space) != term.width:
                    raise SafeRegionError(
                        f"A term of '{self.concept}' looks at space '{term.readout.space}' in width {term.width}, "
                        "where it has nothing to move."
                    )

    @property
    def title(self) -> str:
        return self.meta.title or self.concept

    @property
    def kind(self) -> str:
        return self.meta.kind

    @property
    def method(self) -> str:
        return self.meta.method

    @property
    def window(self) -> tuple[float, float]:
        """Part of the sampling in which it acts, as fractions from 0 (first step) to 1."""
        windows = [m.window for m in self.movers.values() if isinstance(m, Offset)]
        return windows[0] if windows else (0.0, 1.0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by a name that says where it belongs."""
        found: dict[str, torch.Tensor] = {}
        for name, detector in self.detectors().items():
            found[f"{name}.thresholds"] = detector.thresholds
            if detector.sums is not None:
                found[f"{name}.sums"] = detector.sums
            for i, term in enumerate(detector.terms):
                found[f"{name}.{i}.weight"], found[f"{name}.{i}.offset"] = term.weight, term.offset
        for space, mover in self.movers.items():
            names = ("displacement", "mean", "deviation", "target") if isinstance(mover, HalfSpaces) else ("b", "a")
            found |= {f"mover.{space}.{n}": getattr(mover, n) for n in names}
        return found | {f"rest.{space}": t for space, t in self.rest.items()}

    def detectors(self) -> dict[str, Detector]:
        """``detector``, ``given`` and ``witness``, those there are."""
        given = None if self.detector is None else self.detector.given
        named = {"detector": self.detector, "given": given, "witness": self.witness}
        return {name: d for name, d in named.items() if d is not None}

    def digest(self) -> bytes:
        """SHA-256 of all tensors."""
        h = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            h.update(f"{name}{list(tensor.shape)}".encode())
            h.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return h.digest()

    # -- as a file -----------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, str]:
        """Everything but the tensors, as strings."""
        meta = self.meta
        return {
            "format": file_format.FORMAT,
            "concept": self.concept,
            "title": meta.title,
            "kind": meta.kind,
            "version": str(meta.version),
            "family": meta.family,
            "encoder": "" if self.encoder is None else str(self.encoder),
            "recipe": meta.recipe,
            "method": meta.method,
            "seed": str(meta.seed),
            "window": json.dumps(list(self.window)),
            "calibration": json.dumps(dict(meta.calibration), sort_keys=True),
            "licence": meta.licence,
            "curve": json.dumps([float(f"{v:.6g}") for v in meta.curve]),
            "note": meta.note,
            "terms": file_format.terms_text(self.detectors()),
        }

    @classmethod
    def of_parts(cls, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> Direction:
        """From what :meth:`metadata` and :meth:`tensors` return.

        Raises:
            DirectionFileError: a string or a tensor that is unknown, missing or not what it should be.
            SafeRegionError: parts that do not fit together.
        """
        parts = file_format.Parts(metadata, tensors)
        known = parts.text("encoder")
        meta = Meta(
            title=parts.text("title"),
            kind=parts.text("kind"),
            version=parts.whole("version"),
            family=parts.text("family"),
            recipe=parts.text("recipe"),
            method=parts.text("method"),
            seed=parts.whole("seed"),
            calibration=parts.figures(),
            licence=parts.text("licence"),
            curve=parts.curve(),
            note=parts.text("note"),
        )
        detectors, movers, rest = parts.detectors(), parts.movers(), parts.rest()
        parts.finish()
        if unmoved := sorted(set(rest) - set(movers)):
            raise DirectionFileError(f"it has the benign mean of a space '{unmoved[0]}', which nothing moves.")
        if detectors and not known:
            raise DirectionFileError("it has a detector, but no fingerprint of the encoder that it looks at.")
        return cls(
            concept=parts.text("concept"),
            encoder=Fingerprint.parse(known) if known else None,
            detector=detectors.get("detector"),
            movers=movers,
            rest=rest,
            witness=detectors.get("witness"),
            meta=meta,
        )

    def to_bytes(self) -> bytes:
        """The direction file. Raises SafeRegionError: it holds what loading would refuse, or windows that differ."""
        if len({m.window for m in self.movers.values() if isinstance(m, Offset)}) > 1:
            raise DirectionFileError("The offsets of one direction must share one step window.")
        data = file_format.to_bytes(self.metadata(), self.tensors())
        self.of_parts(*file_format.of_bytes(data))
        return data

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file, whole or not at all (temporary file in the same folder, then renamed).

        Raises:
            OSError: the folder cannot be written or the disk is full; nothing is left behind.
            SafeRegionError: it holds what loading would refuse (a title of two lines, a figure that is not finite);
                nothing is written.
        """
        path = Path(path)
        write_whole(path, self.to_bytes())
        return path
