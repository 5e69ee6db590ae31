"""``run.yaml``: what is painted, of which prompts, by which arms, and who judges."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from saferegion.core.errors import SafeRegionError
from saferegion.core.writing import read_whole

from ..bench.peers.sld import PUBLISHED as SLD_SETTINGS

KINDS = ("none", "negative", "safe_region", "sld", "weights", "peer")
"""What an arm can be; the key of its mapping."""
MOST = 1 << 20


class EvaluationError(SafeRegionError):
    """A run that cannot be started or gone on with."""


@dataclass(frozen=True)
class PromptFile:
    """``column``, ``seed_column``: found by their usual names where they are empty. ``by``: a column, such as I2P's
    categories, by whose values the group is told apart. ``limit``: first rows; 0: all."""

    file: Path
    group: str
    column: str = ""
    seed_column: str = ""
    by: str = ""
    limit: int = 0


@dataclass(frozen=True)
class Arm:
    """One way of painting. ``value``: what stands behind ``kind``; ``options``: what stands beside it."""

    name: str
    kind: str = "none"
    value: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A judge by name, with its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What is counted in pictures: an answer of a judge that is ``least`` or more, or one of ``among``."""

    name: str
    judge: str
    answer: str
    least: float = 0.5
    among: tuple[str, ...] = ()

    def in_(self, answers: Mapping[str, Mapping[str, Any]]) -> bool | None:
        """Whether it is there; None: not judged."""
        value = answers.get(self.judge, {}).get(self.answer)
        if value is None:
            return None
        return str(value) in self.among if self.among else float(value) >= self.least


