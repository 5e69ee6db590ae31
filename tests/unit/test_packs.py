from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import fingerprint, imported, made

from saferegion import Direction, Meta, SafeRegionError
from saferegion.core import file_format
from saferegion.core.errors import DirectionFileError, EncoderMismatchError
from saferegion.guard import packs


def concept(name: str, threshold: float = 2.0) -> Direction:
    return replace(made(name, threshold=threshold), meta=Meta(title=name.title(), recipe=name.encode().hex()))


FIRE, FROST = concept("fire"), concept("frost", 3.0)


def test_a_pack_is_written_and_read(tmp_path: Path) -> None:
    built = packs.build(tmp_path / "one", [FIRE, FROST], name="Fire and frost", licence="CC0-1.0")
    read = packs.check(tmp_path / "one")
    assert (read.name, read.licence, read.entries) == (built.name, built.licence, built.entries)
    assert read.encoder.matches(built.encoder)
    assert sorted(os.listdir(tmp_path / "one")) == sorted([packs.INDEX, *(e.file for e in built.entries)])
    for entry, known in zip(read.entries, (FIRE, FROST), strict=True):
        assert entry.concept == known.concept and read.direction(entry).digest() == known.digest()
    again = packs.build(tmp_path / "two", [FIRE, FROST], name="Fire and frost", licence="CC0-1.0")
    assert again.entries == built.entries
    assert (tmp_path / "one" / packs.INDEX).read_bytes() == (tmp_path / "two" / packs.INDEX).read_bytes()


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
@pytest.mark.parametrize("after", range(5))
def test_a_kill_at_any_moment_leaves_the_old_pack_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    """Killed at the n-th call of the system that writes, renames or takes away."""
    folder = tmp_path / "packs" / "one"
    packs.build(folder, [FIRE, FROST], name="Old")
    new = [concept("fire", 2.5), FROST, concept("smoke")]
    left = iter(range(after))
    known = getattr(os, call)

    def killed(*arguments: object, **more: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return known(*arguments, **more)

    monkeypatch.setattr(os, call, killed)
    try:
        packs.build(folder, new, name="New")
        done = True
    except KeyboardInterrupt:
        done = False
    monkeypatch.undo()
    pack = packs.check(folder)
    assert [(e.concept, pack.direction(e).digest()) for e in pack.entries] == (
        [(d.concept, d.digest()) for d in (new if pack.name == "New" else (FIRE, FROST))]
    )
    assert pack.name == "New" or not done
    packs.build(folder, new, name="New")
    pack = packs.check(folder)
    present = {p.name for p in folder.iterdir() if not p.name.endswith(".part")}
    assert pack.name == "New" and present == {packs.INDEX, *(e.file for e in pack.entries)}


def test_a_full_disk_leaves_the_old_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs.build(tmp_path, [FIRE], name="Old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        packs.build(tmp_path, [FROST], name="New")
    assert packs.check(tmp_path).name == "Old"


@pytest.mark.parametrize(
    ("directions", "values", "says"),
    [
        ([], {}, "at least one direction"),
        ([imported()], {}, "of a known text encoder"),
        ([FIRE, imported()], {}, "imported; a pack holds concepts that were compiled"),
        ([replace(FIRE, meta=Meta())], {}, "a pack holds concepts that were compiled"),
        ([FIRE, FIRE], {}, "each concept once"),
        ([FIRE], {"name": ""}, "name must be one line"),
        ([FIRE], {"name": "a\nb"}, "name must be one line"),
        ([FIRE], {"licence": "\u202ea"}, "licence must be one line"),
    ],
)
def test_what_no_pack_can_hold(tmp_path: Path, directions: list[Direction], values: dict, says: str) -> None:
    with pytest.raises(SafeRegionError, match=says):
        packs.build(tmp_path / "one", directions, **{"name": "One"} | values)
    assert not (tmp_path / "one").exists()


def test_directions_of_another_encoder_or_that_nothing_reaches(tmp_path: Path) -> None:
    other = replace(FROST, encoder=fingerprint(tokens=6).__class__((("tokens", 6),), (-0.5,) * 32))
    with pytest.raises(EncoderMismatchError):
        packs.build(tmp_path / "one", [FIRE, other], name="One")
    with pytest.raises(DirectionFileError, match="nothing reaches"):
        packs.build(tmp_path / "one", [concept("fire", 900.0)], name="One")
    assert not (tmp_path / "one").exists()


def changed(folder: Path, **values: object) -> None:
    """Change the index, with the checksum that it has then."""
    index = json.loads((folder / packs.INDEX).read_bytes()) | values | {"checksum": "0" * 64}
    index = {k: v for k, v in index.items() if v is not None}
    (folder / packs.INDEX).write_bytes(file_format.seal(json.dumps(index, separators=(",", ":")).encode()))


ENTRY = {"file": "a.safetensors", "concept": "a", "recipe": "b", "sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format": "saferegion-pack/9"}, "no index of a pack"),
        ({"name": None}, "missing or unknown"),
        ({"other": 1}, "missing or unknown"),
        ({"name": 5}, "'name' must be one line"),
        ({"licence": "\u202e"}, "'licence' must be one line"),
        ({"encoder": "fp1"}, "not an encoder fingerprint"),
        ({"encoder": 5}, "'encoder' must be text"),
        ({"method": True}, "'method' a whole number"),
        ({"files": []}, "'files' must be a list"),
        ({"files": {}}, "'files' must be a list"),
        ({"files": [5]}, "described wrongly"),
        ({"files": [ENTRY | {"size": -1}]}, "described wrongly"),
        ({"files": [ENTRY | {"more": 1}]}, "described wrongly"),
        ({"files": [ENTRY | {"file": "../a.safetensors"}]}, "a name that no pack uses"),
        ({"files": [ENTRY | {"file": "/etc/passwd"}]}, "a name that no pack uses"),
        ({"files": [ENTRY | {"file": "a.yaml"}]}, "a name that no pack uses"),
        ({"files": [ENTRY | {"sha256": "0"}]}, "no SHA-256"),
        ({"files": [ENTRY]}, "cannot be read"),
    ],
)
def test_an_index_that_cannot_be_trusted(tmp_path: Path, values: dict, says: str) -> None:
    packs.build(tmp_path, [FIRE], name="One")
    changed(tmp_path, **values)
    with pytest.raises(DirectionFileError, match=says) as caught:
        packs.check(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_files_that_are_not_those_of_the_index(tmp_path: Path) -> None:
    pack = packs.build(tmp_path, [FIRE], name="One")
    path = tmp_path / pack.entries[0].file
    good = path.read_bytes()
    path.write_bytes(FROST.to_bytes())
    with pytest.raises(DirectionFileError, match="not the file that the pack"):
        packs.check(tmp_path)
    path.write_bytes(good)
    entry = {"file": path.name, "concept": "frost", "recipe": FIRE.meta.recipe, "size": len(good)}
    changed(tmp_path, files=[entry | {"sha256": pack.entries[0].sha256}])
    with pytest.raises(DirectionFileError, match="another concept than the pack"):
        packs.check(tmp_path)
    packs.build(tmp_path, [FIRE], name="One")
    sketch = tuple(torch.linspace(-1, 1, 32).tolist())
    changed(tmp_path, encoder=str(fingerprint(tokens=6).__class__((("tokens", 6),), sketch)))
    with pytest.raises(DirectionFileError, match="another text encoder than the pack"):
        packs.check(tmp_path)


def test_packs_are_listed(tmp_path: Path) -> None:
    user, cache = tmp_path / "user", tmp_path / "cache"
    packs.build(user / packs.FOLDER / "b", [FIRE], name="B")
    packs.build(user / packs.FOLDER / "a", [FIRE], name="A")
    packs.build(cache / packs.FOLDER / "c", [FIRE], name="C")
    (user / packs.FOLDER / "empty").mkdir()
    (user / packs.FOLDER / "broken").mkdir()
    (user / packs.FOLDER / "broken" / packs.INDEX).write_text("{}")
    found = packs.list_packs([user, tmp_path / "missing", cache])
    assert [p.name for p, _ in found] == ["a", "b", "broken", "c"]
    assert [getattr(pack, "name", None) for _, pack in found] == ["A", "B", None, "C"]
    assert isinstance(found[2][1], DirectionFileError)
