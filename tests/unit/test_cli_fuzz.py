"""Whatever one types: an exit code, one sentence, and never a traceback."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from saferegion_lab.cli import app, console, main

COUNT = 500
LONG = {"bench", "demo", "discover"}
"""Commands that would work for minutes if they were given all they need; they are asked with a wrong word or less."""


def _commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = [(path, command)]
    for name, sub in getattr(command, "commands", {}).items():
        found += _commands(sub, (*path, name))
    return found


def _values(folder: Path) -> list[str]:
    (folder / "empty.yaml").touch()
    (folder / "text.yaml").write_text("a: [1, 2\n", encoding="utf-8")
    (folder / "bytes.safetensors").write_bytes(bytes(range(256)))
    (folder / "short.safetensors").write_bytes(b"\xff" * 8)
    (folder / "list.txt").write_text("\n\n\0x\n", encoding="utf-8")
    (folder / "pickle.ckpt").write_bytes(b"\x80\x04N.")
    (folder / "folder").mkdir()
    names = [str(p) for p in folder.iterdir()]
    return [
        *names, str(folder / "absent"), str(folder / "absent" / "deep.yaml"), "/proc/self/mem", "/dev/null",
        "", " ", "-", "--", "..", "fire", "nudity", "my/fire", "neutral", "no such", "microworld2", "a" * 5000, "\x00",
        "\x1b[31m",
        "ünï", "😀", "-1", "0", "1e309", "nan", "inf", "99999999999999999999", "[red]", "%s", "{}", "cpu", "cuda:7",
        "gpu",
        "meta",
        "../../etc/passwd", "C:\\x", "strict", "project",
    ]  # fmt: skip


def _invocation(rng: random.Random, commands: list[tuple[tuple[str, ...], Any]], values: list[str]) -> list[str]:
    path, command = rng.choice(commands)
    words = list(path)
    for parameter in command.params:
        if parameter.name == "help" or (parameter.param_type_name == "option" and rng.random() < 0.5):
            continue
        if parameter.param_type_name == "option":
            words.append(rng.choice(parameter.opts))
            if parameter.is_flag:
                continue
        words.append(rng.choice(values))
    if not path or path[0] in LONG or rng.random() < 0.2:
        words.insert(rng.randint(len(path), len(words)), rng.choice(("--nonsense", "-Z", *values)))
    if path and path[0] in LONG:
        words.append("--nonsense")
    return [w.replace("\0", "") for w in words]  # no shell hands on a zero byte


@pytest.mark.parametrize("part", range(5))
def test_no_traceback_whatever_is_typed(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    values = _values(tmp_path)
    monkeypatch.chdir(work)
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "out", console.Console(width=200))
    monkeypatch.setattr(console, "err", console.Console(stderr=True, width=400))
    commands = _commands(typer.main.get_command(app))
    rng = random.Random(part)
    for _ in range(COUNT // 5):
        words = _invocation(rng, commands, values)
        monkeypatch.setattr(sys, "argv", ["saferegion", *words])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            pytest.fail(f"{words}: {type(error).__name__}: {error}")
        text = capsys.readouterr()
        assert code in (None, 0, 1, 2, 3), (words, code)
        assert "Traceback" not in text.err, words
        if code in (1, 3):
            assert text.err.strip() or text.out.strip(), f"{words} says nothing"