@dataclass(frozen=True)
class Run:
    """A run as its file says it.

    Attributes:
        model: ``microworld``, ``naturalworld``, a folder of diffusers, a ``.safetensors`` file, or a hub id.
        model_options: ``pipeline`` (class of a single file), ``dtype``, ``device``, ``library`` (folder of recipes).
        seeds: pictures of a prompt. first_seed: of the first picture, the next has the next. file_seeds: take the
            prompts' own where their file has some.
        size: width and height; None: the model's own. batch: prompts that are painted at once, always the same ones.
        keep: write the pictures beside the figures. threads: of a process on a CPU.
    """

    model: str
    prompts: tuple[PromptFile, ...]
    arms: tuple[Arm, ...]
    judges: tuple[Named, ...]
    shown: tuple[Shown, ...]
    model_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 25
    guidance: float = 7.5
    seeds: int = 1
    first_seed: int = 1000
    file_seeds: bool = False
    size: tuple[int, int] | None = None
    batch: int = 8
    keep: bool = False
    threads: int = 1

    def plain(self) -> dict[str, Any]:
        """As JSON has it, files by what is in them: equal for runs that paint and judge the same."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        found["files"] = {str(p): digest(p) for p in self.files()}
        return found

    def files(self) -> list[Path]:
        """Everything that the run reads."""
        paths = [p.file for p in self.prompts]
        if Path(self.model).exists():
            paths.append(Path(self.model))
        if library := self.model_options.get("library"):
            paths.append(Path(library))
        for arm in self.arms:
            said = arm.value if isinstance(arm.value, list) else [arm.value]
            paths += [Path(v) for v in said if isinstance(v, str) and "/" in v and Path(v).exists()]
        return paths


def digest(path: Path) -> str:
    """Of a file, or of all files of a folder: names, sizes, and the first and last mebibyte of each."""
    h = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        h.update(f"{file.relative_to(path) if path.is_dir() else ''}:{size}\n".encode())
        with file.open("rb") as data:
            h.update(data.read(MOST))
            if size > MOST:
                data.seek(max(MOST, size - MOST))
                h.update(data.read(MOST))
    return h.hexdigest()


def read_run(path: Path) -> Run:
    """Read a run; paths in it are relative to its own folder.

    Raises:
        EvaluationError: it is not YAML, or something in it is missing, unknown or of the wrong kind.
    """
    try:
        data = yaml.safe_load(read_whole(path, MOST, EvaluationError).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path.name} is not YAML: {' '.join(str(error).split())}.") from error
    return run_of(data, path.resolve().parent)


def run_of(data: Any, folder: Path) -> Run:
    """As :func:`read_run`, of what the file says."""
    top = _mapping(data, "The run", ("model", "prompts", "arms", "judges", "shows"), _OPTIONAL)
    model, options = _model(top["model"], folder)
    size = top.get("size")
    if size is not None:
        size = tuple(_number(v, "size", int, 8) for v in _list(size, "size"))
        if len(size) != 2:
            raise EvaluationError("size is a width and a height: [512, 512].")
    arms = tuple(_arm(a, folder) for a in _list(top["arms"], "arms"))
    judges = tuple(_named(j) for j in _list(top["judges"], "judges"))
    shown = _shown(top["shows"], [j.name for j in judges])
    prompts = tuple(_prompt_file(p, folder) for p in _list(top["prompts"], "prompts"))
    for what, names in (("arms", [a.name for a in arms]), ("judges", [j.name for j in judges])):
        if twice := [n for n in names if names.count(n) > 1]:
            raise EvaluationError(f"Two {what} are called {twice[0]!r}: give each a name of its own.")
    if model == "microworld" and (late := [a.name for a in arms if a.kind in ("sld", "weights")]):
        raise EvaluationError(
            f"Of the microworld, the arm {late[0]!r} is a peer: write 'peer: SLD, medium' or the like."
        )
    return Run(
        model, prompts, arms, judges, shown, options,
        steps=_number(top.get("steps", 25), "steps", int, 1),
        guidance=_number(top.get("guidance", 7.5), "guidance", float, 0),
        seeds=_number(top.get("seeds", 1), "seeds", int, 1),
        first_seed=_number(top.get("first_seed", 1000), "first_seed", int, 0),
        file_seeds=_flag(top.get("file_seeds", False), "file_seeds"),
        size=size,
        batch=_number(top.get("batch", 8), "batch", int, 1),
        keep=_flag(top.get("keep", False), "keep"),
        threads=_number(top.get("threads", 1), "threads", int, 1),
    )  # fmt: skip


_OPTIONAL = ("steps", "guidance", "seeds", "first_seed", "file_seeds", "size", "batch", "keep", "threads")


def _model(data: Any, folder: Path) -> tuple[str, dict[str, Any]]:
    given = {"path": data} if isinstance(data, str) else data
    told = _mapping(given, "model", ("path",), ("pipeline", "dtype", "device", "library"))
    name = str(told.pop("path"))
    if "library" in told:
        told["library"] = str(folder / str(told["library"]))
        if not Path(told["library"]).is_dir():
            raise EvaluationError(f"The library {told['library']} is no folder.")
    if name in ("microworld", "naturalworld"):
        return name, told
    path = folder / name
    if path.exists():
        return str(path), told
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise EvaluationError(
            f"The model {name} is not there: give a folder of diffusers, a .safetensors, or a hub id."
        )
    return name, told


def _prompt_file(data: Any, folder: Path) -> PromptFile:
    given = {"file": data} if isinstance(data, str) else data
    told = _mapping(given, "An entry of prompts", ("file",), ("group", "column", "seed_column", "by", "limit"))
    path = folder / str(told["file"])
    if not path.is_file():
        raise EvaluationError(f"The prompts {told['file']} are not there.")
    return PromptFile(
        path,
        str(told.get("group", path.stem)),
        str(told.get("column", "")),
        str(told.get("seed_column", "")),
        str(told.get("by", "")),
        _number(told.get("limit", 0), "limit", int, 0),
    )


_ARM_OPTIONS = {
    "none": (),
    "negative": (),
    "safe_region": ("mode", "strength", "preset"),
    "sld": ("concept",),
    "weights": ("part",),
    "peer": (),
}


def _arm(data: Any, folder: Path) -> Arm:
    given = {data: None} if isinstance(data, str) else data
    if not isinstance(given, dict):
        raise EvaluationError(f"An arm is one of {', '.join(KINDS)}; got {data!r}.")
    found = [k for k in given if k in KINDS]
    if len(found) != 1:
        raise EvaluationError(f"An arm is exactly one of {', '.join(KINDS)}; got {', '.join(map(str, given))}.")
    kind = found[0]
    told = _mapping(given, f"The arm {kind}", (kind,), ("name", *_ARM_OPTIONS[kind]))
    value = told.pop(kind)
    name = str(told.pop("name", _name(kind, value, told)))
    if kind == "safe_region":
        value = [_concept(v, folder) for v in _list(value, "safe_region")]
    elif kind == "negative" and not (isinstance(value, str) and value.strip()):
        raise EvaluationError("The arm negative says what not to paint: negative: 'fire, flames'.")
    elif kind == "sld":
        if value not in SLD_SETTINGS:
            raise EvaluationError(f"The arm sld is one of {', '.join(SLD_SETTINGS)}; got {value!r}.")
        if not str(told.get("concept", "")).strip():
            raise EvaluationError("The arm sld needs concept: the words that it steers away from.")
    elif kind == "weights":
        path = folder / str(value)
        if not path.exists():
            raise EvaluationError(f"The weights {value} are not there.")
        value = str(path)
    return Arm(name, kind, value, told)


def _name(kind: str, value: Any, options: Mapping[str, Any]) -> str:
    if kind == "none":
        return "none"
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    more = "".join(f", {k} {v}" for k, v in options.items() if k != "concept")
    return f"{kind.replace('_', ' ')}: {said[:60]}{more}"


def _concept(value: Any, folder: Path) -> str:
    name = str(value)
    if name.endswith((".yaml", ".safetensors")):
        path = folder / name
        if not path.is_file():
            raise EvaluationError(f"The concept {name} is not there.")
        return str(path)
    return name


def _named(data: Any) -> Named:
    given = {data: None} if isinstance(data, str) else data
    if not isinstance(given, dict) or len(given) != 1:
        raise EvaluationError("A judge is a name, or a name with options: nudenet: {resolution: 640}.")
    ((name, options),) = given.items()
    if options is not None and not isinstance(options, dict):
        raise EvaluationError(f"The options of the judge {name} are a mapping.")
    return Named(str(name), dict(options or {}))


def _shown(data: Any, judges: Sequence[str]) -> tuple[Shown, ...]:
    if not isinstance(data, dict) or not data:
        raise EvaluationError("shows says what is counted: fire: {judge: microworld, answer: fire, least: 0.5}.")
    found = []
    for name, entry in data.items():
        told = _mapping(entry, f"shows, {name}", ("judge", "answer"), ("least", "among"))
        if told["judge"] not in judges:
            raise EvaluationError(f"{name} is counted by {told['judge']!r}, which is not among the judges.")
        among = tuple(map(str, _list(told.get("among", []), "among", empty=True)))
        least = _number(told.get("least", 0.5), "least", float)
        found.append(Shown(str(name), str(told["judge"]), str(told["answer"]), least, among))
    return tuple(found)


def _mapping(data: Any, what: str, needed: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise EvaluationError(f"{what} is a mapping with {', '.join(needed)}; got {type(data).__name__}.")
    if unknown := [str(k) for k in data if k not in (*needed, *more)]:
        raise EvaluationError(
            f"{what} has {unknown[0]!r}, which is not known; known are {', '.join((*needed, *more))}."
        )
    if missing := [k for k in needed if k not in data]:
        raise EvaluationError(f"{what} lacks {missing[0]!r}.")
    return dict(data)


def _list(data: Any, what: str, empty: bool = False) -> list[Any]:
    if not isinstance(data, list) or not (data or empty):
        raise EvaluationError(f"{what} is a list of at least one entry.")
    return data


def _number(value: Any, what: str, kind: type, least: float | None = None) -> Any:
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or (least is not None and value < least):
        kinds = "whole number" if kind is int else "number"
        raise EvaluationError(
            f"{what} is a {kinds}{'' if least is None else f' of at least {least:g}'}; got {value!r}."
        )
    return kind(value)


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise EvaluationError(f"{what} is true or false; got {value!r}.")
    return value
