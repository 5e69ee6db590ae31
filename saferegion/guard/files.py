"""The direction file: one ``.safetensors``, one concept, all its spaces; everything is checked before anything is used.

Tensors are float32, metadata are strings; :mod:`saferegion.core.file_format` says which. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ..core import geometry
from ..core.detector import Detector, Panel
from ..core.direction import Direction
from ..core.errors import DirectionFileError, SafeRegionError
from ..core.file_format import CHECKSUM, FORMAT, LARGEST_HEADER, LARGEST_STEP, check_seal, of_bytes
from ..core.movers import HalfSpaces
from ..core.writing import read_whole
from .version_one import VERSION_ONE, converted

LARGEST = 256 * 2**20
"""Bytes of the largest file that is read."""
DISPLACEMENTS = (1.0, 2.0, 3.0, 5.0, 10.0)
"""How many displacements from the benign mean a concept must be open, at one of them at least."""

Tensor = torch.Tensor


def load_directions(path: str | Path) -> Direction:
    """Read a direction file, or refuse it.

    Raises:
        DirectionFileError: with one sentence that says what is wrong; nothing of the file is used then.
    """
    path = Path(path)
    data = read_whole(path, LARGEST, DirectionFileError, f"a direction file has at most {LARGEST:,}")
    return direction_of(data, path.name)


def direction_of(data: bytes, name: str) -> Direction:
    """The direction of a file's bytes; ``name`` is said in refusals. Raises DirectionFileError."""
    try:
        if is_pickle(data):
            raise DirectionFileError(
                "it is a pickle, which can run code when it is read; ask for a .safetensors direction file, or bring "
                "the paper's vectors in with 'saferegion import'."
            )
        metadata, tensors = of_bytes(data)
        kind = metadata.get("format")
        if kind == VERSION_ONE:
            direction = converted(metadata, tensors)
        elif kind == FORMAT:
            check_seal(data)
            direction = Direction.of_parts({k: v for k, v in metadata.items() if k != CHECKSUM}, tensors)
        else:
            raise DirectionFileError(f"it is not a direction file (format {str(kind)[:40]!r}, expected '{FORMAT}').")
        check_range(direction)
        check_reach(direction)
        return direction
    except DirectionFileError as error:
        raise DirectionFileError(f"{name}: {error}") from None
    except SafeRegionError as error:
        raise DirectionFileError(f"{name}: {error} The file cannot be trusted; make it again.") from None


def is_pickle(data: bytes) -> bool:
    """Whether bytes start like a pickle or a zip of some, and not by chance of a header's length."""
    size = int.from_bytes(data[:8], "little")
    return (data[:2] == b"PK" or data[:1] == b"\x80") and size > min(LARGEST_HEADER, len(data) - 8)


def check_range(d: Direction) -> None:
    """Raises DirectionFileError: what moves tokens is larger than tokens can be in half precision."""
    for space, mover in d.movers.items():
        if isinstance(mover, HalfSpaces):
            parts = [mover.length, mover.mean, mover.target]
        else:
            parts = [mover.b.abs().max() * mover.a.abs().max()]
        parts += [d.rest[space]] if space in d.rest else []
        if any(float(p.abs().max()) > LARGEST_STEP for p in parts):
            raise DirectionFileError(f"what moves space '{space}' is larger than tokens can be; make the file again.")


def check_reach(d: Direction) -> None:
    """Raises DirectionFileError: the benign mean is open for the detector, or nothing reaches its border."""
    if d.detector is None:
        return
    for name, detector in (("detector", d.detector), ("witness", d.witness), ("given detector", d.detector.given)):
        if detector is None:
            continue
        still, moved = _distances(replace(detector, given=None), d)
        if not math.isfinite(still) or not all(math.isfinite(m) for m in moved):
            raise DirectionFileError(f"the scores of its {name} overflow; make the file again.")
        if still > 0:
            raise DirectionFileError(
                f"the {name} of '{d.concept}' is open for everything, as it is for the benign mean."
            )
        if name != "given detector" and max(moved) <= 0:
            raise DirectionFileError(f"the {name} of '{d.concept}' is one that nothing reaches; make the file again.")


def _distances(detector: Detector, d: Direction) -> tuple[float, list[float]]:
    """How far the benign mean is over the border, and benign means moved towards the concept by some displacements."""
    panel = Panel([detector])
    cpu = torch.device("cpu")
    calm: dict[str, tuple[Tensor, None]] = {}
    steps: dict[str, Tensor] = {}
    for space in panel.forms:
        rest, mover, weight = d.rest[space], d.movers[space], panel.weight(space, cpu)
        length = max(len(rest), panel.forms[space].period)
        rows = rest[torch.arange(length) % len(rest)].unsqueeze(0)
        calm[space] = geometry.coordinates(rows, weight, panel.forms[space].bias(length, cpu)[0]), None
        if isinstance(mover, HalfSpaces):
            steps[space] = (mover.displacement @ weight).unsqueeze(1)  # [F, 1, M]
        else:
            b = mover.b[torch.arange(length) % len(mover.b)]
            steps[space] = -(b[:, None] * (mover.a @ weight)).unsqueeze(0)
    still = float(panel.distances(panel.scores(calm))[0, 0])
    facets = max(len(s) for s in steps.values())
    far = []
    for count in DISPLACEMENTS:
        seen: dict[str, tuple[Tensor, None]] = {
            space: (x + count * steps[space][torch.arange(facets) % len(steps[space])], None)
            for space, (x, _) in calm.items()
        }
        far += panel.distances(panel.scores(seen))[:, 0].tolist()
    return still, far
