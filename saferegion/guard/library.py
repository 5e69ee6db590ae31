"""Where concepts and compiled directions are found, and how what is missing gets compiled."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.direction import Direction
from ..core.errors import DirectionFileError, NotSeparableError, RecipeError, SafeRegionError
from ..core.fingerprint import Fingerprint, fingerprint_of
from ..learn.compile import BATCH, METHOD, Encode, Progress, compile_many
from ..floor import NAMES, Floor
from ..learn.bundled import neutral_prompts, vectors_folder
from ..learn.recipes import NEUTRAL, Concept, read_neutral, read_recipe
from .files import load_directions

log = logging.getLogger("saferegion")

_UNKNOWN: set[tuple[str, str]] = set()
"""Encoders, and recipes of the floor whose words they do not know: not tried again."""

CACHE_VARIABLE = "SAFE_REGION_CACHE"
RECIPE_SUFFIXES = (".yaml", ".yml")
NO_CONCEPTS = frozenset({NEUTRAL, "hard-neutral"})
"""Lists of benign prompts among the bundled files: those that calibrate, and those held out to measure."""


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


def load_concept(name: str | os.PathLike[str]) -> Concept | Direction:
    """A bundled concept by its name, or a recipe (``.yaml``) or direction file (``.safetensors``) by its path.

    Raises:
        RecipeError, DirectionFileError: with a sentence that says what is wrong or which names there are.
    """
    return Library().find(name)


@dataclass(frozen=True)
class Library:
    """Concepts by name in ``folders``, the first that has it; compiled directions in ``cache``."""

    folders: tuple[Path, ...] = ()
    cache: Path | None = None

    def _folders(self) -> tuple[Path, ...]:
        return (*self.folders, vectors_folder())

    def names(self) -> list[str]:
        """All concepts that can be named, sorted."""
        found = {
            path.stem
            for folder in self._folders()
            if folder.is_dir()
            for path in folder.iterdir()
            if path.suffix in (*RECIPE_SUFFIXES, ".safetensors") and not path.name.startswith(".")
        }
        return sorted(found - NO_CONCEPTS)

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
        """Benign prompts that calibrate: ``neutral.yaml`` of the first folder that has one, else those bundled.

        Raises RecipeError: the file is none of neutral prompts.
        """
        for folder in self.folders:
            for suffix in RECIPE_SUFFIXES:
                if (path := folder / f"{NEUTRAL}{suffix}").is_file():
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
        if path.name == text:
            for folder in self._folders():
                for suffix in (*RECIPE_SUFFIXES, ".safetensors"):
                    candidate = folder / f"{text}{suffix}"
                    if candidate.is_file() and text not in NO_CONCEPTS:
                        return self._named(candidate, text)
        raise RecipeError(
            f"There is no concept {text!r}; there are {', '.join(self.names()) or 'none'}, or give a file."
        )

    @staticmethod
    def _named(path: Path, name: str) -> Concept | Direction:
        found = load_directions(path) if path.suffix == ".safetensors" else read_recipe(path)
        if isinstance(found, Concept) and found.name != name:
            raise RecipeError(f"{path.name}: 'name' must be '{name}', as the file is called; got '{found.name}'.")
        return found

    def directions(
        self,
        concepts: Sequence[str | os.PathLike[str] | Concept | Direction],
        encode: Encode,
        neutral: Sequence[str] | None = None,
        progress: Progress | None = None,
        *,
        batch_size: int = BATCH,
        family: str = "",
    ) -> list[Direction]:
        """Directions of ``concepts`` for the encoder behind ``encode``: read from the cache, compiled where missing.

        ``neutral``: benign prompts that calibrate (None: :meth:`neutral`).
        A cache that cannot be written or holds a damaged file costs a compile and a warning, never the guard.
        Two processes that compile the same concept at once both write a whole file of the same content.

        Raises:
            SafeRegionError: a concept that is unknown, does not compile, or is a direction file of another encoder.
        """
        if neutral is None:
            neutral = self.neutral()
        neutral = [n for n in neutral if n.strip()]
        found = [c if isinstance(c, Concept | Direction) else self.find(c) for c in concepts]
        encoder = fingerprint_of(encode)
        ready: dict[int, Direction] = {}
        missing: list[int] = []
        for i, concept in enumerate(found):
            if isinstance(concept, Direction):
                if concept.encoder is not None:
                    concept.encoder.require(encoder, f"'{concept.concept}'")
                ready[i] = concept
                continue
            kept = self._cached(concept, concept.digest(neutral), encoder)
            if kept is None:
                missing.append(i)
            else:
                ready[i] = kept
        if missing:
            wanted = [c for i in missing if isinstance(c := found[i], Concept)]
            compiled = compile_many(wanted, encode, neutral, progress, batch_size=batch_size, family=family)
            for i, directions in zip(missing, compiled, strict=True):
                ready[i] = directions
                self._keep(directions)
        return [ready[i] for i in range(len(found))]

    def floor(
        self,
        encode: Encode,
        progress: Progress | None = None,
        *,
        batch_size: int = BATCH,
        family: str = "",
    ) -> Floor | None:
        """What keeps the sexual theme from prompts about children on the encoder behind ``encode``.

        Made of the bundled recipes, whatever recipes of the same names ``folders`` hold. Concepts whose words this
        encoder does not know at all are left out, with a warning; None where nothing is left.

        Raises:
            SafeRegionError: a recipe is missing or broken, or does not compile for any other reason.
        """
        bundled = Library((), self.cache)
        concepts = [found for n in NAMES if isinstance(found := bundled.find(n), Concept)]
        if len(concepts) != len(NAMES):
            raise RecipeError(f"The floor beside children needs the recipes {', '.join(NAMES)}; install it again.")
        neutral = [n for n in self.neutral() if n.strip()]
        encoder = str(fingerprint_of(encode))
        made: list[Direction] = []
        wanted = [c for c in concepts if (encoder, c.digest(neutral)) not in _UNKNOWN]
        try:
            made = self.directions(wanted, encode, neutral, progress, batch_size=batch_size, family=family)
        except NotSeparableError:
            for concept in wanted:
                try:
                    made += self.directions([concept], encode, neutral, progress, batch_size=batch_size, family=family)
                except NotSeparableError as error:
                    _UNKNOWN.add((encoder, concept.digest(neutral)))
                    log.warning("The floor beside children goes without '%s' on this encoder: %s", concept.name, error)
        names = {d.concept for d in made}
        return Floor.of(made) if NAMES[0] in names and len(names) > 1 else None

    def _file(self, concept: str, recipe: str, encoder: Fingerprint) -> Path:
        folder = cache_folder() if self.cache is None else self.cache
        widths = "-".join(f"{n}{w}" for n, w in encoder.widths)
        return folder / f"{concept}-{recipe[:16]}-fit{METHOD}-{widths}"

    def _cached(self, concept: Concept, recipe: str, encoder: Fingerprint) -> Direction | None:
        stem = self._file(concept.name, recipe, encoder)
        try:
            candidates = sorted(stem.parent.glob(f"{stem.name}-*.safetensors"))
        except OSError:
            return None
        found = []
        for path in candidates:
            try:
                directions = load_directions(path)
            except DirectionFileError as error:
                log.warning("Compiled directions are ignored and made again: %s", error)
                continue
            if directions.recipe == recipe and directions.encoder is not None and directions.encoder.matches(encoder):
                found.append((directions.encoder.distance(encoder), directions))
        return min(found, key=lambda f: f[0])[1] if found else None

    def _keep(self, directions: Direction) -> None:
        if directions.encoder is None:
            raise SafeRegionError("Only directions of a known encoder are kept.")
        stem = self._file(directions.concept, directions.recipe, directions.encoder)
        tag = _short(str(directions.encoder))
        try:
            directions.save(stem.parent / f"{stem.name}-{tag}.safetensors")
        except (OSError, DirectionFileError) as error:
            log.warning(
                "Compiled directions cannot be kept in %s (%s), so they are compiled again next time; "
                "set %s to a folder that can be written.",
                stem.parent,
                getattr(error, "strerror", None) or error,
                CACHE_VARIABLE,
            )


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
