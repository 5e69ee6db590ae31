"""What the webui's script costs: a guarded pair of conditionings, and loading the script.

usage: bench_webui.py              one thread, CLIP-L's sizes, 8 concepts; stand-ins for the host
       bench_webui.py http://…     also the startup profile of a webui that runs there
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "unit")]

import pytest  # noqa: E402
import torch  # noqa: E402
import webui_fakes as webui  # noqa: E402
from fakes import concepts  # noqa: E402

from saferegion.guard.selection import Choice, Guard, Selection  # noqa: E402
from saferegion_webui import generation, prompts  # noqa: E402
from saferegion_webui.arguments import Arguments  # noqa: E402
from saferegion_webui.layout import Layout  # noqa: E402

WIDTH, CONCEPTS, TURNS = 768, 8, 300


def conditionings(scale: float, push: torch.Tensor) -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(1)
    both = scale * torch.randn(2, 77, WIDTH, generator=draw)
    both[:, 5:9] += push
    one, two = ([webui.Scheduled(20, tokens)] for tokens in both)
    return webui.Many((1,), [[webui.Part(one)]]), [two]


def time_of(guarding: Any) -> float:
    """Milliseconds of one thread's work: what other programs do meanwhile is not counted."""
    found = []
    for _ in range(TURNS):
        start = time.thread_time()
        guarding()
        found.append(time.thread_time() - start)
    return 1000 * median(found)


def main() -> None:
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    webui.install(patch, Path("."), webui.Checkpoint("sd1"))
    directions = concepts(CONCEPTS, WIDTH, threshold=4.0)
    guard = Guard.of(Selection(tuple(Choice(d) for d in directions)), directions)
    patch.setattr(generation.guards, "get", lambda *_: (guard, SimpleNamespace(layout=Layout(), words=lambda _: {})))
    arguments = Arguments(True, ("fire",), guard_negative=True)
    shift = directions[0].movers["tokens"].unit[0]
    for name, scale, push in (("benign", 0.05, 0.0), ("one concept", 0.05, 9.0), ("all concepts", 2.0, 0.0)):
        c, uc = conditionings(scale, push * shift)
        p = webui.Processing("a house")
        p.safe_region = generation.Generation(arguments)

        def both(p: Any = p, c: Any = c, uc: Any = uc) -> None:
            prompts.guard_conditionings(p, uc, webui.Prompts(["a"], True), 20, {}, None)
            prompts.guard_conditionings(p, c, webui.Prompts(["a house"]), 20, {}, None)

        both()
        moved = bool(p.extra_generation_params)
        print(f"{name}: {time_of(both):.2f} ms for prompt and negative, {CONCEPTS} concepts, moved: {moved}")
        tokens = torch.stack([c.batch[0][0].schedules[0].cond, uc[0][0].cond])
        pair = Layout().conditioning(tokens, None)
        print(f"{name}: {time_of(lambda pair=pair: guard.apply(pair)):.2f} ms of it without the report, as one batch")
    for address in sys.argv[1:2]:
        with urllib.request.urlopen(f"{address}/internal/profile-startup", timeout=30) as answer:
            records = json.loads(answer.read())["records"]
        for name, seconds in records.items():
            if "safe_region" in name:
                print(f"{name}: {1000 * seconds:.0f} ms")


main()
