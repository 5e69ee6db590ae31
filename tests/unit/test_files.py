from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import concepts, fingerprint, half_spaces, imported, made, same_bits
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from saferegion import (
    Conditioning,
    Detector,
    Direction,
    Meta,
    Offset,
    Readout,
    SafeRegion,
    SafeRegionError,
    Term,
    load_directions,
)
from saferegion.core import file_format, writing
from saferegion.core.errors import DirectionFileError
from saferegion.guard import files

PLAIN = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Zl", "Zp")), max_size=60)


def random_direction(facets: int, width: int, period: int, seed: int, pooled: bool, offset: bool) -> Direction:
    """A direction whose parts are numbers of no meaning, but for borders that its movers reach."""
    gen = torch.Generator().manual_seed(seed)
    spaces = {"tokens": width} | ({"pooled": width + 1} if pooled else {})
    movers, rest, terms = {}, {}, []
    for space, wide in spaces.items():
        length = period if space == "tokens" else 1
        u = torch.nn.functional.normalize(torch.randn(facets, wide, generator=gen), dim=1) * 2
        rest[space] = torch.randn(length, wide, generator=gen) / 99
        movers[space] = (
            Offset(-torch.rand(length, generator=gen) - 1, u[0], (0.25, 0.75)) if offset else half_spaces(u, length)
        )
        for reduce in ("token", "pair", "mean") if space == "tokens" else ("pooled",):
            w = torch.cat([u, u], 1) if reduce == "pair" else u
            terms.append(Term(Readout(space, reduce), w, torch.zeros(facets, 1), 0.25 if reduce == "mean" else 0.0))
    at = torch.full((len(terms),), 1.0)
    detector = Detector(
        tuple(terms), at, ((0, 2), (1, 2)), torch.tensor([3.0, 4.0]), Detector(tuple(terms[:1]), at[:1])
    )
    return Direction("fire", fingerprint(**spaces), detector, movers, rest, Detector(tuple(terms), at))


@given(
    facets=st.integers(1, 4),
    width=st.integers(4, 40),
    period=st.integers(1, 80),
    seed=st.integers(0, 999),
    offset=st.booleans(),
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
    offset: bool,
    pooled: bool,
    title: str,
    licence: str,
    number: int,
    figures: dict[str, float],
) -> None:
    plain = random_direction(facets, width, period, seed, pooled, offset)
    meta = Meta(title, "exclude", 3, "SDXL", "ab", "discovered", number, figures, licence, (1.0, 0.5), "a note")
    given_ = replace(plain, meta=meta)
    path = tmp_path_factory.mktemp("files") / "fire.safetensors"
    assert given_.save(path) == path
    read = load_directions(path)
    assert read.meta == meta and read.concept == "fire" and read.window == given_.window
    assert str(read.encoder) == str(given_.encoder)
    known, found = given_.tensors(), read.tensors()
    assert sorted(found) == sorted(known) and all(same_bits(found[k], t) for k, t in known.items())
    assert {n: ([t.readout for t in d.terms], d.joint) for n, d in read.detectors().items()} == {
        n: ([t.readout for t in d.terms], d.joint) for n, d in given_.detectors().items()
    }
    assert read.digest() == given_.digest() and os.listdir(path.parent) == ["fire.safetensors"]
    assert read.to_bytes() == path.read_bytes(), "the same file every time"


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    d = made(pooled=True, readouts=("token", "pair", "mean"), joint=[(0, 2)], witness=True)
    with safe_open(str(d.save(tmp_path / "fire.safetensors")), framework="pt") as file:
        assert file.metadata()["format"] == "saferegion/2" and len(file.metadata()["checksum"]) == 64
        assert all(same_bits(file.get_tensor(k), t) for k, t in d.tensors().items())
        assert sorted(file.keys()) == sorted(d.tensors())


@pytest.mark.parametrize("length", range(0, 512, 8))
def test_no_header_length_is_taken_for_a_pickle(tmp_path: Path, length: int) -> None:
    """A .safetensors file starts with the length of its header, and 0x80 and "PK" are lengths too."""
    path = replace(made(), meta=Meta(title="x" * length)).save(tmp_path / "fire.safetensors")
    assert len(load_directions(path).meta.title) == length


