from __future__ import annotations

import io
import os
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import half_spaces, made, same_bits

from saferegion import (
    Conditioning,
    Direction,
    Meta,
    Offset,
    SafeRegion,
    SafeRegionError,
    import_paper_vector,
    load_directions,
)
from saferegion.core.errors import DirectionFileError
from saferegion.learn.paper_vector import LARGEST, export_paper_vector

B = torch.linspace(-1, 2, 77).reshape(1, 77, 1)
A = torch.randn(1, 1, 768, generator=torch.Generator().manual_seed(0)) / 20


def write(path: Path, data: object) -> Path:
    torch.save(data, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(DirectionFileError) as caught:
        import_paper_vector(path, "nudity")
    text = str(caught.value)
    assert path.name in text and text.endswith(".") and "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_steering_is_the_papers_formula(tmp_path: Path, strength: float, kind: type) -> None:
    found = import_paper_vector(write(tmp_path / "nudity.pth", kind(b=B, a=A)), "nudity", title="Nudity", licence="MIT")
    assert (found.method, found.window, found.encoder, found.title) == ("imported", (0.4, 1.0), None, "Nudity")
    c = torch.randn(2, 154, 768, generator=torch.Generator().manual_seed(1))
    out, report = SafeRegion([found], strength, mode="steer").apply(Conditioning(c))
    torch.testing.assert_close(out.tokens, c + strength * (B * A).repeat(1, 2, 1), rtol=1e-6, atol=1e-6)
    assert report.moved


def test_a_module_prefix_and_half_precision(tmp_path: Path) -> None:
    path = write(tmp_path / "v.pth", {"module.b": torch.nn.Parameter(B), "module.a": A.half()})
    d = import_paper_vector(path, "nudity").movers["tokens"]
    assert isinstance(d, Offset) and same_bits(d.a, A.half().float()[0, 0]) and same_bits(d.b, B.flatten())


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3])
def test_any_length_of_vector(tmp_path: Path, size: float) -> None:
    path = write(tmp_path / "v.pth", {"b": B, "a": size * A / A.norm()})
    found = import_paper_vector(path, "nudity")
    assert float(found.movers["tokens"].a.norm()) == pytest.approx(size, rel=1e-5)
    assert load_directions(found.save(tmp_path / "v.safetensors")).digest() == found.digest()


def test_kept_as_a_direction_file_and_exported_again(tmp_path: Path) -> None:
    found = import_paper_vector(write(tmp_path / "v.pth", {"b": B, "a": A}), "nudity")
    read = load_directions(found.save(tmp_path / "v.safetensors"))
    assert read.encoder is None and read.window == (0.4, 1.0) and read.detector is None
    path = export_paper_vector(read, tmp_path / "again.pth")
    data = torch.load(path, weights_only=True)
    assert same_bits(data["a"], A) and same_bits(data["b"], B)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trap = tmp_path / "v.pth", tmp_path / "trapped"
    torch.save({"b": B, "a": A, "x": Trap(trap)}, path, _use_new_zipfile_serialization=zipped)
    assert "was not read" in refused(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"b": B}, "it holds 'b'"),
        ({}, "it holds nothing"),
        ({"b": B, "a\x1b[0m\n": A}, "must hold the two tensors"),
        ([B, A], "must hold the two tensors"),
        (A, "must hold the two tensors"),
        ({"b": B, "a": 1.0}, "must hold the two tensors"),
        ({"b": A, "a": B}, "b must be [1, tokens, 1] and a [1, 1, width]"),
        ({"b": B[0], "a": A}, "[77, 1]"),
        ({"b": B.repeat(2, 1, 1), "a": A}, "[2, 77, 1]"),
        ({"b": B, "a": A.repeat(1, 2, 1)}, "[1, 2, 768]"),
        ({"b": B[:, :0], "a": A}, "[1, 0, 1]"),
        ({"b": B, "a": torch.ones(1).expand(1, 1, 2**40)}, "a [1, 1, width]"),
        ({"b": B.long(), "a": A}, "floating"),
        ({"b": B, "a": A.to(torch.complex64)}, "floating"),
        ({"b": B, "a": A.to_sparse()}, "floating"),
        ({"b": B, "a": A.to("meta")}, "meta tensors"),
        ({"b": B.to("meta"), "a": A}, "meta tensors"),
        ({"b": B, "a": A * 0}, "nothing but zeros"),
        ({"b": B, "a": A * 1e-30}, "nothing but zeros"),
        ({"b": B * float("nan"), "a": A}, "NaN"),
        ({"b": B, "a": A / 0}, "infinity"),
        ({"b": B * 1e3, "a": A * 1e3}, "larger than tokens can be"),
        ({"b": B * 1e30, "a": A * 1e30}, "larger than tokens can be"),
    ],
)
def test_what_is_no_such_vector_is_refused(tmp_path: Path, data: object, says: str) -> None:
    assert says in refused(write(tmp_path / "v.pth", data))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.pth"
    assert "cannot be read" in refused(path)
    for content in (b"", b"PK\x03\x04", b"\x80\x04N.", b"text", os.urandom(64)):
        path.write_bytes(content)
        refused(path)
    with open(path, "r+b") as file:
        file.truncate(LARGEST + 1)
    assert "a few thousand" in refused(path)
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    refused(folder)


def test_a_zip_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v/data.pkl", b"\x80\x02}.")
        with archive.open("v/data/0", "w", force_zip64=True) as part:
            for _ in range(80):
                part.write(bytes(2**20))
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was inflated"))
    assert "when unpacked" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v/data/0", bytes(2**25))
    assert "packed too tightly" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(1001):
            archive.writestr(f"v/{i}", b"")
    assert "when unpacked" in refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, which this system has not")
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "v.pth"
    os.mkfifo(path)
    assert "no regular file" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no regular file" in refused(path)


def test_half_spaces_are_exported_as_what_steering_takes_off(tmp_path: Path) -> None:
    d = made(period=77)
    data = torch.load(export_paper_vector(d, tmp_path / "v.pth"), weights_only=True)
    assert data["b"].shape == (1, 77, 1) and same_bits(data["a"][0, 0], -d.movers["tokens"].displacement[0])


def test_what_this_format_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    many = torch.eye(3, 6)
    d = made()
    two = replace(d, movers={"tokens": half_spaces(many)})
    clip = Direction("x", None, None, {"clip": Offset(torch.ones(1), torch.ones(4))}, meta=Meta(method="imported"))
    for wrong in (two, clip):
        with pytest.raises(SafeRegionError, match="holds only that"):
            export_paper_vector(wrong, tmp_path / "v.pth")
    assert os.listdir(tmp_path) == []


def test_damaged_bytes_end_in_a_sentence(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"b": B, "a": A}, buffer)
    data = buffer.getvalue()
    gen = torch.Generator().manual_seed(0)
    for _ in range(100):
        broken = bytearray(data)
        for at in torch.randint(len(data), (3,), generator=gen).tolist():
            broken[at] ^= 1 << int(torch.randint(8, (1,), generator=gen))
        path = tmp_path / "v.pth"
        path.write_bytes(broken)
        try:
            found = import_paper_vector(path, "nudity")
        except DirectionFileError as error:
            assert "\n" not in str(error)
        else:
            assert all(bool(torch.isfinite(t).all()) for t in found.tensors().values())
