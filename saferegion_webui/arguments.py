"""What a user switches on: the script's arguments, from the page or the API, and as infotext."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from saferegion.core.errors import BalanceError
from saferegion.core.region import MODES, STRONGEST
from saferegion.guard.balance import STRONGEST as FARTHEST
from saferegion.guard.balance_files import wanted_of
from saferegion.guard.presets import NORMAL, PRESETS

from .refusal import SafeRegionRefused

LONGEST = 4000
"""Characters of a text argument."""
MOST = 64
"""Concepts, words or sentences in one argument."""
OWN_WORDS = "own-words"
"""Name of the concept made of the user's own words."""

KEY = "Safe region"
"""Infotext: the concepts; every other key starts with it."""
BALANCED, GROUPS, LEFT = f"{KEY} balance", f"{KEY} groups", f"{KEY} left as it is"
"""Infotext: axes and shares; the groups a picture was painted as; the axes that a gate held back, and why."""
_NONE = "own words only"
_BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""No picture's parameters can hold these."""
_SPECIAL = re.compile(r'[%,"\\\r\n]')
_ESCAPED = re.compile(r"%(25|2C|22|5C|0D|0A|20)")


Groups = tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
DEFAULT_AXES = "gender"
BALANCE = ("balance", "axes", "balance_strength", "groups")
"""Arguments that have nothing to do with what is kept out."""


@dataclass(frozen=True)
class Arguments:
    """The script's arguments, in their order; later versions only add to the end.

    Attributes:
        enabled: whether prompts are guarded.
        concepts: names of concepts, as the library has them.
        strength: of every concept, 0 to 10.
        strengths: of single concepts, in place of ``strength``; the user's own words are called ``own-words``.
        mode: ``project``, ``steer`` or ``erase``.
        avoid: the user's own words for something to keep out. instead: what may stand in its place.
        sentences: with ``{}`` where the words go.
        guard_negative: whether the negative prompt is guarded too.
        heat_map: whether the gallery gets a picture of each token's distance from the border.
        preset: ``gentle``, ``normal`` or ``strict``: where every border lies.
        balance: whether groups of people are shared out over the pictures; it needs no ``enabled``.
        axes: which, one a line, with shares where they are not even: ``gender: woman 50, man 50``.
        balance_strength: 0 to 3, how far a picture is moved to its group.
        groups: of pictures that are made again: by the seed of each, its group of each axis.
    """

    enabled: bool = False
    concepts: tuple[str, ...] = ()
    strength: float = 1.0
    strengths: tuple[tuple[str, float], ...] = ()
    mode: str = "project"
    avoid: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    guard_negative: bool = False
    heat_map: bool = False
    preset: str = NORMAL
    balance: bool = False
    axes: str = DEFAULT_AXES
    balance_strength: float = 1.0
    groups: Groups = ()

    @classmethod
    def parse(
        cls,
        values: Sequence[Any],
        default_concepts: Sequence[str] = (),
        axes: Mapping[str, Any] | None = None,
        default_on: bool = False,
    ) -> Arguments:
        """From positional values or from one mapping of names to values; ``None`` and what is left out are defaults.

        With ``enabled`` false only balance is looked at, but unknown names are refused always. Whoever writes ``None``
        for ``enabled`` where the default is off is refused: it may be a mistake, and would go unguarded.

        Args:
            default_concepts, default_on: what the host's settings say.
            axes: values that take the place of ``values``, by name; ``strengths`` are added to those that there are.

        Raises:
            SafeRegionRefused: with a sentence that says which argument is wrong and what it must be.
        """
        axes = dict(axes or {})
        added = axes.pop("strengths", {})
        given = {**_named(values), **axes}
        enabled = given.get("enabled")
        if enabled is None:
            if values and not default_on:
                raise SafeRegionRefused(
                    "Safe Region: 'enabled' is null, and it is off by default in the settings of this webui: say true "
                    "or false."
                )
            given["enabled"] = enabled = default_on
        if not isinstance(enabled, bool):
            raise _wrong("enabled", "true or false", enabled)
        people = _people(given)
        if not enabled:
            return cls(**people)
        mine = {name: value for name, value in given.items() if name not in BALANCE}
        known = {name: _READ[name](name, value) for name, value in {"concepts": default_concepts, **mine}.items()}
        known["strengths"] = tuple({**dict(known.get("strengths", ())), **dict(added)}.items())
        found = cls(**known, **people)
        names = {*found.concepts, *((OWN_WORDS,) if found.avoid else ())}
        if not names:
            raise SafeRegionRefused(
                "Safe Region is switched on without anything to keep out: choose a concept or give words to avoid."
            )
        unknown = [name for name, _ in found.strengths if name not in names]
        if unknown:
            raise SafeRegionRefused(
                f"Safe Region: a strength is given for {unknown[0]!r}, which is not switched on "
                f"({', '.join(sorted(names))})."
            )
        if found.instead and not found.avoid:
            raise SafeRegionRefused("Safe Region: 'instead' needs words to avoid.")
        return found

    def strength_of(self, name: str) -> float:
        return dict(self.strengths).get(name, self.strength)

    def infotext(self) -> dict[str, str]:
        """Keys and values for a picture's parameters: all that differs from the defaults."""
        texts = {KEY: joined(self.concepts) or _NONE} if self.enabled else {}
        for name, label in _LABELS.items():
            value = getattr(self, name)
            if value != _DEFAULTS[name] and name not in ("balance", "axes", "groups"):
                texts[f"{KEY} {label}"] = show(name, value)
        return {**texts, BALANCED: show("axes", self.axes)} if self.balance else texts


