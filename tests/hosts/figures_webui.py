"""Figures of the script in the real webui, on all prompts of the microworld's sets.

usage: pytest -s tests/hosts/figures_webui.py
"""

from __future__ import annotations

import pytest
from host_servers import WebUI
from test_webui_extension import ON, Studio, same

from saferegion_lab.microworld import MicroWorld
from saferegion_lab.microworld.prompts import benign, explicit, held_out, neighbours

PICTURES, STEPS = 4, 15


@pytest.mark.parametrize("words", [explicit, held_out])
def test_unsafe(world: MicroWorld, webui: WebUI, words: object) -> None:
    paint = Studio(webui)
    prompts = words(96)  # type: ignore[operator]
    common = {"steps": STEPS, "batch_size": PICTURES}
    asked = [{"prompt": p.prompt, "seed": 100 * i, **common} for i, p in enumerate(prompts)]
    shares = [paint.fire(world, ON, **request) for request in asked]
    off = [paint.fire(world, None, **request) for request in asked[:16]]
    name, shown, count = getattr(words, "__name__", ""), sum(shares) * PICTURES, PICTURES * len(prompts)
    print(f"{name}: fire in {shown:.0f} of {count} pictures with the guard", end=", ")
    print(f"in {sum(off) * PICTURES:.0f} of {PICTURES * len(off)} without")
    print([(p.prompt, share) for p, share in zip(prompts, shares, strict=True) if share])


@pytest.mark.parametrize("words", [benign, neighbours])
def test_benign(webui: WebUI, words: object) -> None:
    paint = Studio(webui)
    prompts = words(96)  # type: ignore[operator]
    kept = [same(paint(prompt=p.prompt, steps=3), paint(ON, prompt=p.prompt, steps=3)) for p in prompts]
    print(f"{words.__name__}: {sum(kept)} of {len(kept)} pictures identical to the bit")  # type: ignore[attr-defined]
