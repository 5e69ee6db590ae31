"""``project`` on a GPU: alone and replayed from a CUDA graph, beside the CPU's answer.

SDXL's shape with a pair of prompts, ``[2, 154, 2048]``; random concepts as in :mod:`.speed`. *Calm*: no prompt is
open. *Open*: one of two is, in every second token. Each figure is the median over rounds; the difference from the CPU
is told in units of the last place of the dtype at each channel's size (at least .01).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.table import Table

from saferegion.core.region import SafeRegion

from . import machine
from .speed import region_of

HALF_SPACES = (1, 12, 64)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LENGTH, WIDTH = 154, 2048
REPLAYS = 10
Progress = Callable[[int, int], None]


def run(rounds: int = 8, progress: Progress | None = None) -> dict[str, Any]:
    """Every number of half-spaces in every dtype; raises where ``project`` synchronises or a graph cannot hold it."""
    found, total = [], len(HALF_SPACES) * len(DTYPES)
    with torch.inference_mode():
        for count in HALF_SPACES:
            region = region_of(WIDTH, 77, count)
            for dtype in DTYPES:
                found += [_row(region, case, tokens.to(dtype), rounds) for case, tokens in _cases(region).items()]
                if progress is not None:
                    progress(len(found) // 2, total)
    return {"machine": machine("cuda"), "torch": torch.__version__, "rounds": rounds, "project": found}


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    table = Table(
        "half-spaces",
        "dtype",
        "prompts",
        "alone ms",
        "from a graph ms",
        "kernels",
        "from the CPU's, ulp",
        "of the token",
    )
    table.title = f"project of 2 x {LENGTH} x {WIDTH}, {result['machine'].get('gpu', '')}"
    for row in result["project"]:
        table.add_row(
            str(row["half_spaces"]), row["dtype"], row["case"], f"{row['ms']:.3f}", f"{row['graph_ms']:.3f}",
            str(row["kernels"]), f"{row['ulp']:.2f}", f"{row['token_ulp']:.2f}",
        )  # fmt: skip
    return [table]


def _cases(region: SafeRegion) -> dict[str, torch.Tensor]:
    calm = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)) / 2
    unsafe = calm.clone()
    mover = region.directions[0].movers["tokens"]
    unsafe[0, 5::2] += 12 * mover.unit[0]  # type: ignore[union-attr]
    return {"calm": calm, "open": unsafe}


def _row(region: SafeRegion, case: str, tokens: torch.Tensor, rounds: int) -> dict[str, Any]:
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    mask[:, ::77] = False
    wanted = region.project(tokens, mask)
    if bool((wanted != tokens).any()) != (case == "open"):
        raise AssertionError("The cases of this benchmark are not what they are called.")
    x, m = tokens.cuda(), mask.cuda()
    call = partial(region.project, x, m)
    call()  # constants reach the device once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, captured = _captured(call)
    graph.replay()
    torch.cuda.synchronize()
    eps = torch.finfo(tokens.dtype).eps
    apart = [max(float(_apart(got.cpu(), wanted, of).max()) for got in (found, captured)) / eps for of in (False, True)]
    same = (wanted == tokens).all(-1)
    if not bool((found.cpu() == tokens)[same].all()):
        raise AssertionError("A token that the CPU keeps is not the same to the bit on the GPU.")
    return {
        "half_spaces": len(region.names),
        "dtype": str(tokens.dtype).removeprefix("torch."),
        "case": case,
        "ms": statistics.median(_time(call) for _ in range(rounds)),
        "graph_ms": statistics.median(_time(graph.replay) for _ in range(rounds)),
        "kernels": _kernels(call),
        "ulp": apart[0],
        "token_ulp": apart[1],
    }


def _apart(got: torch.Tensor, wanted: torch.Tensor, token: bool) -> torch.Tensor:
    size = wanted.double().abs()
    size = size.amax(-1, keepdim=True) if token else size.clamp_min(1e-2)
    return (got.double() - wanted.double()).abs() / size


def _captured(call: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    return graph, captured


def _time(call: Callable[[], object]) -> float:
    """Milliseconds of one of several calls in a row, by the device's clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(REPLAYS):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / REPLAYS


def _kernels(call: Callable[[], object]) -> int:
    """How many kernels one call starts."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(e.count for e in seen.key_averages() if e.device_type.name == "CUDA")
