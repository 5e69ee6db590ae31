"""Vector packs: a folder of compiled files for one text encoder and an index, so that who has them need not compile.

A pack is looked up by the encoder's fingerprint. Files are named after their own content and the index is replaced in
one step, so that a pack that is being built anew is the old one or the new one at every moment.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.direction import Direction
from ..core.errors import DirectionFileError, SafeRegionError
from ..core.file_format import CHECKSUM, check_seal, parse_json, seal
from ..core.fingerprint import Fingerprint
from ..core.texts import LONGEST_NAME, is_plain
from ..core.writing import clear_abandoned, read_whole, write_whole
from ..learn.settings import METHOD
from .files import LARGEST, direction_of

PACK_FORMAT = "saferegion-pack/1"
INDEX = "pack.json"
FOLDER = "packs"
"""Name of the folder of packs, beside own concepts and in the cache."""
LARGEST_INDEX = 4 * 2**20
MOST_FILES = 10_000

_FILE = re.compile(r"[a-z0-9][a-z0-9-]{0,200}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")
_BLANK = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One file of a pack. ``recipe``: digest of recipe and neutral prompts. ``sha256``: of the file."""

    file: str
    concept: str
    recipe: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Pack:
    """The index of a pack. ``method``: number of the fit that made it."""

    folder: Path
    name: str
    encoder: Fingerprint
    method: int
    licence: str
    entries: tuple[Entry, ...]

    def direction(self, entry: Entry) -> Direction:
        """Read one file. Raises DirectionFileError: it is not the file that the index speaks of."""
        path = self.folder / entry.file
        data = read_whole(path, LARGEST, DirectionFileError)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DirectionFileError(f"{entry.file} is not the file that the pack '{self.name}' lists; copy it again.")
        found = direction_of(data, entry.file)
        if (found.concept, found.meta.recipe) != (entry.concept, entry.recipe):
            raise DirectionFileError(f"{entry.file} holds another concept than the pack '{self.name}' says.")
        if found.encoder is None or not found.encoder.matches(self.encoder):
            raise DirectionFileError(f"{entry.file} is made for another text encoder than the pack '{self.name}'.")
        return found


def build(folder: str | Path, directions: Sequence[Direction], *, name: str, licence: str = "") -> Pack:
    """Write a pack of compiled directions of one encoder; an older one in ``folder`` is replaced in one step.

    Raises:
        SafeRegionError: nothing to pack, directions of several encoders or not compiled, or a name nobody can read.
        OSError: the folder cannot be written; an older pack stays as it was.
    """
    folder = Path(folder)
    for text, what in ((name, "name"), (licence, "licence")):
        if not is_plain(text, LONGEST_NAME) or (what == "name" and not text.strip()):
            raise SafeRegionError(
                f"A pack's {what} must be one line of at most {LONGEST_NAME} characters; got {text!r}."
            )
    encoder = directions[0].encoder if directions else None
    if encoder is None:
        raise SafeRegionError("A pack needs at least one direction of a known text encoder.")
    if len({(d.concept, d.meta.recipe) for d in directions}) < len(directions):
        raise SafeRegionError("A pack holds each concept once.")
    files: dict[str, bytes] = {}
    entries = []
    for d in directions:
        if d.method != "compiled" or not d.meta.recipe:
            raise SafeRegionError(f"'{d.concept}' is {d.method}; a pack holds concepts that were compiled.")
        if d.encoder is None:
            raise SafeRegionError(f"'{d.concept}' does not say which text encoder it is made for.")
        encoder.require(d.encoder, f"'{d.concept}'")
        data = d.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        slug = re.sub(r"[^a-z0-9]+", "-", d.concept.lower()).strip("-")[:64] or "concept"
        file = f"{slug}-{digest[:16]}.safetensors"
        direction_of(data, file)
        files[file] = data
        entries.append(Entry(file, d.concept, d.meta.recipe, digest, len(data)))
    pack = Pack(folder, name, encoder, METHOD, licence, tuple(entries))
    for file, data in files.items():
        write_whole(folder / file, data)
    write_whole(folder / INDEX, _index(pack))
    for path in folder.glob("*.safetensors"):
        if path.name not in files and _FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    clear_abandoned(folder)
    return pack


