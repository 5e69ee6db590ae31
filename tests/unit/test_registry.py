"""What the registry of ComfyUI is given: the pack without its laboratory, an icon, a version that goes up."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

import saferegion

PROJECT = Path(__file__).resolve().parents[2]
MOST = 3 * 2**20
"""Bytes of the pack."""
EVERY = ("nodes", "saferegion", "vectors", "web", "locales", "example_workflows")


def git(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no checkout: {done.stderr.strip()}")
    return done.stdout.splitlines()


def shipped(folder: Path = PROJECT) -> list[str]:
    """Files of the pack: those of the checkout that `.comfyignore` does not name, by git's own rules."""
    left = set(git(folder, "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return [name for name in git(folder, "ls-files", "--cached") if name not in left and (folder / name).is_file()]


def unreleased(folder: Path, version: str) -> str:
    """What is wrong where the pack has changed since the tag of its version; nothing where there is no such tag."""
    if not git(folder, "tag", "--list", f"v{version}"):
        return ""
    files = set(shipped(folder))
    changed = [name for name in git(folder, "diff", "--name-only", f"v{version}") if name in files]
    return f"{changed[0]} has changed since version {version}: raise the version." if changed else ""


def test_the_pack_is_small_and_whole() -> None:
    names = shipped()
    size = sum((PROJECT / name).stat().st_size for name in names)
    print(f"{len(names)} files, {size / 2**20:.2f} MB")
    assert size <= MOST
    assert {name.split("/")[0] for name in names if "/" in name} == set(EVERY)
    assert {n for n in git(PROJECT, "ls-files", "--cached", *EVERY) if (PROJECT / n).is_file()} <= set(names)
    assert {"__init__.py", "install.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= set(names)


def test_no_file_of_the_pack_needs_one_that_is_left_out() -> None:
    for name in shipped():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((PROJECT / name).read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not [m for m in modules if m.split(".")[0] in ("saferegion_lab", "saferegion_webui", "tests")], name


@pytest.mark.parametrize(("name", "size"), [("icon", (400, 400)), ("banner", (1260, 540))])
def test_the_pictures_of_the_entry_are_of_the_registrys_sizes(name: str, size: tuple[int, int]) -> None:
    path = PROJECT / "docs" / f"{name}.svg"
    drawn = ElementTree.parse(path).getroot()
    assert (int(drawn.attrib["width"]), int(drawn.attrib["height"])) == size
    assert drawn.attrib["viewBox"] == f"0 0 {size[0]} {size[1]}"
    entry = (PROJECT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.comfy]")[1]
    assert f'{name.capitalize()} = "docs/{name}.svg"' in entry


def test_the_version_is_the_newest_of_the_changelog_and_goes_up() -> None:
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    told = [tuple(map(int, v.split("."))) for v in re.findall(r"^## (\d+\.\d+\.\d+)$", text, re.M)]
    assert told == sorted(set(told), reverse=True)
    assert saferegion.__version__ == ".".join(map(str, told[0]))
    assert unreleased(PROJECT, saferegion.__version__) == ""


def test_a_pack_that_changed_after_its_version_was_released_is_told(tmp_path: Path) -> None:
    def commit(text: str) -> None:
        (tmp_path / "nodes.py").write_text(text, encoding="utf-8")
        (tmp_path / "tests.py").write_text(text, encoding="utf-8")
        git(tmp_path, "add", ".")
        git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")

    git(tmp_path, "init", "-q")
    (tmp_path / ".comfyignore").write_text("/tests.py\n", encoding="utf-8")
    commit("1")
    git(tmp_path, "tag", "v1.0.0")
    assert unreleased(tmp_path, "1.0.0") == ""
    (tmp_path / "tests.py").write_text("2", encoding="utf-8")
    assert unreleased(tmp_path, "1.0.0") == ""
    commit("2")
    assert unreleased(tmp_path, "1.0.0") == "nodes.py has changed since version 1.0.0: raise the version."
    assert unreleased(tmp_path, "1.0.1") == ""
