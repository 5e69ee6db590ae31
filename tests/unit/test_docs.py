"""README and docs: short, no dead link, and what they tell to type is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from fakes import FakeEncoder

from saferegion_lab.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_the_readme_is_read_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{target} of {page.name}"
        if anchor:
            assert anchor in _anchors(found), f"{target}{anchor} of {page.name}"


def test_every_page_of_the_docs_is_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text)["nav"]

    def names(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry if isinstance(entry, list) else list(entry.values())  # type: ignore[attr-defined]
        return [name for part in parts for name in names(part)]

    assert sorted(names(nav)) == sorted(str(p.relative_to(ROOT / "docs")) for p in PAGES[1:])


def test_the_snippet_of_the_readme_runs() -> None:
    encode = FakeEncoder()
    (snippet,) = _blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {"encode": encode, "conditioning": encode(["a quiet house in a valley"])}
    assert 'load_concept("nudity")' in snippet  # the encoder of the tests knows fire
    recipe = ROOT / "saferegion_lab" / "microworld" / "data" / "fire.yaml"
    try:
        exec(snippet.replace('"nudity"', repr(str(recipe))), names)
    except Exception as error:
        assert "separate" in str(error) or "tell" in str(error), error


def _command(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for block in _blocks(page, "sh")
        for part in re.split(r"\n|&&", block)
        if (line := part.strip()).startswith("saferegion ")
    }
    | {
        text
        for page in PAGES
        for text in re.findall(r"`(saferegion [^`\n…]+)`", page.read_text(encoding="utf-8"))
        if not text.endswith("…")
    }
)


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_in_the_docs_is_understood(text: str) -> None:
    command, words = _command(shlex.split(text)[1:])
    assert not (hasattr(command, "commands") and words), f"no such command: {text}"
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"{word} in: {text}"
