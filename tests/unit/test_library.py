from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import FakeEncoder, benign_prompts, fire, frost, made

import saferegion
from saferegion import (
    CompileSettings,
    Concept,
    Direction,
    Library,
    SafeRegionError,
    load_concept,
    load_directions,
)
from saferegion.core import file_format
from saferegion.core.errors import DirectionFileError, EncoderMismatchError, NotSeparableError, RecipeError
from saferegion.guard import failures, library, packs
from saferegion.learn.bundled import neutral_prompts

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
NEUTRAL_FILE = "format: saferegion-neutral/1\nprompts:\n" + "".join(f"- {p}\n" for p in benign_prompts(60, 1))


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
    made("c0").save(folder / "c0.safetensors")
    (folder / "README.md").touch()
    monkeypatch.setattr(library, "vectors_folder", lambda: folder)
    return folder


def test_concepts_by_name(bundled: Path, tmp_path: Path) -> None:
    recipe(tmp_path / "own", "blaze")
    own = Library((tmp_path / "own", tmp_path / "missing"))
    assert Library().names() == ["c0", "fire", "smoke"] and own.names() == ["c0", "fire", "smoke", "my/blaze"]
    assert load_concept("fire").name == "fire" and load_concept("smoke").name == "smoke"
    found = load_concept("c0")
    assert isinstance(found, Direction) and found.concept == "c0"
    assert own.find("my/blaze") == own.find("blaze") and own.find("blaze").name == "blaze"


@pytest.mark.parametrize("kind", ["recipe", "file"])
def test_names_of_bundled_concepts_are_reserved(bundled: Path, tmp_path: Path, kind: str) -> None:
    """A recipe of a few pairs, or a file, in the user's folder never stands in for the bundled concept."""
    own = Library((tmp_path / "own",))
    path = recipe(tmp_path / "own", "fire", "fire.yml")
    path.write_text(RECIPE.format(name="fire").replace("title: fire", "title: My fire"))
    if kind == "file":
        path.unlink()
        made("fire").save(tmp_path / "own" / "fire.safetensors")
    assert own.names() == ["c0", "fire", "smoke", "my/fire"]
    assert own.find("fire") == load_concept("fire")
    mine = own.find("my/fire")
    assert mine.title == "My fire" if isinstance(mine, Concept) else mine.concept == "fire"


