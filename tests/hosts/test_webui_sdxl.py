"""The script on an SDXL checkpoint (small, with random weights) in the real webui: two encoders, pooled text, sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_servers import Host, WebUI
from test_webui_extension import BENIGN, UNSAFE, Studio, same

import saferegion as sr
from saferegion.learn.recipes import recipe_text
from saferegion_lab.microworld import DATA
from saferegion_lab.microworld.model import TOKENIZER

HERE = Path(__file__).resolve().parent
ON = [True, ["fire"]]
COLOURS, NOUNS, PLACES = ("red", "blue", "green"), ("house", "boat", "tree", "car"), ("meadow", "city")
"""Of one word: random weights do not know that others mean the same."""


@pytest.fixture(scope="module")
def sdxl(webui_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    data = tmp_path_factory.mktemp("sdxl")
    webui_host.run(HERE / "webui_sdxl_files.py", data, TOKENIZER)
    (data / "extensions" / "safe-region").symlink_to(HERE.parents[1])
    own = data / "models" / "safe_region"
    own.mkdir()
    things = [f"{c} {n} in a {p}" for c in COLOURS for n in NOUNS for p in PLACES]
    fire = sr.Concept.from_pairs("fire", [(f"a burning {thing}", f"a {thing}") for thing in things])
    (own / "fire.yaml").write_text(recipe_text(fire), encoding="utf-8")
    shutil.copyfile(DATA / "neutral.yaml", own / "neutral.yaml")
    (data / "config.json").write_text(json.dumps({"live_previews_enable": False}), encoding="utf-8")
    with WebUI(webui_host, data) as server:
        yield server


def test_sdxl_is_guarded_in_tokens_and_pooled(sdxl: WebUI) -> None:
    paint = Studio(sdxl)
    few = {"steps": 4, "cfg_scale": 20.0}  # its pictures hardly follow a prompt
    for request in ({"prompt": UNSAFE, "batch_size": 2}, {"prompt": f"{BENIGN} AND {UNSAFE} :1.5"}):
        off, on = paint(**few, **request), paint(ON, **few, **request)
        assert not same(off, on) and "Safe region moved: fire" in on.infotexts[0]
        assert same(paint(**few, **request), off) and same(paint(ON, **few, **request), on)
    for request in ({"prompt": BENIGN}, {"prompt": BENIGN, "negative_prompt": "a tree", "batch_size": 2}):
        assert same(paint(**few, **request), paint(ON, **few, **request))
    both = [{"enabled": True, "concepts": ["fire"], "guard_negative": True}]
    assert same(paint(ON, prompt=UNSAFE, **few), paint(both, prompt=UNSAFE, **few))  # an empty one is zeros
    (file,) = sdxl.directions.glob("fire-*.safetensors")
    made = sr.load_directions(file)
    widths = {name: d.width for name, d in made.movers.items()}
    assert widths["tokens"] == 128 and widths["pooled"] == 64
    pooled = [{"enabled": True, "concepts": ["fire"], "mode": "erase"}]
    assert not same(paint(pooled, prompt=BENIGN, **few), paint(prompt=BENIGN, **few))