def test_a_header_that_starts_like_a_zip(tmp_path: Path) -> None:
    path = made("c0").save(tmp_path / "fire.safetensors")
    header, body = parts(path)
    wanted = int.from_bytes(b"PK", "little")
    written(path, header, body, wanted)
    assert path.read_bytes()[:2] == b"PK" and load_directions(path).concept == "c0"


def parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def written(path: Path, header: dict, body: bytes, size: int = 0, seal: bool = True) -> None:
    """The file anew, with the checksum that it should have then."""
    known = header.get("__metadata__", {})
    seal = seal and isinstance(known, dict) and "checksum" in known
    if seal:
        known["checksum"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(size or -(-len(text) // 8) * 8)
    data = struct.pack("<Q", len(text)) + text + body
    path.write_bytes(file_format.seal(data) if seal else data)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    d = made(period=77, pooled=True, readouts=("token", "pair", "mean"), joint=[(0, 2), (1, 2)], witness=True)
    return d.save(tmp_path / "fire.safetensors")


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


def every(name: str, value: float, *also: str) -> Callable[[Path], None]:
    """All numbers of some tensors."""

    def edit(header: dict, body: bytearray) -> None:
        for key in (name, *also):
            start, end = header[key]["data_offsets"]
            body[start:end] = struct.pack("<f", value) * ((end - start) // 4)

    return change(edit)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return change(lambda header, _: header.__setitem__(new, header.pop(old)))


def retyped(name: str, dtype: str, shape: list[int]) -> Callable[[Path], None]:
    return change(lambda header, _: header[name].update(dtype=dtype, shape=shape))


def reterm(header: dict, old: str, new: str) -> None:
    """Change what the detector's terms are said to be."""
    known = header["__metadata__"]["terms"]
    assert old in known
    header["__metadata__"]["terms"] = known.replace(old, new, 1)


TERMS = '{"detector":{"terms":[["tokens","token"]],"joint":[]}}'


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (renamed("mover.tokens.mean", "mover.tokens.norma"), "incomplete or of two kinds"),
        (renamed("witness.thresholds", "extra"), "'witness.thresholds' is missing"),
        (renamed("rest.pooled", "extra"), "unknown tensor 'extra'"),
        (renamed("rest.pooled", "x\x07\n"), "unknown tensor 'x\\x07\\n'"),
        (renamed("mover.tokens.mean", "mover.clip.mean"), "incomplete or of two kinds"),
        (renamed("mover.tokens.mean", "mover.tokens.b"), "incomplete or of two kinds"),
        (renamed("detector.0.weight", "detector.9.weight"), "'detector.0.weight' is missing"),
        (renamed("detector.sums", "given.sums"), "'detector.sums' is missing"),
        (renamed("rest.tokens", "rest.clip"), "'clip', which nothing moves"),
        (retyped("mover.tokens.displacement", "F16", [1, 12]), "is 'F16', and must be F32"),
        (retyped("mover.tokens.displacement", "I32", [1, 6]), "is 'I32'"),
        (retyped("mover.tokens.displacement", "F32", [6]), "displacement must have 2 dimensions"),
        (retyped("mover.tokens.displacement", "F32", [2, 3]), "as many facets"),
        (retyped("mover.tokens.displacement", "F32", [1, 7]), "does not fit the file"),
        (retyped("mover.tokens.displacement", "F32", [1, -6]), "described wrongly"),
        (retyped("mover.tokens.displacement", "F32", [1, 6.0]), "described wrongly"),
        (retyped("mover.tokens.displacement", "F32", [True, 6]), "described wrongly"),
        (retyped("mover.tokens.displacement", "F32", [1, 1, 1, 1, 6]), "described wrongly"),
        (retyped("mover.tokens.displacement", "F32", [2**39, 2**39]), "does not fit the file"),
        (number("mover.tokens.displacement", float("nan")), "displacement holds NaN"),
        (number("mover.tokens.mean", float("inf")), "mean holds NaN or infinity"),
        (number("detector.0.weight", float("-inf")), "weight of a term"),
        (number("mover.tokens.deviation", 0.0), "deviation must be positive"),
        (number("mover.tokens.displacement", 0.0), "longer than zero"),
        (number("mover.tokens.displacement", 1e13), "would overflow"),
        (number("mover.tokens.displacement", 1e6), "larger than tokens can be"),
        (number("rest.tokens", 1e6), "larger than tokens can be"),
        (number("detector.thresholds", 1e9), "beyond 1000 benign deviations"),
        (every("detector.thresholds", 900.0, "detector.sums"), "one that nothing reaches"),
        (every("witness.thresholds", 900.0), "the witness of 'fire' is one that nothing reaches"),
        (every("mover.tokens.displacement", -4.0, "mover.pooled.displacement"), "one that nothing reaches"),
        (number("detector.thresholds", -1.0), "open for everything"),
        (number("detector.0.offset", -9.0), "open for everything"),
        (number("detector.sums", -1.0), "open for everything"),
        (metadata(format=None), "not a direction file"),
        (metadata(format="saferegion/3"), "expected 'saferegion/2'"),
        (metadata(checksum=None), "checksum is missing"),
        (change(lambda header, _: header.pop("__metadata__")), "not a direction file"),
        *(
            (metadata(**{k: None}), f"'{k}' is missing")
            for k in ("concept", "encoder", "window", "seed", "licence", "note")
        ),
        (metadata(concept=""), "needs a name"),
        (metadata(concept="fire\x1b[31m"), "control characters"),
        (metadata(concept="fi\u200bre"), "hidden or control characters"),
        (metadata(concept="\u202efire"), "hidden or control characters"),
        (metadata(title="a \u202egnp.erif"), "hidden or control characters"),
        (metadata(title="a \u2066fire\u2069"), "hidden or control characters"),
        (metadata(note="a\u2028b"), "hidden or control characters"),
        (metadata(title="two\nlines"), "control characters"),
        (metadata(licence="x" * 5000), "too long"),
        (metadata(concept="x" * 201), "too long"),
        (metadata(kind="allow"), "kind must be one of"),
        (metadata(method="magic"), "method must be one of"),
        (metadata(method="imported", encoder="tokens=6"), "not an encoder fingerprint"),
        (metadata(encoder=""), "no fingerprint"),
        (metadata(method="imported", encoder=""), "has a detector, but no fingerprint"),
        (metadata(encoder=str(fingerprint(tokens=5, pooled=6))), "the encoder's 5"),
        (metadata(encoder=str(fingerprint(tokens=6, pooled=6, t5=4))), "would stay unguarded"),
        (metadata(version="1.0"), "whole number"),
        (metadata(version="١"), "whole number"),
        (metadata(seed="9" * 5000), "'seed'"),
        (metadata(window="[0, 2]"), "window"),
        (metadata(window="[1, 0]"), "window"),
        (metadata(window="[0, 0.5]"), "where nothing is an offset"),
        (metadata(window="[0, NaN]"), "finite"),
        (metadata(window="{}"), "two numbers"),
        (metadata(window="[0"), "not JSON"),
        (metadata(calibration="[" * 4096), "'calibration' is not JSON"),
        (metadata(calibration="[" * 200_000), "'calibration' is not JSON"),
        (metadata(calibration='{"a":' * 100_000), "'calibration' is not JSON"),
        (metadata(calibration='{"a": 1e999}'), "finite numbers"),
        (metadata(calibration='{"a": NaN}'), "finite numbers"),
        (metadata(calibration='{"a": -Infinity}'), "finite numbers"),
        (metadata(calibration='{"a": true}'), "finite numbers"),
        (metadata(calibration='{"a": ' + "9" * 4000 + "}"), "finite numbers"),
        (metadata(calibration='{"a": ' + "9" * 100_000 + "}"), "calibration"),
        (metadata(calibration="[]"), "finite numbers"),
        (metadata(calibration='{"a": 1, "a": 2}'), "holds a key twice"),
        (metadata(calibration='{"\u202ea": 1}'), "hidden or control characters"),
        (metadata(curve="[1, 1e999]"), "finite numbers"),
        (metadata(curve="[" + "1," * 30_000 + "1]"), "at most 20000"),
        (metadata(terms="[]"), "must be an object of detector"),
        (metadata(terms="{}"), "unknown tensor"),
        (metadata(terms=TERMS), "one threshold a term"),
        (metadata(terms=TERMS.replace("detector", "witness")), "lacks the detector"),
        (metadata(terms=TERMS.replace("detector", "other")), "must be an object of detector"),
        (metadata(terms=TERMS.replace('"token"]', '"strongest"]')), "A readout is one of"),
        (metadata(terms=TERMS.replace('"tokens"', '"pooled"')), "that cannot be"),
        (metadata(terms=TERMS.replace('"tokens"', '"../x"')), "that cannot be"),
        (change(lambda h, _: reterm(h, "[0,2]", "[0,9]")), "two different terms"),
        (change(lambda h, _: reterm(h, "[0,2]", "[0,0]")), "two different terms"),
        (change(lambda h, _: reterm(h, "[[0,2],[1,2]]", "[[0,2]]")), "one sum a joint term"),
        (metadata(terms=TERMS.replace('"joint":[]', '"joint":[[0,true]]')), "two numbers of terms"),
        (metadata(terms=TERMS.replace('["tokens","token"]', ",".join(['["tokens","token"]'] * 65))), "at most 64"),
    ],
)
def test_what_cannot_be_trusted_is_refused(good: Path, damage: Callable[[Path], None], says: str) -> None:
    assert load_directions(good).concept == "fire"
    damage(good)
    assert says in refused(good)


def test_what_is_changed_without_the_checksum_is_refused(good: Path) -> None:
    header, body = parts(good)
    header["__metadata__"]["title"] = "Another title"
    written(good, header, body, seal=False)
    assert "checksum does not fit" in refused(good)
    good.write_bytes(good.read_bytes() + b"\0" * 8)
    assert "belong to no tensor" in refused(good)


def test_a_key_given_twice(good: Path) -> None:
    for old in (b'"__metadata__":', b'"title":', b'"rest.tokens":', b'"dtype":'):
        data = good.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        text = data[8 : 8 + size].rstrip()
        at = text.index(old)
        start = text[at:].index(b":") + at + 1
        depth, end = 0, start
        while end == start or depth:
            depth += {123: 1, 125: -1, 91: 1, 93: -1}.get(text[end], 0)
            end += 1
        value = text[start:end] if text[start : start + 1] == b"{" else b'"F32"'
        twice = text[:at] + old + value + b"," + text[at:]
        path = good.parent / "twice.safetensors"
        path.write_bytes(struct.pack("<Q", len(twice)) + twice + data[8 + size :])
        assert "holds a key twice" in refused(path)


def test_tensors_that_overlap_or_leave_holes(good: Path) -> None:
    for a, b in ((4, 4), (-4, 0), (0, 4), (0, -4)):
        header, body = parts(good)
        start, end = header["rest.tokens"]["data_offsets"]
        header["rest.tokens"]["data_offsets"] = [start + a, end + b]
        path = good.parent / "holes.safetensors"
        written(path, header, body)
        assert "does not fit the file" in refused(path) or "described wrongly" in refused(path)


@pytest.mark.parametrize("strength", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_accepted_gives_finite_numbers(good: Path, strength: float, dtype: torch.dtype) -> None:
    """The largest numbers that are accepted."""
    number("mover.tokens.displacement", 6e3)(good)
    number("rest.tokens", -6e3)(good)
    c = Conditioning(torch.randn(2, 154, 6).to(dtype) * 5, pooled=torch.randn(2, 6).to(dtype) * 5)
    for mode in ("project", "steer", "erase"):
        after, _ = SafeRegion([load_directions(good)], strength, mode).apply(c)
        assert bool(torch.isfinite(after.tokens).all() and torch.isfinite(after.pooled).all())


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

    monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in refused(good)


def test_an_oversized_file_is_not_read(good: Path) -> None:
    with open(good, "r+b") as file:
        file.truncate(files.LARGEST + 1)
    assert "at most" in refused(good)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, which this system has not")
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fire.safetensors"
    os.mkfifo(path)
    assert "no regular file" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no regular file" in refused(path)


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
        concepts(1, 6)[0].save(good)
    monkeypatch.undo()
    assert good.read_bytes() == old and os.listdir(good.parent) == [good.name]
    concepts(1, 6)[0].save(good)
    assert load_directions(good).concept == "c0" and os.listdir(good.parent) == [good.name]


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        concepts(1, 6)[0].save(tmp_path / "new" / "fire.safetensors")
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        concepts(1, 6)[0].save(tmp_path / "file" / "fire.safetensors")


@pytest.mark.parametrize(
    "values",
    [
        {"title": "two\nlines"},
        {"title": "\u202eerif"},
        {"licence": "x" * 5000},
        {"calibration": {"a": float("nan")}},
        {"curve": (1.0,) * 30_000},
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, values: dict) -> None:
    with pytest.raises(DirectionFileError):
        replace(made(), meta=Meta(**values)).save(tmp_path / "fire.safetensors")
    assert os.listdir(tmp_path) == []


def test_offsets_of_several_windows_are_not_written(tmp_path: Path) -> None:
    one, two = imported().movers["tokens"], imported(window=(0.0, 0.5)).movers["tokens"]
    both = Direction("x", None, None, {"a": one, "b": two}, meta=Meta(method="imported"))
    with pytest.raises(DirectionFileError, match="share one step window"):
        both.save(tmp_path / "fire.safetensors")


def test_views_are_written_by_value(tmp_path: Path) -> None:
    joined = torch.cat([torch.eye(4), torch.eye(4)], 1)
    d = Direction("fire", None, None, {"tokens": Offset(joined[0, :4], joined[0, 4:])}, meta=Meta(method="imported"))
    assert same_bits(load_directions(d.save(tmp_path / "x.safetensors")).movers["tokens"].a, joined[0, 4:])


def test_what_a_killed_run_left_is_cleared_after_an_hour(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".a.safetensors.0a0b.part", ".b.safetensors.0a0b.part", "c.part"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    made().save(tmp_path / "fire.safetensors")
    assert sorted(os.listdir(tmp_path)) == [new.name, "c.part", "fire.safetensors"]
    assert writing.ABANDONED == 3600


# -- version 1 -----------------------------------------------------------------------------------------------------


def version_one(path: Path, *, border: bool = True, drop: str = "", **values: str) -> Path:
    """A file as version 1 wrote it: tokens with a border by position, the mean of the tokens, and the sum of both."""
    from safetensors.torch import save_file

    gen = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for space, width, length in (("tokens", 6, 77), ("tokens_mean", 6, 1), ("pooled", 4, 1)):
        v = torch.randn(1, width, generator=gen)
        u = torch.randn(1, width, generator=gen)
        u = u + (1 - (v * u).sum()) * v / v.square().sum()
        mean, one = torch.randn(1, length, generator=gen), torch.ones(1, length)
        tensors |= {f"{space}.normal": v, f"{space}.shift": u, f"{space}.weight": torch.full((length,), 5.0)}
        if border:
            at = {"threshold": mean + 3 * one, "mean": mean, "deviation": one, "inner": mean.clone()}
            tensors |= {f"{space}.{k}": t for k, t in at.items()} | {f"{space}.spread": torch.ones(1)}
    if border:
        tensors["tokens_mean.together"] = torch.tensor([4.0])
    else:
        tensors = {k: t for k, t in tensors.items() if k.startswith("tokens.")}
    strings = {
        "format": "saferegion/1", "concept": "fire", "title": "Fire", "kind": "exclude", "version": "2", "family": "",
        "encoder": str(fingerprint(tokens=6, pooled=4)), "recipe": "ab", "method": "closed-form", "seed": "0",
        "window": "[0.0, 1.0]", "calibration": "{}", "licence": "MIT",
    } | values  # fmt: skip
    save_file({k: t for k, t in tensors.items() if k != drop}, path, metadata=strings)
    return path


def test_a_file_of_version_one_asks_what_it_asked(tmp_path: Path) -> None:
    path = version_one(tmp_path / "fire.safetensors")
    d = load_directions(path)
    assert (d.concept, d.method, d.meta.title, d.meta.version) == ("fire", "compiled", "Fire", 2)
    assert "converted from a file of version 1" in d.meta.note and "anew" in d.meta.note
    assert d.detector is not None
    assert {t.readout.reduce for t in d.detector.terms} == {"token", "mean", "pooled"} and len(d.detector.joint) == 1
    with safe_open(str(path), framework="pt") as file:
        old = {k: file.get_tensor(k) for k in file.keys()}
    gen = torch.Generator().manual_seed(1)
    x, p = torch.randn(300, 77, 6, generator=gen) * 0.8, torch.randn(300, 4, generator=gen) * 0.8

    def far(space: str, z: torch.Tensor) -> torch.Tensor:
        return (z - old[f"{space}.mean"]) / old[f"{space}.deviation"]

    words = far("tokens", x @ old["tokens.normal"][0]).amax(1)
    whole = far("tokens_mean", (x.mean(1) @ old["tokens_mean.normal"][0])[:, None])[:, 0]
    pooled = far("pooled", (p @ old["pooled.normal"][0])[:, None])[:, 0]
    scores = d.detector.scores(Conditioning(x, pooled=p))
    torch.testing.assert_close(scores[:, :3], torch.stack([pooled, words, whole], 1) - 3, rtol=1e-4, atol=1e-4)
    opened = (torch.stack([words, whole, pooled]) > 3).any(0) | (words + whole > 4) & (whole > 0)
    score = SafeRegion([d]).score(Conditioning(x, pooled=p))[:, 0]
    assert torch.equal(score > 0, opened)
    assert 30 < int((score > 0).sum()) < 290
    after, report = SafeRegion([d]).apply(Conditioning(x, pooled=p))
    assert report.moved and not report.unresolved and "version 1" in report.text()
    again = load_directions(d.save(tmp_path / "again.safetensors"))
    assert again.digest() == d.digest() and again.meta.note == d.meta.note


def test_a_vector_of_version_one_is_an_offset(tmp_path: Path) -> None:
    path = version_one(tmp_path / "v.safetensors", border=False, encoder="", method="imported", window="[0.4, 1.0]")
    d = load_directions(path)
    (mover,) = d.movers.values()
    assert isinstance(mover, Offset) and d.detector is None and d.window == (0.4, 1.0)
    with safe_open(str(path), framework="pt") as file:
        assert same_bits(mover.a, -file.get_tensor("tokens.shift")[0])
        assert same_bits(mover.b, file.get_tensor("tokens.weight"))


def test_borders_of_version_one_that_nothing_was_to_reach_still_count_in_sums(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = version_one(tmp_path / "fire.safetensors")
    tensors = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        strings = file.metadata()
    tensors["tokens.threshold"] = tensors["tokens.mean"] + 1e6
    save_file(tensors, path, metadata=strings)
    d = load_directions(path)
    assert d.detector is not None and float(d.detector.thresholds.max()) == 1000 and len(d.detector.joint) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"drop": "tokens.shift"}, "'tokens.shift' is missing"),
        ({"drop": "tokens.mean"}, "all or none"),
        ({"method": "magic"}, "method must be one of"),
        ({"encoder": ""}, "no fingerprint"),
        ({"method": "imported", "encoder": ""}, "no fingerprint"),
        ({"title": "a\u202eb"}, "hidden or control"),
        ({"window": "[0, 7]"}, "window"),
        ({"encoder": str(fingerprint(tokens=6, pooled=5))}, "pooled"),
    ],
)
def test_damaged_files_of_version_one(tmp_path: Path, values: dict, says: str) -> None:
    assert says in refused(version_one(tmp_path / "fire.safetensors", **values))
