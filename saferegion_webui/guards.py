"""From a selection to a guard for the loaded checkpoint: compiled on first use, kept as long as nothing changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saferegion.core.direction import Direction
from saferegion.floor import Floor
from saferegion.guard.library import RECIPE_SUFFIXES, Library
from saferegion.guard.selection import Choice, Guard, Selection
from saferegion.learn.bundled import vectors_folder
from saferegion.learn.recipes import NEUTRAL, Concept

from .arguments import OWN_WORDS, Arguments
from .encoder import HostEncoder, Loaded, without_extra_networks
from .refusal import SafeRegionRefused

KEPT_ENCODERS = 4
KEPT_GUARDS = 32


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
    directions: dict[Any, Direction] = field(default_factory=dict)
    guards: OrderedDict[Any, Guard] = field(default_factory=OrderedDict)
    floors: dict[Any, Floor | None] = field(default_factory=dict)


class Guards:
    """Guards for the checkpoints that were used last."""

    def __init__(self) -> None:
        self._known: list[_Known] = []

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
        concepts = _concepts(arguments)
        key = (arguments, tuple(stamp for _, stamp in concepts), _stamp(NEUTRAL))
        known = next((k for k in self._known if k.loaded.same(checkpoint)), None)
        if known is not None and key in known.guards:
            known.guards.move_to_end(key)
            return known.guards[key], known.encoder
        known, directions = self._directions(checkpoint, concepts, networks)
        floor = self._floor(known, networks)
        mode, strength = arguments.mode, arguments.strength_of
        names = [c if isinstance(c, str) else c.name for c, _ in concepts]
        selection = Selection(tuple(Choice(c, strength(n), mode) for (c, _), n in zip(concepts, names, strict=True)))
        guard = Guard.of(selection, directions, floor)
        known.guards[key] = guard
        while len(known.guards) > KEPT_GUARDS:
            known.guards.popitem(last=False)
        return guard, known.encoder

    def _floor(self, known: _Known, networks: Mapping[str, Any] | None) -> Floor | None:
        """What keeps the sexual theme from prompts about children, whatever is switched on."""
        stamp = _stamp(NEUTRAL)
        if stamp not in known.floors:
            with without_extra_networks(networks), _progress("the floor") as progress:
                known.floors = {stamp: library().floor(known.encoder, progress, family=known.encoder.family)}
        return known.floors[stamp]

    def directions(self, checkpoint: Any, names: Sequence[str]) -> list[Direction]:
        """Of concepts by name, for the encoder of ``checkpoint`` without extra networks. Raises as :meth:`get`."""
        return self._directions(checkpoint, [(name, _stamp(name)) for name in names], None)[1]

    def _directions(
        self, checkpoint: Any, concepts: Sequence[tuple[str | Concept, Any]], networks: Mapping[str, Any] | None
    ) -> tuple[_Known, list[Direction]]:
        neutral = _stamp(NEUTRAL)
        known = next((k for k in self._known if k.loaded.same(checkpoint)), None)
        missing = [(c, s) for c, s in concepts if known is None or (s, neutral) not in known.directions]
        if known is None or missing:
            with without_extra_networks(networks):
                if known is None:
                    known = _Known(Loaded(checkpoint), HostEncoder(checkpoint))
                    self._known = [known, *self._known[: KEPT_ENCODERS - 1]]
                with _progress(", ".join(c if isinstance(c, str) else c.title for c, _ in missing)) as progress:
                    made = library().directions(
                        [c for c, _ in missing], known.encoder, progress=progress, family=known.encoder.family
                    )
            for (_, stamp), directions in zip(missing, made, strict=True):
                known.directions[stamp, neutral] = directions
        return known, [known.directions[s, neutral] for _, s in concepts]


def own_words(arguments: Arguments) -> Concept | None:
    """The concept of the user's own words."""
    if not arguments.avoid:
        return None
    return Concept.from_words(OWN_WORDS, arguments.avoid, arguments.instead, arguments.sentences)


def _concepts(arguments: Arguments) -> list[tuple[str | Concept, Any]]:
    """Names and own words, each with what changes when the concept does."""
    found: list[tuple[str | Concept, Any]] = [(name, _stamp(name)) for name in arguments.concepts]
    own = own_words(arguments)
    if own is not None:
        found.append((own, own.pairs))
    return found


def _stamp(name: str) -> Any:
    """The file that a concept is read from, with its size and time."""
    if Path(name).name != name:
        raise SafeRegionRefused(
            f"Safe Region: a concept is given by its name, not by a file; put the file into {user_folder()}."
        )
    for folder in (user_folder(), vectors_folder()):
        for suffix in (*RECIPE_SUFFIXES, ".safetensors"):
            try:
                known = (folder / f"{name}{suffix}").stat()
            except OSError:
                continue
            return (name, str(folder), suffix, known.st_size, known.st_mtime_ns)
    raise SafeRegionRefused(f"Safe Region: there is no concept {name!r}; there are {', '.join(concept_names())}.")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """The webui's own progress bar, which afterwards shows what it showed before."""
    from modules import shared

    state = shared.state
    before = (state.textinfo, state.sampling_step, state.sampling_steps)

    def progress(done: int, total: int) -> None:
        if state.interrupted:
            raise SafeRegionRefused("Safe Region was interrupted before its concepts were ready; no picture was made.")
        state.textinfo = f"Safe Region prepares {what}: {done} of {total} prompts"
        state.sampling_step, state.sampling_steps = done, total

    try:
        yield progress
    finally:
        state.textinfo, state.sampling_step, state.sampling_steps = before
