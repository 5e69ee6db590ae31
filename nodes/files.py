"""The user's own concepts: recipes and direction files in ``models/safe_region``, as the host's settings say."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from .. import saferegion as sr

FOLDER = "safe_region"
SUFFIX = ".safetensors"
RECIPES = (".yaml", ".yml")
NEUTRAL = "neutral"
PACKS = "packs"
BALANCE = "balance"
"""Folder of own axes."""


def register() -> None:
    """Make ``models/safe_region`` known to the host; paths from extra_model_paths.yaml stay."""
    folders: list[str] = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))[0]
    default = os.path.join(folder_paths.models_dir, FOLDER)
    folders = [*folders, *([] if default in folders else [default])]
    folder_paths.folder_names_and_paths[FOLDER] = (folders, {SUFFIX, *RECIPES})


def folders() -> tuple[Path, ...]:
    return tuple(Path(f) for f in folder_paths.get_folder_paths(FOLDER))


def library() -> sr.Library:
    """The user's concepts, then those bundled."""
    return sr.Library(folders())


def saved() -> list[str]:
    """Recipes and direction files of the user, by their path in the folder; vector packs and axes are none of them."""
    names = folder_paths.get_filename_list(FOLDER)
    return [n for n in names if Path(n).stem != NEUTRAL and _first(n) not in (PACKS, BALANCE)]


def _first(name: str) -> str:
    return Path(name.replace("\\", "/")).parts[0]


def saved_directions() -> list[str]:
    return [name for name in saved() if name.endswith(SUFFIX)]


def path_of(name: str) -> Path:
    """Full path of one of :func:`saved`.

    Raises:
        SafeRegionError: it is not there, or lies elsewhere.
    """
    if not isinstance(name, str) or _leaves(name):
        raise sr.SafeRegionError(f"{name!r} is not a file of models/{FOLDER}; choose one of the list.")
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise sr.SafeRegionError(
            f"There is no {name!r} in models/{FOLDER}; put it there or choose another, and press R to read the list."
        )
    return Path(found)


def new_path(name: str) -> Path:
    """Where a file of this name is written; folders below ``models/safe_region`` are allowed.

    Raises:
        SafeRegionError: a name that is empty or leads out of the folder.
    """
    name = name.strip().replace("\\", "/")
    if not name or name.endswith("/") or _leaves(name) or any(ord(c) < 32 or c in '<>:"|?*' for c in name):
        raise sr.SafeRegionError(
            f"{name!r} is no name for a file in models/{FOLDER}; use letters, digits, spaces and dashes."
        )
    path = folders()[0] / name
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)


def _leaves(name: str) -> bool:
    parts = Path(name.replace("\\", "/")).parts
    return ".." in parts or Path(name).is_absolute() or (len(name) > 1 and name[1] == ":")


def stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def stamps(*names: str) -> tuple[tuple[int, int], ...]:
    """Changes when a file of the user that bears one of these names, with or without its ending, does."""
    endings = (*RECIPES, SUFFIX)
    paths = [f / (n if n.endswith(endings) else n + e) for f in folders() for n in names for e in endings]
    return tuple(stamp(p) for p in dict.fromkeys(paths))