def joined(parts: Iterable[str]) -> str:
    """Texts as one, with commas between; what would be lost in a picture's parameters is written ``%2C``, as in web
    addresses. :func:`separated` reads it."""
    return ", ".join(_written(part) for part in parts)


def separated(text: str) -> list[str]:
    return [_read_back(part.strip()) for part in text.split(",") if part.strip()]


def _written(text: str) -> str:
    inner = _SPECIAL.sub(lambda m: f"%{ord(m[0]):02X}", text)
    return re.sub(r"^ | $", "%20", inner)


def _read_back(text: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)


def show(name: str, value: Any) -> Any:
    """The value of an argument as its control on the page shows it."""
    if name == "concepts":
        return list(value)
    if name == "strengths":
        return ", ".join(f"{_written(concept)}: {strength:g}" for concept, strength in value)
    if name in ("avoid", "instead"):
        return joined(value)
    if name == "sentences":
        return "\n".join(_written(sentence).replace("%2C", ",") for sentence in value)
    if name == "axes":
        return "\n".join(_written(line).replace("%2C", ",") for line in value.splitlines())
    if name == "groups":
        return json.dumps({str(n): dict(g) for n, g in value}, ensure_ascii=False) if value else ""
    return value


def pasted(name: str, parameters: Mapping[str, Any]) -> Any:
    """The value of a control for pasted parameters; None where they say nothing of this script."""
    if KEY not in parameters and (BALANCED not in parameters or name not in ("enabled", *BALANCE)):
        return None
    if name in ("enabled", "balance"):
        return (KEY if name == "enabled" else BALANCED) in parameters
    if name in ("axes", "groups"):
        return str(parameters.get(BALANCED, DEFAULT_AXES)) if name == "axes" else show(name, _recorded(parameters))
    if name == "concepts":
        text = str(parameters[KEY])
        return [] if text == _NONE else separated(text)
    return _control(parameters.get(f"{KEY} {_LABELS[name]}"), show(name, _DEFAULTS[name]))


def _control(written: Any, default: Any) -> Any:
    """The value of a control whose default is ``default``, of what a picture's parameters say."""
    if written is None:
        return default
    if isinstance(default, bool):
        return str(written) == "True"
    if isinstance(default, float):
        try:
            return float(written)
        except ValueError:
            return default
    return str(written)


def _recorded(parameters: Mapping[str, Any]) -> Groups:
    """The group that a picture was painted as, by the seed that decided it."""
    written = parameters.get(GROUPS)
    number = parameters.get("Variation seed" if "Variation seed strength" in parameters else "Seed")
    if written is None or not str(number).isdecimal():
        return ()
    pairs = (part.partition(": ") for part in separated(str(written)))
    return ((int(str(number)), tuple((axis, group) for axis, _, group in pairs)),)


NAMES = tuple(f.name for f in fields(Arguments))
_DEFAULTS = {f.name: f.default for f in fields(Arguments)}
_LABELS = {name: name.replace("_", " ") for name in NAMES[2:]}


def _named(values: Sequence[Any]) -> dict[str, Any]:
    if values and isinstance(values[0], Mapping):
        given = dict(values[0])
        unknown = sorted(str(name) for name in given if name not in NAMES)
        if unknown:
            raise SafeRegionRefused(f"Safe Region: there is no argument {unknown[0]!r}; there are {', '.join(NAMES)}.")
        if "enabled" not in given:
            raise SafeRegionRefused("Safe Region: the object must say 'enabled': true or false.")
    else:
        if len(values) > len(NAMES):
            raise SafeRegionRefused(f"Safe Region takes {len(NAMES)} arguments at most; got {len(values)}.")
        given = dict(zip(NAMES, values, strict=False))
    return {name: value for name, value in given.items() if value is not None}


