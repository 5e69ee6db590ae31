"""The direction file: one ``.safetensors``, one concept, all its spaces; everything is checked before anything is used.

Tensors are float32 and named ``<space>.<field>`` after :class:`~saferegion.directions.Direction`; metadata are strings.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .directions import ConceptDirections, Direction
from .errors import DirectionFileError, SafeRegionError
from .fingerprint import Fingerprint

FORMAT = "saferegion/1"
LARGEST = 256 * 2**20
"""Bytes of the largest file that is read."""

_HEADER = 8
_LARGEST_HEADER = 2**20
_REQUIRED = ("normal", "shift")
_FIELDS = ("normal", "shift", "threshold", "mean", "deviation", "spread", "weight", "inner", "together")
_KEY = re.compile(r"([A-Za-z0-9_]{1,64})\.([a-z]{1,16})")
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]{0,4096}")


def save_directions(directions: ConceptDirections, path: str | Path) -> Path:
    """Write the file whole or not at all (temporary file in the same folder, flushed, then renamed).

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
        DirectionFileError: it holds what :func:`load_directions` would refuse (a title of two lines, a figure that is
            not finite); nothing is written.
    """
    path = Path(path)
    tensors = {
        f"{space}.{name}": t.detach().to("cpu", torch.float32).contiguous().clone()  # tensors may share memory
        for space, direction in directions.spaces.items()
        for name, t in direction.tensors().items()
    }
    metadata = {
        "format": FORMAT,
        "concept": directions.concept,
        "title": directions.title,
        "kind": directions.kind,
        "version": str(directions.version),
        "family": directions.family,
        "encoder": "" if directions.encoder is None else str(directions.encoder),
        "recipe": directions.recipe,
        "method": directions.method,
        "seed": str(directions.seed),
        "window": json.dumps(list(directions.window)),
        "calibration": json.dumps(dict(directions.calibration), sort_keys=True),
        "licence": directions.licence,
    }
    if directions.curve:
        metadata["curve"] = json.dumps([float(f"{v:.6g}") for v in directions.curve])
    _build(metadata, tensors)
    write_whole(path, to_bytes(tensors, metadata=metadata))
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all; makes the folder; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_directions(path: str | Path) -> ConceptDirections:
    """Read a direction file, or refuse it.

    Raises:
        DirectionFileError: with one sentence that says what is wrong; nothing of the file is used then.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    try:
        return _build(metadata, tensors)
    except DirectionFileError as error:
        raise DirectionFileError(f"{path.name}: {error}") from None
    except SafeRegionError as error:
        raise DirectionFileError(f"{path.name}: {error} The file cannot be trusted; make it again.") from None


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEADER)
    except OSError as error:
        raise DirectionFileError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    if size > LARGEST:
        raise DirectionFileError(f"{path.name} has {size:,} bytes; a direction file has at most {LARGEST:,}.")
    if len(head) < _HEADER:
        raise DirectionFileError(f"{path.name} is truncated or empty; copy it again.")
    header = struct.unpack("<Q", head)[0]
    if header > min(_LARGEST_HEADER, size - _HEADER):
        if head[:2] == b"PK" or head[:1] == b"\x80":
            raise DirectionFileError(
                f"{path.name} is a pickle, which can run code when it is read; ask for a .safetensors direction file, "
                "or bring the paper's vectors in with 'saferegion import'."
            )
        raise DirectionFileError(
            f"{path.name} is no direction file or is truncated: its header claims {header:,} bytes of {size:,}."
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DirectionFileError(
                    f"{path.name} is not a direction file (format {metadata.get('format')!r}, expected '{FORMAT}')."
                )
            names = list(file.keys())
            for name in names:
                kind = file.get_slice(name).get_dtype()
                if kind != "F32":
                    raise DirectionFileError(f"{path.name}: tensor '{name}' is {kind}, and must be F32.")
            return metadata, {name: file.get_tensor(name) for name in names}
    except DirectionFileError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DirectionFileError(f"{path.name} is damaged ({error}); copy or make it again.") from None


def _build(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> ConceptDirections:
    for key, value in metadata.items():
        if key not in ("encoder", "calibration", "curve") and not _PLAIN.fullmatch(value):
            raise DirectionFileError(f"metadata '{key}' holds control characters or is too long.")
    spaces: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or match[2] not in _FIELDS:
            raise DirectionFileError(f"unknown tensor {name[:60]!r}.")
        spaces.setdefault(match[1], {})[match[2]] = tensor
    for space, fields in spaces.items():
        for name in _REQUIRED:
            if name not in fields:
                raise DirectionFileError(f"tensor '{space}.{name}' is missing.")
    encoder = _text(metadata, "encoder")
    return ConceptDirections(
        concept=_text(metadata, "concept"),
        title=_text(metadata, "title"),
        kind=_text(metadata, "kind"),
        version=_whole(metadata, "version"),
        family=_text(metadata, "family"),
        encoder=Fingerprint.parse(encoder) if encoder else None,
        recipe=_text(metadata, "recipe"),
        method=_text(metadata, "method"),
        seed=_whole(metadata, "seed"),
        window=_window(metadata),
        calibration=_figures(metadata),
        licence=_text(metadata, "licence"),
        curve=_curve(metadata),
        spaces={space: Direction(**fields) for space, fields in sorted(spaces.items())},
    )


def _text(metadata: dict[str, str], key: str) -> str:
    if key not in metadata:
        raise DirectionFileError(f"metadata '{key}' is missing.")
    return metadata[key]


def _whole(metadata: dict[str, str], key: str) -> int:
    text = _text(metadata, key)
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise DirectionFileError(f"metadata '{key}' must be a whole number; got {text[:40]!r}.")
    return int(text)


def _json(metadata: dict[str, str], key: str) -> Any:
    text = _text(metadata, key)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DirectionFileError(f"metadata '{key}' is not JSON.") from None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _window(metadata: dict[str, str]) -> tuple[float, float]:
    value = _json(metadata, "window")
    if not isinstance(value, list) or len(value) != 2 or not all(_number(v) for v in value):
        raise DirectionFileError("metadata 'window' must be two numbers.")
    return float(value[0]), float(value[1])


def _curve(metadata: dict[str, str]) -> tuple[float, ...]:
    if "curve" not in metadata:
        return ()
    value = _json(metadata, "curve")
    if not isinstance(value, list) or len(value) > 100_000 or not all(_number(v) for v in value):
        raise DirectionFileError("metadata 'curve' must be a list of finite numbers.")
    return tuple(float(v) for v in value)


def _figures(metadata: dict[str, str]) -> dict[str, float]:
    value = _json(metadata, "calibration")
    if not isinstance(value, dict) or not all(_number(v) for v in value.values()):
        raise DirectionFileError("metadata 'calibration' must be an object of finite numbers.")
    return {k: float(v) for k, v in value.items()}
