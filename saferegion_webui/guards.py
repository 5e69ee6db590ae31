"""From a selection to a guard for the loaded checkpoint: compiled on first use, kept as long as nothing changed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from saferegion.core.direction import Direction
from saferegion.guard.balance import Balance
from saferegion.guard.balance_files import balance_of, wanted_of
from saferegion.guard.library import Library
from saferegion.guard.naming import Names, names_in
from saferegion.guard.normalise import Normaliser
from saferegion.guard.selection import Choice, Guard, Selection
from saferegion.learn.people import FOLDER
from saferegion.learn.recipes import Concept
from saferegion.learn.settings import CompileSettings

from . import policy_door
from .arguments import OWN_WORDS, Arguments
from .encoder import HostEncoder, Loaded
from .host import without_extra_networks
from .refusal import SafeRegionRefused

KEPT_ENCODERS = 4
KEPT_GUARDS = 32

Wanted = Mapping[Hashable, str | Concept]
"""Concepts, each by what changes when the concept does."""


def user_folder() -> Path:
    """Where users put recipes, direction files and neutral prompts of their own."""
    from modules import paths_internal

    return Path(paths_internal.models_path) / "safe_region"


def library() -> Library:
    return Library((user_folder(),))


def concept_names() -> list[str]:
    return library().names()


@dataclass
class _Known:
    """All that is known of one encoder."""

    loaded: Loaded
    encoder: HostEncoder
    directions: dict[Hashable, Direction] = field(default_factory=dict)
    minors: list[Direction] | None = None
    guards: OrderedDict[Hashable, Guard] = field(default_factory=OrderedDict)
    balances: OrderedDict[Hashable, Balance] = field(default_factory=OrderedDict)

    @property
    def settings(self) -> CompileSettings:
        return CompileSettings(family=self.encoder.family)


class Guards:
    """Guards for the checkpoints that were used last."""

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self.preparing: str | None = None
        """What is being prepared just now, in words; None: nothing."""

    def ready(self, checkpoint: Any) -> list[str]:
        """Names of the concepts that are ready for the encoder of ``checkpoint``."""
        known = self._of(checkpoint)
        return [] if known is None else sorted(d.concept for d in known.directions.values())

    def forget(self) -> None:
        self._known.clear()

    def get(
        self, checkpoint: Any, arguments: Arguments, networks: Mapping[str, Any] | None
    ) -> tuple[Guard, HostEncoder]:
        """The guard of what ``arguments`` switch on, for the encoder of ``checkpoint``.

        Args:
            networks: the extra networks that are switched on, for when the encoder has to be asked without them.

        Raises:
            SafeRegionError: a concept that is unknown, broken, made for another encoder, or does not compile.
        """
        wanted = _wanted(policy_door.names(arguments.concepts), own_words(arguments))
        key = (arguments, *wanted)
        known = self._of(checkpoint)
        if known is not None and key in known.guards:
            known.guards.move_to_end(key)
            return known.guards[key], known.encoder
        known = self._prepared(checkpoint, wanted, networks, minors=True)
        names = [c if isinstance(c, str) else c.name for c in wanted.values()]
        choices = (Choice(n, arguments.strength_of(n), arguments.mode) for n in names)
        selection = policy_door.effective(Selection(tuple(choices), arguments.preset), arguments.concepts)
        by_name = dict(zip(names, (known.directions[k] for k in wanted), strict=True))
        guard = policy_door.judged(Guard.of(selection, [by_name[c.name] for c in selection.choices], known.minors))
        known.guards[key] = guard
        while len(known.guards) > KEPT_GUARDS:
            known.guards.popitem(last=False)
        return guard, known.encoder

    def balance(
        self, checkpoint: Any, arguments: Arguments, networks: Mapping[str, Any] | None
    ) -> tuple[Balance, HostEncoder]:
        """What shares out the axes of ``arguments`` on the encoder of ``checkpoint``; ``networks`` as :meth:`get`.

        Raises:
            SafeRegionError: an axis that is unknown, broken, or not told apart on this encoder; wrong shares.
        """
        wanted = wanted_of(arguments.axes)
        key = (arguments.axes, arguments.balance_strength, own_axes())
        known = self._of(checkpoint)
        if known is not None and key in known.balances:
            known.balances.move_to_end(key)
            return known.balances[key], known.encoder
        with self._preparing(checkpoint, networks, "the balance of " + ", ".join(w.axis for w in wanted)) as (
            known,
            tell,
        ):
            made = balance_of(library(), wanted, known.encoder, tell, known.settings, arguments.balance_strength)
        known.balances[key] = made
        while len(known.balances) > KEPT_GUARDS:
            known.balances.popitem(last=False)
        return made, known.encoder

    def normaliser(self, encoder: HostEncoder, arguments: Arguments) -> Normaliser:
        """What undoes disguises for an encoder and for the user's own concepts that are switched on."""
        stamps = [_stamp(name) for name in policy_door.names(arguments.concepts)]
        found = [_own(*s) for s in stamps if s[1].parent == user_folder()]
        own = [c for c in found if isinstance(c, Concept)]
        words = own_words(arguments)
        return encoder.normaliser((*own, *(() if words is None else (words,))))

    def names(self, arguments: Arguments) -> Names:
        """What a text names, of all that is switched on."""
        words = own_words(arguments)
        stamps = [_stamp(name) for name in policy_door.names(arguments.concepts)]
        wanted = [_own(*s) if s[1].parent == user_folder() else s[0] for s in stamps]
        return names_in(Selection(tuple(Choice(c) for c in (*wanted, *(() if words is None else (words,))))), library())

    def directions(self, checkpoint: Any, names: Sequence[str]) -> list[Direction]:
        """Of concepts by name, for the encoder of ``checkpoint`` without extra networks. Raises as :meth:`get`."""
        wanted = _wanted(names)
        known = self._prepared(checkpoint, wanted, None)
        return [known.directions[k] for k in wanted]

    def _of(self, checkpoint: Any) -> _Known | None:
        return next((k for k in self._known if k.loaded.same(checkpoint)), None)

    def _prepared(
        self, checkpoint: Any, wanted: Wanted, networks: Mapping[str, Any] | None, minors: bool = False
    ) -> _Known:
        """The encoder of ``checkpoint``, with the directions of all that is wanted and, where asked, the baseline."""
        known = self._of(checkpoint)
        missing = {k: c for k, c in wanted.items() if known is None or k not in known.directions}
        if known is not None and not missing and not (minors and known.minors is None):
            return known
        titles = ", ".join(c if isinstance(c, str) else c.title for c in missing.values())
        concepts = list(missing.values())
        with self._preparing(checkpoint, networks, titles or "the baseline for minors") as (known, progress):
            if minors and known.minors is None:
                made, known.minors = library().guarding(concepts, known.encoder, progress, known.settings)
            else:
                made = library().directions(concepts, known.encoder, None, progress, known.settings)
        known.directions.update(zip(missing, made, strict=True))
        return known

    @contextmanager
    def _preparing(
        self, checkpoint: Any, networks: Mapping[str, Any] | None, what: str
    ) -> Iterator[tuple[_Known, Callable[[int, int], None]]]:
        """The bare encoder of ``checkpoint``, while ``what`` is prepared for it, and what tells of the progress."""
        with without_extra_networks(networks):
            known = self._of(checkpoint)
            if known is None:
                known = _Known(Loaded(checkpoint), HostEncoder(checkpoint))
                self._known = [known, *self._known[: KEPT_ENCODERS - 1]]
            self.preparing = what
            with _progress(self) as progress:
                yield known, progress


