"""Files that were damaged or made to harm: none of them crashes, hangs, or gives numbers that are none."""

from __future__ import annotations

import json
import math
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, imported, made

from saferegion import Conditioning, Direction, Fingerprint, Meta, SafeRegion, SafeRegionError
from saferegion.core import file_format
from saferegion.guard import failures, packs
from saferegion.guard.files import direction_of

FLIPS = 1500
"""Bit flips of each of the four kinds of file, spread over it; each bit in the long run."""
HOSTILE = 600
"""Hostile files; 10,000 in the long run."""


def small() -> Direction:
    return replace(made(readouts=("token", "pair", "mean"), joint=[(0, 2)], witness=True), meta=Meta(recipe="ab"))


def index(folder: Path) -> bytes:
    packs.build(folder, [small()], name="One", licence="MIT")
    return (folder / packs.INDEX).read_bytes()


def memory(folder: Path) -> bytes:
    encoder = Fingerprint.of(FakeEncoder())
    for i in range(3):
        failures.remember(folder, failures.Failure(encoder, f"recipe{i}", "It does not separate."))
    return (folder / failures.FILE).read_bytes()


def flips(data: bytes, most: int) -> Iterator[bytes]:
    """``data`` with one bit flipped: each, or ``most`` that are spread over it."""
    every = 8 * len(data)
    step = max(1, every // most) if most else 1
    for bit in range(0, every, step):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def accepted(read: Callable[[bytes], object], data: bytes) -> bool:
    try:
        read(data)
    except SafeRegionError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False
    return True


def test_no_flipped_bit_of_any_file_loads(tmp_path: Path) -> None:
    """Every kind of file that is written: a direction, a vector alone, the index of a pack, what did not compile."""
    kinds: list[tuple[bytes, Callable[[bytes], object]]] = [
        (small().to_bytes(), checked),
        (imported(period=3).to_bytes(), checked),
        (index(tmp_path / "pack"), lambda data: read_index(tmp_path / "pack", data)),
        (memory(tmp_path), lambda data: read_memory(tmp_path, data)),
    ]
    tried = 0
    for data, read in kinds:
        assert accepted(read, data)
        for changed in flips(data, FLIPS):
            assert not accepted(read, changed)
            tried += 1
    assert tried >= 5000


def checked(data: bytes) -> object:
    return direction_of(data, "fire.safetensors")


def read_index(folder: Path, data: bytes) -> object:
    (folder / packs.INDEX).write_bytes(data)
    return packs.read(folder)


def read_memory(folder: Path, data: bytes) -> object:
    (folder / failures.FILE).write_bytes(data)
    return failures.read_failures(folder)


# -- files that are made to harm -------------------------------------------------------------------------------------

VALUES = (
    0.0,
    -0.0,
    1e-45,
    1e-20,
    1.0,
    -1.0,
    999.0,
    1e3,
    1e6,
    65504.0,
    1e12,
    1e30,
    3.4e38,
    math.inf,
    -math.inf,
    math.nan,
)
TEXTS = (
    "", "x", "fire\0", "\u202eerif", "\ud800", "a" * 5000, "[" * 3000, "{}", "[]", "null", "1e999", "NaN", "[0, 1]",
    "[0, 1e-320]", '{"a": 1, "a": 2}', '{"detector": {"terms": [], "joint": []}}',
    '{"detector": {"terms": [["tokens", "mean"]], "joint": []}}',
    "exclude", "balance", "imported", "discovered", "compiled", "saferegion/1", "saferegion/2", "saferegion/9",
    "fp1:tokens=6:" + "A" * 86 + "==", "fp1:tokens=99999999999:AAAA", "9" * 30, "-1",
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One hostile file, mostly with a checksum that fits, so that what lies behind it is asked."""
    kind = rng.randrange(8)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        return bytes(broken)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if kind == 2:
        return struct.pack("<Q", rng.choice([0, 1, size - 1, size + 8, 2**20, 2**31, 2**63, 2**64 - 1])) + data[8:]
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice([n for n in header if n != "__metadata__"])
        strings = header["__metadata__"]
        if kind in (3, 4):  # numbers
            start, end = header[name]["data_offsets"]
            value = struct.pack("<f", rng.choice(VALUES) * rng.choice([1, 1, rng.random()]))
            at = range(start, end, 4) if rng.random() < 0.5 else [start + 4 * rng.randrange((end - start) // 4)]
            for i in at:
                body[i : i + 4] = value
        elif kind == 5:  # strings
            key = rng.choice(sorted(strings))
            if rng.random() < 0.2:
                strings.pop(key)
            else:
                strings[key] = rng.choice(TEXTS) if rng.random() < 0.9 else rng.choice([5, None, [], {}])
        elif kind == 6:  # descriptions of tensors
            entry = header[name]
            field = rng.choice(["shape", "data_offsets", "dtype", "extra"])
            odd = [[], [0], [1, -1], [2**62, 4], [True], [1.5], "x", None, [[1]], [0, 4], [4, 0], "F16", "BOOL", {}]
            if field == "shape" and rng.random() < 0.5:
                entry["shape"] = entry["shape"][::-1]
            else:
                entry[field] = rng.choice(odd)
        elif len(header) > 3:  # names
            other = rng.choice([n for n in header if n != "__metadata__"])
            choice = rng.randrange(3)
            if choice == 0:
                header[name], header[other] = header[other], header[name]
            elif choice == 1:
                header[rng.choice(["x", "rest.x", "mover.tokens.b", "given.thresholds", "\u202e", "a" * 300])] = (
                    header.pop(name)
                )
            else:
                header.pop(name)
    if isinstance(header["__metadata__"].get("checksum"), str):
        header["__metadata__"]["checksum"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    made_ = struct.pack("<Q", len(text)) + text + bytes(body)
    try:
        return file_format.seal(made_)
    except SafeRegionError:
        return made_


def hostile(count: int) -> None:
    seeds = [
        small(),
        made(period=77, pooled=True, readouts=("token", "mean")),
        imported(period=5),
        replace(small(), concept="axis", meta=Meta(kind="balance")),
    ]
    files = [d.to_bytes() for d in seeds]
    gen = torch.Generator().manual_seed(0)
    x, p = torch.randn(2, 5, 6, generator=gen) * 3, torch.randn(2, 6, generator=gen) * 3
    taken = refused = 0
    for seed in range(count):
        rng = random.Random(seed)
        data = mutate(files[rng.randrange(len(files))], rng)
        start = time.monotonic()
        try:
            found = direction_of(data, "fire.safetensors")
        except SafeRegionError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            refused += 1
            continue
        finally:
            assert time.monotonic() - start < 30, seed
        taken += 1
        pooled = p if "pooled" in found.movers else None
        for dtype in (torch.float32, torch.float16):
            c = Conditioning(x.to(dtype), pooled=None if pooled is None else pooled.to(dtype))
            for mode in ("project", "steer", "erase"):
                try:
                    region = SafeRegion([found], 1.0, mode)
                    after, report = region.apply(c)
                    plain = region.project(c.tokens)
                except SafeRegionError:
                    continue
                report.text()
                json.dumps(report.to_dict(), allow_nan=False)
                tensors = [after.tokens, plain, *([] if after.pooled is None else [after.pooled])]
                assert all(bool(torch.isfinite(t).all()) for t in tensors), (seed, mode, dtype)
    assert taken > count / 100 and refused > count / 3


def test_hostile_files() -> None:
    hostile(HOSTILE)


@pytest.mark.slow
def test_ten_thousand_hostile_files_and_every_bit() -> None:
    hostile(10_000)
    for d in (small(), imported(period=3)):
        data = d.to_bytes()
        assert not [c for c in flips(data, 0) if accepted(checked, c)]
