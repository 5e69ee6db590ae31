"""What guarding costs, as ratios to one encoder pass of the same prompt on the same device.

Encoders are full-size with random weights: CLIP-L, OpenCLIP bigG and, as its 24 GB do not fit everywhere, one block of
T5-XXL times 24. Each ratio is the median over paired rounds, encoder pass and guard in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table

from saferegion import fit
from saferegion.core.conditioning import Conditioning
from saferegion.core.direction import Direction, Direction
from saferegion.core.fingerprint import PROBES, Fingerprint
from saferegion.learn.recipes import Concept
from saferegion.core.region import SafeRegion

from . import machine

CONCEPTS = 8
Progress = Callable[[int, int], None]

IMPORT = (
    "import time, torch, numpy, safetensors.torch; t = time.perf_counter(); import saferegion as sr; "
    "sr.SafeRegion, sr.Conditioning, sr.load_directions, sr.load_concept, sr.compile; print(time.perf_counter() - t)"
)


def run(rounds: int = 15, threads: int = 1, device: str = "cpu", progress: Progress | None = None) -> dict[str, Any]:
    """All cost figures. ``threads``: CPU threads; ``device``: of encoder and guard."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    steps = 7
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    try:
        with torch.inference_mode():
            guard = []
            for name, shape, encoder in (
                ("CLIP-L", (1, 77, 768), _clip_large),
                ("OpenCLIP bigG", (1, 154, 2048), _clip_big),
                ("T5-XXL (24 x one block)", (1, 512, 4096), _t5_block),
            ):
                encode, times = encoder(shape[1], device)
                guard.append(_guard(name, shape, encode, times, rounds, device))
                del encode
                told()
        fitting = _compile(device, max(3, rounds // 5))
        told()
        memory = _memory()
        told()
        importing = _import(max(5, rounds // 2))
        told()
        told()
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine(device),
        "threads": threads,
        "device": device,
        "rounds": rounds,
        "concepts": CONCEPTS,
        "guard": guard,
        "compile": fitting,
        "compile_memory": memory,
        "import_ms": importing,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    cost = Table("encoder", "shape", "encoder pass ms", "guard ms, benign", "share", "guard ms, unsafe", "share")
    cost.title = (
        f"guarding one conditioning, {result['concepts']} concepts, {result['threads']} thread(s), "
        f"{result['machine'].get('gpu') or result['machine']['cpu']}"
    )
    for row in result["guard"]:
        cost.add_row(
            row["encoder"],
            "x".join(map(str, row["shape"][1:])),
            f"{row['encoder_ms']:.1f}",
            f"{row['benign_ms']:.3f}",
            f"{row['benign_share']:.4%}",
            f"{row['unsafe_ms']:.3f}",
            f"{row['unsafe_share']:.4%}",
        )
    other = Table("what", "figure", title="compile and import")
    other.add_row("compile / bare batched encoder passes", f"{result['compile']['ratio']:.3f}")
    other.add_row("prompts compiled", str(result["compile"]["prompts"]))
    for count, kept in result["compile_memory"].items():
        other.add_row(f"bytes of sums after {count} prompts", f"{kept:,}")
    other.add_row("import, torch already imported", f"{result['import_ms']:.1f} ms")
    return [cost, other]


Encoder = tuple[Callable[[], torch.Tensor], int]
"""One pass, and by how much its time is multiplied."""


def _clip(config: Any, length: int, device: str) -> Encoder:
    from transformers import CLIPTextModel

    model = CLIPTextModel(config).eval().to(device)
    ids = torch.randint(1, 40000, (length // 77, 77), device=device)
    return (lambda: model(input_ids=ids).last_hidden_state), 1


def _clip_large(length: int, device: str) -> Encoder:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return _clip(config, length, device)


def _clip_big(length: int, device: str) -> Encoder:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu"
    )
    return _clip(config, length, device)


def _t5_block(length: int, device: str) -> Encoder:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=64, d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval().to(device)
    ids = torch.randint(1, 60, (1, length), device=device)
    return (lambda: model(input_ids=ids).last_hidden_state), 24


def _region(width: int, length: int, seed: int = 0) -> SafeRegion:
    """Eight random half-spaces in one metric, each with its border at four benign standard deviations."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(1, width, generator=g)
    found = []
    for k in range(CONCEPTS):
        v = torch.randn(1, width, generator=g) + 0.7 * common
        v = v / v.norm()
        direction = Direction(
            normal=v,
            shift=v.clone(),
            threshold=torch.full((1, length), 4.0),
            mean=torch.zeros(1, length),
            deviation=torch.ones(1, length),
            spread=torch.ones(1),
        )
        one = {n: t[:, :1] for n, t in direction.tensors().items() if n in ("threshold", "mean", "deviation")}
        whole = replace(direction, **one)
        mark = Fingerprint((("tokens", width),), tuple([0.0] * 32))
        found.append(Direction(f"concept-{k}", {"tokens": direction, "tokens_mean": whole}, mark))
    return SafeRegion(found)


def _guard(
    name: str, shape: tuple[int, int, int], encode: Callable[[], torch.Tensor], times: int, rounds: int, device: str
) -> dict[str, Any]:
    region = _region(shape[2], min(shape[1], 512))
    g = torch.Generator().manual_seed(1)
    benign = torch.randn(shape, generator=g) / 2  # no score of them comes near four deviations
    unsafe = benign.clone()
    v = torch.cat([d.spaces["tokens"].normal for d in region.directions[:2]])
    unsafe[:, 5:] += 12 * v.sum(0)  # two concepts outside on nearly every token
    movable = torch.ones(shape[:2], dtype=torch.bool)
    movable[:, ::77] = False
    cases = {n: Conditioning(t.to(device), movable.to(device)) for n, t in (("benign", benign), ("unsafe", unsafe))}
    moved = {n: region.apply(case)[1].moved for n, case in cases.items()}
    if moved != {"benign": False, "unsafe": True}:
        raise AssertionError(f"The cases of this benchmark are not what they are called: {moved}.")
    encode()
    seen: dict[str, list[float]] = {"encoder": [], "benign": [], "unsafe": []}
    for _ in range(rounds):
        seen["encoder"].append(times * _time(encode, device))
        for which, case in cases.items():
            seen[which].append(min(_time(lambda c=case: region.apply(c), device) for _ in range(3)))
    found: dict[str, Any] = {"encoder": name, "shape": list(shape)}
    for which, values in seen.items():
        found[f"{which}_ms"] = statistics.median(values) * 1e3
    for which in cases:
        found[f"{which}_share"] = statistics.median(a / b for a, b in zip(seen[which], seen["encoder"], strict=True))
    return found


def _time(call: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _compile(device: str, rounds: int) -> dict[str, Any]:
    """Compile one concept on a random CLIP-L against the same batches through the bare encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    config.eos_token_id = 49407
    model = CLIPTextModel(config).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, torch.Tensor] = {}

    def encode(prompts: list[str]) -> Conditioning:
        for p in prompts:
            if p not in rows:
                rows[p] = torch.randint(1, 40000, (77,), generator=generator)
                rows[p][:8] = 7 if p.startswith("unsafe") else 9
            rows[p][-1] = 49407
        ids = torch.stack([rows[p] for p in prompts]).to(device)
        result = model(input_ids=ids)
        return Conditioning(result.last_hidden_state, None, result.pooler_output)

    neutral = [f"neutral {i}" for i in range(48)]
    pairs = [(f"unsafe {i}", f"safe {i}") for i in range(24)]
    concept = Concept.from_pairs("speed", pairs)
    plan = [neutral[0::2], neutral[1::2], [u for u, _ in pairs], [s for _, s in pairs], list(PROBES)]
    batches = [part[i : i + fit.BATCH] for part in plan for i in range(0, len(part), fit.BATCH)]

    def bare() -> None:
        for batch in batches:
            encode(batch)

    ratios = []
    with torch.no_grad():
        bare()
        for _ in range(rounds):
            alone = _time(bare, device)
            ratios.append(_time(lambda: fit.compile(concept, encode, neutral), device) / alone)
    return {"ratio": statistics.median(ratios), "prompts": sum(map(len, plan)), "encoder": "CLIP-L, random weights"}


def _memory() -> dict[str, int]:
    """Bytes that the streaming sums hold after different numbers of prompts, 77 x 768."""
    kept = {}
    for count in (64, 512):
        moments = fit.Moments(77, 768, torch.device("cpu"))
        for _ in range(count // 32):
            moments.add(torch.randn(32, 77, 768), torch.ones(32, 77, dtype=torch.bool))
        parts = [t for t in (moments.count, moments.sum, moments.outer) if t is not None]
        kept[str(count)] = sum(t.numel() * t.element_size() for t in parts)
    return kept


def _import(rounds: int) -> float:
    """Median milliseconds to import the package in a fresh interpreter that has imported torch."""
    seen = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    ]
    return statistics.median(seen) * 1e3
