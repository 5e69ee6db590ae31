"""What needs a GPU: no synchronisation, CUDA graphs, the same as on the CPU to the last place of the dtype."""

from __future__ import annotations

import pytest
import torch
from regions import Shape, conditioning, directions

from saferegion import SafeRegion

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def _region(concepts: int) -> tuple[SafeRegion, torch.Tensor]:
    shape = Shape(concepts=concepts, width=2048, period=77, kinds=("pair", "mean"))
    return SafeRegion(directions(shape, 1)), conditioning(shape, 2, batch=2, length=154, scale=1.5).tokens


@pytest.mark.parametrize("concepts", [1, 12, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_project_never_synchronises_and_fits_a_graph(concepts: int, dtype: torch.dtype) -> None:
    region, tokens = _region(concepts)
    x = tokens.to("cuda", dtype)
    wanted = region.project(tokens.to(dtype))
    region.project(x)  # constants reach the device once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = region.project(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        region.project(x)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = region.project(x)
    graph.replay()
    torch.cuda.synchronize()
    eps = torch.finfo(dtype).eps
    size = wanted.float().abs()
    if dtype is torch.float32:  # sums of thousands of products in another order, set against the token they make
        scale, most = size.amax(-1, keepdim=True), 32
    else:
        scale, most = size.clamp_min(1e-2), 1
    for got in (found, captured):
        assert float(((got.cpu().float() - wanted.float()).abs() / scale).max()) <= most * eps


def test_apply_synchronises_once_and_gives_back_what_is_inside() -> None:
    region, tokens = _region(12)
    from saferegion import Conditioning

    quiet = Conditioning((0.01 * tokens).to("cuda", torch.float16))
    after, report = region.apply(quiet)
    assert after is quiet and not report.moved
