from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeEncoder, benign_prompts, fire, frost
from typer.testing import CliRunner

from saferegion import Concept, Direction, Library, read_recipe
from saferegion.learn.recipes import recipe_text
from saferegion_lab import cli
from saferegion_lab.check import check

NEUTRAL = benign_prompts(120)


def strings(prompt: str) -> list[str]:
    return ["<begin>", *prompt.split()] + [""] * 80


def test_a_recipe_that_works_finds_its_own_and_spares_the_rest(on_fire: Direction) -> None:
    found = check(fire(), on_fire, FakeEncoder(), NEUTRAL, [frost()], strings)
    assert found.found > 0.9 and found.spared == 1 and found.neutral_inside >= 0.95 and found.own_inside == 1
    assert {w for w, _ in found.words[:3]} == {"burning", "blazing", "flaming"} and found.words[0][1] > 0
    assert found.faint == () and len(found.caught) <= 2 and found.nearest[0][0] == "frost"
    assert found.calibration["area"] > 0.9 and any("tokens" in t for t in found.terms)


def test_pairs_without_a_contrast_and_prompts_without_the_concept_are_named(on_fire: Direction) -> None:
    odd = Concept.from_pairs("odd", [("a quiet house", "a quiet castle"), ("a burning house", "a burning car")])
    found = check(odd, on_fire, FakeEncoder(), NEUTRAL)
    assert {pair[:2] for pair in found.faint} == set(odd.pairs)
    assert [p for p, _ in found.missed] == ["a quiet house"] and [p for p, _ in found.caught][:1] == ["a burning car"]
    assert found.found == 0.5 and found.spared == 0.5 and found.own_inside is None and found.words == ()


def test_a_recipe_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "on-fire.yaml"
    path.write_text(recipe_text(fire(), "Fire: all of it"), encoding="utf-8")
    back = read_recipe(path)
    assert back.pairs == fire().pairs and back.neutral == fire().neutral and back.title == "Fire: all of it"


def test_recipes_of_a_library_leave_out_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe_text(Concept.from_words("mine", ["fire"])))
    (tmp_path / "broken.yaml").write_text("format: [")
    (tmp_path / "other.safetensors").write_bytes(b"x" * 40)
    names = [c.name for c in Library((tmp_path,)).recipes()]
    assert "mine" in names and "nudity" in names and not {"broken", "other"} & set(names)


def test_a_recipe_from_a_few_words_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "storm.yaml"
    done = CliRunner().invoke(cli.app, ["concepts", "new", str(path), "--avoid", "storm", "--instead", "calm"])
    assert done.exit_code == 0 and read_recipe(path).pairs[1] == ("a photo, storm", "a photo, calm")
    before = path.read_bytes()
    again = CliRunner().invoke(cli.app, ["concepts", "new", str(path), "--avoid", "rain"])
    assert "is there already" in str(again.exception) and path.read_bytes() == before
    other = CliRunner().invoke(cli.app, ["concepts", "new", str(tmp_path / "My Storm.yaml"), "--avoid", "rain"])
    assert "my-storm.yaml" in str(other.exception)


def test_checking_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path))
    done = CliRunner().invoke(cli.app, ["concepts", "check", "lightning", "-e", "microworld", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["concept"] == "lightning" and found["found"] > 0.8 and found["words"]


def test_an_axis_to_balance_is_measured_from_its_unsafe_side(on_fire: Direction) -> None:
    axis = replace(on_fire, meta=replace(on_fire.meta, kind="balance"))
    assert check(fire(), axis, FakeEncoder(), NEUTRAL).found == check(fire(), on_fire, FakeEncoder(), NEUTRAL).found
