"""The direction file as bytes: one ``.safetensors`` of float32 tensors and strings, with a checksum over every byte.

Tensors are named as :meth:`saferegion.Direction.tensors` names them. Metadata are strings; ``terms`` is JSON that says
what the terms of each detector look at: ``{"detector": {"terms": [["tokens", "token"], …], "joint": [[0, 1], …]}, …}``.
The checksum is the SHA-256 of the whole file with zeros in its own place, so no byte of it can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import torch

from .detector import Detector
from .errors import DirectionFileError
from .movers import HalfSpaces, Mover, Offset
from .readout import Readout, Term
from .spaces import POOLED, is_name
from .texts import JOINERS, LONGEST_NAME, LONGEST_TEXT, is_plain

FORMAT = "saferegion/2"
CHECKSUM = "checksum"
LARGEST_HEADER = 2**20
"""Bytes of the longest header."""
LARGEST_STEP = 6.5e4
"""Largest number that is written into tokens: half precision ends there."""
MOST_TERMS = 64
"""Most terms, and most joint terms, of one detector."""
LONGEST_CURVE = 20_000

_BLANK = "0" * 64
_PLACE = re.compile(rb'"checksum":"([0-9a-f]{64})"')
_MOVER = re.compile(r"mover\.([a-z0-9_]{1,64})\.(displacement|mean|deviation|target|b|a)")
_REST = re.compile(r"rest\.([a-z0-9_]{1,64})")
_SHORT = ("concept", "family", "kind", "method", "recipe")
_DETECTORS = ("detector", "given", "witness")


# -- checksum --------------------------------------------------------------------------------------------------------


def seal(data: bytes) -> bytes:
    """``data`` with its checksum in the place that it holds for it: ``"checksum":"`` and 64 zeros."""
    found = list(_PLACE.finditer(data))
    if len(found) != 1 or found[0][1] != _BLANK.encode():
        raise DirectionFileError("it has no one place for a checksum.")
    start, end = found[0].span(1)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[end:]


def check_seal(data: bytes) -> None:
    """Raises DirectionFileError: ``data`` is not, byte for byte, what :func:`seal` returned."""
    found = list(_PLACE.finditer(data))
    if len(found) != 1:
        raise DirectionFileError("its checksum is missing, so it may be damaged; copy or make it again.")
    start, end = found[0].span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(_BLANK.encode())
    digest.update(data[end:])
    if digest.hexdigest().encode() != found[0][1]:
        raise DirectionFileError("its checksum does not fit, so it is damaged or was changed; copy or make it again.")


# -- JSON and text ---------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON without keys given twice, NaN or infinity. Raises DirectionFileError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise DirectionFileError(f"{what} holds a key twice.")
        return found

    def never(name: str) -> Any:
        raise DirectionFileError(f"{what} must hold finite numbers; it holds {name}.")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=never)
    except DirectionFileError:
        raise
    except (ValueError, RecursionError):
        raise DirectionFileError(f"{what} is not JSON.") from None


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


# -- tensors and strings <-> bytes -----------------------------------------------------------------------------------


