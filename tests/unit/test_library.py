from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeEncoder, benign_prompts, concepts, fire, frost, same_bits

import saferegion
from saferegion import ConceptDirections, Library, SafeRegionError, load_concept, load_directions
from saferegion.core.errors import DirectionFileError, EncoderMismatchError, RecipeError
from saferegion.guard import library

RECIPE = """\
format: saferegion-recipe/1
name: {name}
title: {name}
kind: exclude
version: 1
licence: CC0-1.0
pairs:
  - {{unsafe: a burning house, safe: a quiet house}}
  - {{unsafe: a burning car, safe: a parked car}}
  - {{unsafe: a blazing tree, safe: a green tree}}
  - {{unsafe: a flaming boat, safe: a blue boat}}
"""
NEUTRAL = benign_prompts(40)


def recipe(folder: Path, name: str, file: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / (file or f"{name}.yaml")
    path.write_text(RECIPE.format(name=name))
    return path


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "vectors"
    recipe(folder, "fire")
    recipe(folder, "smoke", "smoke.yml")
    recipe(folder, "neutral")
    recipe(folder, "hidden", ".hidden.yaml")
    concepts(1, 6)[0][0].save(folder / "c0.safetensors")
    (folder / "README.md").touch()
    monkeypatch.setattr(library, "vectors_folder", lambda: folder)
    return folder


def test_concepts_by_name(bundled: Path, tmp_path: Path) -> None:
    recipe(tmp_path / "own", "blaze")
    own = Library((tmp_path / "own", tmp_path / "missing"))
    assert Library().names() == ["c0", "fire", "smoke"] and own.names() == ["blaze", "c0", "fire", "smoke"]
    assert load_concept("fire").name == "fire" and load_concept("smoke").name == "smoke"
    found = load_concept("c0")
    assert isinstance(found, ConceptDirections) and found.concept == "c0"
    assert own.find("blaze").name == "blaze"


def test_own_folders_come_first(bundled: Path, tmp_path: Path) -> None:
    recipe(tmp_path / "own", "fire").write_text(RECIPE.format(name="fire").replace("title: fire", "title: My fire"))
    assert Library((tmp_path / "own",)).find("fire").title == "My fire" and load_concept("fire").title == "fire"


def test_concepts_by_path(bundled: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "own", "fire", "other name.yaml")
    assert load_concept(path).name == load_concept(str(path)).name == "fire"
    assert load_concept(bundled / "c0.safetensors").concept == "c0"
    with pytest.raises(RecipeError, match="none.yaml cannot be read"):
        load_concept(tmp_path / "none.yaml")
    with pytest.raises(DirectionFileError, match="none.safetensors cannot be read"):
        load_concept(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["fir", "", "neutral", "../vectors/fire", "/etc/passwd", "fire\0"])
def test_an_unknown_name_lists_the_names(bundled: Path, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_concept(name)
    assert "c0, fire, smoke" in str(caught.value) and "or give a file" in str(caught.value)


def test_a_file_called_otherwise_than_its_concept(bundled: Path) -> None:
    recipe(bundled, "fire", "water.yaml")
    with pytest.raises(RecipeError, match="'name' must be 'water'"):
        load_concept("water")


# -- the cache -----------------------------------------------------------------------------------------------------


def equal(a: ConceptDirections, b: ConceptDirections) -> bool:
    return a.recipe == b.recipe and all(
        same_bits(t, b.spaces[n].tensors()[k]) for n, d in a.spaces.items() for k, t in d.tensors().items()
    )


def test_a_second_time_is_read_and_not_compiled(tmp_path: Path) -> None:
    lib, encoder = Library(cache=tmp_path / "cache"), FakeEncoder()
    first = lib.directions([fire()], encoder, NEUTRAL)[0]
    asked = encoder.prompts
    assert asked > 100 and len(os.listdir(tmp_path / "cache")) == 1
    again = lib.directions([fire()], encoder, NEUTRAL)[0]
    assert encoder.prompts == asked + 5, "only the fingerprint's prompts"
    assert equal(first, again) and str(again.encoder) == str(first.encoder)


def test_what_changed_is_compiled_again(tmp_path: Path) -> None:
    lib = Library(cache=tmp_path)
    known = lib.directions([fire()], FakeEncoder(), NEUTRAL)[0]
    for encoder, neutral, concept in (
        (FakeEncoder(seed=1), NEUTRAL, fire()),
        (FakeEncoder(), NEUTRAL[1:], fire()),
        (FakeEncoder(), NEUTRAL, fire(35)),
    ):
        found = lib.directions([concept], encoder, neutral)[0]
        assert not equal(found, known) and encoder.prompts > 100
    assert len(os.listdir(tmp_path)) == 4
    for encoder, neutral, concept in ((FakeEncoder(), NEUTRAL, fire()), (FakeEncoder(seed=1), NEUTRAL, fire())):
        lib.directions([concept], encoder, neutral)
        assert encoder.prompts == 5


def test_only_what_is_missing_is_compiled_and_the_order_is_kept(bundled: Path, tmp_path: Path) -> None:
    lib, encoder = Library(cache=tmp_path / "cache"), FakeEncoder()
    ready = lib.directions([fire()], encoder, NEUTRAL)[0]
    asked, seen = encoder.prompts, []
    found = lib.directions([frost(), ready, fire(), "fire"], encoder, NEUTRAL, lambda *at: seen.append(at))
    assert [d.concept for d in found] == ["frost", "on-fire", "on-fire", "fire"]
    assert found[1] is ready and equal(found[2], ready)
    assert encoder.prompts - asked == 10 + seen[-1][1] == 10 + len(NEUTRAL) + 1 + 72 + 16


def test_directions_of_another_encoder_are_refused(tmp_path: Path) -> None:
    ready = Library(cache=tmp_path).directions([fire()], FakeEncoder(seed=1), NEUTRAL)[0]
    with pytest.raises(EncoderMismatchError, match="'on-fire' is made for another text encoder"):
        Library(cache=tmp_path).directions([ready], FakeEncoder(), NEUTRAL)


def test_nothing_is_kept_of_what_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(SafeRegionError):
        Library(cache=tmp_path / "cache").directions(["missing"], FakeEncoder(), NEUTRAL)
    with pytest.raises(SafeRegionError):
        Library(cache=tmp_path / "cache").directions([fire()], FakeEncoder(), NEUTRAL[:3])
    assert not (tmp_path / "cache").exists()


def warned(caplog: pytest.LogCaptureFixture) -> str:
    assert {r.levelno for r in caplog.records} == {logging.WARNING}
    return " ".join(r.getMessage() for r in caplog.records)


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    found = Library(cache=tmp_path / "file" / "cache").directions([fire()], FakeEncoder(), NEUTRAL)
    assert found[0].concept == "on-fire"
    assert "cannot be kept" in warned(caplog) and library.CACHE_VARIABLE in warned(caplog)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    assert Library(cache=tmp_path).directions([fire()], FakeEncoder(), NEUTRAL)[0].calibrated
    assert "No space left on device" in warned(caplog)
    assert os.listdir(tmp_path) == []


def test_what_the_file_cannot_hold_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Library(cache=tmp_path).directions([fire()], FakeEncoder(), NEUTRAL, family="two\nlines")
    assert found[0].family == "two\nlines" and "control characters" in warned(caplog)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "text"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    lib = Library(cache=tmp_path)
    known = lib.directions([fire()], FakeEncoder(), NEUTRAL)[0]
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-9], "empty": b"", "other": b"\xff" * 200, "text": b"fire" * 99}[damage])
    encoder = FakeEncoder()
    assert equal(lib.directions([fire()], encoder, NEUTRAL)[0], known) and encoder.prompts > 100
    assert path.name in warned(caplog)
    assert equal(load_directions(path), known) and list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_recipe_under_this_name_is_not_used(tmp_path: Path) -> None:
    lib = Library(cache=tmp_path)
    lib.directions([fire()], FakeEncoder(), NEUTRAL)
    (path,) = tmp_path.iterdir()
    other = Library(cache=tmp_path / "other").directions([frost()], FakeEncoder(), NEUTRAL)[0]
    other.save(path)
    encoder = FakeEncoder()
    assert lib.directions([fire()], encoder, NEUTRAL)[0].concept == "on-fire" and encoder.prompts > 100


PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from fakes import FakeEncoder, benign_prompts, fire
from saferegion import Library
found = Library(cache=Path(sys.argv[1])).directions([fire()], FakeEncoder(), benign_prompts(40))
print(found[0].concept, found[0].recipe)
"""


def test_two_processes_that_compile_the_same(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(saferegion.__file__).parent.parent)]
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), *folders]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    done = [p.communicate(timeout=300) for p in running]
    assert [p.returncode for p in running] == [0, 0], done
    assert done[0][0] == done[1][0] == f"on-fire {fire().digest(NEUTRAL)}\n"
    (path,) = (tmp_path / "cache").iterdir()
    assert load_directions(path).concept == "on-fire"


# -- where things lie ----------------------------------------------------------------------------------------------


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (library.CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert library.cache_folder() == Path.home() / ".cache" / "safe-region" / "directions"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / "safe-region" / "directions"
    monkeypatch.setenv(library.CACHE_VARIABLE, str(tmp_path / "own"))
    assert library.cache_folder() == tmp_path / "own"
    Library().directions([fire()], FakeEncoder(), NEUTRAL)
    assert len(list((tmp_path / "own").glob("on-fire-*.safetensors"))) == 1