def own_axes() -> tuple[Hashable, ...]:
    """What changes when an axis of the user's own does."""
    found = sorted((user_folder() / FOLDER).glob("*.yaml"))
    return tuple((p.name, (status := p.stat()).st_mtime_ns, status.st_size) for p in found)


def _stamp(name: str) -> tuple[str, Path, int, int]:
    path = library().where(name)
    status = path.stat()
    return name, path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _own(name: str, path: Path, changed: int, size: int) -> Concept | Direction:
    """A concept of the user's folder, read once as long as the file stays the same."""
    return library().find(name)


def own_words(arguments: Arguments) -> Concept | None:
    """The concept of the user's own words."""
    if not arguments.avoid:
        return None
    return Concept.from_words(OWN_WORDS, arguments.avoid, arguments.instead, arguments.sentences)


def _wanted(names: Sequence[str], own: Concept | None = None) -> Wanted:
    found, wanted = library(), {}
    neutral = found.neutral()
    for name in names:
        wanted[(*_stamp(name), neutral)] = name
    return wanted if own is None else {**wanted, (own, neutral): own}


speed: list[float] = []
"""Seconds a prompt took when something was prepared last."""


def spell(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


@contextmanager
def _progress(guards: Guards) -> Iterator[Callable[[int, int], None]]:
    """The webui's own progress bar, which afterwards shows what it showed before."""
    from modules import shared

    state = shared.state
    before = (state.textinfo, state.sampling_step, state.sampling_steps)

    begun = time.monotonic()

    def progress(done: int, total: int) -> None:
        if state.interrupted:
            raise SafeRegionRefused("Safe Region was interrupted before its concepts were ready; no picture was made.")
        each = (time.monotonic() - begun) / done if done else 0.0
        if done:
            speed[:] = [each]
        left = f", {spell(each * (total - done))} left" if done else ""
        state.textinfo = f"Safe Region prepares {guards.preparing}: {done} of {total} prompts{left}; Interrupt stops it"
        state.sampling_step, state.sampling_steps = done, total

    try:
        yield progress
    finally:
        guards.preparing = None
        state.textinfo, state.sampling_step, state.sampling_steps = before
