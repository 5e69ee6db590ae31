"""Guard CLIP in ComfyUI: a prompt in disguise is painted as its plain text would be, guarded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host_servers import Host

HERE = Path(__file__).parent
UNDONE = "found after undoing: spaced letters"


@pytest.fixture(scope="module")
def seen(comfyui_host: Host, comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("directions")
    printed = comfyui_host.run(HERE / "comfyui_disguise.py", comfyui_folder, SAFE_REGION_CACHE=cache)
    return dict(json.loads(printed.splitlines()[-1]))


def test_a_prompt_in_disguise_is_painted_as_its_plain_text(seen: dict[str, Any]) -> None:
    assert seen["as plain"] and not seen["unguarded changed"]
    assert seen["weighted"]
    assert UNDONE in seen["told"]["spaced"] and UNDONE in seen["inspected"]


def test_only_a_disguise_costs_an_encoder_pass(seen: dict[str, Any]) -> None:
    assert seen["passes"] == {"plain": 1, "spaced": 2, "benign": 1, "long": 2, "long plain": 1}
    assert seen["benign"]
    assert "undoing" not in seen["told"]["plain"]


def test_clones_and_a_second_guard_see_it_too_and_the_clip_given_stays(seen: dict[str, Any]) -> None:
    assert seen["clone"] and seen["twice"]
    assert not seen["given"]


def test_a_prompt_of_several_chunks_keeps_its_rows(seen: dict[str, Any]) -> None:
    assert seen["rows"]["long"] == seen["rows"]["long plain"]
    assert seen["rows"]["long"][1] > seen["rows"]["spaced"][1]
