from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saferegion import Concept, Library, SafeRegionError
from saferegion.core.errors import RecipeError
from saferegion.learn.recipes import LONGEST, MOST_PAIRS, read_neutral, read_recipe
from saferegion.learn.yaml_text import LARGEST

GOOD = """\
format: saferegion-recipe/1
name: on-fire
title: On fire
kind: exclude
version: 2
licence: CC0-1.0
description: Things that burn.
templates: ["{}", "a photo of {}"]
pairs:
  - {unsafe: a burning house, safe: a quiet house}
  - {unsafe: a burning car, safe: a parked car}
  - {unsafe: a blazing tree, safe: a green tree}
  - {unsafe: "  a flaming boat ", safe: a blue boat}
neutral: [a fireplace at a hotel, a fire truck]
"""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, read=read_recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        read(path)
    text = str(caught.value)
    assert isinstance(caught.value, SafeRegionError)
    assert path.name in text and text.endswith(".") and "\n" not in text and len(text) < 500
    return text


def test_a_recipe(tmp_path: Path) -> None:
    c = read_recipe(write(tmp_path / "on-fire.yaml", GOOD))
    assert (c.name, c.title, c.kind, c.version, c.licence) == ("on-fire", "On fire", "exclude", 2, "CC0-1.0")
    assert len(c.pairs) == 8 and ("a photo of a flaming boat", "a photo of a blue boat") in c.pairs
    assert c.neutral == ("a fireplace at a hotel", "a fire truck")


def test_a_title_in_a_block_is_one_line(tmp_path: Path) -> None:
    folded = GOOD.replace("title: On fire", "title: >\n  On\n  fire")
    assert read_recipe(write(tmp_path / "a.yaml", folded)).title == "On fire"
    two = GOOD.replace("title: On fire", "title: |\n  On\n  fire")
    assert "'title' must be one line" in refused(write(tmp_path / "b.yaml", two))


KEYS = ("format", "name", "title", "kind", "version", "licence")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        *((line + "\n", "", "") for line in GOOD.splitlines() if line.startswith(KEYS)),
        ("title: On fire\n", "", "the key 'title' is missing"),
        ("format: saferegion-recipe/1", "format: saferegion-recipe/9", "is not a recipe"),
        ("name: on-fire", "name: On Fire", "'name' must be"),
        ("name: on-fire", "name: ../../fire", "'name' must be"),
        ("name: on-fire", "name: 5", "'name' must be"),
        ("name: on-fire", "name: " + "a" * 65, "'name' must be"),
        ("title: On fire", "title: [On fire]", "'title' must be text"),
        ("title: On fire", "title: 2020-01-01", "'title' must be text"),
        ("title: On fire", "title: 2020-13-41", "not valid YAML"),
        ("kind: exclude", "kind: allow", "kind must be one of exclude, balance"),
        ("kind: exclude", "kind: yes", "'kind' must be text"),
        ("version: 2", "version: two", "'version' must be a whole number"),
        ("version: 2", "version: 0", "'version' must be"),
        ("version: 2", "version: true", "'version' must be"),
        ("version: 2", "version: 1.5", "'version' must be"),
        ("version: 2", "version: 2\nversion: 3", "a key is given twice"),
        ("version: 2", "version: 2\nweight: 3", "unknown key 'weight'"),
        ("version: 2", "version: 2\n7: 3", "unknown key '7'"),
        ("version: 2", "version: 2\n? [a, b]\n: 3", "not valid YAML"),
        ('"{}", ', '"no place", ', "exactly once"),
        ('"{}", ', '"{} and {}", ', "exactly once"),
        ('["{}", "a photo of {}"]', "[]", "'templates' must be a list"),
        ('["{}", "a photo of {}"]', "'{}'", "'templates' must be a list"),
        ("safe: a quiet house", "safe: A  BURNING house", "has no contrast"),
        ("safe: a quiet house", "safe: ''", "not empty"),
        ("safe: a quiet house", "safe: 5", "put quotes around it"),
        ("safe: a quiet house", "safe: no", "put quotes around it"),
        ("safe: a quiet house", "safe: " + "x" * (LONGEST + 1), "at most 4000 characters"),
        (", safe: a quiet house", "", "exactly the keys"),
        ("safe: a quiet house", "safe: a quiet house, other: b", "exactly the keys"),
        ("safe: a quiet house", "safe: a quiet house, safe: a quiet house", "given twice"),
        ("  - {unsafe: a burning car, safe: a parked car}\n", "", "at least 4 pairs"),
        ("[a fireplace at a hotel, a fire truck]", "[]", "'neutral' must be a list"),
        ("[a fireplace at a hotel, a fire truck]", "a fire truck", "'neutral' must be a list"),
        ("a fire truck]", "null]", "must be text"),
        ("a fire truck]", '"\\ud800"]', ""),
        ("description: Things that burn.", "description: !!python/object/apply:os.mkdir [trap]", "not valid YAML"),
        ("description: Things that burn.", "description: !!python/name:os.system", "not valid YAML"),
        ("description: Things that burn.", "description: &a text\ntitle2: *a", "aliases"),
        ("description: Things that burn.", "<<: &a {x: y}", "unknown key"),
        ("description: Things that burn.", "description: [", "not valid YAML"),
        ("description: Things that burn.", "description: \x07", "not valid YAML"),
        ("description: Things that burn.", "---\nformat: x", "not valid YAML"),
    ],
)
def test_a_bad_recipe_says_what_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert GOOD.count(old) >= 1
    assert says in refused(write(tmp_path / "bad.yaml", GOOD.replace(old, new, 1)))
    assert os.listdir(tmp_path) == ["bad.yaml"]


