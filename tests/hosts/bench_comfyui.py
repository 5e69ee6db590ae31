"""Run by ComfyUI's interpreter, in its checkout: what the node pack costs there. The last line printed is JSON.

usage: bench_comfyui.py BASE_DIRECTORY CHECKPOINT_NAME [STEPS] [ROUNDS] [SIZE] [NEUTRAL]

BASE_DIRECTORY is one that ComfyUI serves from, with this pack in custom_nodes; CHECKPOINT_NAME lies in its
models/checkpoints. NEUTRAL: so many neutral prompts only (0: all). The concept is "burning", which even an encoder of
random weights can tell. Sampling and guard are timed in one run, compiling and bare batched encoding in turn.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

base, checkpoint, *rest = sys.argv[1:]
steps, rounds, size, most = (int(v) for v in [*rest, *("20", "5", "64", "0")[len(rest) :]])
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.utils  # noqa: E402, I001
import nodes  # noqa: E402
import torch  # noqa: E402

logging.disable(logging.WARNING)
NOUNS = "house car tree boat chair tower bridge garden horse lamp piano street".split()
COLOURS = "red blue green yellow grey purple pink orange".split()
PAIRS = [(f"a burning {c} {n}", f"a {c} {n}") for c in COLOURS for n in NOUNS]
PACK = next(p for p in (Path(base) / "custom_nodes").iterdir() if (p / "saferegion").is_dir())


def settled(result: object) -> object:
    """What a function of ComfyUI gives that is a coroutine since 0.3.47."""
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def load_packs() -> float:
    """Seconds of processor time that importing this pack takes, once ComfyUI is there."""
    for folder in (Path(base) / "custom_nodes").iterdir():
        if folder != PACK:
            settled(nodes.load_custom_node(str(folder)))
    start = time.process_time()
    if not settled(nodes.load_custom_node(str(PACK))):
        raise SystemExit("The pack did not load.")
    return time.process_time() - start


def module(name: str) -> object:
    """A module of the pack, as ComfyUI has named it."""
    pack = nodes.NODE_CLASS_MAPPINGS["SafeRegion"].__module__.rsplit(".", 2)[0]
    return importlib.import_module(f"{pack}.{name}")


def evaluations(model: object) -> tuple[object, list[int]]:
    """The same model, and the rows of every evaluation of its network."""
    counted = model.clone()
    calls: list[int] = []

    def wrapper(apply, arguments):
        calls.append(len(arguments["input"]))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    counted.set_model_unet_function_wrapper(wrapper)
    return counted, calls


def sampling(model, clip, region) -> dict[str, float]:
    """A run with Guard Model; the guard's own time in it, and the evaluations of both kinds of run."""
    node = nodes.NODE_CLASS_MAPPINGS["SafeRegionGuardModel"]()
    encode = nodes.CLIPTextEncode()
    empty = encode.encode(clip, "")[0]
    latent = nodes.EmptyLatentImage().generate(size, size)[0]
    found: dict[str, list[float]] = {"run": [], "benign": [], "unsafe": []}
    counts: dict[bool, int] = {}
    plain, calls = evaluations(model)
    guarded = node.guard(plain, clip, False, region)[0]
    guards = module("nodes.wrap")
    inner, spent = guards.SamplingGuard.guarded, []

    def timed(self, *arguments):
        start = time.perf_counter()
        result = inner(self, *arguments)
        spent.append(time.perf_counter() - start)
        return result

    guards.SamplingGuard.guarded = timed
    for i in range(rounds + 1):
        for kind, prompt in (("benign", "a red house in a meadow"), ("unsafe", "a burning red house in a meadow")):
            positive = encode.encode(clip, prompt)[0]
            for m in (plain, guarded):
                calls.clear()
                spent.clear()
                start = time.perf_counter()
                nodes.KSampler().sample(m, i, steps, 4.0, "euler", "normal", positive, empty, latent)
                took = time.perf_counter() - start
                counts[m is guarded] = len(calls)
                if m is guarded and i:
                    found[kind].append(spent[0] / (took - spent[0]))
                elif i:
                    found["run"].append(took)
    guards.SamplingGuard.guarded = inner
    return {
        "steps": steps,
        "run_ms": 1e3 * statistics.median(found["run"]),
        "benign_share": statistics.median(found["benign"]),
        "unsafe_share": statistics.median(found["unsafe"]),
        "evaluations_without": counts[False],
        "evaluations_with": counts[True],
    }


def compiling(clip) -> dict[str, float]:
    """Compiling one recipe against the encoder's own batches of the same rows, in turn."""
    encoding, files, core = module("nodes.encoder"), module("nodes.files"), module("saferegion")
    concept = core.Concept.from_pairs("burning", PAIRS)
    neutral = list(files.library().neutral())
    neutral = neutral[: most or None]
    prompts = [p for pair in concept.pairs for p in pair] + list(concept.neutral) + neutral
    times: dict[str, list[float]] = {"bare": [], "compile": []}
    settings = core.CompileSettings(batch_size=encoding.BATCH, neutral=len(neutral))
    inner = next(m for m in clip.cond_stage_model.children() if hasattr(m, "encode_token_weights"))
    for _ in range(max(3, rounds // 2)):
        encoder = encoding.TextEncoder.of(clip)
        encoder.fingerprint()
        start = time.perf_counter()
        rows = [next(iter(clip.tokenize(p).values())) for p in prompts]
        ids = [[t[0] for t in row] for of_prompt in rows for row in of_prompt]
        for i in range(0, len(ids), encoding.BATCH):
            inner.encode(ids[i : i + encoding.BATCH])
        times["bare"].append(time.perf_counter() - start)
        start = time.perf_counter()
        core.compile(concept, encoder, neutral, settings=settings)
        times["compile"].append(time.perf_counter() - start)
    ratios = [c / b for c, b in zip(times["compile"], times["bare"], strict=True)]
    return {
        "prompts": len(prompts),
        "bare_s": statistics.median(times["bare"]),
        "compile_s": statistics.median(times["compile"]),
        "ratio": statistics.median(ratios),
    }


@torch.inference_mode()
def main() -> None:
    comfy.utils.PROGRESS_BAR_ENABLED = False
    importing = load_packs()
    model, clip = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)[:2]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SAFE_REGION_CACHE"] = cache
        core = module("saferegion")
        encoder = module("nodes.encoder").TextEncoder.of(clip)
        neutral = list(module("nodes.files").library().neutral())[: most or None]
        directions = core.compile(core.Concept.from_pairs("burning", PAIRS), encoder, neutral)
        region = core.Selection().add(core.Choice(directions))
        found = {
            "checkpoint": checkpoint,
            "threads": torch.get_num_threads(),
            "import_ms": 1e3 * importing,
            "sampling": sampling(model, clip, region),
            "compile": compiling(clip),
        }
    print(json.dumps(found))


main()
