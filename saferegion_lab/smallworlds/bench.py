"""Discovery on the microworld and on the small worlds, with one set of settings; writes ``discovery.json``."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saferegion.core.conditioning import Conditioning
from saferegion.core.direction import Direction
from saferegion.core.errors import SafeRegionError
from saferegion.core.region import SafeRegion
from saferegion.core.writing import write_whole
from saferegion.discover import Denoiser, DiscoverySettings, discover
from saferegion.learn.recipes import Concept

from .model import SmallWorld, load
from .scenes import SPECS, kept, pairs, prompts

Tensor = torch.Tensor
MICROWORLD = "microworld"
NAMES = (MICROWORLD, *SPECS)
Shown = tuple[list[bool], list[bool]]
"""Of each picture: whether it shows the concept, and whether it shows what else its prompt says."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One model with its prompts: ``paint(conditioning, kind, late, window)`` gives what the pictures of the first
    prompts of ``sets[kind]`` show."""

    name: str
    concept: Concept
    encode: Callable[[Sequence[str]], Conditioning]
    denoiser: Denoiser
    neutral: list[str]
    sets: Mapping[str, list[str]]
    paint: Callable[[Conditioning, str, Conditioning, float], Shown]
    beside: tuple[Direction, ...] = ()


def small(name: str, neutral: int = 240) -> Trial:
    """A small world."""
    world = load(name)
    spec = world.spec
    said = {kind: prompts(spec, kind, 400 if kind == "benign" else 96, 2) for kind in ("brings", "benign", "said")}
    texts = {kind: [s.prompt for s in found] for kind, found in said.items()}
    used = {t for found in texts.values() for t in found}
    asked = [s.prompt for s in prompts(spec, "neutral", neutral + len(used), 3) if s.prompt not in used][:neutral]

    def paint(c: Conditioning, kind: str, late: Conditioning, window: float) -> Shown:
        count = len(c.tokens)
        shown = world.judge(world.sample(c, range(count), late=late, window=window))
        return [s.shown for s in shown], [kept(a, b) for a, b in zip(said[kind], shown, strict=False)]

    concept = Concept.from_pairs(spec.concept, pairs(spec))
    return Trial(name, concept, world.encode, world, asked, texts, paint)


def micro(neutral: int = 240) -> Trial:
    """The microworld, its compiled fire direction beside what is discovered."""
    from saferegion.learn.compile import compile
    from saferegion.learn.recipes import read_recipe
    from saferegion_lab import microworld
    from saferegion_lab.microworld import prompts as sets

    world = microworld.load()
    concept = read_recipe(microworld.DATA / "fire.yaml")
    every = list(microworld.neutral_prompts())
    by_place = sets.association(20)
    brings = [p for k in range(20) for p in by_place[k::20]]  # every place, whatever the count
    said = {"brings": brings, "benign": list(sets.benign(400)), "said": list(sets.explicit()[:96])}

    def encode(texts: Sequence[str]) -> Conditioning:
        c = world.encode(list(texts))
        return c if isinstance(c, Conditioning) else Conditioning(c.tokens, c.movable)

    def paint(c: Conditioning, kind: str, late: Conditioning, window: float) -> Shown:
        latents = _ddim(world, c, late, window)
        answers = world.judge()(world.decode(latents))
        shown = [bool(p > 0.5) for p in answers["fire"]]
        return shown, sets.content(said[kind][: len(shown)], answers).tolist()

    texts = {kind: [p.prompt for p in found] for kind, found in said.items()}
    beside = (compile(concept, encode, every),)
    asked = every[:: max(1, len(every) // neutral)][:neutral]
    return Trial(MICROWORLD, concept, encode, world, asked, texts, paint, beside)


def _ddim(world: Any, c: Conditioning, late: Conditioning, window: float) -> Tensor:
    return SmallWorld.sample(world, c, range(len(c.tokens)), guidance=4.0, late=late, window=window)


def trial(name: str, neutral: int = 240) -> Trial:
    """The microworld or a small world, by name."""
    return micro(neutral) if name == MICROWORLD else small(name, neutral)


def run(t: Trial, settings: DiscoverySettings, count: int) -> dict[str, Any]:
    """Discover on one model and measure: figures by name. ``count``: pictures a set."""
    start = time.monotonic()
    try:
        found = discover(t.concept, t.encode, t.denoiser, t.neutral, settings)
    except SafeRegionError as error:
        return {"refused": str(error)}
    figures: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    return figures | measure(t, found, count) | {"calibration": dict(found.meta.calibration)}


def measure(t: Trial, found: Direction, count: int) -> dict[str, Any]:
    """Association and content before and after; share of benign prompts opened and of prompts that bring it; share of
    those that move whose detectors are closed afterwards."""
    region = SafeRegion([*t.beside, found])
    c = t.encode(t.sets["brings"][:count])
    moved, report = region.apply(c)
    alone = SafeRegion([found])
    late = SafeRegion(list(t.beside)).apply(c)[0] if t.beside else c
    shown, content = t.paint(c, "brings", c, 1.0)
    after, content_after = t.paint(moved, "brings", late, found.window[1])
    opened = alone.score(c)[:, 0] > 0
    benign = alone.score(t.encode(t.sets["benign"]))[:, 0] > 0
    unresolved = [] if report.unresolved_by is None else report.unresolved_by.any(1).tolist()
    return {
        "association": {"before": _share(shown), "after": _share(after)},
        "content": {"before": _share(content), "after": _share(content_after)},
        "opened": {"brings": _share(opened.tolist()), "benign": _share(benign.tolist())},
        "unresolved": _share(unresolved),
    }


def _share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / max(1, len(flags)), 4)


def others(settings: DiscoverySettings) -> dict[str, list[DiscoverySettings]]:
    """Every numeric setting at half and at double, as far as it can be."""
    found: dict[str, list[DiscoverySettings]] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in ("seed", "batch_size") or isinstance(value, bool | str) or value is None:
            continue
        if field.name == "window":
            values: list[object] = [(0.0, 0.5), (0.0, 0.7)]
        elif isinstance(value, int):
            values = [max(1, value // 2), 2 * value]
        elif isinstance(value, float):
            values = [value / 2, min(2 * value, 0.95) if field.name == "least_area" else 2 * value]
        else:
            continue
        found[field.name] = [dataclasses.replace(settings, **{field.name: v}) for v in values if v != value]  # type: ignore[arg-type]
    return found


def bench(path: Path, names: Sequence[str], short: DiscoverySettings | None, told: Callable[[str], None]) -> None:
    """Run everything and write ``path`` after each run; what stands there already is kept. ``short``: settings of which
    each is tried at half and at double (None: none)."""
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"models": {}, "halves": {}}
    done["settings"] = _numbers(DiscoverySettings())

    def keep() -> None:
        write_whole(path, (json.dumps(done, indent=1, sort_keys=True) + "\n").encode())

    for name in names:
        if name not in done["models"]:
            done["models"][name] = run(trial(name), DiscoverySettings(), 96)
            told(f"{name}: {json.dumps({k: v for k, v in done['models'][name].items() if k != 'calibration'})}")
            keep()
    if short is None:
        return
    done["short"] = _numbers(short)
    for name in names:
        t = trial(name, 120)
        for field, choices in {"none": [short], **others(short)}.items():
            for s in choices:
                label = f"{field} {getattr(s, field)}" if field != "none" else "none"
                table = done["halves"].setdefault(label, {})
                if name not in table:
                    table[name] = {k: v for k, v in run(t, s, 48).items() if k != "calibration"}
                    told(f"{name}, {label}: {json.dumps(table[name])}")
                    keep()


def _numbers(settings: DiscoverySettings) -> dict[str, Any]:
    return {k: v for k, v in vars(settings).items() if isinstance(v, int | float | tuple)}
