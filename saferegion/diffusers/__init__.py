"""The door to diffusers: a pipeline whose prompts stay inside a safe region.

    import saferegion.diffusers as safe

    pipe = StableDiffusionPipeline.from_pretrained(...)
    pipe = safe.guard(pipe, ["nudity", "violence"])
    picture = pipe("a house by the sea").images[0]
    print(pipe.safe_region.text())
    pipe.unguard()

What is guarded is what ``encode_prompt`` gives, be it of a prompt or of ``prompt_embeds``. A pipeline that is made of
another's components, as ``from_pipe`` does, is a pipeline of its own: guard it too. diffusers itself is not imported
here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..core.direction import Direction
from ..core.errors import SafeRegionError
from ..guard.library import Library
from ..guard.policy import VARIABLE, policy_path
from ..guard.presets import NORMAL
from ..guard.selection import Choice, Selection
from ..learn.recipes import Concept
from .door import Door, DoorSettings, Look
from .encoder import PipelineEncoder, usual_options
from .table import Entry, entries, signature_of

__all__ = ["Door", "DoorSettings", "Entry", "Look", "encoder_of", "entries", "guard", "selection_of", "unguard"]

Concepts = Selection | Sequence[str | Concept | Direction | Choice]
_MARK = "_safe_region_of"


def guard(
    pipe: Any,
    concepts: Concepts | None = None,
    *,
    strength: float | Mapping[str, float] = 1.0,
    mode: str = "project",
    preset: str = NORMAL,
    settings: DoorSettings | None = None,
) -> Any:
    """Guard a pipeline of diffusers in place, compiling concepts for its text encoder where they are not ready.

    Args:
        pipe: a pipeline whose class the table knows (``docs/diffusers-classes.md``); a guarded one is guarded anew.
        concepts: names, recipes, directions or choices, or a whole selection, which then counts alone; None: every
            bundled concept that is kept out.
        strength: from 0 to 10, for all or by name. mode: ``project``, ``steer`` or ``erase``. preset: ``gentle``,
            ``normal`` or ``strict``.

    Returns:
        ``pipe`` itself, its class of the same name, with ``pipe.safe_region`` (a :class:`Door`) and ``pipe.unguard()``.

    Raises:
        SafeRegionError: its class or signature is not known, its text encoder is not loaded, or a concept cannot be
            used on it; the pipeline is as it was then.
    """
    settings = settings or DoorSettings()
    if policy_path() is not None:
        raise SafeRegionError(
            f"{VARIABLE} names a policy, and pipelines of diffusers are not held to one yet: take it out of the "
            "environment of this program, and switch on here what it asks for."
        )
    own = _own_class(type(pipe))
    signature = signature_of(own)
    if "encode_prompt" in vars(pipe):
        raise SafeRegionError(
            f"Something else stands in the place of encode_prompt in this {own.__name__}, so it cannot be guarded: "
            "load the pipeline anew and guard it first."
        )
    library = Library() if settings.library is None else settings.library
    door = Door(selection_of(concepts, strength, mode, preset, library), settings, signature)
    door.fit(pipe, own.encode_prompt.__get__(pipe), usual_options(own))
    door.listen(pipe)
    pipe.__class__ = _guarded_class(own)
    pipe.safe_region = door
    return pipe


def unguard(pipe: Any) -> Any:
    """Take the guard off; a pipeline without one stays as it is. Returns ``pipe``."""
    own = _own_class(type(pipe))
    if own is not type(pipe):
        pipe.__class__ = own
        vars(pipe).pop("safe_region", None)
    return pipe


def encoder_of(pipe: Any) -> PipelineEncoder:
    """The text encoder of a pipeline as the library's ``encode``: to compile, inspect and pack concepts for it.

    Raises SafeRegionError as :func:`guard`.
    """
    own = _own_class(type(pipe))
    return PipelineEncoder(pipe, own.encode_prompt.__get__(pipe), signature_of(own), usual_options(own))


def selection_of(
    concepts: Concepts | None,
    strength: float | Mapping[str, float] = 1.0,
    mode: str = "project",
    preset: str = NORMAL,
    library: Library | None = None,
) -> Selection:
    """What is switched on. Raises SafeRegionError: nothing, or a strength of what is not chosen."""
    if isinstance(concepts, Selection):
        return concepts
    if isinstance(concepts, str):
        raise SafeRegionError(f"concepts is a list of names: write [{concepts!r}].")
    if concepts is None:
        concepts = [c.name for c in Library().recipes() if c.kind == "exclude"]
    each = strength if isinstance(strength, Mapping) else {}
    general = 1.0 if isinstance(strength, Mapping) else strength

    def choice(c: str | Concept | Direction | Choice) -> Choice:
        if isinstance(c, Choice):
            return c
        if not isinstance(c, str | Concept | Direction):
            raise SafeRegionError(f"A concept is a name, a recipe, a direction or a choice; got {type(c).__name__}.")
        return Choice(c, each.get(Choice(c).name, general), mode)

    choices = tuple(choice(c) for c in concepts)
    if unknown := [n for n in each if n not in {c.name for c in choices}]:
        raise SafeRegionError(f"There is a strength of {unknown[0]!r}, which is not among the concepts.")
    if not choices:
        raise SafeRegionError("Nothing is switched on: choose at least one concept.")
    return Selection(choices, preset)


def _own_class(cls: type) -> Any:
    """The class of diffusers behind a guarded one."""
    return vars(cls).get(_MARK, cls)


@cache
def _guarded_class(own: Any) -> type:
    """A subclass with the same name, so that a guarded pipeline is saved, loaded and shown as what it is."""

    def door_of(self: Any) -> Door:
        found = vars(self).get("safe_region")
        if not isinstance(found, Door) or "encode_prompt" in vars(self):
            raise SafeRegionError(
                f"The guard of this {own.__name__} is not in its place any more, so nothing is painted: guard it anew."
            )
        return found

    @functools.wraps(own.encode_prompt)
    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        return door_of(self).encoded(self, own.encode_prompt.__get__(self), args, kwargs)

    @functools.wraps(own.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        door = door_of(self)
        arguments = dict(inspect.signature(own.__call__).bind(self, *args, **kwargs).arguments)
        with door.calling(arguments) as now:
            made = own.__call__(self, *args, **kwargs)
        if not now.passed:
            raise SafeRegionError(
                f"{own.__name__} painted without asking encode_prompt, so what it made is kept: take other options."
            )
        return made

    body = {
        "encode_prompt": encode_prompt,
        "__call__": call,
        "unguard": unguard,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        _MARK: own,
    }
    return type(own.__name__, (own,), body)
