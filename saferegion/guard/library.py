"""Where concepts and compiled directions are found, and how what is missing gets compiled."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.direction import Direction
from ..core.errors import DirectionFileError, NotSeparableError, RecipeError, SafeRegionError
from ..core.fingerprint import Fingerprint, fingerprint_of
from ..core.writing import write_whole
from ..learn.bundled import NO_CONCEPTS, RECIPE_SUFFIXES, SUFFIXES, bundled_names, neutral_prompts, stems
from ..learn.compile import compile_many
from ..learn.places import vectors_folder
from ..learn.recipes import NEUTRAL, Concept, read_neutral, read_recipe
from ..learn.settings import METHOD, CompileSettings, Encode, Progress
from .failures import Failure, recall, remember
from .files import direction_of, load_directions
from .minors import AGE, NAMES, minors_of, trimmed
from .packs import Pack, list_packs

log = logging.getLogger("saferegion")

CACHE_VARIABLE = "SAFE_REGION_CACHE"
OWN = "my/"
"""What the names of concepts of the user's own folders start with."""

_UNSEEN = ("batch_size", "family")
"""Settings that change nothing of what is compiled."""


def cache_folder() -> Path:
    """Where compiled directions are kept: ``$SAFE_REGION_CACHE``, else ``safe-region`` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "safe-region" / "directions"


@lru_cache(maxsize=8)
def _read_neutral(path: Path, changed: int, size: int) -> tuple[str, ...]:
    """As :func:`read_neutral`, once as long as the file stays the same."""
    return read_neutral(path)


@lru_cache(maxsize=64)
def _read_bundled(path: Path, changed: int, size: int) -> Concept:
    """As :func:`read_recipe`, once as long as the file stays the same."""
    return read_recipe(path)


def load_concept(name: str | os.PathLike[str]) -> Concept | Direction:
    """A bundled concept by its name, or a recipe (``.yaml``) or direction file (``.safetensors``) by its path.

    Raises:
        RecipeError, DirectionFileError: with a sentence that says what is wrong or which names there are.
    """
    return Library().find(name)


@dataclass(frozen=True)
class Library:
    """Concepts by name, those bundled and those of the user's own ``folders``; compiled directions in ``cache``.

    Names of bundled concepts are reserved: what lies in ``folders`` is named ``my/<name>``, and is found by its plain
    name too where nothing bundled has it.
    """

    folders: tuple[Path, ...] = ()
    cache: Path | None = None

    # -- concepts by name ----------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All concepts that can be named: those bundled, then ``my/…``, each sorted."""
        own = {name for folder in self.folders for name in stems(folder)}
        return [*bundled_names(vectors_folder()), *(OWN + n for n in sorted(own - {NEUTRAL}))]

    def recipes(self) -> list[Concept]:
        """Every recipe that can be named; files that are none, or broken, are left out."""
        found = []
        for name in self.names():
            try:
                concept = self.find(name)
            except SafeRegionError:
                continue
            if isinstance(concept, Concept):
                found.append(concept)
        return found

    def neutral(self) -> tuple[str, ...]:
        """Benign prompts that calibrate own concepts: ``neutral.yaml`` of the first folder that has one, else those
        bundled, which always calibrate the bundled concepts.

        Raises RecipeError: the file is none of neutral prompts.
        """
        for folder in self.folders:
            for suffix in RECIPE_SUFFIXES:
                if (path := folder / f"{NEUTRAL}{suffix}").exists():
                    status = path.stat()
                    return _read_neutral(path, status.st_mtime_ns, status.st_size)
        return neutral_prompts()

    def find(self, name: str | os.PathLike[str]) -> Concept | Direction:
        """See :func:`load_concept`."""
        text = os.fspath(name)
        path = Path(text)
        if path.suffix == ".safetensors":
            return load_directions(path)
        if path.suffix in RECIPE_SUFFIXES:
            return read_recipe(path)
        found = self._where(text)
        if found is None:
            raise RecipeError(f"{self._unknown(text)}, or give a file.")
        if found.parent == vectors_folder():
            return self._bundled(found, text)
        return _named(found, text.removeprefix(OWN))

    def where(self, name: str) -> Path:
        """The file of a concept by its name, never by a path. Raises RecipeError: there is none."""
        found = self._where(name)
        if found is None:
            raise RecipeError(f"{self._unknown(name)}.")
        return found

    def _where(self, name: str) -> Path | None:
        plain = name.removeprefix(OWN)
        if plain and Path(plain).name == plain and "\\" not in plain and "\0" not in plain:
            if plain == name and name not in NO_CONCEPTS and (found := _candidate(vectors_folder(), name)):
                return found
            if plain != NEUTRAL and (plain != name or plain not in NO_CONCEPTS):
                return next((found for folder in self.folders if (found := _candidate(folder, plain))), None)
        return None

    def _unknown(self, name: str) -> str:
        return f"There is no concept {name!r}; there are {', '.join(self.names()) or 'none'}"

    @staticmethod
    def _bundled(path: Path, name: str) -> Concept | Direction:
        if path.suffix == ".safetensors":
            return load_directions(path)
        status = path.stat()
        return _checked_name(_read_bundled(path, status.st_mtime_ns, status.st_size), path, name)

    def is_bundled(self, concept: Concept) -> bool:
        """Whether a recipe is, word for word, the bundled one of its name."""
        found = _candidate(vectors_folder(), concept.name)
        if found is None or found.suffix == ".safetensors" or concept.name in NO_CONCEPTS:
            return False
        bundled = self._bundled(found, concept.name)
        return isinstance(bundled, Concept) and concept in (bundled, trimmed(bundled))

    # -- directions ----------------------------------------------------------------------------------------------

    def directions(
        self,
        concepts: Sequence[str | os.PathLike[str] | Concept | Direction],
        encode: Encode,
        neutral: Sequence[str] | None = None,
        progress: Progress | None = None,
        settings: CompileSettings | None = None,
    ) -> list[Direction]:
        """Directions of ``concepts`` for the encoder behind ``encode``: of a vector pack, of the cache, or compiled.

        A cache that cannot be written, or that holds a damaged file, costs a compilation and a warning, never the
        guard. What did not separate is remembered there and refused at once. Two processes that compile the same
        concept at once both write a whole file of the same content.

        Args:
            concepts: names, files, recipes or directions.
            encode: prompts -> conditioning.
            neutral: benign prompts that calibrate all of them (None: those bundled for bundled concepts,
                :meth:`neutral` for own ones).
            progress: called with prompts done and in all.
            settings: of the compilation.

        Raises:
            SafeRegionError: a concept that is unknown, does not compile, or is a direction file of another encoder.
        """
        settings = settings or CompileSettings()
        found = [c if isinstance(c, Concept | Direction) else self.find(c) for c in concepts]
        encoder = fingerprint_of(encode)
        shelf = [] if _tag(settings) else self._packs(encoder)
        ready: dict[int, Direction] = {}
        missing: dict[tuple[str, ...], list[int]] = {}
        for i, concept in enumerate(found):
            if isinstance(concept, Direction):
                if concept.encoder is not None:
                    concept.encoder.require(encoder, f"'{concept.concept}'")
                ready[i] = concept
                continue
            benign = self._benign(concept, neutral)
            digest = concept.digest(benign)
            kept = _packed(shelf, concept, digest) or self._cached(concept, digest, encoder, settings)
            if kept is not None:
                ready[i] = kept
                continue
            if why := recall(self.cache_folder(), encoder, _key(concept, benign, settings)):
                raise NotSeparableError(why)
            missing.setdefault(benign, []).append(i)
        for benign, which in missing.items():
            wanted = [c for i in which if isinstance(c := found[i], Concept)]
            once = list(dict.fromkeys(wanted))
            made = self._compile(once, encode, benign, progress, settings)
            ready |= {i: made[once.index(c)] for i, c in zip(which, wanted, strict=True)}
        return [ready[i] for i in range(len(found))]

    def guarding(
        self,
        concepts: Sequence[str | os.PathLike[str] | Concept | Direction],
        encode: Encode,
        progress: Progress | None = None,
        settings: CompileSettings | None = None,
    ) -> tuple[list[Direction], list[Direction]]:
        """:meth:`directions` of ``concepts`` and :meth:`minors`, compiled in one go where they are missing, so that
        what they share is encoded once. Raises as :meth:`directions`."""
        try:
            recipes = self._minors_recipes()
            made = self.directions([*concepts, *recipes], encode, None, progress, settings)
            return made[: len(concepts)], minors_of(made[len(concepts) :])
        except NotSeparableError:  # of the baseline, which then goes without it; of a concept: refused again at once
            found = self.directions(concepts, encode, None, progress, settings)
            return found, self.minors(encode, progress, settings)

    def _minors_recipes(self) -> list[Concept]:
        """The bundled recipes that the baseline is made of, each with as many pairs as it needs."""
        recipes = [found for n in NAMES if isinstance(found := self.find(n), Concept)]
        if len(recipes) != len(NAMES):
            raise RecipeError(f"The baseline for minors needs the recipes {', '.join(NAMES)}; install it again.")
        return [trimmed(c) for c in recipes]

    def minors(
        self, encode: Encode, progress: Progress | None = None, settings: CompileSettings | None = None
    ) -> list[Direction]:
        """The minors baseline on the encoder behind ``encode``; see :mod:`saferegion.guard.minors`.

        Made of the bundled recipes and neutral prompts alone, whatever ``folders`` hold. Concepts whose words this
        encoder does not know at all are left out, with a warning that is said once; empty where nothing is left.

        Raises:
            SafeRegionError: a recipe is missing or broken, or does not compile for any other reason.
        """
        settings = settings or CompileSettings()
        recipes = self._minors_recipes()
        neutral, encoder = self._benign(recipes[0], neutral_prompts()), fingerprint_of(encode)
        wanted = {c.name: c for c in recipes}

        def known(c: Concept) -> bool:
            return recall(self.cache_folder(), encoder, _key(c, neutral, settings)) is None

        wanted = {n: c for n, c in wanted.items() if known(c)}
        while AGE in wanted and len(wanted) > 1:
            try:
                made = self.directions(list(wanted.values()), encode, neutral, progress, settings)
                return minors_of(made)
            except NotSeparableError as error:
                lost = [n for n in wanted if _about(error, n)]
                if not lost:
                    raise
                for name in lost:
                    log.warning("The baseline for minors goes without '%s' on this encoder: %s", name, error)
                    del wanted[name]
        return []

    def _benign(self, concept: Concept, neutral: Sequence[str] | None) -> tuple[str, ...]:
        if neutral is None:
            neutral = neutral_prompts() if self.is_bundled(concept) else self.neutral()
        return tuple(n for n in neutral if n.strip())

    def _compile(
        self,
        wanted: list[Concept],
        encode: Encode,
        neutral: Sequence[str],
        progress: Progress | None,
        settings: CompileSettings,
    ) -> list[Direction]:
        try:
            made = compile_many(wanted, encode, neutral, progress, settings)
        except NotSeparableError as error:
            for concept in wanted:
                if _about(error, concept.name):
                    recipe = _key(concept, neutral, settings)
                    remember(self.cache_folder(), Failure(fingerprint_of(encode), recipe, str(error)))
            raise
        for direction in made:
            self.keep(direction, settings)
        return made

    # -- packs and cache -----------------------------------------------------------------------------------------

    def cache_folder(self) -> Path:
        """Where compiled directions are kept."""
        return cache_folder() if self.cache is None else self.cache

    def _packs(self, encoder: Fingerprint) -> list[Pack]:
        """Those of this encoder and this fit; a damaged one costs a warning."""
        found = []
        for path, pack in list_packs([*self.folders, self.cache_folder()]):
            if isinstance(pack, DirectionFileError):
                log.warning("A vector pack is ignored (%s): %s", path, pack)
            elif pack.method == METHOD and pack.encoder.matches(encoder):
                found.append(pack)
        return found

    def _file(self, concept: str, recipe: str, encoder: Fingerprint, settings: CompileSettings) -> Path:
        widths = "-".join(f"{n}{w}" for n, w in encoder.widths)
        concept = re.sub(r"[^a-z0-9]+", "-", concept.lower())
        return self.cache_folder() / f"{concept}-{recipe[:16]}-fit{METHOD}{_tag(settings)}-{widths}"

    def _cached(
        self, concept: Concept, recipe: str, encoder: Fingerprint, settings: CompileSettings
    ) -> Direction | None:
        found = self.kept(concept.name, recipe, encoder, settings)
        return None if found is None else _renewed(found, concept)

    def kept(self, name: str, recipe: str, encoder: Fingerprint, settings: CompileSettings) -> Direction | None:
        """The direction of this name and digest that the cache has for ``encoder``; a damaged one costs a warning."""
        stem = self._file(name, recipe, encoder, settings)
        try:
            candidates = sorted(stem.parent.glob(f"{stem.name}-*.safetensors"))
        except OSError:
            return None
        found = []
        for path in candidates:
            try:
                direction = load_directions(path)
            except DirectionFileError as error:
                log.warning("Compiled directions are ignored and made again: %s", error)
                continue
            here = direction.meta.recipe == recipe and direction.concept == name
            if here and direction.encoder is not None and direction.encoder.matches(encoder):
                found.append((direction.encoder.distance(encoder), direction))
        return min(found, key=lambda f: f[0])[1] if found else None

    def keep(self, direction: Direction, settings: CompileSettings) -> None:
        """Write a direction into the cache; where that cannot be done it costs a warning."""
        if direction.encoder is None:
            raise SafeRegionError("Only directions of a known encoder are kept.")
        stem = self._file(direction.concept, direction.meta.recipe, direction.encoder, settings)
        path = stem.parent / f"{stem.name}-{_short(str(direction.encoder))}.safetensors"
        try:
            data = direction.to_bytes()
            direction_of(data, path.name)
            write_whole(path, data)
        except (OSError, SafeRegionError) as error:
            log.warning(
                "Compiled directions cannot be kept in %s (%s), so they are compiled again next time; "
                "set %s to a folder that can be written.",
                stem.parent,
                getattr(error, "strerror", None) or error,
                CACHE_VARIABLE,
            )


