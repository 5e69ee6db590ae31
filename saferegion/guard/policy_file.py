"""The policy file: YAML, every key checked, every mistake a sentence with its line."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import PolicyError, SafeRegionError
from ..core.region import STRONGEST
from ..core.texts import is_plain
from ..core.writing import read_whole
from ..learn.places import vectors_folder
from ..learn.recipes import NEUTRAL, Concept
from ..learn.yaml_text import Text, line_of, mapping_of
from .library import Library
from .minors import NAMES
from .policy import ACTIONS, CLOSE, GO_ON, GUARD, REFUSE, Inputs, LogSettings, Pinned, Policy, Routes, Rule
from .presets import NORMAL, PRESETS

LARGEST = 2**20
VERSION = 1
LONGEST = 500
"""Characters of a text."""
MOST = 4096
"""Entries of a list."""
WARN = "warn"
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_BOM = b"\xef\xbb\xbf"

CLOSED_ROUTES = (
    "/sdapi/v1/train/*", "/sdapi/v1/create/*", "/sdapi/v1/server-*", "/sdapi/v1/unload-checkpoint",
    "/customnode/*", "/manager/*", "/externalmodel/*", "/v2/customnode/*", "/v2/manager/*", "/v2/externalmodel/*",
)  # fmt: skip
"""Addresses that train, stop a server or install what runs code; closed where a policy says nothing of routes."""

Read = Callable[["At", Any], Any]


@dataclass(frozen=True)
class At:
    """Where in a policy a value stands: the file's name, its key, and the line of the key."""

    file: str
    key: str
    line: str

    def wrong(self, wanted: str, value: object) -> PolicyError:
        seen = repr(str(value) if isinstance(value, str) else value)
        seen = seen if len(seen) <= 60 else seen[:57] + "..."
        return PolicyError(f"{self.file}{self.line}: '{self.key}' must be {wanted}; it is {seen}.")

    def inner(self, key: object) -> At:
        name = f"{self.key}.{key}" if self.key else str(key)
        return At(self.file, name, line_of(key) or self.line)


def read_policy(path: str | Path, library: Library | None = None) -> Policy:
    """Read a policy file, with every concept that it names.

    Args:
        library: where its concepts are found.

    Raises:
        PolicyError: one sentence that says in which line what is wrong.
    """
    path = Path(path)
    library = Library() if library is None else library
    raw = read_whole(path, LARGEST, PolicyError, f"a policy is a short text of at most {LARGEST // 2**20} MB")
    data = mapping_of(raw.removeprefix(_BOM), path.name, PolicyError)
    known = _mapping(At(path.name, "", ""), data, _TOP)
    if "policy" not in known:
        raise PolicyError(f"{path.name} does not say which policy it is: begin it with 'policy: {VERSION}'.")
    rules, files = _rules(At(path.name, "concepts", ""), known, library)
    log: LogSettings = known.get("log", LogSettings())
    if log.file is not None and not log.file.is_absolute():
        log = replace(log, file=path.absolute().parent / log.file)
    return Policy(
        rules=rules,
        negative=known.get("negative_prompts", False),
        minors=known.get("minors", True),
        inputs=known.get("inputs", Inputs()),
        routes=known.get("routes", Routes(refused=CLOSED_ROUTES)),
        log=log,
        contact=known.get("contact", ""),
        flags=known.get("flags", REFUSE),
        digest=hashlib.sha256(raw).hexdigest(),
        path=path.absolute(),
        pinned=tuple(Pinned.of(f) for f in dict.fromkeys((path.absolute(), *files))),
        warnings=_warnings(path, log),
    )


def _warnings(path: Path, log: LogSettings) -> tuple[str, ...]:
    said = []
    for what, where in (("The policy", path), ("The folder of the policy", path.absolute().parent)):
        if where.stat().st_mode & stat.S_IWOTH and not where.stat().st_mode & stat.S_ISVTX:
            said.append(f"{what} ({where}) can be written by every user of this machine: take that right away.")
    if log.file is None:
        said.append("The policy keeps no audit log: give it 'log: {file: …}' if what was asked for is to be shown.")
    return tuple(said)