def test_neutral_prompts_of_the_user_calibrate_own_concepts_alone(bundled: Path, tmp_path: Path) -> None:
    (bundled / "neutral.yaml").unlink()
    recipe(tmp_path / "own", "blaze")
    (tmp_path / "own" / "neutral.yaml").write_text(NEUTRAL_FILE)
    own = Library((tmp_path / "own",))
    assert own.names() == ["c0", "fire", "smoke", "my/blaze"] and len(own.neutral()) == 60
    assert own._benign(own.find("fire"), None) == neutral_prompts()
    assert own._benign(own.find("my/blaze"), None) == own.neutral()
    assert own._benign(fire(), None) == own.neutral() and own._benign(fire(), ["x"]) == ("x",)
    for name in ("neutral", "my/neutral", "hard-neutral"):
        with pytest.raises(RecipeError, match="There is no concept"):
            own.find(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, which this system has not")
@pytest.mark.parametrize("suffix", [".yaml", ".safetensors"])
def test_a_pipe_or_a_device_in_the_users_folder_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    own = Library((tmp_path,))
    os.mkfifo(tmp_path / f"fire{suffix}")
    (tmp_path / f"water{suffix}").symlink_to("/dev/zero")
    for name in ("my/fire", "my/water"):
        with pytest.raises(SafeRegionError, match="no regular file"):
            own.find(name)
    (tmp_path / f"fi\u202ere{suffix}").touch()
    assert own.names()[-2:] == ["my/fire", "my/water"] and not [c for c in own.recipes() if c.name == "fire"]


def test_concepts_by_path(bundled: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "own", "fire", "other name.yaml")
    assert load_concept(path).name == load_concept(str(path)).name == "fire"
    assert load_concept(bundled / "c0.safetensors").concept == "c0"
    with pytest.raises(RecipeError, match="none.yaml cannot be read"):
        load_concept(tmp_path / "none.yaml")
    with pytest.raises(DirectionFileError, match="none.safetensors cannot be read"):
        load_concept(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "fir",
        "",
        "neutral",
        "../vectors/fire",
        "/etc/passwd",
        "fire\0",
        "my/",
        "my/fire",
        "my/../fire",
        "my/my/fire",
        ".",
    ],
)
def test_an_unknown_name_lists_the_names(bundled: Path, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_concept(name)
    assert "c0, fire, smoke" in str(caught.value) and "or give a file" in str(caught.value)


def test_a_file_called_otherwise_than_its_concept(bundled: Path) -> None:
    recipe(bundled, "fire", "water.yaml")
    with pytest.raises(RecipeError, match="'name' must be 'water'"):
        load_concept("water")


# -- the cache -----------------------------------------------------------------------------------------------------


def equal(a: Direction, b: Direction) -> bool:
    return a.meta.recipe == b.meta.recipe and a.digest() == b.digest()


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
    assert encoder.prompts - asked == 10 + seen[-1][1] and seen[-1][1] < len(NEUTRAL) + 1 + 72 + 17


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
    assert Library(cache=tmp_path).directions([fire()], FakeEncoder(), NEUTRAL)[0].detector
    assert "No space left on device" in warned(caplog)
    assert os.listdir(tmp_path) == []


def test_what_the_file_cannot_hold_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family = CompileSettings(family="two\nlines")
    found = Library(cache=tmp_path).directions([fire()], FakeEncoder(), NEUTRAL, settings=family)
    assert found[0].meta.family == "two\nlines" and "control characters" in warned(caplog)


def with_border(d: Direction, value: float) -> bytes:
    """The file with borders that switch the concept off, and the checksum that it has then."""
    tensors = d.tensors()
    for name in ("detector.thresholds", "detector.sums"):
        if name in tensors:
            tensors[name] = torch.full_like(tensors[name], value)
    return file_format.to_bytes(d.metadata(), tensors)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "text", "bit", "border", "far"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    lib = Library(cache=tmp_path)
    known = lib.directions([fire()], FakeEncoder(), NEUTRAL)[0]
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-2] ^= 1
    damaged = {
        "truncated": data[:-9],
        "empty": b"",
        "other": b"\xff" * 200,
        "text": b"fire" * 99,
        "bit": bytes(flipped),
        "border": with_border(known, 1e9),
        "far": with_border(known, 999.0),
    }
    path.write_bytes(damaged[damage])
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
print(found[0].concept, found[0].meta.recipe)
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


def test_what_differs_in_words_for_people_alone_is_read_with_the_new_words(tmp_path: Path) -> None:
    lib = Library(cache=tmp_path)
    lib.directions([fire()], FakeEncoder(), NEUTRAL)
    encoder = FakeEncoder()
    renamed = Concept.from_pairs("on fire", fire().pairs, fire().neutral, title="Flames", licence="MIT")
    found = lib.directions([renamed], encoder, NEUTRAL)[0]
    assert (found.title, found.meta.licence, encoder.prompts) == ("Flames", "MIT", 5)


def test_settings_that_change_the_fit_have_files_of_their_own(tmp_path: Path) -> None:
    lib = Library(cache=tmp_path)
    for settings, files in ((CompileSettings(batch_size=7, family="x"), 1), (CompileSettings(pairs=30), 2)):
        lib.directions([fire()], FakeEncoder(), NEUTRAL, settings=settings)
        assert len(os.listdir(tmp_path)) == files
    encoder = FakeEncoder()
    lib.directions([fire()], encoder, NEUTRAL)
    assert encoder.prompts == 5


def test_two_names_for_the_same_pairs_are_two_concepts(tmp_path: Path) -> None:
    blaze = Concept.from_pairs("blaze", fire().pairs, fire().neutral)
    found = Library(cache=tmp_path).directions([fire(), blaze, fire()], FakeEncoder(), NEUTRAL)
    assert [d.concept for d in found] == ["on-fire", "blaze", "on-fire"] and found[0] is found[2]


