"""What the guard did and why: what was open, by which term, how far, what moved, what is unresolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from .errors import UnresolvedError
from .readout import Readout

Tensor = torch.Tensor
Words = Sequence[str] | Mapping[str, Sequence[str]]

TOLD_BY = {
    "token": "a word",
    "pair": "a word with the next",
    "mean": "the prompt as a whole",
    "pooled": "the pooled vector",
    "sum": "words and whole together",
}
"""How people are told by which readout a concept was found."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a panel of detectors says of one conditioning; nothing is computed before it is asked for.

    Attributes:
        far: ``[B, K]``, distance over the border, in benign deviations; at most 0 inside.
        columns: gives the distances of all terms and joint terms of each concept: per concept, (readout or ``sum``,
            [B]) each.
        held: gives, by space of tokens, distances of each token [B, T, K]; NaN where it may not move or is not asked.
    """

    far: Tensor
    columns: Callable[[], list[list[tuple[str, Tensor]]]]
    held: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Finding:
    """One concept in one prompt of the batch.

    ``before`` and ``after`` are distances over the border, in benign deviations (at most 0: inside; None: nothing was
    asked); ``how`` names the readouts that were over it; ``tokens``: by space, positions that were.
    """

    prompt: int
    concept: str
    title: str
    before: float | None
    after: float | None
    how: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unresolved: bool = False

    @property
    def open(self) -> bool:
        """Whether the concept was open for the prompt."""
        return self.before is not None and self.before > 0


@dataclass(frozen=True, eq=False)
class Report:
    """The report of one :meth:`SafeRegion.apply`.

    Attributes:
        mode, concepts, titles, strengths: of the region.
        before, after: readings; ``after`` is ``before`` where nothing moved.
        touched: bool ``[B]``, prompts that moved. unresolved_by: bool ``[B, K]``, concepts that stayed open although
            they were to be closed.
        notes: what else must be said.
    """

    mode: str
    concepts: tuple[str, ...]
    titles: tuple[str, ...]
    strengths: tuple[float, ...]
    before: Reading
    after: Reading
    touched: Tensor
    unresolved_by: Tensor | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def moved(self) -> bool:
        """Whether anything was moved."""
        return bool(self.touched.any())

    def moved_prompts(self) -> list[bool]:
        """For each prompt of the batch, whether it was moved."""
        return [bool(t) for t in self.touched.tolist()]

    @cached_property
    def unresolved(self) -> tuple[tuple[int, str], ...]:
        """(prompt, concept) of each concept that stayed open. Adapters refuse such a prompt."""
        if self.unresolved_by is None:
            return ()
        return tuple((b, self.concepts[k]) for b, k in self.unresolved_by.nonzero().tolist())

    def require_resolved(self) -> None:
        """Raise UnresolvedError where a concept stayed open."""
        if self.unresolved:
            names = dict.fromkeys(self.titles[self.concepts.index(k)] for _, k in self.unresolved)
            raise UnresolvedError(
                f"The prompt could not be brought inside the safe region ({', '.join(names)} stayed open), so no "
                "picture is made of it: word it differently."
            )

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All concepts of all prompts, in the order of prompts, then of concepts as given."""
        before, after = self.before.far.detach().cpu(), self.after.far.detach().cpu()
        columns = self.before.columns() if bool((before > 0).any()) else []
        held = {s: t.cpu() for s, t in self.before.held().items()} if columns else {}
        open_after = set(self.unresolved)
        found = []
        for b in range(len(before)):
            for k, concept in enumerate(self.concepts):
                opened = float(before[b, k]) > 0
                how = tuple(n for n, d in columns[k] if float(d[b]) > 0) if opened else ()
                tokens = {s: tuple((t[b, :, k] > 0).nonzero()[:, 0].tolist()) for s, t in held.items()}
                found.append(
                    Finding(
                        b, concept, self.titles[k], _number(before[b, k]), _number(after[b, k]),
                        tuple(dict.fromkeys(how)), {s: t for s, t in tokens.items() if t and opened},
                        (b, concept) in open_after,
                    )
                )  # fmt: skip
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mode": self.mode,
            "moved": self.moved,
            "unresolved": [{"prompt": b, "concept": k} for b, k in self.unresolved],
            "concepts": [{"concept": c, "strength": s} for c, s in zip(self.concepts, self.strengths, strict=True)],
            "notes": list(self.notes),
            "findings": [
                {
                    "prompt": f.prompt,
                    "concept": f.concept,
                    "before": f.before,
                    "after": f.after,
                    "told_by": list(f.how),
                    "tokens": {s: list(t) for s, t in f.tokens.items()},
                    "unresolved": f.unresolved,
                }
                for f in self.findings
            ],
        }

    def text(self, token_strings: Sequence[Words] | None = None) -> str:
        """Some lines for people. ``token_strings``: per prompt, what its tokens are called; see :func:`describe`."""
        lines = []
        prompts = len(self.touched)
        for b, moved in enumerate(self.moved_prompts()):
            head = f"prompt {b + 1}: " if prompts > 1 else ""
            if not moved:
                lines.append(f"{head}inside the safe region; nothing was changed")
                continue
            words = token_strings[b] if token_strings else None
            touched = [f for f in self.findings if f.prompt == b and (f.open or self.mode != "project")]
            lines += [head + describe(f, words) for f in touched]
        return "\n".join([*lines, *self.notes])


def describe(finding: Finding, words: Words | None = None) -> str:
    """One line about a finding. ``words``: one string per token of the first space, or of each space by its name."""
    line = finding.title
    if finding.before is not None and finding.after is not None:
        line += f": {finding.before:+.1f} -> {finding.after:+.1f}"
    named = _words(finding.tokens, words)
    told = ", ".join(TOLD_BY[h] for h in finding.how)
    if told:
        line += f" (told by {told}{': ' + named if named else ''})"
    return line + ("; STILL OPEN, the prompt is refused" if finding.unresolved else "")


def column_name(readouts: Sequence[Readout]) -> str:
    """How a term, or a joint term of several, is called."""
    return readouts[0].reduce if len(readouts) == 1 else "sum"


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 4) if abs(number) < float("inf") else None


def _words(tokens: Mapping[str, Sequence[int]], words: Words | None) -> str:
    if words is None or not tokens:
        return ""
    if not isinstance(words, Mapping):
        words = {next(iter(tokens)): words}
    found = [strings[t] for space, strings in words.items() for t in tokens.get(space, ()) if t < len(strings)]
    kept = list(dict.fromkeys(w for w in found if w.strip()))
    return ", ".join(kept[:6]) + (" …" if len(kept) > 6 else "")
