"""Many generations one after another in each host of the webui's family, and what the guard adds to one of 20 steps.

usage: pytest -n 0 -s -m hosts tests/hosts/soak_webui.py    (SAFE_REGION_SOAK: seconds of painting a host, default 480)
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import webui_tables
from host_servers import WebUI
from test_webui_extension import BENIGN, ON, SMALL, UNSAFE

SECONDS = float(os.environ.get("SAFE_REGION_SOAK", "480"))
MOST, SHARE = 1000, 100
"""Generations at most; how many the first and the last are taken together."""
PAIRS, STEPS = 20, 20
TICK = os.sysconf("SC_CLK_TCK")


def resident(server: WebUI) -> float:
    """MiB of the host's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:", 1)[1].split()[0]) / 1024


def worked(server: WebUI) -> float:
    """Seconds of processors that the host's process had: others on the machine do not count."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def painted(server: WebUI, args: Any, **request: Any) -> tuple[list[str], float, float]:
    """The pictures, seconds on the clock and seconds of processors."""
    body = {**SMALL, **request}
    if args is not None:
        body["alwayson_scripts"] = {"safe region": {"args": args}}
    clock, work = time.perf_counter(), worked(server)
    answer = server.post_json("/sdapi/v1/txt2img", body)
    return answer["images"], time.perf_counter() - clock, worked(server) - work


def test_memory_and_latency_stay_flat(family: WebUI) -> None:
    draw = random.Random(11)
    fixed = [(args, text) for args in (None, ON) for text in (UNSAFE, BENIGN)]

    def pictures() -> list[list[str]]:
        return [painted(family, args, prompt=text, steps=2)[0] for args, text in fixed]

    before = pictures()
    seen: list[tuple[float, float, float]] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and len(seen) < MOST:
        text = f"{draw.choice((UNSAFE, BENIGN))}, number {len(seen)}"
        _, clock, work = painted(family, ON, prompt=text, steps=2)
        seen.append((clock, work, resident(family)))
    after = pictures()
    share = min(SHARE, len(seen) // 3)
    (early, late) = (list(zip(*part, strict=True)) for part in (seen[:share], seen[-share:]))
    row = f"guarded generations of 2 steps, first {share} → last {share}"
    cells = {
        "generations in a row": f"{len(seen):,}",
        f"{row}: time of a request, median": f"{1000 * median(early[0]):.0f} → {1000 * median(late[0]):.0f} ms",
        f"{row}: processor time, mean": f"{1000 * sum(early[1]) / share:.0f} → {1000 * sum(late[1]) / share:.0f} ms",
        f"{row}: memory of the process, median": f"{median(early[2]):,.0f} → {median(late[2]):,.0f} MiB",
        "the same four pictures before and after": "identical" if before == after else "**changed**",
    }
    for name, said in cells.items():
        webui_tables.seen("cost", name, family.host.name, said)
        print(family.host.name, name, said)
    assert before == after


def test_what_a_picture_of_20_steps_costs_more(family: WebUI) -> None:
    """With the guard and without in turn, each with a prompt of its own: no conditioning is kept from before."""
    painted(family, ON, prompt=UNSAFE, steps=STEPS)
    for kind, text in (("a harmless prompt", BENIGN), ("a prompt of the concept", UNSAFE)):
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for turn in range(2 * PAIRS):
            on = turn % 2 == (turn // 2) % 2
            _, clock, work = painted(family, ON if on else None, prompt=f"{text}, number {turn}", steps=STEPS)
            found[on].append((clock, work))
        (off, off_work), (on_, on_work) = (list(zip(*found[on], strict=True)) for on in (False, True))
        clocks, works = (median(off), median(on_)), (sum(off_work) / PAIRS, sum(on_work) / PAIRS)
        for name, (without, with_) in (("time of a request, median", clocks), ("processor time, mean", works)):
            said = f"{1000 * without:.0f} → {1000 * with_:.0f} ms ({100 * (with_ / without - 1):+.1f} %)"
            webui_tables.seen("cost", f"{STEPS} steps, {kind}: {name}, without → with", family.host.name, said)
            print(family.host.name, kind, name, said)
