"""Run by ComfyUI's interpreter: what each hook of the operator's policy does when something under it is broken.

usage: SAFE_REGION_POLICY=FILE comfyui_policy_faults.py BASE_DIRECTORY    (the last line printed is JSON)

By fault: "closed" with the sentence where no latent was made, else "open".
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.argv = ["main.py", "--cpu", "--base-directory", sys.argv[1]]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401, I001  (as main.py does: later another module takes that name)

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
in_use: list[Any] = []
"""What was loaded last: the hooks forget an encoder that nothing uses any more."""


def paint(text: str) -> torch.Tensor:
    with torch.inference_mode():
        loaded = nodes.CheckpointLoaderSimple().load_checkpoint("microworld.safetensors")
        in_use[:] = loaded
        model, clip, _ = loaded[:3]
        positive, negative = (nodes.CLIPTextEncode().encode(clip, t)[0] for t in (text, ""))
        latent = nodes.EmptyLatentImage().generate(64, 64)[0]
        return nodes.KSampler().sample(model, 5, 2, 4.0, "euler", "normal", positive, negative, latent, 1.0)[0][
            "samples"
        ]


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected")


def nothing(*_: Any, **__: Any) -> None:
    return None


def misshapen(*_: Any, **__: Any) -> Any:
    return torch.zeros(3), torch.zeros(2), {}, None


def main() -> None:
    loaded = nodes.init_extra_nodes()
    if inspect.isawaitable(loaded):
        asyncio.new_event_loop().run_until_complete(loaded)
    door = next(o for o in gc.get_objects() if type(o).__name__ == "Door" and hasattr(o, "refusals"))
    paint("a red house in a meadow")
    fitted = next(iter(door.texts._fitted()))
    family, guard = type(fitted.family), type(fitted.guard)
    stage = next(iter(door.texts._clips)).cond_stage_model
    places: dict[str, tuple[Any, str]] = {
        "encode_model_conds": (comfy.samplers, "encode_model_conds"),
        "inner_sample": (comfy.samplers.CFGGuider, "inner_sample"),
        "apply_model": (comfy.model_base.BaseModel, "apply_model"),
        "guarding an entry": (family, "guard"),
        "the guard": (guard, "apply"),
        "the texts' sources": (type(door.texts), "sources"),
        "fitting": (type(vars(stage)["_safe_region_policy"]), "fitted"),
        "judging": (type(door.enforcement), "judge"),
        "the selection": (type(door.enforcement), "selection"),
        "the log": (type(door.enforcement.audit), "write"),
        "what is watched": (comfy.samplers, "process_conds"),
    }
    found = {}
    for name, (owner, attribute) in places.items():
        faults: dict[str, Callable[..., Any]] = {"exception": fail, "None": nothing, "wrong shape": misshapen}
        if name in ("encode_model_conds", "inner_sample", "apply_model"):
            faults["replaced"] = getattr(getattr(owner, attribute), "__wrapped__")  # noqa: B009
        for kind, fault in faults.items():
            if (name, kind) in (("the log", "None"), ("the log", "wrong shape"), ("the selection", "None")):
                continue  # a log that says nothing of a failure, and what was chosen before
            owner = next((c for c in getattr(owner, "__mro__", ()) if attribute in vars(c)), owner)
            kept = vars(owner)[attribute]
            setattr(owner, attribute, fault)
            try:
                latent = paint("a burning red house in a meadow")
                found[f"{name}, {kind}"] = "open" if isinstance(latent, torch.Tensor) else "closed: no latent"
            except Exception as error:
                found[f"{name}, {kind}"] = f"closed: {type(error).__name__}: {str(error)[:120]}"
            finally:
                setattr(owner, attribute, kept)
                door.enforcement._why_closed = None
                door.now = None
    assert isinstance(paint("a burning red house in a meadow"), torch.Tensor)
    print(json.dumps(found))


main()