def _rules(at: At, known: Mapping[str, Any], library: Library) -> tuple[tuple[Rule, ...], list[Path]]:
    """Rules with their concepts, and the files that those and the baseline are made of."""
    usual = known.get("defaults", Rule(""))
    rules, files = [], []
    for name, said in known.get("concepts", {}).items():
        here = At(at.file, f"concepts.{name}", line_of(name))
        try:
            where = library.where(str(name))
            concept = library.find(str(name))
        except SafeRegionError as error:
            raise PolicyError(f"{here.file}{here.line}: {_nearest(str(name), library.names(), str(error))}") from None
        if isinstance(concept, Concept) and concept.kind != "exclude":
            raise PolicyError(f"{here.file}{here.line}: '{name}' is an axis to balance, which a policy does not bind.")
        rules.append(replace(usual, name=str(name), concept=concept, **said))
        files.append(where)
    if not rules:
        raise PolicyError(f"{at.file} keeps nothing out: name at least one concept below 'concepts'.")
    folder = vectors_folder()
    files += [p for n in (*NAMES, NEUTRAL) if (p := folder / f"{n}.yaml").exists()]
    return tuple(rules), files


def _nearest(name: str, names: Sequence[str], sentence: str) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"there is no concept '{name}'; did you mean '{near[0]}'?" if near else sentence


# -- values --------------------------------------------------------------------------------------------------------


def _mapping(at: At, value: Any, readers: Mapping[str, Read]) -> dict[str, Any]:
    """What a mapping says, read by its keys' readers."""
    if not isinstance(value, dict):
        raise at.wrong(f"a mapping of {', '.join(readers)}", value)
    found = {}
    for key, inner in value.items():
        here = at.inner(key)
        if key not in readers:
            near = difflib.get_close_matches(str(key), readers, 1)
            advice = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(readers)}."
            raise PolicyError(f"{here.file}{here.line}: there is no key '{here.key}'; {advice}")
        found[str(key)] = readers[key](here, inner)
    return found


def _version(at: At, value: Any) -> int:
    if value != VERSION or isinstance(value, bool):
        raise at.wrong(f"{VERSION}, the version that this Safe Region reads", value)
    return VERSION


def _bool(at: At, value: Any) -> bool:
    if not isinstance(value, bool):
        raise at.wrong("true or false", value)
    return value


def _text(at: At, value: Any) -> str:
    if not isinstance(value, str) or not is_plain(value, LONGEST):
        raise at.wrong(f"a text of at most {LONGEST} characters in one line", value)
    return str(value)