def _wrong(name: str, wanted: str, got: object) -> SafeRegionRefused:
    seen = repr(got)
    return SafeRegionRefused(
        f"Safe Region: '{name}' must be {wanted}; got {seen if len(seen) <= 80 else seen[:77] + '...'}."
    )


def _people(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of balance; nothing where it is off."""
    if not _bool("balance", given.get("balance", False)):
        return {}
    return {name: _READ[name](name, given[name]) for name in BALANCE if name in given}


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _preset(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in PRESETS:
        raise _wrong(name, f"one of {', '.join(PRESETS)}", value)
    return value


def _strength(name: str, value: Any, most: float = STRONGEST) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= most:
        raise _wrong(name, f"a number from 0 to {most:g}", value)
    return float(value)


def _strengths(name: str, value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, str):
        pairs: list[tuple[Any, Any]] = []
        for part in _split(name, value, r"[,\n]"):
            concept, colon, number = part.rpartition(":")
            try:
                pairs.append((_read_back(concept.strip()), float(number)))
            except ValueError:
                colon = ""
            if not colon or not concept.strip():
                raise _wrong(name, "like 'nudity: 1.5, violence: 0.5'", value)
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise _wrong(name, "like 'nudity: 1.5, violence: 0.5', or an object of concepts and numbers", value)
    read = {str(concept): _strength(f"{name}' of '{concept}", number) for concept, number in pairs}
    return tuple(read.items())


def _mode(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise _wrong(name, f"one of {', '.join(MODES)}", value)
    return str(value)


def _split(name: str, value: str, pattern: str) -> list[str]:
    if len(value) > LONGEST:
        raise _wrong(name, f"at most {LONGEST} characters long", value)
    if _BROKEN.search(value):
        raise _wrong(name, "text without control characters", value)
    return [part.strip() for part in re.split(pattern, value) if part.strip()]


def _texts(name: str, value: Any, pattern: str) -> tuple[str, ...]:
    if isinstance(value, str):
        parts = [_read_back(part) for part in _split(name, value, pattern)]
    elif isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        parts = [part for v in value for part in _split(name, v, _WHOLE if name == "concepts" else r"\n")]
    else:
        raise _wrong(name, "text or a list of texts", value)
    if len(parts) > MOST:
        raise _wrong(name, f"at most {MOST} entries", parts)
    return tuple(dict.fromkeys(parts))


_WHOLE = r"(?!)"
"""A name is never split: those of files may hold anything."""


def _words(name: str, value: Any) -> tuple[str, ...]:
    return _texts(name, value, r"[,\n]")


def _sentences(name: str, value: Any) -> tuple[str, ...]:
    found = _texts(name, value, r"\n")
    for sentence in found:
        if sentence.count("{}") != 1:
            raise _wrong(name, "sentences that hold {} exactly once, one a line", sentence)
    return found


def _axes(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{axis}: {_shares(name, shares)}" if shares else str(axis) for axis, shares in value.items()]
    lines = [line for line in _texts(name, value, r"\n") if not line.startswith("#")]
    try:
        wanted_of("\n".join(lines))
    except BalanceError as error:
        raise SafeRegionRefused(f"Safe Region: {error}") from None
    return "\n".join(lines)


def _shares(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        raise _wrong(name, "like 'gender: woman 50, man 50', or an object of axes and their shares", value)
    return ", ".join(f"{group} {share}" for group, share in value.items())


def _groups(name: str, value: Any) -> Groups:
    try:
        read = (json.loads(value) if value.strip() else {}) if isinstance(value, str) else value
        pairs = [(int(n), tuple((str(a), str(g)) for a, g in own.items())) for n, own in read.items()]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise _wrong(name, 'groups by seed, like {"7": {"gender": "woman"}}', value) from None
    return tuple(pairs)


_READ: dict[str, Callable[[str, Any], Any]] = {
    "enabled": _bool,
    "concepts": _words,
    "strength": _strength,
    "strengths": _strengths,
    "mode": _mode,
    "avoid": _words,
    "instead": _words,
    "sentences": _sentences,
    "guard_negative": _bool,
    "heat_map": _bool,
    "preset": _preset,
    "balance": _bool,
    "axes": _axes,
    "balance_strength": partial(_strength, most=FARTHEST),
    "groups": _groups,
}