# -- what does not compile -----------------------------------------------------------------------------------------


def nothing() -> Concept:
    """Pairs that stand both ways round, so that nothing tells them apart."""
    a, b = benign_prompts(20, 3), benign_prompts(20, 4)
    return Concept.from_pairs("nothing", [*zip(a, b, strict=True), *zip(b, a, strict=True)])


def test_what_does_not_separate_is_remembered_on_disk(tmp_path: Path) -> None:
    said = []
    for _ in range(2):
        encoder = FakeEncoder()
        with pytest.raises(NotSeparableError, match="'nothing' does not separate") as caught:
            Library(cache=tmp_path).directions([fire(), nothing()], encoder, NEUTRAL)
        said.append((str(caught.value), encoder.prompts > 5))
    assert said[0][0] == said[1][0] and [asked for _, asked in said] == [True, False]
    assert os.listdir(tmp_path) == [failures.FILE]
    for encoder, neutral, settings in (
        (FakeEncoder(seed=1), NEUTRAL, None),
        (FakeEncoder(), NEUTRAL[1:], None),
        (FakeEncoder(), NEUTRAL, CompileSettings(pairs=30)),
    ):
        with pytest.raises(NotSeparableError):
            Library(cache=tmp_path).directions([nothing()], encoder, neutral, settings=settings)
        assert encoder.prompts > 5, "another encoder, other prompts or settings are tried"
    assert len(failures.read_failures(tmp_path)) == 4


def test_a_damaged_memory_of_failures_costs_a_warning_and_a_compilation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotSeparableError):
        Library(cache=tmp_path).directions([nothing()], FakeEncoder(), NEUTRAL)
    path = tmp_path / failures.FILE
    path.write_bytes(path.read_bytes().replace(b'"method":', b'"methos":'))
    encoder = FakeEncoder()
    with pytest.raises(NotSeparableError):
        Library(cache=tmp_path).directions([nothing()], encoder, NEUTRAL)
    assert encoder.prompts > 5 and "failed.json" in warned(caplog)
    assert len(failures.read_failures(tmp_path)) == 1


def test_failures_do_not_pile_up(tmp_path: Path) -> None:
    encoder = saferegion.Fingerprint.of(FakeEncoder())
    for i in range(4):
        failures.remember(tmp_path, failures.Failure(encoder, f"r{i}", "why", method=i))
    assert [f.recipe for f in failures.read_failures(tmp_path)] == ["r3"], "those of other fits are forgotten"
    assert failures.MOST == 1000


# -- vector packs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["user", "cache"])
def test_a_pack_is_looked_up_before_anything_is_compiled(tmp_path: Path, where: str) -> None:
    made_ = Library(cache=tmp_path / "elsewhere").directions([fire(), frost()], FakeEncoder(), NEUTRAL)
    folder = tmp_path / where
    packs.build(folder / packs.FOLDER / "one", made_, name="One")
    lib, encoder = Library((tmp_path / "user",), tmp_path / "cache"), FakeEncoder()
    found = lib.directions([frost(), fire()], encoder, NEUTRAL)
    assert encoder.prompts == 5 and equal(found[1], made_[0]) and equal(found[0], made_[1])
    other = FakeEncoder(seed=1)
    assert not equal(lib.directions([fire()], other, NEUTRAL)[0], made_[0]) and other.prompts > 5


@pytest.mark.parametrize("damage", ["index", "file"])
def test_a_damaged_pack_costs_a_warning_and_a_compilation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    known = Library(cache=tmp_path / "elsewhere").directions([fire()], FakeEncoder(), NEUTRAL)
    folder = tmp_path / "cache" / packs.FOLDER / "one"
    pack = packs.build(folder, known, name="One")
    path = folder / (packs.INDEX if damage == "index" else pack.entries[0].file)
    data = bytearray(path.read_bytes())
    data[-9] ^= 2
    path.write_bytes(data)
    encoder = FakeEncoder()
    found = Library(cache=tmp_path / "cache").directions([fire()], encoder, NEUTRAL)
    assert encoder.prompts > 5 and equal(found[0], known[0]) and "pack" in warned(caplog)


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
