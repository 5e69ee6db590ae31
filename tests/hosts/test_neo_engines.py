"""Every engine of Forge Neo, of its own class with a small text encoder: what its diffusion model gets is guarded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import webui_tables
from host_servers import Host

SCRIPT = Path(__file__).with_name("neo_engines.py")
CLIP = ("Stable Diffusion 1", "SDXL", "SDXL refiner")
READS_BACK = ("Lumina", "Z-Image", "Klein", "Qwen-Image", *CLIP)
"""What reads a prompt from its beginning on, so that a word changes no row before its own."""
TEMPLATED = {"Z-Image": 3, "Klein": 3, "Lumina": 1}
"""Rows of the template in front of every prompt, at least."""
ENGINES = (*CLIP, "Flux", "Chroma", "Wan", "Lumina", "Z-Image", "Klein", "Qwen-Image", "Anima")


@pytest.fixture(scope="module")
def found(family_host: Host) -> dict[str, Any]:
    if family_host.name != "neo":
        pytest.skip("these engines are Forge Neo's.")
    return dict(json.loads(family_host.run(SCRIPT).splitlines()[-1]))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_guarded(found: dict[str, Any], engine: str) -> None:
    seen = found[engine]
    print(engine, seen)
    assert "error" not in seen, seen
    cells = {
        "its prompts are read as": seen["family"],
        "rows of a prompt (of the template)": f"{seen['rows']} ({seen['template rows']})",
        "a prompt of the concept": "moved" if seen["moved"] else "**not moved**",
        "a harmless one": "identical" if seen["benign kept"] else "**changed**",
        "the template's rows": "as they were" if seen["template kept"] else "**changed**",
        "what was found, in words": "yes" if seen["words"] else "no",
    }
    for column, text in cells.items():
        webui_tables.seen("engines", engine, column, text)
    assert seen["moved"] and seen["benign kept"] and seen["template kept"] and seen["shape kept"]
    assert seen["template rows"] >= TEMPLATED.get(engine, 0)
    assert seen["words"]
    assert engine not in READS_BACK or seen["first row that another noun changes"] == "house"


def test_every_engine_that_neo_lists_is_asked(family_host: Host) -> None:
    if family_host.name != "neo":
        pytest.skip("these engines are Forge Neo's.")
    listed = (family_host.root / "backend" / "loader.py").read_text(encoding="utf-8").split("possible_models = [", 1)[1]
    assert len(listed.split("]", 1)[0].split(",")) == len(ENGINES)
