"""Where axes are found, and how their gates and groups are read from the cache or compiled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..core.direction import Direction
from ..core.errors import BalanceError, NotSeparableError, RecipeError
from ..core.fingerprint import Fingerprint, fingerprint_of
from ..core.quota import NO_AXIS
from ..learn.balance import Set, compile_balance
from ..learn.people import FOLDER, AxisRecipe, balance_folder, read_axis
from ..learn.settings import CompileSettings, Encode, Progress
from .balance import Balance, Wanted
from .failures import Failure, recall, remember
from .library import OWN, Library

log = logging.getLogger("saferegion")

PREFIX = "axis-"


def axis_names(library: Library) -> list[str]:
    """Axes that can be balanced: those bundled, then ``my/…`` of the user's folders."""
    own = {_name(p) for folder in library.folders for p in _files(folder / FOLDER)}
    return [*sorted(_name(p) for p in _files(balance_folder())), *sorted(OWN + n for n in own)]


def find_axis(library: Library, name: str) -> AxisRecipe:
    """An axis by its name. Raises RecipeError: there is none, or its file is wrong."""
    plain = name.removeprefix(OWN)
    folders = [f / FOLDER for f in library.folders] if name.startswith(OWN) else [balance_folder()]
    path = next((p for folder in folders for p in _files(folder) if _name(p) == plain), None)
    if path is None:
        raise RecipeError(f"There is no axis '{name}' to balance; there are {', '.join(axis_names(library))}.")
    found = read_axis(path)
    if found.name != plain:
        raise RecipeError(f"{path.name}: 'name' must be '{plain}', as the file is called; got '{found.name}'.")
    return found


def wanted_of(text: str) -> list[Wanted]:
    """Axes with their shares from a text of one axis a line: ``gender``, or ``gender: woman 50, man 50``; lines that
    begin with # are off.

    Raises:
        BalanceError: a share that is no number, an axis or a group that stands twice, or none at all.
    """
    found: list[Wanted] = []
    for line in text.splitlines():
        axis, _, shares = (part.strip() for part in line.partition(":"))
        if not axis or axis.startswith("#"):
            continue
        if axis in {w.axis for w in found}:
            raise BalanceError(f"'{axis}' is chosen twice; keep one.")
        numbers: dict[str, float] = {}
        for part in filter(None, (p.strip() for p in shares.split(","))):
            group, _, share = part.removesuffix("%").strip().rpartition(" ")
            try:
                number = float(share)
            except ValueError:
                group = ""
            if not group.strip():
                raise BalanceError(
                    f"'{axis}': write every group with its share, as in 'woman 50, man 50'; got '{part}'."
                )
            if group.strip() in numbers:
                raise BalanceError(f"'{axis}' has a share of '{group.strip()}' twice; keep one.")
            numbers[group.strip()] = number
        found.append(Wanted(axis, numbers or None))
    if not found:
        raise BalanceError(NO_AXIS)
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.glob(f"{PREFIX}*.yaml") if p.is_file())
    except OSError:
        return []


def _name(path: Path) -> str:
    return path.stem.removeprefix(PREFIX)


def recipes_of(library: Library, names: Sequence[str]) -> Set:
    """What is compiled for these axes: all bundled ones together, or an own axis beside them; an own axis that brings
    its own gates alone.

    Raises:
        RecipeError: an axis that is unknown or broken.
        BalanceError: none is named, or one with gates of its own beside others.
    """
    if not names:
        raise BalanceError(NO_AXIS)
    wanted = [find_axis(library, n) for n in dict.fromkeys(names)]
    own = [a for a in wanted if a.gates is not None]
    if own:
        if len(wanted) > 1:
            raise BalanceError(f"'{own[0].name}' brings its own gates, so it is balanced alone.")
        return Set.of(own)
    bundled = [read_axis(p) for p in _files(balance_folder())]
    beside = [a for a in bundled if a.name not in {w.name for w in wanted}]
    return Set.of(sorted([*wanted, *beside], key=lambda a: a.name))


def balance_of(
    library: Library,
    wanted: Sequence[Wanted],
    encode: Encode,
    progress: Progress | None = None,
    settings: CompileSettings | None = None,
    strength: float = 1.0,
) -> Balance:
    """Balance along some axes on the encoder behind ``encode``: read from the cache, compiled where missing.

    Raises:
        SafeRegionError: an axis that is unknown, or that this encoder does not tell apart, with its accuracy; shares
            that make no sense.
    """
    settings = settings or CompileSettings()
    recipes = recipes_of(library, [w.axis for w in wanted])
    plain = [Wanted(w.axis.removeprefix(OWN), w.shares) for w in wanted]
    Balance.check(recipes, plain)
    encoder = fingerprint_of(encode)
    axes = [w.axis for w in plain]
    for axis in axes:
        if why := recall(library.cache_folder(), encoder, _key(recipes, axis)):
            raise NotSeparableError(why)
    found = _kept(library, recipes, axes, encoder, settings)
    if found is None:
        found = _compiled(library, recipes, axes, encode, progress, settings)
    return Balance(recipes, found, plain, strength)


def _key(recipes: Set, axis: str) -> str:
    return f"balance-{recipes.digest()}-{axis}"


def _kept(
    library: Library, recipes: Set, axes: Sequence[str], encoder: Fingerprint, settings: CompileSettings
) -> list[Direction] | None:
    digest, found = recipes.digest(), []
    for name in recipes.names(axes):
        kept = library.kept(name, digest, encoder, settings)
        if kept is None:
            return None
        found.append(kept)
    return found


def _compiled(
    library: Library,
    recipes: Set,
    axes: Sequence[str],
    encode: Encode,
    progress: Progress | None,
    settings: CompileSettings,
) -> list[Direction]:
    """Of every axis of the set, whichever is asked for; what does not separate is remembered."""
    encoder = fingerprint_of(encode)
    try:
        found = compile_balance(recipes, encode, progress, settings)
    except NotSeparableError as error:
        for axis in recipes.axes:
            remember(library.cache_folder(), Failure(encoder, _key(recipes, axis.name), str(error)))
        raise
    for direction in found.directions:
        library.keep(direction, settings)
    for name, why in found.refused.items():
        remember(library.cache_folder(), Failure(encoder, _key(recipes, name), str(why)))
    for name in axes:
        if name in found.refused:
            raise found.refused[name]
    return list(found.directions)