def to_bytes(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file of some strings and float32 tensors, with its checksum; the same bytes every time."""
    header: dict[str, Any] = {"__metadata__": {**dict(sorted(metadata.items())), CHECKSUM: _BLANK}}
    parts, at = [], 0
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return seal(struct.pack("<Q", len(text)) + text + b"".join(parts))


def of_bytes(data: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Strings and tensors of a ``.safetensors`` file, whose checksum is not looked at.

    Raises DirectionFileError: it is anything but float32 tensors that fill the file, one after another.
    """
    if len(data) < 8:
        raise DirectionFileError("it is truncated or empty; copy it again.")
    size = struct.unpack("<Q", data[:8])[0]
    if size > min(LARGEST_HEADER, len(data) - 8):
        raise DirectionFileError(
            f"it is no direction file or is truncated: its header claims {size:,} bytes of {len(data):,}."
        )
    try:
        text = data[8 : 8 + size].decode()
    except UnicodeDecodeError:
        raise DirectionFileError("its header is no text, so it is damaged; copy or make it again.") from None
    header = parse_json(text, "its header")
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DirectionFileError("its header is no object with strings as metadata; copy or make it again.")
    body = bytearray(data[8 + size :])
    return metadata, _tensors(header, body)


def _tensors(header: Mapping[str, Any], body: bytearray) -> dict[str, torch.Tensor]:
    entries = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise DirectionFileError(f"tensor {name[:60]!r} is described wrongly; copy or make it again.")
        if entry["dtype"] != "F32":
            raise DirectionFileError(f"tensor {name[:60]!r} is {str(entry['dtype'])[:20]!r}, and must be F32.")
        shape, offsets = entry["shape"], entry["data_offsets"]
        whole = [isinstance(v, list) and all(type(n) is int and 0 <= n < 2**40 for n in v) for v in (shape, offsets)]
        if not all(whole) or len(shape) > 4 or len(offsets) != 2:
            raise DirectionFileError(f"tensor {name[:60]!r} is described wrongly; copy or make it again.")
        entries.append((offsets[0], offsets[1], name, shape))
    at, found = 0, {}
    for start, end, name, shape in sorted(entries):
        count = math.prod(shape)
        if start != at or end - start != 4 * count or end > len(body):
            raise DirectionFileError(f"tensor {name[:60]!r} does not fit the file, which is damaged; copy it again.")
        flat = torch.frombuffer(body, dtype=torch.float32, count=count, offset=start) if count else torch.zeros(0)
        found[name] = flat.clone().reshape(shape)
        at = end
    if at != len(body):
        raise DirectionFileError(f"it has {len(body) - at:,} bytes that belong to no tensor; copy or make it again.")
    return found


# -- tensors and strings <-> parts of a direction --------------------------------------------------------------------


def terms_text(detectors: Mapping[str, Detector]) -> str:
    """JSON of what the terms of each detector look at."""
    return json.dumps(
        {
            name: {
                "terms": [[*t.readout, t.growth] if t.growth else [*t.readout] for t in d.terms],
                "joint": [list(p) for p in d.joint],
            }
            for name, d in detectors.items()
        },
        separators=(",", ":"),
    )


class Parts:
    """What a file holds, taken part by part; what is left over at the end is refused."""

    def __init__(self, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
        self.metadata, self.left = metadata, dict(tensors)
        for key, value in metadata.items():
            if key in ("encoder", "calibration", "curve", "terms", "window"):
                continue
            longest = LONGEST_NAME if key in _SHORT else LONGEST_TEXT
            if not is_plain(value, longest, "" if key == "concept" else JOINERS):
                raise DirectionFileError(f"metadata {key[:40]!r} holds hidden or control characters or is too long.")

    def text(self, key: str) -> str:
        """A string. Raises DirectionFileError, as all that follow."""
        if key not in self.metadata:
            raise DirectionFileError(f"metadata '{key}' is missing.")
        return self.metadata[key]

    def whole(self, key: str) -> int:
        """A whole number."""
        text = self.text(key)
        if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
            raise DirectionFileError(f"metadata '{key}' must be a whole number; got {text[:40]!r}.")
        return int(text)

    def window(self) -> tuple[float, float]:
        """Two numbers."""
        value = parse_json(self.text("window"), "metadata 'window'")
        if not isinstance(value, list) or len(value) != 2 or not all(is_number(v) for v in value):
            raise DirectionFileError("metadata 'window' must be two numbers.")
        if not 0 <= value[0] < value[1] <= 1:
            raise DirectionFileError("metadata 'window' must be 0 <= start < end <= 1.")
        return float(value[0]), float(value[1])

    def curve(self) -> tuple[float, ...]:
        """Numbers."""
        value = parse_json(self.text("curve"), "metadata 'curve'")
        if not isinstance(value, list) or len(value) > LONGEST_CURVE or not all(is_number(v) for v in value):
            raise DirectionFileError(f"metadata 'curve' must be a list of at most {LONGEST_CURVE} finite numbers.")
        return tuple(float(v) for v in value)

    def figures(self) -> dict[str, float]:
        """Names and numbers."""
        value = parse_json(self.text("calibration"), "metadata 'calibration'")
        if not isinstance(value, dict) or not all(is_number(v) for v in value.values()):
            raise DirectionFileError("metadata 'calibration' must be an object of finite numbers.")
        if not all(is_plain(k, LONGEST_NAME, JOINERS) for k in value):
            raise DirectionFileError("metadata 'calibration' has a name that holds hidden or control characters.")
        return {k: float(v) for k, v in value.items()}

    def take(self, name: str) -> torch.Tensor:
        """A tensor."""
        if name not in self.left:
            raise DirectionFileError(f"tensor {name!r} is missing.")
        return self.left.pop(name)

    def detectors(self) -> dict[str, Detector]:
        """``detector`` with its ``given``, and ``witness``, those there are."""
        value = parse_json(self.text("terms"), "metadata 'terms'")
        if not isinstance(value, dict) or not set(value) <= set(_DETECTORS):
            raise DirectionFileError("metadata 'terms' must be an object of detector, given and witness.")
        if value and "detector" not in value:
            raise DirectionFileError("metadata 'terms' lacks the detector that the others belong to.")
        found: dict[str, Detector] = {}
        for name in ("given", "detector", "witness"):
            if name in value:
                found[name] = self._detector(name, value[name], found.get("given") if name == "detector" else None)
        return found

    def _detector(self, name: str, layout: Any, given: Detector | None) -> Detector:
        if not isinstance(layout, dict) or set(layout) != {"terms", "joint"}:
            raise DirectionFileError(f"metadata 'terms' must say terms and joint of '{name}'.")
        terms, joint = layout["terms"], layout["joint"]
        if not all(isinstance(v, list) and len(v) <= MOST_TERMS for v in (terms, joint)):
            raise DirectionFileError(f"metadata 'terms' must list at most {MOST_TERMS} terms of '{name}'.")
        found = []
        for i, row in enumerate(terms):
            if not isinstance(row, list) or [type(v) for v in row] not in ([str, str], [str, str, float]):
                raise DirectionFileError(
                    f"metadata 'terms': a term of '{name}' must be a space, a readout and perhaps its growth."
                )
            space, reduce, *growth = row
            if (space == POOLED) != (reduce == "pooled") or not (space == POOLED or is_name(space)):
                raise DirectionFileError(
                    f"metadata 'terms': '{name}' has a term of a space {space[:40]!r} that cannot be."
                )
            readout = Readout(space, reduce)
            found.append(Term(readout, self.take(f"{name}.{i}.weight"), self.take(f"{name}.{i}.offset"), *growth))
        if not all(isinstance(p, list) and len(p) == 2 and all(type(n) is int for n in p) for p in joint):
            raise DirectionFileError(f"metadata 'terms': a joint term of '{name}' must be two numbers of terms.")
        pairs = tuple((p[0], p[1]) for p in joint)
        sums = self.take(f"{name}.sums") if pairs else None
        return Detector(tuple(found), self.take(f"{name}.thresholds"), pairs, sums, given)

    def movers(self) -> dict[str, Mover]:
        """Space -> mover, in the order of the names."""
        fields: dict[str, dict[str, torch.Tensor]] = {}
        for name in sorted(self.left):
            if match := _MOVER.fullmatch(name):
                fields.setdefault(match[1], {})[match[2]] = self.left.pop(name)
        window, found = self.window(), dict[str, Mover]()
        for space, tensors in fields.items():
            if set(tensors) == {"b", "a"}:
                found[space] = Offset(tensors["b"], tensors["a"], window)
            elif set(tensors) == {"displacement", "mean", "deviation", "target"}:
                found[space] = HalfSpaces(**tensors)
            else:
                raise DirectionFileError(f"what moves space '{space}' is incomplete or of two kinds.")
        if window != (0.0, 1.0) and not any(isinstance(m, Offset) for m in found.values()):
            raise DirectionFileError("metadata 'window' must be [0, 1] where nothing is an offset.")
        return found

    def rest(self) -> dict[str, torch.Tensor]:
        """Space -> benign mean by position."""
        return {m[1]: self.left.pop(name) for name in sorted(self.left) if (m := _REST.fullmatch(name))}

    def finish(self) -> None:
        """Raises DirectionFileError: a tensor is left that no direction has."""
        if self.left:
            raise DirectionFileError(f"unknown tensor {min(self.left)[:60]!r}.")
