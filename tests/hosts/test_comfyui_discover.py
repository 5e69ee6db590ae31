"""Discover Direction in ComfyUI's own executor, on the microworld: a whole run, and one that the user interrupts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_servers import Host

from saferegion import load_directions
from saferegion.learn.recipes import read_recipe, recipe_text
from saferegion_lab.microworld import DATA

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def seen(
    comfyui_host: Host, comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What was seen, from a recipe of few pairs; see comfyui_discover.py."""
    recipe = read_recipe(DATA / "fire.yaml")
    concepts = comfyui_folder / "models" / "safe_region"
    path = concepts / "few.yaml"
    path.write_text(recipe_text(replace(recipe, name="few", pairs=recipe.pairs[::6])), encoding="utf-8")
    cache = tmp_path_factory.mktemp("directions")
    printed = comfyui_host.run(HERE / "comfyui_discover.py", comfyui_folder, path.name, SAFE_REGION_CACHE=cache)
    found = dict(json.loads(printed.splitlines()[-1]))
    found["made"] = [load_directions(p) for p in sorted(concepts.glob("made/*.safetensors"))]
    yield found
    for made in (path, *concepts.glob("made/*")):
        made.unlink()


def test_it_learns_inside_the_hosts_inference_mode(seen: dict[str, Any]) -> None:
    whole = seen["whole"]
    assert whole["status"] == "execution_success", whole.get("said")
    assert whole["names"] == ["few", "few-discovered"] and whole["losses"] == 3
    assert whole["gradients"] == 0
    assert whole["told"] > 100


def test_curve_and_preview_are_pictures(seen: dict[str, Any]) -> None:
    whole = seen["whole"]
    assert whole["curve"] == [1, 360, 640, 3]
    count, height, width, channels = whole["preview"]
    assert (count, height, channels) == (1, 2 * 64 + 8, 3) and width >= 2 * 64 + 8
    low, high = whole["preview range"]
    assert 0 <= low < high <= 1


def test_what_was_discovered_is_saved_and_guards(seen: dict[str, Any]) -> None:
    discovered, by_word = seen["made"]
    assert (discovered.method, by_word.method) == ("discovered", "compiled")
    assert discovered.encoder.matches(by_word.encoder)
    assert seen["whole"]["finite"] and seen["whole"]["guarded"] > 0.01


def test_interrupt_while_it_learns_stops_the_queue_and_leaves_nothing(seen: dict[str, Any]) -> None:
    stopped = seen["interrupted"]
    assert stopped["status"] == "execution_interrupted"
    assert stopped["learned"] == 1 and stopped["same files"]
    assert seen["whole"]["files"] == ["few-discovered.safetensors", "few.safetensors"]