def read(folder: str | Path) -> Pack:
    """The index of a pack; its files are looked at when they are used. Raises DirectionFileError."""
    folder = Path(folder)
    path = folder / INDEX
    data = read_whole(path, LARGEST_INDEX, DirectionFileError)
    try:
        check_seal(data)
        return _pack(folder, parse_json(data, "the index"))
    except SafeRegionError as error:
        raise DirectionFileError(f"{folder.name}/{INDEX}: {error}") from None


def check(folder: str | Path) -> Pack:
    """Read the index and every file. Raises DirectionFileError: one of them cannot be trusted."""
    pack = read(folder)
    for entry in pack.entries:
        pack.direction(entry)
    return pack


def list_packs(folders: Iterable[Path]) -> list[tuple[Path, Pack | DirectionFileError]]:
    """The packs in ``packs/`` of each folder, in order; a refusal in the place of one that cannot be read."""
    found: list[tuple[Path, Pack | DirectionFileError]] = []
    for folder in folders:
        try:
            inside = sorted(p for p in (folder / FOLDER).iterdir() if (p / INDEX).exists())
        except OSError:
            continue
        for path in inside:
            try:
                found.append((path, read(path)))
            except DirectionFileError as error:
                found.append((path, error))
    return found


def _index(pack: Pack) -> bytes:
    files = [
        {"file": e.file, "concept": e.concept, "recipe": e.recipe, "sha256": e.sha256, "size": e.size}
        for e in pack.entries
    ]
    index = {
        "format": PACK_FORMAT,
        CHECKSUM: _BLANK,
        "name": pack.name,
        "encoder": str(pack.encoder),
        "method": pack.method,
        "licence": pack.licence,
        "files": files,
    }
    return seal(json.dumps(index, separators=(",", ":")).encode())


def _pack(folder: Path, index: Any) -> Pack:
    if not isinstance(index, dict) or index.get("format") != PACK_FORMAT:
        raise DirectionFileError(f"it is no index of a pack (format '{PACK_FORMAT}').")
    if set(index) != {"format", CHECKSUM, "name", "encoder", "method", "licence", "files"}:
        raise DirectionFileError("a key is missing or unknown.")
    for key in ("name", "licence"):
        if not isinstance(index[key], str) or not is_plain(index[key], LONGEST_NAME):
            raise DirectionFileError(f"'{key}' must be one line of text.")
    if not isinstance(index["encoder"], str) or type(index["method"]) is not int:
        raise DirectionFileError("'encoder' must be text and 'method' a whole number.")
    files = index["files"]
    if not isinstance(files, list) or not 0 < len(files) <= MOST_FILES:
        raise DirectionFileError(f"'files' must be a list of at most {MOST_FILES} files.")
    encoder = Fingerprint.parse(index["encoder"])
    entries = tuple(_entry(f) for f in files)
    return Pack(folder, index["name"], encoder, index["method"], index["licence"], entries)


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"file", "concept", "recipe", "sha256", "size"}:
        raise DirectionFileError("a file is described wrongly.")
    texts = [value[k] for k in ("file", "concept", "recipe", "sha256")]
    if not all(isinstance(t, str) for t in texts) or type(value["size"]) is not int or value["size"] < 0:
        raise DirectionFileError("a file is described wrongly.")
    file, concept, recipe, sha256 = texts
    if not _FILE.fullmatch(file) or not is_plain(concept, LONGEST_NAME) or not is_plain(recipe, LONGEST_NAME):
        raise DirectionFileError(f"a file has a name that no pack uses: {file[:60]!r}.")
    if not _HASH.fullmatch(sha256):
        raise DirectionFileError("a file has no SHA-256.")
    return Entry(file, concept, recipe, sha256, value["size"])
