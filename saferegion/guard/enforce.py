"""What holds both doors to the operator's policy: what acts, what becomes of a prompt, what is written down.

A door makes one :class:`Enforcement` at its start, asks :meth:`Enforcement.check` before it paints, puts
:meth:`Enforcement.selection` in place of what a user chose, hands every report to :meth:`Enforcement.judge`, and writes
one line a picture with :meth:`Enforcement.record`. Whatever goes wrong on the way is a :class:`PolicyRefused`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import AuditError, PolicyError, SafeRegionError
from ..core.report import Finding
from .audit import LONGEST_PROMPT, AuditLog
from .minors import BESIDE, NO_MINORS
from .policy import ACTIONS, CLOSE, GUARD, LOG, REFUSE, Policy, effective
from .selection import GuardReport, Selection

log = logging.getLogger("saferegion")

CODE = "safe_region_policy"
"""Code of errors in answers of a host's API."""
STATUS = 403
NONE, CLOSED = "none", "closed"
"""Actions besides the policy's: nothing was found; something was wrong, so nothing was painted."""
ERROR = "error"


class PolicyRefused(SafeRegionError):
    """No picture is made, by the operator's policy. ``status_code`` and ``detail`` are what web servers look for."""

    def __init__(self, sentence: str, contact: str = "", concepts: Sequence[str] = ()) -> None:
        self.sentence, self.contact, self.concepts = sentence, contact, tuple(concepts)
        self.status_code, self.code = STATUS, CODE
        self.detail = f"{sentence} {contact}".strip()
        super().__init__(self.detail)

    def to_dict(self) -> dict[str, Any]:
        """The JSON that an API answers with."""
        return {
            "error": type(self).__name__,
            "code": self.code,
            "status": self.status_code,
            "detail": self.detail,
            "contact": self.contact,
            "concepts": list(self.concepts),
        }


@dataclass(frozen=True)
class Verdict:
    """What becomes of a prompt: ``action``, and the concepts that it was outside of, with how far."""

    action: str = NONE
    concepts: Mapping[str, float] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Verdict) -> Verdict:
        order = (NONE, *ACTIONS, CLOSED)
        return Verdict(
            max(self.action, other.action, key=order.index),
            {k: max(self.concepts.get(k, v), v) for k, v in {**self.concepts, **other.concepts}.items()},
            {**self.titles, **other.titles},
        )


def judged(policy: Policy, findings: Iterable[Finding]) -> Verdict:
    """What a policy makes of findings; a concept that is open and that no rule names was added by a user, or is of the
    minors baseline, and is guarded."""
    verdict = Verdict()
    for f in findings:
        if f.open or f.unresolved:
            rule = policy.rule(f.concept)
            beside = policy.rule(f.concept.removesuffix(BESIDE))
            action = rule.action if rule else GUARD
            if beside is not None and beside.action == REFUSE:
                action = REFUSE
            verdict |= Verdict(action, {f.concept: round(f.before or 0.0, 3)}, {f.concept: f.title})
    return verdict


@dataclass(frozen=True)
class Request:
    """One picture, or several of one request: what is written of it.

    ``number``: the host's. ``door``: which host. ``prompts``: texts, where the door knows them. ``model``: what tells
    one text encoder from another.
    """

    number: str
    door: str
    prompts: tuple[str, ...] = ()
    model: str = ""


