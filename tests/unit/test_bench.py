"""The benchmarks run, their figures are JSON, and their tables name every guard and encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from saferegion_lab.bench import microworld, speed, wilson
from saferegion_lab.microworld.prompts import SETS


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_REGION_CACHE", str(tmp_path_factory.mktemp("cache")))
        return microworld.run(pictures=8, steps=2)


def test_every_guard_is_measured_on_every_set(result) -> None:
    assert json.loads(json.dumps(result)) and result["machine"]["cpu"]
    cells = {(r["guard"], r["set"]) for r in result["rows"]}
    names = {g for g, _ in cells}
    assert {"none", "negative prompt", "project", "erase"} <= names
    assert cells == {(g, s) for g in names for s in SETS}


def test_without_a_guard_nothing_changes_and_project_leaves_benign_prompts(result) -> None:
    rows = {(r["guard"], r["set"]): r for r in result["rows"]}
    assert all(rows["none", s]["identical"] == 1 and rows["none", s]["drift"] == 0 for s in SETS)
    assert rows["project", "benign"]["kept"] == 1 and rows["project", "benign"]["identical"] == 1
    assert rows["project", "explicit"]["kept"] == 0
    assert rows["erase", "benign"]["identical"] < 1


def test_tables_are_drawn(result, tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=open(tmp_path / "out.txt", "w"))
    for table in microworld.tables(result):
        console.print(table)
    text = console.export_text()
    assert "volcano" in text and "project" in text and "negative prompt" in text


def test_each_concepts_own_guard_is_measured_on_every_kind_of_prompt(result) -> None:
    rows = {(r["concept"], r["kind"]): r for r in result["kinds"]}
    assert set(rows) == {(c, k.name) for c, kinds in microworld.KINDS.items() for k in kinds}
    for concept in microworld.KINDS:
        for kind in ("recipe words", "plain nouns, recipe", "tag lists, recipe"):
            assert rows[concept, kind]["moved"] > 0.5 and rows[concept, kind]["unresolved"] == 0
        assert rows[concept, "benign"]["moved"] == 0 and rows[concept, "benign"]["drift"] == 0


def test_one_apply_with_nothing_open_stays_within_its_calls() -> None:
    assert speed.calls()["python"] <= 60


def test_the_first_use_reads_few_prompts() -> None:
    found = speed.rows()
    assert found["all_exclude"] <= 4000 and found["most"] <= 1500


@pytest.mark.parametrize("hits", [0, 3, 10])
def test_the_interval_holds_the_share(hits: int) -> None:
    low, high = wilson(hits, 10)
    assert 0 <= low <= hits / 10 <= high <= 1
    assert high - low < 0.65