def _packed(shelf: Sequence[Pack], concept: Concept, recipe: str) -> Direction | None:
    """The first pack's direction; a damaged file costs a warning."""
    for pack in shelf:
        for entry in pack.entries:
            if (entry.concept, entry.recipe) != (concept.name, recipe):
                continue
            try:
                return _renewed(pack.direction(entry), concept)
            except DirectionFileError as error:
                log.warning("A file of the vector pack '%s' is ignored: %s", pack.name, error)
    return None


def _candidate(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").exists():
            return path
    return None


def _named(path: Path, name: str) -> Concept | Direction:
    if path.suffix == ".safetensors":
        return load_directions(path)
    return _checked_name(read_recipe(path), path, name)


def _checked_name(found: Concept, path: Path, name: str) -> Concept:
    if found.name != name:
        raise RecipeError(f"{path.name}: 'name' must be '{name}', as the file is called; got '{found.name}'.")
    return found


def _renewed(direction: Direction, concept: Concept) -> Direction:
    """With what people read as the recipe says it now; its digest is of the prompts alone."""
    meta = dataclasses.replace(direction.meta, title=concept.title, version=concept.version, licence=concept.licence)
    return dataclasses.replace(direction, meta=meta)


def _about(error: NotSeparableError, name: str) -> bool:
    """Whether a refusal speaks of a concept: it begins with its name."""
    return str(error).startswith(f"'{name}'")


def _tag(settings: CompileSettings) -> str:
    """Names settings that change what is compiled; empty where they are the usual ones."""
    usual = CompileSettings()
    own = {
        f.name: getattr(settings, f.name)
        for f in dataclasses.fields(settings)
        if f.name not in _UNSEEN and getattr(settings, f.name) != getattr(usual, f.name)
    }
    return f"-{_short(repr(sorted(own.items())))}" if own else ""


def _key(concept: Concept, neutral: Sequence[str], settings: CompileSettings) -> str:
    """Of what did not compile: name, digest and settings."""
    return f"{concept.name}-{concept.digest(neutral)}{_tag(settings)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