class Enforcement:
    """A policy at work in one process.

    Raises:
        AuditError: its log cannot be opened.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self.by_concept: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._why_closed: str | None = None
        self.audit = None if policy.log.file is None else AuditLog(policy.log)
        for warning in policy.warnings:
            log.warning("%s", warning)
        self._write({"event": "started", "policy": policy.digest})

    # -- before a picture ------------------------------------------------------------------------------------------

    def refused(self, sentence: str, concepts: Sequence[str] = ()) -> PolicyRefused:
        return PolicyRefused(sentence, self.policy.contact, concepts)

    def check(self) -> None:
        """Raise PolicyRefused where nothing may be painted any more, until the host starts again."""
        if self._why_closed is None:
            changed = next((p for p in self.policy.pinned if p.changed()), None)
            if changed is not None:
                self.close(f"{changed.path.name} was changed after this host had started")
        if self._why_closed is not None:
            raise self.refused(f"This host paints nothing until its operator has started it again: {self._why_closed}.")

    def close(self, why: str) -> None:
        """Paint nothing from now on. ``why``: the end of a sentence."""
        with self._lock:
            if self._why_closed is None:
                self._why_closed = why
                log.error("Safe Region paints nothing until this host is started again: %s.", why)

    def selection(self, users: Selection | None = None, by_name: bool = False) -> Selection:
        """What acts, as :func:`~saferegion.guard.policy.effective`. Raises PolicyRefused."""
        self.check()
        try:
            return effective(self.policy, users, by_name)
        except SafeRegionError as error:
            raise self.refusal(error) from None

    # -- what was found --------------------------------------------------------------------------------------------

    def judge(self, reports: Iterable[GuardReport]) -> Verdict:
        """What becomes of prompts with these reports. A prompt that is to be refused is none to raise for: the door
        writes it down first, and asks :meth:`require`."""
        verdict = Verdict()
        for report in reports:
            verdict |= judged(self.policy, report.findings)
            if report.unresolved:
                verdict |= Verdict(CLOSED)
            if self.policy.minors and not report.minors:
                raise self.refused(f"This text encoder cannot be used on this host: {NO_MINORS}.")
        return verdict

    def require(self, verdict: Verdict) -> None:
        """Raise PolicyRefused where a verdict lets no picture be made."""
        if verdict.action == CLOSED:
            raise self.refused("The prompt could not be brought inside the safe region: word it differently.")
        if verdict.action == REFUSE:
            names = [n for n in verdict.concepts if self._refuses(n)]
            titles = ", ".join(dict.fromkeys(verdict.titles.get(n, n) for n in names))
            raise self.refused(f"This host makes no picture of this prompt ({titles}).", names)

    def _refuses(self, concept: str) -> bool:
        rules = (self.policy.rule(concept), self.policy.rule(concept.removesuffix(BESIDE)))
        return any(r is not None and r.action == REFUSE for r in rules)

    def refusal(self, error: BaseException) -> PolicyRefused:
        """Any error as a refusal: the library's keep their sentence, others are named."""
        if isinstance(error, PolicyRefused):
            return error
        if isinstance(error, SafeRegionError):
            return self.refused(str(error).removeprefix("Safe Region: "))
        return self.refused(
            f"This prompt could not be guarded ({type(error).__name__}: {str(error)[:200]}), so no picture was made."
        )

    # -- what is written down --------------------------------------------------------------------------------------

    def record(self, request: Request, verdict: Verdict, error: BaseException | None = None) -> None:
        """Count a request and write its line; at most once a request.

        Raises:
            PolicyRefused: the line cannot be written, and the policy paints nothing then.
        """
        action = CLOSED if error is not None and verdict.action != REFUSE else verdict.action
        with self._lock:
            self.counts[action] += 1
            self.by_concept.update(verdict.concepts.keys())
        prompts = "\n".join(request.prompts)
        entry: dict[str, Any] = {
            "request": request.number[:128],
            "door": request.door,
            "action": action,
            "concepts": dict(verdict.concepts),
            "prompt": self.audit.hashed(prompts) if self.audit is not None and prompts else "",
            "model": fingerprint_text(request.model),
            "policy": self.policy.digest,
        }
        if self.policy.log.prompts:
            entry["text"] = prompts[:LONGEST_PROMPT]
        if error is not None:
            entry["error"] = str(getattr(error, "sentence", error))[:500]
        self._write(entry)

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.audit is None:
            return
        try:
            self.audit.write(entry)
        except AuditError as error:
            if self.policy.log.when_full == CLOSE:
                log.error("%s", error)
                raise self.refused("Nothing is painted while this host cannot write its log.") from None
            log.warning("%s", error)

    def status(self) -> dict[str, Any]:
        """Plain data for people and programs that look after the host; no word of any prompt."""
        return {
            "policy": self.policy.digest,
            "open": self._why_closed is None,
            "why": self._why_closed or "",
            "rules": {r.name: r.action for r in self.policy.rules},
            "contact": self.policy.contact,
            "requests": dict(self.counts),
            "concepts": dict(self.by_concept),
        }

    def metrics(self) -> str:
        """The same as Prometheus reads it (text exposition format 0.0.4)."""
        lines = ["# TYPE saferegion_requests_total counter"]
        lines += [f'saferegion_requests_total{{action="{a}"}} {self.counts[a]}' for a in (NONE, *ACTIONS, CLOSED)]
        lines += ["# TYPE saferegion_concept_found_total counter"]
        for concept, count in sorted(self.by_concept.items()):
            lines.append(f'saferegion_concept_found_total{{concept="{_label(concept)}"}} {count}')
        lines += ["# TYPE saferegion_open gauge", f"saferegion_open {int(self._why_closed is None)}"]
        return "\n".join(lines) + "\n"


def fingerprint_text(model: str) -> str:
    """A short hash of what tells one text encoder from another."""
    return hashlib.sha256(model.encode("utf-8", "replace")).hexdigest()[:16] if model else ""


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


__all__ = [
    "CLOSED", "CODE", "GUARD", "LOG", "NONE", "REFUSE", "STATUS", "Enforcement", "PolicyError", "PolicyRefused",
    "Request", "Verdict", "judged",
]  # fmt: skip
