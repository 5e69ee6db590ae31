"""One generation: what is switched on for it, what was seen in it, and which one the host works on."""

from __future__ import annotations

import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saferegion.guard.balance import BalanceReport
from saferegion.guard.selection import GuardReport
from saferegion.guard.watch import Watch

from . import host, policy_door
from .arguments import Arguments
from .guards import Guards
from .refusal import SafeRegionRefused
from .settings import default_concepts, option
from .telling import shown

AXES = ("enabled", "strength", "strengths", "mode", "balance", "balance_strength")
"""Arguments that X/Y/Z sets on a processing, as ``safe_region_<name>``."""

guards = Guards()


@dataclass(frozen=True)
class Seen:
    """One text that was looked at: row ``row`` of ``report``; ``words``: what its tokens are called, by space."""

    where: str
    text: str
    report: GuardReport
    row: int
    words: Mapping[str, Sequence[str]]


@dataclass
class Generation:
    """What is switched on for one processing, or why it cannot be; and what was seen."""

    arguments: Arguments = field(default_factory=Arguments)
    refusal: SafeRegionRefused | None = None
    seen: list[Seen] = field(default_factory=list)
    far: list[dict[str, float]] = field(default_factory=list)
    """Of each picture of a batch: concepts that its prompt was outside of, and how far."""
    beside: dict[str, float] = field(default_factory=dict)
    """The same, of texts that extensions encoded themselves, for all pictures."""
    balanced: dict[tuple[str, str], BalanceReport] = field(default_factory=dict)
    """What was shared out: by where a prompt is read, and its text."""
    groups: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """Of each picture, by the seed that decides it: its group of each axis."""
    seen_by: Watch | None = None
    process: weakref.ref[Any] | None = None
    number: str = field(default_factory=lambda: secrets.token_hex(4))
    task: str = ""
    at: float = field(default_factory=lambda: round(time.time(), 3))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without a word of any prompt."""
        return {
            "id": self.number,
            "task": self.task,
            "at": self.at,
            "guarded": self.arguments.enabled,
            "concepts": list(self.arguments.concepts),
            "preset": self.arguments.preset,
            "refused": None if self.refusal is None else self.refusal.detail,
            "balance": [{"where": where, **r.to_dict()} for (where, _), r in self.balanced.items()],
            "texts": [
                {
                    "where": s.where,
                    "concepts": [
                        {
                            "concept": f.concept, "title": f.title, "found": f.open, "before": f.before,
                            "after": f.after, "told_by": list(f.how),
                        }
                        for region in s.report.reports
                        for f in shown(region, s.row)
                    ],
                }
                for s in self.seen
            ],
        }  # fmt: skip


class Reports:
    """The newest generations, by their numbers and the host's tasks."""

    KEPT = 64

    def __init__(self) -> None:
        self._known: OrderedDict[str, Generation] = OrderedDict()

    def add(self, generation: Generation) -> None:
        self._known[generation.number] = generation
        while len(self._known) > self.KEPT:
            self._known.popitem(last=False)

    def newest(self) -> list[Generation]:
        """The newest first."""
        return list(self._known.values())[::-1]

    def of(self, number: str) -> Generation | None:
        return next((g for g in self.newest() if number in (g.number, g.task)), None)


reports = Reports()


def by_default() -> Arguments:
    """What the host's settings switch on for whoever asks for nothing."""
    on = bool(option("default_on", False))
    return policy_door.merged(Arguments.parse([], default_concepts(), default_on=on) if on else Arguments())


def configure(p: Any, values: Sequence[Any], default_concepts: Sequence[str], default_on: bool = False) -> Generation:
    """Read the script's arguments for the processing ``p``; what is wrong with them is raised when it encodes.

    ``default_concepts``, ``default_on``: what the host's settings say.
    """
    generation = Generation(task=host.task())
    axes = {name: getattr(p, f"safe_region_{name}") for name in AXES if hasattr(p, f"safe_region_{name}")}
    try:
        generation.arguments = Arguments.parse(values, default_concepts, axes, default_on)
        p.extra_generation_params.update(generation.arguments.infotext())
        generation.arguments = policy_door.merged(generation.arguments)
    except Exception as error:  # hosts swallow what is raised here, and go on
        generation.refusal = SafeRegionRefused.of(error)
    generation.process = weakref.ref(p)
    p.safe_region = generation
    reports.add(generation)
    now(generation)
    return generation


def begin(p: Any) -> None:
    """The host begins with ``p``, which may know nothing of this script."""
    own = generation_of(p)
    if own is not None:
        now(own)


def _job() -> Any:
    from modules import shared

    return getattr(shared.state, "time_start", None)


def now(generation: Generation) -> None:
    """It is the one that the host works on."""
    from modules import shared

    shared.state.safe_region = (_job(), generation)


def current() -> Generation | None:
    """The generation that the host works on; None: it works on none that this script knows."""
    from modules import shared

    job, generation = getattr(shared.state, "safe_region", (None, None))
    return generation if job is not None and job == _job() else None


def generation_of(p: Any) -> Generation | None:
    """Of ``p``; or, where an extension made ``p`` itself without this script (a detailer), of the job it is part of;
    or, where it is part of none, what the host's settings say."""
    own: Generation | None = getattr(p, "safe_region", None) or current()
    if own is None and p is not None and (found := by_default()).enabled:
        own = p.safe_region = Generation(found, process=weakref.ref(p))
        p.extra_generation_params.update(found.infotext() if found.concepts else {})
    return own
