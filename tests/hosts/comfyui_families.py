"""Run by ComfyUI's interpreter: which text of which family the guards reach.

usage: comfyui_families.py BASE_DIRECTORY PART RECIPE    (in the checkout; the last line printed is JSON)
PART: families (every class of comfy.supported_models, around a network that records what it is called with),
encoders (ComfyUI's real encoders with small random weights, in batches and one by one), or portable (the command
line's encoders beside ComfyUI's, on the same weights).
SAFE_REGION_WIDE=1 keeps every width as it is; else those above a thousand are a quarter, but for Stable Diffusion 3.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

base, part, recipe = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import comfyui_bags as bags  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
if not asyncio.run(nodes.load_custom_node(str(Path(base) / "custom_nodes" / "safe-region"))):
    raise SystemExit("The pack did not load.")
N = nodes.NODE_CLASS_MAPPINGS
PACK = N["SafeRegionGuardCLIP"].__module__.removesuffix(".nodes.guarding")
guards = importlib.import_module(f"{PACK}.nodes.guards")
encoding = importlib.import_module(f"{PACK}.nodes.encoder")
SafeRegionError = importlib.import_module(f"{PACK}.saferegion.errors").SafeRegionError

UNSAFE = 'a burning house with "burning" on a sign'
BENIGN = "a quiet house and a blue boat in a harbour, number 7"
OTHER = 'a painted boat with "painted" on a lamp'
CLIP_ROWS, CLIP_WIDTH = 77, 2048
TEXT = {
    "context": ("tokens", "attention_mask", "text_embedding_mask"),
    "crossattn_controlnet": ("tokens",),
    "clip_text": ("tokens",),
    "y": ("pooled",),
    "clip": ("pooled",),
    "clip_text_pooled": ("pooled",),
    "encoder_hidden_states_llama3": ("llama3",),
    "encoder_hidden_states_t5": ("mt5xl", "text_embedding_mask_t5"),
    "txt_byt5": ("byt5small",),
}
"""What networks call their text: the space it belongs to, and the masks of its filling."""
Seen = dict[str, Tensor]


def encode(clip: Any, text: str) -> list[list[Any]]:
    return N["CLIPTextEncode"]().encode(clip, text)[0]


def region() -> Any:
    return N["SafeRegion"]().choose(recipe, 1.0, "project")[0]


def sample(patcher: Any, recorder: bags.Recorder, latent: Tensor, positive: Any, negative: Any) -> Seen:
    """What reaches the network in a sampling of two steps at guidance 4, by name; the same in both steps."""
    recorder.seen.clear()
    noise = comfy.sample.prepare_noise(latent, 1)
    comfy.sample.sample(
        patcher, noise, 2, 4.0, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=1
    )
    first, last = ({k.removesuffix(".0"): v for k, v in seen.items()} for seen in recorder.seen[:: len(recorder.seen) - 1])
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in last.items()} or any(
        not torch.equal(v, last[k]) for k, v in first.items()
    ):
        raise SystemExit("The network is given other text in the last step than in the first.")
    return first


def spaces(name: str, value: Tensor, two: bool) -> dict[str, Tensor]:
    """A text tensor of the network as rows [T, D] of its spaces."""
    space = TEXT[name][0]
    if space == "tokens" and two:
        clip, t5 = value[0, :CLIP_ROWS, :CLIP_WIDTH], value[0, CLIP_ROWS:]
        return {"clip": clip, **({"t5": t5} if len(t5) else {})}
    if value.ndim == 4:
        value = value.transpose(1, 2).flatten(1, 2)
    return {space: value[0] if value.ndim == 3 else value}


def outside(directions: Any, rows: Tensor, which: Tensor) -> float:
    """Largest distance outside the border over the rows ``which``, in benign standard deviations."""
    rows = rows[:, : directions.normal.shape[1]]
    at = torch.arange(len(rows)) % directions.threshold.shape[1]
    z = rows.double() @ directions.normal.double().T
    far = (z - directions.threshold.T[at]) / directions.deviation.T[at]
    return float(far[which].max()) if bool(which.any()) else float("-inf")


def audit(directions: dict[str, Any], plain: Seen, other: Seen, guarded: Seen) -> dict[str, Any]:
    """Distances by space of the rows that differ between two prompts, before and after the guard."""
    far: dict[str, list[float]] = {}
    for name, value in plain.items():
        if not value.is_floating_point() or (other[name].shape == value.shape and torch.equal(other[name], value)):
            continue
        if name not in TEXT:
            raise SystemExit(f"'{name}' depends on the prompt and is not known to hold text.")
        two = "clip" in directions
        masks = [plain[m][0].bool() for m in TEXT[name][1:] if m in plain]
        before, after, elsewhere = (spaces(name, seen[name], two) for seen in (plain, guarded, other))
        for space, rows in before.items():
            which = (rows != elsewhere[space]).any(-1)
            for mask in masks:
                which = which & mask
            pair = [outside(directions[space], r, which) for r in (rows, after[space])]
            label = f"{space} of a ControlNet" if name == "crossattn_controlnet" else space
            far[label] = [round(p, 4) for p in pair]
    return far


def same(one: Seen, two: Seen) -> bool:
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


def near(one: Seen, two: Seen) -> float:
    return max(float((v.double() - two[k].double()).abs().max()) for k, v in one.items() if k in TEXT)


class Encoders:
    """One CLIP of each kind, its directions compiled once."""

    def __init__(self) -> None:
        self.clips: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, model: type, t5: bool = True) -> tuple[str, Any] | None:
        found = bags.target(model, t5)
        if found is None:
            return None
        name = f"{found.tokenizer.__name__} {found.clip.__name__.rstrip('_')}" + ("" if t5 else " without T5")
        if name not in self.clips:
            start = time.perf_counter()
            narrow = 1 if os.environ.get("SAFE_REGION_WIDE") or model is supported.SD3 else 4
            clip = bags.text_encoder(found, narrow)
            encoder = encoding.TextEncoder.of(clip)
            self.clips[name] = clip, guards.fit(region(), encoder)
            self.seconds[name] = round(time.perf_counter() - start, 1)
        return name, *self.clips[name]


def family(model: type, found: tuple[str, Any, Any]) -> dict[str, Any]:
    name, clip, fitted = found
    selection = region()
    patcher, recorder, latent = bags.network(model)
    directions = fitted.guard.regions[0].directions[0].spaces
    negative = encode(clip, "")
    by_clip, = N["SafeRegionGuardCLIP"]().guard(clip, selection)
    by_model, = N["SafeRegionGuardModel"]().guard(patcher, clip, False, selection)

    def conditioning(text: str, encoder: Any = clip) -> Any:
        made = encode(encoder, text)
        if model is supported.SD15:  # what a ControlNet is told
            from comfy_extras.nodes_cond import CLIPTextEncodeControlnet

            made = CLIPTextEncodeControlnet.execute(encoder, made, text).result[0]
        return made

    def seen(positive: Any, network: Any = patcher) -> Seen:
        return sample(network, recorder, latent, positive, negative)

    def guarded(text: str) -> dict[str, Seen]:
        made = conditioning(text)
        guard, report = N["SafeRegionGuardConditioning"]().guard(made, clip, selection)
        return {
            "model": seen(made, by_model),
            "conditioning": seen(guard),
            "clip": seen(conditioning(text, by_clip)),
        }

    plain, other, benign = (seen(conditioning(text)) for text in (UNSAFE, OTHER, BENIGN))
    unsafe, untouched = guarded(UNSAFE), guarded(BENIGN)
    return {
        "encoder": name,
        "spaces": sorted(directions),
        "far": {guard: audit(directions, plain, other, reached) for guard, reached in unsafe.items()},
        "benign": {guard: same(benign, reached) for guard, reached in untouched.items()},
        "apart": max(near(unsafe["model"], unsafe[guard]) for guard in unsafe),
    }


def refusals(model: type, encoders: Encoders) -> dict[str, str]:
    """What is said where the CLIP of another family is connected to a network that reads pictures."""
    patcher, recorder, latent = bags.network(model)
    said = {}
    width = {supported.Stable_Zero123: 772, supported.Hunyuan3Dv2: 1536, supported.Hunyuan3Dv2mini: 1536}.get(model, 1024)
    picture = [[torch.randn(1, 1, width, generator=torch.Generator().manual_seed(3)), {"pooled_output": None}]]
    for kind in (supported.SD15, supported.SD20):
        name, clip, _ = encoders(kind)
        guarded, = N["SafeRegionGuardModel"]().guard(patcher, clip, False, region())
        try:
            sample(guarded, recorder, latent, picture, picture)
            said[name] = ""
        except SafeRegionError as error:
            said[name] = str(error)
    return said


@torch.inference_mode()
def families() -> dict[str, Any]:
    encoders, found = Encoders(), {}
    for model in (m for m in supported.models if (m is supported.SD3) == (part == "sd3")):
        encoder = encoders(model)
        found[model.__name__] = {"refused": refusals(model, encoders)} if encoder is None else family(model, encoder)
    if part == "sd3":
        found["SD3 without T5"] = family(supported.SD3, encoders(supported.SD3, False))
    return {"families": found, "seconds": encoders.seconds}


print(json.dumps({"families": families, "sd3": families}[part]()))
