"""What did not compile on which encoder, kept on disk, so that no restart tries it again."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DirectionFileError, SafeRegionError
from ..core.file_format import CHECKSUM, check_seal, parse_json, seal
from ..core.fingerprint import Fingerprint
from ..core.texts import LONGEST_TEXT, is_plain
from ..core.writing import read_whole, write_whole
from ..learn.settings import METHOD

log = logging.getLogger("saferegion")

FAILED_FORMAT = "saferegion-failed/1"
FILE = "failed.json"
LARGEST = 4 * 2**20
MOST = 1000
"""Most failures that are kept; the oldest go first."""

_BLANK = "0" * 64


@dataclass(frozen=True)
class Failure:
    """One concept that did not compile. ``recipe``: its name, digest and settings. ``why``: a sentence."""

    encoder: Fingerprint
    recipe: str
    why: str
    method: int = METHOD


def read_failures(folder: Path) -> list[Failure]:
    """What is kept in ``folder``. Raises DirectionFileError: it is damaged."""
    path = folder / FILE
    if not path.exists():
        return []
    data = read_whole(path, LARGEST, DirectionFileError)
    try:
        check_seal(data)
        value = parse_json(data, "it")
        if not isinstance(value, dict) or set(value) != {"format", CHECKSUM, "failed"}:
            raise DirectionFileError("it is no list of failures.")
        if value["format"] != FAILED_FORMAT or not isinstance(value["failed"], list) or len(value["failed"]) > MOST:
            raise DirectionFileError("it is no list of failures.")
        return [_failure(v) for v in value["failed"]]
    except SafeRegionError as error:
        raise DirectionFileError(f"{path.name}: {error}") from None


def recall(folder: Path, encoder: Fingerprint, recipe: str) -> str | None:
    """Why a recipe did not compile on an encoder, or None where nothing is known."""
    for failure in _readable(folder):
        if failure.recipe == recipe and failure.method == METHOD and failure.encoder.matches(encoder):
            return failure.why
    return None


def remember(folder: Path, failure: Failure) -> None:
    """Keep a failure; a folder that cannot be written costs a warning."""
    kept = [
        f
        for f in _readable(folder)
        if f.method == METHOD and (f.recipe, f.encoder) != (failure.recipe, failure.encoder)
    ]
    rows = [
        {"encoder": str(f.encoder), "recipe": f.recipe, "method": f.method, "why": f.why}
        for f in [*kept, failure][-MOST:]
    ]
    index = {"format": FAILED_FORMAT, CHECKSUM: _BLANK, "failed": rows}
    try:
        write_whole(folder / FILE, seal(json.dumps(index, separators=(",", ":")).encode()))
    except OSError as error:
        log.warning("What did not compile cannot be remembered in %s (%s).", folder, error.strerror or error)


def _readable(folder: Path) -> list[Failure]:
    try:
        return read_failures(folder)
    except DirectionFileError as error:
        log.warning("What did not compile before is forgotten: %s", error)
        return []


def _failure(value: Any) -> Failure:
    if not isinstance(value, dict) or set(value) != {"encoder", "recipe", "method", "why"}:
        raise DirectionFileError("a failure is described wrongly.")
    texts = [value[k] for k in ("encoder", "recipe", "why")]
    if not all(isinstance(t, str) for t in texts) or type(value["method"]) is not int:
        raise DirectionFileError("a failure is described wrongly.")
    if not is_plain(texts[1], LONGEST_TEXT) or not is_plain(texts[2], LONGEST_TEXT):
        raise DirectionFileError("a failure holds hidden or control characters.")
    return Failure(Fingerprint.parse(texts[0]), texts[1], texts[2], value["method"])