def _one_of(*choices: str) -> Read:
    def read(at: At, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise at.wrong(f"one of {', '.join(choices)}", value)
        return str(value)

    return read


def _number(least: float, most: float) -> Read:
    def read(at: At, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not least <= value <= most:
            raise at.wrong(f"a number from {least:g} to {most:g}", value)
        return float(value)

    return read


def _whole(least: int, most: int) -> Read:
    def read(at: At, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise at.wrong(f"a whole number from {least} to {most}", value)
        return value

    return read


def _texts(at: At, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MOST:
        raise at.wrong(f"a list of at most {MOST} texts", value)
    return tuple(_text(At(at.file, at.key, line_of(v) or at.line), v) for v in value)


def _patterns(at: At, value: Any) -> tuple[str, ...]:
    found = _texts(at, value)
    for pattern in found:
        if not pattern.startswith(("/", "*")):
            raise at.wrong("a list of paths that begin with / or *", pattern)
    return found


def _loras(at: At, value: Any) -> tuple[str, ...] | None:
    if value == "any":
        return None
    for text in value if isinstance(value, list) else ():
        if not isinstance(text, str) or not _HASH.fullmatch(text):
            here = At(at.file, at.key, line_of(text) or at.line)
            raise here.wrong("'any' or a list of SHA-256 sums (64 digits, in quotes)", text)
    if not isinstance(value, list) or len(value) > MOST:
        raise at.wrong("'any' or a list of SHA-256 sums (64 digits, in quotes)", value)
    return tuple(v.lower() for v in value)


def _file(at: At, value: Any) -> Path:
    text = _text(at, value)
    if not text.strip() or text.endswith("/"):
        raise at.wrong("the path of a file", value)
    return Path(text).expanduser()


def _concepts(at: At, value: Any) -> dict[Text | str, dict[str, Any]]:
    """A mapping of names to what is said of them, or a list of names."""
    if isinstance(value, list):
        names = list(value)
        for i, name in enumerate(names):
            if not isinstance(name, str):
                raise at.wrong("a list of names, or a mapping of names to what is said of them", name)
            if name in names[:i]:
                raise PolicyError(f"{at.file}{line_of(name) or at.line}: '{name}' is given twice.")
        return {name: {} for name in names}
    if not isinstance(value, dict):
        raise at.wrong("a list of names, or a mapping of names to what is said of them", value)
    found: dict[Text | str, dict[str, Any]] = {}
    for name, said in value.items():
        if not isinstance(name, str):
            raise at.wrong("made of names", name)
        here = at.inner(name)
        if said in ACTIONS:
            found[name] = {"action": str(said)}
        else:
            found[name] = {} if said is None else _mapping(here, said, _RULE)
    return found


_RULE: dict[str, Read] = {
    "strength": _number(0.1, STRONGEST),
    "preset": _one_of(*PRESETS),
    "action": _one_of(*ACTIONS),
}
_INPUTS: dict[str, Read] = {"image_prompts": _bool, "init_images": _bool, "loras": _loras}
_ROUTES: dict[str, Read] = {"allowed": _patterns, "refused": _patterns}
_LOG: dict[str, Read] = {
    "file": _file,
    "prompts": _bool,
    "megabytes": _whole(1, 1_000_000),
    "kept": _whole(1, 10_000),
    "when_full": _one_of(CLOSE, GO_ON),
}
_TOP: dict[str, Read] = {
    "policy": _version,
    "contact": _text,
    "defaults": lambda at, value: Rule("", **_mapping(at, value, _RULE)),
    "concepts": _concepts,
    "minors": _bool,
    "negative_prompts": lambda at, value: _one_of(GUARD, "leave")(at, value) == GUARD,
    "inputs": lambda at, value: Inputs(**_mapping(at, value, _INPUTS)),
    "routes": lambda at, value: Routes(**{"refused": CLOSED_ROUTES, **_mapping(at, value, _ROUTES)}),
    "log": lambda at, value: LogSettings(**_mapping(at, value, _LOG)),
    "flags": _one_of(REFUSE, WARN),
}

EXAMPLE = f"""\
# What this host keeps out, for everybody. Users can add to it, never take away from it.
# 'saferegion policy check FILE' says whether it is right; a host reads it once, when it starts.
policy: {VERSION}

# Shown to users with every refusal.
contact: "Questions: ask whoever runs this host."

# Of every concept below that says nothing else.
defaults:
  strength: 1.0        # least strength
  preset: {NORMAL}       # gentle, normal or strict
  action: {GUARD}        # guard: paint without it; refuse: no picture; log: paint it, and write it down

concepts:
  nudity:
  sexual-acts: refuse
  violence: {{preset: strict}}
  gore:

minors: true           # a text encoder for which the baseline for minors cannot be made is refused
negative_prompts: leave   # guard: negative prompts are held to the concepts as well

# What is not text and may still be painted from.
inputs:
  image_prompts: false
  init_images: true
  loras: []            # SHA-256 of each file that may be used, or: any

# Addresses of the server. Those that train, install or stop are closed unless you say otherwise.
routes:
  allowed: ["*"]

log:
  file: safe-region-audit.jsonl
  prompts: false       # true: prompts are written out; false: a salted hash of each
  megabytes: 64
  kept: 10
  when_full: {CLOSE}     # go-on: paint although the log cannot be written

flags: {REFUSE}          # a host started with flags that open it does not start; warn: it says so
"""
