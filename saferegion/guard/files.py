"""The direction file: one ``.safetensors``, one concept, all its spaces; everything is checked before anything is used.

Tensors are float32, metadata are strings; :mod:`saferegion.file_format` says which. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..core.direction import Direction
from ..core.errors import DirectionFileError, SafeRegionError
from ..file_format import FORMAT

LARGEST = 256 * 2**20
"""Bytes of the largest file that is read."""

_HEADER = 8
_LARGEST_HEADER = 2**20


def load_directions(path: str | Path) -> Direction:
    """Read a direction file, or refuse it.

    Raises:
        DirectionFileError: with one sentence that says what is wrong; nothing of the file is used then.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    try:
        return Direction.of_file(metadata, tensors)
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
