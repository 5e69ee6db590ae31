from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import concept, concepts, direction, fingerprint, metric, same_bits
from hypothesis import given
from hypothesis import strategies as st

from saferegion import ConceptDirections, Direction, SafeRegionError, load_directions
from saferegion.core.errors import DirectionFileError
from saferegion.guard import files

PLAIN = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=60)


def random_direction(facets: int, width: int, period: int, seed: int, calibrated: bool, weighted: bool) -> Direction:
    gen = torch.Generator().manual_seed(seed)
    v, u = torch.randn(2, facets, width, generator=gen)
    v[:, 0], u[:, 0] = 1, 1 - (v[:, 1:] * u[:, 1:]).sum(1)
    border = {}
    if calibrated:
        mean = torch.randn(facets, period, generator=gen)
        border = {
            "mean": mean,
            "threshold": mean + torch.rand(facets, period, generator=gen) + 0.1,
            "deviation": torch.rand(facets, period, generator=gen) + 0.1,
            "spread": torch.rand(facets, generator=gen),
        }
    return Direction(v, u, **border, weight=torch.randn(period, generator=gen) if weighted else None)


@given(
    facets=st.integers(1, 4),
    width=st.integers(1, 40),
    period=st.integers(1, 80),
    seed=st.integers(0, 999),
    calibrated=st.booleans(),
    weighted=st.booleans(),
    pooled=st.booleans(),
    title=PLAIN,
    licence=PLAIN,
    number=st.integers(0, 2**64 - 1),
    figures=st.dictionaries(PLAIN, st.floats(-1e30, 1e30), max_size=4),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    facets: int,
    width: int,
    period: int,
    seed: int,
    calibrated: bool,
    weighted: bool,
    pooled: bool,
    title: str,
    licence: str,
    number: int,
    figures: dict[str, float],
) -> None:
    spaces = {"tokens": random_direction(facets, width, period, seed, calibrated, weighted)}
    if pooled:
        spaces["pooled"] = random_direction(1, width + 1, 1, seed, calibrated, False)
    method = "discovered" if calibrated else "imported"
    encoder = fingerprint(**{n: d.width for n, d in spaces.items()}) if calibrated else None
    given_ = ConceptDirections(
        "fire", spaces, encoder, title, "exclude", 3, "SDXL", "ab", method, number, (0.25, 0.75), figures, licence
    )
    path = tmp_path_factory.mktemp("files") / "fire.safetensors"
    assert given_.save(path) == path
    read = load_directions(path)
    for field in ("concept", "title", "kind", "version", "family", "recipe", "method", "seed", "window", "licence"):
        assert getattr(read, field) == getattr(given_, field), field
    assert dict(read.calibration) == figures and str(read.encoder) == str(given_.encoder)
    assert sorted(read.spaces) == sorted(spaces)
    for name, known in spaces.items():
        found = read.spaces[name].tensors()
        assert list(found) == list(known.tensors())
        assert all(same_bits(found[k], t) for k, t in known.tensors().items())
    assert os.listdir(path.parent) == ["fire.safetensors"]


@pytest.mark.parametrize("length", range(0, 512, 8))
def test_no_header_length_is_taken_for_a_pickle(tmp_path: Path, length: int) -> None:
    """A .safetensors file starts with the length of its header, and 0x80 and "PK" are lengths too."""
    d = concepts(1, 4)[0][0]
    path = ConceptDirections(d.concept, d.spaces, d.encoder, title="x" * length).save(tmp_path / "fire.safetensors")
    assert len(load_directions(path).title) == length


def test_a_header_that_starts_like_a_zip(tmp_path: Path) -> None:
    d = concepts(1, 4)[0][0]
    path = d.save(tmp_path / "fire.safetensors")
    header, body = parts(path)
    text = json.dumps(header).encode()
    wanted = int.from_bytes(b"PK", "little")
    path.write_bytes(struct.pack("<Q", wanted) + text.ljust(wanted) + body)
    assert load_directions(path).concept == "c0"


def parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def written(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    at = torch.full((77,), 2.0)
    d = direction(torch.ones(6).double(), metric(6, 0), at, weight=torch.ones(77))
    return concept(tokens=d, pooled=direction(torch.ones(4).double(), metric(4, 0))).save(tmp_path / "fire.safetensors")


def refused(path: Path) -> str:
    """The sentence with which the file is refused."""
    with pytest.raises(DirectionFileError) as caught:
        load_directions(path)
    text = str(caught.value)
    assert isinstance(caught.value, SafeRegionError)
    assert path.name in text and "\n" not in text and text.endswith(".") and len(text) < 500
    assert text.isprintable()
    return text


def test_truncated_anywhere(good: Path) -> None:
    data = good.read_bytes()
    for length in sorted({*range(0, 24), *range(24, len(data), 41), len(data) - 1}):
        good.write_bytes(data[:length])
        refused(good)


def test_damaged_header_bytes(good: Path) -> None:
    data = good.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    for at in range(0, 8 + size, 7):
        good.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        refused(good)


def change(edit: Callable[[dict, bytearray], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        header, body = parts(path)
        body = bytearray(body)
        edit(header, body)
        written(path, header, bytes(body))

    return apply


def metadata(**values: str | None) -> Callable[[Path], None]:
    def edit(header: dict, _: bytearray) -> None:
        for key, value in values.items():
            if value is None:
                del header["__metadata__"][key]
            else:
                header["__metadata__"][key] = value

    return change(edit)


def number(name: str, value: float) -> Callable[[Path], None]:
    def edit(header: dict, body: bytearray) -> None:
        at = header[name]["data_offsets"][0]
        body[at : at + 4] = struct.pack("<f", value)

    return change(edit)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return change(lambda header, _: header.__setitem__(new, header.pop(old)))


def retyped(name: str, dtype: str, shape: list[int]) -> Callable[[Path], None]:
    return change(lambda header, _: header[name].update(dtype=dtype, shape=shape))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (renamed("tokens.normal", "tokens.norma"), "unknown tensor 'tokens.norma'"),
        (renamed("tokens.normal", "extra"), "unknown tensor 'extra'"),
        (renamed("tokens.normal", "tokens.x\x07\n"), "unknown tensor 'tokens.x\\x07\\n'"),
        (renamed("tokens.normal", "clip.normal"), "is missing"),
        (renamed("tokens.threshold", "tokens.extra"), "unknown tensor 'tokens.extra'"),
        (retyped("tokens.normal", "F16", [1, 12]), "'tokens.normal' is F16"),
        (retyped("tokens.normal", "I32", [1, 6]), "is I32"),
        (retyped("tokens.normal", "F32", [6]), "[facets, width]"),
        (retyped("tokens.normal", "F32", [2, 3]), "[facets, width]"),
        (retyped("tokens.threshold", "F32", [77, 1]), "threshold must be [1, positions]"),
        (retyped("tokens.normal", "F32", [1, 7]), "damaged"),
        (number("tokens.normal", float("nan")), "'normal' of a direction holds NaN"),
        (number("tokens.shift", float("inf")), "'shift' of a direction holds NaN or infinity"),
        (number("tokens.weight", float("-inf")), "'weight'"),
        (number("tokens.deviation", 0.0), "deviation must be positive"),
        (number("tokens.threshold", -1.0), "threshold above the benign mean"),
        (number("tokens.normal", 100.0), "must be 1 for every facet"),
        (metadata(format=None), "not a direction file"),
        (metadata(format="saferegion/2"), "expected 'saferegion/1'"),
        (change(lambda header, _: header.pop("__metadata__")), "not a direction file"),
        *((metadata(**{k: None}), f"'{k}' is missing") for k in ("concept", "encoder", "window", "seed", "licence")),
        (metadata(concept=""), "needs a name"),
        (metadata(concept="fire\x1b[31m"), "control characters"),
        (metadata(title="two\nlines"), "control characters"),
        (metadata(licence="x" * 5000), "too long"),
        (metadata(kind="allow"), "kind must be one of"),
        (metadata(method="magic"), "method must be one of"),
        (metadata(method="imported", encoder="tokens=6"), "not an encoder fingerprint"),
        (metadata(encoder=""), "fingerprint"),
        (metadata(encoder=str(fingerprint(tokens=5, pooled=4))), "fingerprint says 5"),
        (metadata(version="1.0"), "whole number"),
        (metadata(seed="9" * 5000), "'seed'"),
        (metadata(window="[0, 2]"), "window"),
        (metadata(window="[1, 0]"), "window"),
        (metadata(window="[0, NaN]"), "two numbers"),
        (metadata(window="{}"), "two numbers"),
        (metadata(window="[0"), "not JSON"),
        (metadata(calibration="[" * 4096), "'calibration' is not JSON"),
        (metadata(calibration="[" * 200_000), "'calibration' is not JSON"),
        (metadata(calibration='{"a":' * 100_000), "'calibration' is not JSON"),
        (metadata(calibration='{"a": 1e999}'), "finite numbers"),
        (metadata(calibration='{"a": NaN}'), "finite numbers"),
        (metadata(calibration='{"a": true}'), "finite numbers"),
        (metadata(calibration='{"a": ' + "9" * 4000 + "}"), "finite numbers"),
        (metadata(calibration='{"a": ' + "9" * 100_000 + "}"), "calibration"),
        (metadata(calibration="[]"), "finite numbers"),
    ],
)
def test_what_cannot_be_trusted_is_refused(good: Path, damage: Callable[[Path], None], says: str) -> None:
    assert load_directions(good).concept == "fire"
    damage(good)
    assert says in refused(good)


@pytest.mark.parametrize("claim", [2**60, 2**63, 2**64 - 1, 2**20 + 1])
def test_a_header_that_claims_more_than_there_is(good: Path, claim: int) -> None:
    good.write_bytes(struct.pack("<Q", claim) + good.read_bytes()[8:])
    assert "claims" in refused(good)


def test_a_header_that_holds_no_object(tmp_path: Path) -> None:
    path = tmp_path / "fire.safetensors"
    for text in (b"{}", b"[]      ", b"null", b'{"a": 1}', b"\x00" * 8, b"{" * 4000):
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        refused(path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, trap = tmp_path / "fire.safetensors", tmp_path / "trapped"
    path.write_bytes(pickle.dumps([Trap(trap), "x" * 999], protocol))
    assert "pickle" in refused(path)
    torch.save({"a": Trap(trap)}, path, pickle_protocol=protocol)
    assert "pickle" in refused(path)
    torch.save({"a": Trap(trap)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert "pickle" in refused(path)
    assert not trap.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fire.safetensors"
    assert "cannot be read" in refused(path)
    path.mkdir()
    assert "cannot be read" in refused(path)
    path.rmdir()
    path.touch()
    assert "empty" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fire.txt", "fire" * 99)
    refused(path)
    path.write_text("format: saferegion-recipe/1\nname: fire\n" * 99)
    refused(path)


def test_an_unreadable_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "Permission denied" in refused(good)


def test_an_oversized_file_is_not_read(good: Path) -> None:
    with open(good, "r+b") as file:
        file.truncate(files.LARGEST + 1)
    assert "at most" in refused(good)


# -- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    good: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old = good.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        concepts(1, 6)[0][0].save(good)
    monkeypatch.undo()
    assert good.read_bytes() == old and os.listdir(good.parent) == [good.name]
    concepts(1, 6)[0][0].save(good)
    assert load_directions(good).concept == "c0" and os.listdir(good.parent) == [good.name]


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        concepts(1, 6)[0][0].save(tmp_path / "new" / "fire.safetensors")
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        concepts(1, 6)[0][0].save(tmp_path / "file" / "fire.safetensors")


@pytest.mark.parametrize(
    "values", [{"title": "two\nlines"}, {"licence": "x" * 5000}, {"calibration": {"a": float("nan")}}]
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, values: dict) -> None:
    d = concepts(1, 6)[0][0]
    with pytest.raises(DirectionFileError):
        ConceptDirections(d.concept, d.spaces, d.encoder, **values).save(tmp_path / "fire.safetensors")
    assert os.listdir(tmp_path) == []


def test_views_are_written_by_value(tmp_path: Path) -> None:
    joined = torch.cat([torch.eye(4), torch.eye(4)], 1)
    d = Direction(joined[:1, :4], joined[:1, 4:])
    given_ = ConceptDirections("fire", {"tokens": d}, None, method="imported")
    assert same_bits(load_directions(given_.save(tmp_path / "x.safetensors")).spaces["tokens"].normal, joined[:1, :4])
