"""Run by ComfyUI's interpreter: its own PromptExecutor runs Discover Direction, whole and interrupted.

usage: comfyui_discover.py BASE_DIRECTORY RECIPE    (in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

base, recipe = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401, I001  (as main.py does: later another module takes that name)

import comfy.utils  # noqa: E402
import execution  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
SIZE = 64
PROMPTS = 160
"""Of which some bring fire."""
told: list[int] = []


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def workflow(prefix: str, seed: int) -> dict[str, Any]:
    """Discovered, saved, and used: the prompt is painted with and without what was discovered."""
    sampling = dict(
        seed=5, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0, latent_image=["empty", 0]
    )
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="microworld.safetensors"),
        "found": node(
            "SafeRegionDiscover", model=["load", 0], clip=["load", 1], vae=["load", 2], concept=recipe, steps=3,
            discovery_seed=seed, pictures=1, prompts=PROMPTS, width=SIZE, height=SIZE,
        ),
        "saved": node("SafeRegionSaveDirections", clip=["load", 1], region=["found", 0], prefix=prefix, overwrite=True),
        "text": node("CLIPTextEncode", clip=["load", 1], text="a burning red house in a meadow"),
        "nothing": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "guarded": node("SafeRegionGuardConditioning", conditioning=["text", 0], clip=["load", 1], region=["found", 0]),
        "plain": node("KSampler", model=["load", 0], positive=["text", 0], negative=["nothing", 0], **sampling),
        "safe": node("KSampler", model=["load", 0], positive=["guarded", 0], negative=["nothing", 0], **sampling),
    }  # fmt: skip


def executor() -> execution.PromptExecutor:
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_, **__: None)
    sizes = {"cache_args": {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}}  # newer hosts ask for all of them
    known = inspect.signature(execution.PromptExecutor).parameters
    kind = execution.CacheType.CLASSIC
    return execution.PromptExecutor(server, cache_type=kind, **{k: v for k, v in sizes.items() if k in known})


def status(run: Any) -> str:
    return str(run.status_messages[-1][0])


def files() -> list[str]:
    folders = [Path(folder_paths.get_folder_paths("safe_region")[0]), Path(folder_paths.get_temp_directory())]
    found = [p for folder in folders for p in folder.rglob("*")]
    return sorted(p.name for p in found if p.suffix == ".safetensors" or p.name.startswith("safe-region"))


def value(run: Any, name: str, slot: int) -> Any:
    kept = settled(run.caches.outputs.get(name))
    return getattr(kept, "outputs", kept)[slot][0]


def interrupted() -> dict[str, Any]:
    """Interrupt is pressed in the first step of learning."""
    before, run, pressed = files(), executor(), []
    backward = torch.Tensor.backward

    def press(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        backward(tensor, *args, **kwargs)
        pressed.append(True)
        nodes.interrupt_processing(True)

    torch.Tensor.backward = press  # type: ignore[assignment,method-assign]
    try:
        run.execute(workflow("stopped/", 0), "stopped", {}, ["saved"])
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    return {"status": status(run), "learned": len(pressed), "same files": files() == before}


def whole() -> dict[str, Any]:
    before, run = files(), executor()
    comfy.utils.set_progress_bar_global_hook(lambda done, total, *_, **__: told.append(total))
    run.execute(workflow("made/", 0), "whole", {}, ["saved", "plain", "safe"])
    if status(run) != "execution_success":
        return {"status": status(run), "said": str(run.status_messages[-1][1].get("exception_message"))}
    model = value(run, "load", 0).model
    chosen, curve, preview = (value(run, "found", i) for i in range(3))
    plain, safe = (value(run, name, 0)["samples"] for name in ("plain", "safe"))
    return {
        "status": status(run),
        "names": [c.name for c in chosen.choices],
        "losses": len(chosen.choices[-1].concept.meta.curve),
        "curve": list(curve.shape),
        "preview": list(preview.shape),
        "preview range": [float(preview.min()), float(preview.max())],
        "finite": bool(torch.isfinite(safe).all()),
        "guarded": float((plain - safe).abs().max()),
        "gradients": sum(p.grad is not None or p.requires_grad for p in model.parameters()),
        "files": [name for name in files() if name not in before],
        "told": max(told),
    }


def settled(result: Any) -> Any:
    """What a function of ComfyUI gives that is a coroutine since 0.3.47."""
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def main() -> None:
    for name in ("microworld_sizes", "safe-region"):
        if not settled(nodes.load_custom_node(f"{base}/custom_nodes/{name}")):
            raise SystemExit(f"ComfyUI did not load {name}.")
    print(json.dumps({"interrupted": interrupted(), "whole": whole()}))


main()
