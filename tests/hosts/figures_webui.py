"""Figures of the script in the real webui, on all prompts of the microworld's sets.

usage: pytest -s tests/hosts/figures_webui.py
"""

from __future__ import annotations

import pytest
from host_servers import WebUI
from test_webui_extension import ON, Studio, same

from saferegion.microworld import MicroWorld
from saferegion.microworld.prompts import benign, explicit, held_out, neighbours

PICTURES, STEPS = 4, 15


@pytest.mark.parametrize("words", [explicit, held_out])
def test_unsafe(world: MicroWorld, webui: WebUI, words: object) -> None:
    paint = Studio(webui)
    prompts = words(96)  # type: ignore[operator]
    shares = [paint.fire(world, ON, prompt=p.prompt, seed=100 * i, steps=STEPS) for i, p in enumerate(prompts)]
    off = [paint.fire(world, None, prompt=p.prompt, seed=100 * i, steps=STEPS) for i, p in enumerate(prompts[:16])]
    count = PICTURES * len(prompts)
    print(f"{words.__name__}: fire in {sum(shares) * PICTURES:.0f} of {count} pictures with the guard", end=", ")  # type: ignore[attr-defined]
    print(f"in {sum(off) * PICTURES:.0f} of {PICTURES * len(off)} without")
    print([(p.prompt, share) for p, share in zip(prompts, shares, strict=True) if share])


@pytest.mark.parametrize("words", [benign, neighbours])
def test_benign(webui: WebUI, words: object) -> None:
    paint = Studio(webui)
    prompts = words(96)  # type: ignore[operator]
    kept = [same(paint(prompt=p.prompt, steps=3), paint(ON, prompt=p.prompt, steps=3)) for p in prompts]
    print(f"{words.__name__}: {sum(kept)} of {len(kept)} pictures identical to the bit")  # type: ignore[attr-defined]
