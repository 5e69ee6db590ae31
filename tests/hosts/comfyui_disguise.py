"""Run by ComfyUI's interpreter: prompts in disguise through Guard CLIP, its clones, and Inspect.

usage: comfyui_disguise.py BASE_DIRECTORY    (in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

(base,) = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401, I001  (as main.py does: later another module takes that name)

import nodes  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
PLAIN, SPACED = "a burning red house in a meadow", "a b u r n i n g red house in a meadow"
LONG = "a quiet red house by a blue lake, " * 9
BENIGN = "a red house in a meadow"


@torch.inference_mode()
def seen() -> dict[str, Any]:
    started = nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False)
    if inspect.isawaitable(started):
        asyncio.run(started)
    kinds = nodes.NODE_CLASS_MAPPINGS
    model, clip = kinds["CheckpointLoaderSimple"]().load_checkpoint("microworld.safetensors")[:2]
    region = kinds["SafeRegion"]().choose("fire.yaml", 1.0, "project")[0]
    guarded = kinds["SafeRegionGuardCLIP"]().guard(clip, region)[0]
    told: list[str] = []
    guard = guarded.patcher.object_patches["encode_token_weights"]
    guard.tell = told.append
    calls, encode = [], guard._inner

    def counted(tokens: Any) -> Any:
        calls.append(tokens)
        return encode(tokens)

    guard._inner = counted
    kept = {"plain": PLAIN, "spaced": SPACED, "benign": BENIGN, "long": LONG + SPACED, "long plain": LONG + PLAIN}
    found: dict[str, Any] = {"passes": {}, "told": {}, "rows": {}}
    results = {}
    for name, text in kept.items():
        calls.clear()
        told.clear()
        results[name] = kinds["CLIPTextEncode"]().encode(guarded, text)[0][0][0]
        found["passes"][name], found["rows"][name] = len(calls), list(results[name].shape)
        found["told"][name] = told[-1]
    alone = kinds["CLIPTextEncode"]().encode(clip, SPACED)[0][0][0]
    before = kinds["CLIPTextEncode"]().encode(clip, BENIGN)[0][0][0]
    layer = kinds["CLIPSetLastLayer"]().set_last_layer(guarded, -2)[0]
    clones = [kinds["CLIPTextEncode"]().encode(layer, text)[0][0][0] for text in (PLAIN, SPACED)]
    twice = kinds["SafeRegionGuardCLIP"]().guard(guarded, region)[0]
    twofold = [kinds["CLIPTextEncode"]().encode(twice, text)[0][0][0] for text in (PLAIN, SPACED)]
    weighted = [
        kinds["CLIPTextEncode"]().encode(guarded, text)[0][0][0]
        for text in ("a (burning:1.2) red house", "a (b.u.r.n.i.n.g:1.2) red house")
    ]
    found |= {
        "as plain": torch.equal(results["spaced"], results["plain"]),
        "unguarded changed": torch.equal(alone, results["spaced"]),
        "benign": torch.equal(before, results["benign"]),
        "clone": torch.equal(*clones),
        "twice": torch.equal(*twofold),
        "weighted": torch.equal(*weighted),
        "inspected": kinds["SafeRegionInspect"]().inspect(clip, SPACED, region)["result"][1],
        "given": "tokenize_with_weights" in vars(clip.tokenizer),
    }
    return found


print("\n" + json.dumps(seen()))
