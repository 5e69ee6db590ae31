"""``saferegion discover`` as a stranger meets it: what it writes, what stopping it leaves, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_discover import FRESH_BRING, NEUTRAL, World, encode, recipe

from saferegion import SafeRegion, load_directions
from saferegion.learn.recipes import recipe_text
from saferegion.view.curve import loss_curve
from saferegion_lab import cli
from saferegion_lab.cli import REFUSED, console
from saferegion_lab.cli import discover as discover_command

torch.set_num_threads(1)
STEPS = 12
QUICK = ("--steps", STEPS, "--sampling-steps", 4, "--batch-size", 64, "--guidance", 2)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe and neutral prompts of a world small enough to see through."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "fire.yaml").write_text(recipe_text(recipe(), "Fire"), encoding="utf-8")
    data = {"format": "saferegion-neutral/1", "name": "neutral", "version": 1, "licence": "MIT", "prompts": NEUTRAL}
    (folder / "neutral.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint 'microworld' is that world: discovery itself is tested on the real one elsewhere."""
    read = discover_command._read

    def reads(name: str, *rest: Any) -> Any:
        if name != discover_command.MICROWORLD or rest[0] != "cpu" or rest[2] is not None:
            return read(name, *rest)
        return discover_command._Model(encode, World(), "toy", (), rest[-1])

    monkeypatch.setattr(discover_command, "_read", reads)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "out", console.Console(width=200))
    monkeypatch.setattr(console, "err", console.Console(stderr=True, width=400))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saferegion", "discover", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        text = capsys.readouterr()
        return (0 if code is None else int(str(code))), text.out, text.err

    return run


@pytest.fixture
def command(inputs: Path, tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "out").mkdir()
    return (
        inputs / "fire.yaml", "--checkpoint", "microworld", "--neutral", inputs / "neutral.yaml", *QUICK, "--out",
        tmp_path / "out" / "fire.safetensors",
    )  # fmt: skip


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "out").iterdir())


def same(a: Path, b: Path) -> bool:
    one, other = load_directions(a), load_directions(b)
    mine, theirs = one.tensors(), other.tensors()
    alike = mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    return one.meta.curve == other.meta.curve and alike


def at_learning(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], None]) -> None:
    """Something happens when the loss of that step is told (0: while the model is being asked)."""
    tell, steps = discover_command._Bar.tell, []

    def told(bar: discover_command._Bar, stage: str, loss: float) -> None:
        tell(bar, stage, loss)
        if loss == loss:
            steps.append(loss)
        if (loss == loss and len(steps) == step) or (step == 0 and loss != loss):
            do()

    monkeypatch.setattr(discover_command._Bar, "tell", told)


def test_it_writes_directions_that_guard_and_a_plot_and_nothing_else(
    call: Call, command: tuple[object, ...], tmp_path: Path
) -> None:
    code, text, error = call(*command, "--plot", tmp_path / "out" / "loss.png", "--json")
    assert code == 0, error
    told = json.loads(text)
    assert told["method"] == "discovered" and len(told["curve"]) == STEPS and not told["stopped"]
    assert left(tmp_path) == ["fire.safetensors", "loss.png"]
    assert Image.open(tmp_path / "out" / "loss.png").size == (640, 360)
    found = load_directions(tmp_path / "out" / "fire.safetensors")
    guarded, report = SafeRegion([found]).apply(encode(FRESH_BRING))
    assert report.moved and torch.isfinite(guarded.tokens).all()


def test_a_killed_run_goes_on_to_the_same_result(
    call: Call, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*command)[0] == 0
    whole = (tmp_path / "out" / "fire.safetensors").rename(tmp_path / "whole.safetensors")

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        at_learning(patch, 2, kill)
        with pytest.raises(Killed):
            call(*command)
    (kept,) = left(tmp_path)
    assert kept.endswith(".resume")
    asked: list[str] = []
    tell = discover_command._Bar.tell
    monkeypatch.setattr(
        discover_command._Bar, "tell", lambda bar, stage, loss: (asked.append(stage), tell(bar, stage, loss))[1]
    )
    code, _, error = call(*command)
    assert code == 0, error
    assert "looking" not in asked
    assert left(tmp_path) == ["fire.safetensors"] and same(tmp_path / "out" / "fire.safetensors", whole)


def test_ctrl_c_while_it_learns_writes_the_best_so_far(
    call: Call, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_learning(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    code, text, _ = call(*command, "--json")
    assert code == discover_command.STOPPED and signal.getsignal(signal.SIGINT) is before
    told = json.loads(text)
    assert told["stopped"] and 1 <= len(told["curve"]) < STEPS
    assert left(tmp_path) == ["fire.safetensors"]
    assert len(load_directions(tmp_path / "out" / "fire.safetensors").meta.curve) == len(told["curve"])


def test_ctrl_c_before_it_learns_writes_nothing(
    call: Call, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_learning(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGINT))
    code, text, error = call(*command)
    assert code == discover_command.STOPPED and text == "" and "nothing half-written" in error
    assert left(tmp_path) == []


def refused(call: Call, tmp_path: Path, *words: object) -> str:
    code, text, error = call(*words)
    assert code == REFUSED and text == "" and error.count("\n") == 1, error
    assert left(tmp_path) == []
    return error


def test_bad_input_is_one_sentence_and_nothing_is_written(
    call: Call, inputs: Path, command: tuple[object, ...], tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    rest, out = command[3:-1], command[-1]
    assert "does not exist" in refused(call, tmp_path, command[0], "--checkpoint", tmp_path / "no", *rest, out)
    assert "no concept" in refused(call, tmp_path, "nope", *command[1:])
    assert ".safetensors" in refused(call, tmp_path, *command[:-1], tmp_path / "out" / "fire.pth")
    assert "no folder" in refused(call, tmp_path, *command[:-1], tmp_path / "nowhere" / "fire.safetensors")
    assert "64 pixels" in refused(call, tmp_path, *command, "--size", 128)
    assert "device" in refused(call, tmp_path, *command, "--device", "cuda:99")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    assert "broken.safetensors" in refused(call, tmp_path, command[0], "--checkpoint", broken, *rest, out)
    found = Path(shutil.copyfile(_direction(tmp_path), tmp_path / "made.safetensors"))
    assert "from its recipe" in refused(call, tmp_path, found, *command[1:])
    assert call(*command, "--steps", 0)[0] == 2


def test_a_model_that_returns_nan_or_lacks_the_concept_is_refused(
    call: Call, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = World.predict
    with monkeypatch.context() as patch:
        patch.setattr(World, "predict", lambda *a: predict(*a) * float("nan"))
        assert "NaN" in refused(call, tmp_path, *command)
    monkeypatch.setattr(World, "picture", lambda world, tokens: torch.zeros(len(tokens), 4, 8, 8))
    assert "does not show" in refused(call, tmp_path, *command)


def test_the_curve_is_drawn_for_any_losses() -> None:
    drawn = loss_curve([1.0, 0.5, float("nan"), 0.2], "loss")
    assert drawn.shape == (360, 640, 3) and drawn.dtype == np.uint8 and drawn.std() > 5
    for losses in ([], [0.0], [float("nan")], [1e-9, 2e-9], [-1.0, 3e6], [0.5] * 5000):
        assert loss_curve(losses).shape == (360, 640, 3)


def _direction(folder: Path) -> Path:
    from saferegion import compile

    return compile(recipe(), encode, NEUTRAL).save(folder / "compiled.safetensors")
