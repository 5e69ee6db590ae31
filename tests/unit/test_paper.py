from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from fakes import same_bits

from saferegion import Conditioning, SafeRegion, import_paper_vector, load_directions
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
    d = import_paper_vector(path, "nudity").spaces["tokens"]
    assert same_bits(d.shift, -A.half().float()[0]) and same_bits(d.weight, B.flatten())


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_any_length_of_vector(tmp_path: Path, size: float) -> None:
    path = write(tmp_path / "v.pth", {"b": B, "a": size * A / A.norm()})
    d = import_paper_vector(path, "nudity").spaces["tokens"]
    assert float((d.normal.double() * d.shift.double()).sum()) == pytest.approx(1, abs=1e-5)


def test_kept_as_a_direction_file_and_exported_again(tmp_path: Path) -> None:
    found = import_paper_vector(write(tmp_path / "v.pth", {"b": B, "a": A}), "nudity")
    read = load_directions(found.save(tmp_path / "v.safetensors"))
    assert read.encoder is None and read.window == (0.4, 1.0) and not read.calibrated
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
        ({"b": B, "a": A * 0}, "nothing but zeros"),
        ({"b": B, "a": A * 1e-30}, "nothing but zeros"),
        ({"b": B * float("nan"), "a": A}, "NaN"),
        ({"b": B, "a": A / 0}, "infinity"),
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
