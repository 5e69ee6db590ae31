"""What would become of prompts under a policy, without a host and without painting."""

from __future__ import annotations

from collections.abc import Sequence

from ..learn.recipes import Concept
from ..learn.settings import CompileSettings, Encode, Progress
from .library import Library
from .naming import names_in
from .policy import Policy, effective
from .second_look import finds_more, normaliser, undisguised, without_disguise
from .selection import GuardReport


def explained(
    policy: Policy,
    prompts: Sequence[str],
    encode: Encode,
    library: Library,
    progress: Progress | None = None,
    settings: CompileSettings | None = None,
) -> list[GuardReport]:
    """The report of each prompt as a door would have it for a user who asks for nothing: its words, its plain text
    where it is in disguise, and its embedding count.

    Raises:
        SafeRegionError: a concept of the policy cannot be used on this encoder.
    """
    selection = effective(policy)
    guard = selection.guard(encode, library, progress, settings)
    names = names_in(selection, library)
    plain = normaliser((), tuple(r.concept for r in policy.rules if isinstance(r.concept, Concept)))
    found = []
    for prompt in prompts:
        report = guard.naming(names(prompt)).apply(encode([prompt]))[1]
        bare = undisguised(plain, prompt)
        if bare is not None:
            again = guard.naming(names(bare.text)).apply(encode([bare.text]))[1]
            if finds_more(report, again):
                report = without_disguise(again, bare.undone)
        found.append(report)
    return found
