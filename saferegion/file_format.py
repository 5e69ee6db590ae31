"""What a direction file holds, as plain fields: strings and named tensors in, checked values out.

Tensors are named ``<space>.<field>`` after :class:`~saferegion.directions.Direction`; metadata are strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from .errors import DirectionFileError
from .fingerprint import Fingerprint

FORMAT = "saferegion/1"

_REQUIRED = ("normal", "shift")
_FIELDS = ("normal", "shift", "threshold", "mean", "deviation", "spread", "weight", "inner", "together")
_KEY = re.compile(r"([A-Za-z0-9_]{1,64})\.([a-z]{1,16})")
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]{0,4096}")


def spaces_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Space name -> field name -> tensor, in the order of the names.

    Raises DirectionFileError: a tensor that no direction has, or one that is missing.
    """
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
    return dict(sorted(spaces.items()))


def fields_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of :class:`~saferegion.directions.ConceptDirections` but its spaces.

    Raises DirectionFileError: a string that is missing, too long or not what its field is.
    """
    encoder = _text(metadata, "encoder")
    return {
        "concept": _text(metadata, "concept"),
        "title": _text(metadata, "title"),
        "kind": _text(metadata, "kind"),
        "version": _whole(metadata, "version"),
        "family": _text(metadata, "family"),
        "encoder": Fingerprint.parse(encoder) if encoder else None,
        "recipe": _text(metadata, "recipe"),
        "method": _text(metadata, "method"),
        "seed": _whole(metadata, "seed"),
        "window": _window(metadata),
        "calibration": _figures(metadata),
        "licence": _text(metadata, "licence"),
        "curve": _curve(metadata),
    }


def check_text(metadata: Mapping[str, str]) -> None:
    """Raises DirectionFileError: a string that people read holds control characters or is too long."""
    for key, value in metadata.items():
        if key not in ("encoder", "calibration", "curve") and not _PLAIN.fullmatch(value):
            raise DirectionFileError(f"metadata '{key}' holds control characters or is too long.")


def _text(metadata: Mapping[str, str], key: str) -> str:
    if key not in metadata:
        raise DirectionFileError(f"metadata '{key}' is missing.")
    return metadata[key]


def _whole(metadata: Mapping[str, str], key: str) -> int:
    text = _text(metadata, key)
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise DirectionFileError(f"metadata '{key}' must be a whole number; got {text[:40]!r}.")
    return int(text)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    text = _text(metadata, key)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DirectionFileError(f"metadata '{key}' is not JSON.") from None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _window(metadata: Mapping[str, str]) -> tuple[float, float]:
    value = _json(metadata, "window")
    if not isinstance(value, list) or len(value) != 2 or not all(_number(v) for v in value):
        raise DirectionFileError("metadata 'window' must be two numbers.")
    return float(value[0]), float(value[1])


def _curve(metadata: Mapping[str, str]) -> tuple[float, ...]:
    if "curve" not in metadata:
        return ()
    value = _json(metadata, "curve")
    if not isinstance(value, list) or len(value) > 100_000 or not all(_number(v) for v in value):
        raise DirectionFileError("metadata 'curve' must be a list of finite numbers.")
    return tuple(float(v) for v in value)


def _figures(metadata: Mapping[str, str]) -> dict[str, float]:
    value = _json(metadata, "calibration")
    if not isinstance(value, dict) or not all(_number(v) for v in value.values()):
        raise DirectionFileError("metadata 'calibration' must be an object of finite numbers.")
    return {k: float(v) for k, v in value.items()}