def test_empty_lists_and_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    head = GOOD[: GOOD.index("pairs:")]
    for pairs in ("pairs: []", "pairs: {}", "pairs:", "pairs: text", "pairs: [[a, b], [c, d], [e, f], [g, h]]"):
        refused(write(path, head + pairs))
    for text in ("", "text", "[1, 2]", "5", "null", "# nothing", "\x00"):
        refused(write(path, text))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    assert "not UTF-8 text (byte" in refused(write(tmp_path / "bad.yaml", GOOD.encode() + b"# caf\xe9\n"))
    assert "not UTF-8" in refused(write(tmp_path / "bad.yaml", GOOD.encode("utf-16")))


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert "aliases (line 2)" in refused(write(tmp_path / "bad.yaml", "\n".join(rows)))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", GOOD)
    with open(path, "r+b") as file:
        file.truncate(LARGEST + 1)
    assert "at most 4 MB" in refused(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in refused(tmp_path / "folder.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, which this system has not")
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fire.yaml"
    os.mkfifo(path)
    assert "no regular file" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no regular file" in refused(path)
    assert "no regular file" in refused(path, read_neutral)


def test_templates_times_pairs_are_bounded(tmp_path: Path) -> None:
    templates = ", ".join(f'"{{}} {i}"' for i in range(300))
    pairs = "".join(f"  - {{unsafe: a burning house {i}, safe: a quiet house {i}}}\n" for i in range(100))
    text = GOOD[: GOOD.index("templates")] + f"templates: [{templates}]\npairs:\n" + pairs
    said = refused(write(tmp_path / "bad.yaml", text))
    assert "300 templates times 100 pairs are 30,000 pairs" in said and f"at most {MOST_PAIRS:,}" in said


@pytest.mark.parametrize("hidden", ["\u202e", "\u2066", "\u200b", "\u2028", "\x85", "\ufeff"])
def test_hidden_characters_in_what_people_read(hidden: str) -> None:
    with pytest.raises(RecipeError, match="without control or hidden characters"):
        Concept.from_pairs("fire", [("a", "b")], title=f"Fire{hidden}!")
    with pytest.raises(RecipeError, match="without control or hidden characters"):
        Concept.from_pairs("fire", [("a", "b")], licence=f"MIT{hidden}!")
    assert Concept.from_pairs("fire", [("a", "b")], title="\u0622\u062a\u0634\u200c\u0647\u0627").title


@pytest.mark.parametrize("deep", ["[", "{a: ", "- ", "? ", "- - "])
def test_deep_nesting_ends_in_a_sentence_and_not_in_a_crash(tmp_path: Path, deep: str) -> None:
    refused(write(tmp_path / "bad.yaml", deep * 20_000))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    refused(write(tmp_path_factory.mktemp("r") / "bad.yaml", data))


@given(st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`?, \n\t01~"), max_size=80))
def test_no_yaml_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    refused(write(tmp_path_factory.mktemp("r") / "bad.yaml", GOOD.replace("Things that burn.", text) + text + "\n- x"))


def test_the_shared_neutral_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "neutral.yaml", "format: saferegion-neutral/1\nprompts: [a cat, a dog]\n")
    assert read_neutral(path) == ("a cat", "a dog")
    assert "no neutral prompts" in refused(write(path, GOOD), read_neutral)
    assert "'prompts' is missing" in refused(write(path, "format: saferegion-neutral/1\n"), read_neutral)
    assert "'prompts' must be a list" in refused(
        write(path, "format: saferegion-neutral/1\nprompts: a cat\n"), read_neutral
    )


# -- concepts made in code -----------------------------------------------------------------------------------------


def test_a_concept_from_pairs() -> None:
    c = Concept.from_pairs("On  Fire!", [("a burning house ", "a house"), ["b", "c"]], neutral=["a lamp"])
    assert c.name == "on-fire" and c.title == "On  Fire!"
    assert c.pairs == (("a burning house", "a house"), ("b", "c")) and c.neutral == ("a lamp",)
    assert Concept.from_pairs("x" * 99, [("a", "b")]).name == "x" * 64


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Concept.from_pairs("fire", []), "at least one pair"),
        (lambda: Concept.from_pairs("!?", [("a", "b")]), "needs a letter or a digit"),
        (lambda: Concept.from_pairs("fire", [("a", "b", "c")]), "a pair is (unsafe, safe)"),
        (lambda: Concept.from_pairs("fire", ["ab"]), "a pair is (unsafe, safe)"),
        (lambda: Concept.from_pairs("fire", [("a", "A ")]), "no contrast"),
        (lambda: Concept.from_pairs("fire", [("a", "")]), "not empty"),
        (lambda: Concept.from_pairs("fire", [("a", 5)]), "must be text"),
        (lambda: Concept.from_pairs("fire", [("a", "b\ud800")]), "half a character"),
        (lambda: Concept.from_pairs("fire", [("a", "b")], kind="both"), "kind must be"),
        (lambda: Concept.from_pairs("fire", [("a", "b")], title="two\nlines"), "one line"),
        (lambda: Concept("../fire", (("a", "b"),)), "lower-case letters, digits and dashes"),
    ],
)
def test_a_concept_that_describes_nothing_is_refused(build, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build()
    assert says in str(caught.value)


def test_the_digest_tells_whether_to_compile_again() -> None:
    c = Concept.from_pairs("fire", [("a", "b"), ("c", "d")], neutral=["e"])
    same = Concept.from_pairs("blaze", [("a", "b"), ("c", "d")], neutral=["e"], title="Blaze", licence="MIT")
    assert len(c.digest()) == 64 and c.digest(["n"]) == same.digest(["n"])
    others = [
        c.digest(),
        c.digest(["n", "m"]),
        Concept.from_pairs("fire", [("c", "d"), ("a", "b")], neutral=["e"]).digest(["n"]),
        Concept.from_pairs("fire", [("a", "b"), ("c", "d")]).digest(["n"]),
        Concept.from_pairs("fire", [("a", "b"), ("c", "d")], neutral=["e"], kind="balance").digest(["n"]),
    ]
    assert len({c.digest(["n"]), *others}) == 6


PLAIN = set("a an the of in on with and at to by from is his her s man woman people photo portrait painting".split())
STYLE = {"trending", "artstation"}
"""Of what artists put behind every prompt."""


def test_no_recipe_repeats_a_prompt_that_measures() -> None:
    """No five words in a row of a benchmark's prompts, four of them telling, stand in a recipe."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "prompts"
    if not folder.is_dir():
        pytest.skip("no benchmark prompts lie beside the project")

    def fives(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z]+", text.lower())
        found = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        return {g for g in found if len(set(g) - PLAIN) > 3 and not STYLE & set(g)}

    measured = {g for path in folder.glob("*.csv") for text in _prompts_of(path) for g in fives(text)}
    assert len(measured) > 10_000
    for concept in Library().recipes():
        written = [*(t for pair in concept.pairs for t in pair), *concept.neutral, *concept.words]
        found = {g for text in written for g in fives(text)} & measured
        assert not found, (concept.name, found)


def _prompts_of(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [r[k] for r in csv.DictReader(file) for k in ("prompt", "unsafe", "safe") if r.get(k)]
