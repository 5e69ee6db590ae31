"""What the guard did and why: which concept, which tokens, how far outside before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from .conditioning import MEAN, POOLED

NOT_MOVABLE = float("nan")


@dataclass(eq=False)
class SpaceReport:
    """Scores of one space. Distances are in benign standard deviations outside the border; at most 0 is inside."""

    space: str
    scores: torch.Tensor  # [B, T, K] before
    threshold: torch.Tensor  # [T, K], or [B, T, K] where each prompt has its own
    deviation: torch.Tensor  # [T, K]
    calibrated: tuple[bool, ...]  # [K]
    owner: tuple[int, ...]  # concept of each half-space
    movable: torch.Tensor  # [B, T]
    moved: torch.Tensor  # [B, T]
    scores_after: Callable[[], torch.Tensor] | None = None

    def before(self, concepts: int) -> torch.Tensor:
        """``[B, T, concepts]``; NaN where the space has no border for a concept and at tokens that may not move."""
        return self._by_concept(self.scores, concepts)

    def after(self, concepts: int) -> torch.Tensor:
        """As :meth:`before`, of the guarded conditioning."""
        return self._by_concept(self.scores if self.scores_after is None else self.scores_after(), concepts)

    def _by_concept(self, scores: torch.Tensor, concepts: int) -> torch.Tensor:
        far = (scores - self.threshold) / self.deviation
        out = torch.full((*far.shape[:2], concepts), NOT_MOVABLE)
        for k, owner in enumerate(self.owner):
            if self.calibrated[k]:
                out[:, :, owner] = torch.fmax(out[:, :, owner], far[:, :, k])
        return out.masked_fill(~self.movable.unsqueeze(-1), NOT_MOVABLE)


@dataclass(frozen=True)
class Finding:
    """One concept in one prompt of the batch and one space.

    ``before`` and ``after`` are the distances of the furthest token outside the border, in benign standard deviations
    (at most 0: inside; None: the concept has no border there); ``tokens`` the positions that were outside.
    """

    prompt: int
    space: str
    concept: str
    title: str
    before: float | None
    after: float | None
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """The report of one :meth:`SafeRegion.apply`; nothing is computed before it is asked for."""

    mode: str
    concepts: tuple[str, ...]
    titles: tuple[str, ...]
    strengths: tuple[float, ...]
    spaces: tuple[SpaceReport, ...]

    @property
    def moved(self) -> bool:
        """Whether any token was moved."""
        return any(bool(s.moved.any()) for s in self.spaces)

    def moved_prompts(self) -> list[bool]:
        """For each prompt of the batch, whether any of its tokens was moved."""
        rows = [s.moved.any(1) for s in self.spaces]
        return torch.stack(rows).any(0).tolist() if rows else []

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All concepts in all prompts and spaces, in the order of prompts, then spaces, then concepts as given."""
        found = []
        for s in self.spaces:
            before, after = s.before(len(self.concepts)), s.after(len(self.concepts))
            most, least = _highest(before), _highest(after)
            outside: dict[tuple[int, int], list[int]] = {}
            for b, t, k in (before > 0).nonzero().tolist():
                outside.setdefault((b, k), []).append(t)
            for b in range(before.shape[0]):
                for k, concept in enumerate(self.concepts):
                    tokens = tuple(outside.get((b, k), ()))
                    found.append(Finding(b, s.space, concept, self.titles[k], most[b][k], least[b][k], tokens))
        return tuple(sorted(found, key=lambda f: f.prompt))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mode": self.mode,
            "moved": self.moved,
            "concepts": [{"concept": c, "strength": s} for c, s in zip(self.concepts, self.strengths, strict=True)],
            "findings": [
                {
                    "prompt": f.prompt,
                    "space": f.space,
                    "concept": f.concept,
                    "before": f.before,
                    "after": f.after,
                    "tokens": list(f.tokens),
                }
                for f in self.findings
            ],
        }

    def text(self, token_strings: Sequence[Sequence[str]] | None = None) -> str:
        """Some lines for people. ``token_strings``: per prompt, one string per token of the conditioning."""
        lines = []
        prompts = max((s.moved.shape[0] for s in self.spaces), default=0)
        for b in range(prompts):
            head = f"prompt {b + 1}: " if prompts > 1 else ""
            if not any(bool(s.moved[b].any()) for s in self.spaces):
                lines.append(f"{head}inside the safe region; nothing was changed")
                continue
            touched = [f for f in self.findings if f.prompt == b and (f.tokens or self.mode != "project")]
            for f in touched:
                where = next(s for s in self.spaces if s.space == f.space)
                size = where.moved.shape[1]
                line = f"{head}{f.title}"
                if f.before is not None and f.after is not None:
                    line += f": {f.before:+.1f} -> {f.after:+.1f} sd from the border"
                if f.space == POOLED:
                    line += " (pooled)"
                elif f.space.endswith(MEAN):
                    line += " (the prompt as a whole)"
                elif f.tokens:
                    line += f", {len(f.tokens)} of {size} tokens outside"
                    words = _words(f.tokens, token_strings[b] if token_strings else None)
                    line += f" ({words})" if words else ""
                lines.append(line)
        return "\n".join(lines)


def _highest(values: torch.Tensor) -> list[list[float | None]]:
    """Largest known value over the tokens of ``[B, T, K]``, by prompt and concept."""
    if not values.shape[1]:
        return [[None] * values.shape[2]] * values.shape[0]
    unknown = values.isnan()
    top = values.masked_fill(unknown, float("-inf")).amax(1).tolist()
    none = unknown.all(1).tolist()
    return [[None if n else round(v, 4) for v, n in zip(*row, strict=True)] for row in zip(top, none, strict=True)]


def _words(tokens: tuple[int, ...], strings: Sequence[str] | None) -> str:
    if strings is None:
        return ""
    words = [strings[t] for t in tokens if t < len(strings)]
    kept = list(dict.fromkeys(w for w in words if w.strip()))
    return ", ".join(kept[:6]) + (" …" if len(kept) > 6 else "")
