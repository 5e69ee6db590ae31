"""The rows of the table: every guard with its published settings, and with one setting tuned on other prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import PHRASES, Guard
from .ours import Ours, PaperVector
from .sld import PUBLISHED, SLD
from .textual import Leace, NegativePrompt, Safree, Surgery
from .weights import ESD, UCE


@dataclass(frozen=True)
class Family:
    """A kind of guard: how one is made of its settings, what was published, and what tuning may choose from."""

    name: str
    make: Callable[..., Guard]
    published: dict[str, dict[str, Any]]
    grid: tuple[dict[str, Any], ...] = ()
    tuned: dict[str, Any] | None = None
    discovers: bool = False
    ours: bool = False

    def guard(self, label: str, settings: dict[str, Any]) -> Guard:
        name = f"{self.name}, {label}" if label else self.name
        return self.make(name=name, family=self.name, setting=label or "as it is", **settings)

    def guards(self) -> list[Guard]:
        rows = [self.guard(label, settings) for label, settings in self.published.items()]
        return rows + ([self.guard("tuned", self.tuned)] if self.tuned is not None else [])


def _sld() -> tuple[dict[str, Any], ...]:
    slow = {"momentum": 0.5, "beta": 0.7}
    return tuple(
        {"warmup": w, "scale": s, "threshold": t, **slow}
        for w in (0.0, 0.07)
        for s, t in ((5000.0, 0.1), (5000.0, 0.3))
    ) + tuple({"warmup": w, "scale": 5000.0, "threshold": 1.0, "momentum": 0.0, "beta": 0.0} for w in (0.0, 0.07))


FAMILIES: tuple[Family, ...] = (
    Family("no guard", Guard, {"": {}}),
    Family(
        "negative prompt",
        NegativePrompt,
        {"": {}},
        ({"text": "fire"}, {"text": "a fire"}, {"text": ", ".join(PHRASES)}, {"text": "a burning house on fire"}),
        {"text": ", ".join(PHRASES)},
    ),
    Family(
        "SLD",
        SLD,
        PUBLISHED,
        _sld(),
        {"warmup": 0.0, "scale": 5000.0, "threshold": 1.0, "momentum": 0.0, "beta": 0.0},
    ),
    Family(
        "SAFREE",
        Safree,
        {"": {}, "negative prompt": {"negative": True}},
        (
            *({"alpha": a, "upper": u, "negative": False} for a in (-0.02, 0.0) for u in (0.6, 1.0)),
            {"alpha": 0.0, "upper": 1.0, "validate": False},
        ),
        {"alpha": -0.02, "upper": 0.6},
    ),
    Family(
        "Semantic Surgery",
        Surgery,
        {"": {}},
        tuple({"beta": b, "gamma": g, "least": 0.5} for b in (-0.1, -0.15, -0.2, -0.3) for g in (0.02,)),
        {"beta": -0.2},
    ),
    Family(
        "additive vector (the paper)",
        PaperVector,
        {"beta 1": {}},
        tuple({"strength": b} for b in (0.1, 0.2, 0.3, 0.4)),
        discovers=True,
    ),
    Family(
        "LEACE",
        Leace,
        {"": {}},
        tuple({"strength": s, "by_position": p} for s in (1.0, 1.5, 2.0) for p in (False, True)),
    ),
    Family(
        "UCE",
        UCE,
        {"": {}},
        tuple({"keep": k, "lam": m} for k in (0.01, 0.1, 1.0) for m in (0.1, 1.0)),
        {"keep": 1.0, "lam": 1.0},
    ),
    Family(
        "ESD-x",
        ESD,
        {"": {}},
        (
            {"rate": 3e-4, "iterations": 60, "eta": 2.0, "batch": 4},
            {"rate": 1e-3, "iterations": 60, "eta": 1.0, "batch": 4},
        ),
        {"rate": 1e-3, "iterations": 60, "eta": 1.0, "batch": 4},
    ),
    Family("safe region, closed form", Ours, {"": {}}, ours=True),
    Family("safe region, discovered", Ours, {"": {"how": "discovered"}}, discovers=True, ours=True),
    Family("safe region, both", Ours, {"": {"how": "both"}}, discovers=True, ours=True),
)
