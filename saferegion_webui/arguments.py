"""What a user switches on: the script's arguments, from the page or the API, and as infotext."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from saferegion.core.region import MODES, STRONGEST
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
_NONE = "own words only"
_BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""No picture's parameters can hold these."""
_SPECIAL = re.compile(r'[%,"\\\r\n]')
_ESCAPED = re.compile(r"%(25|2C|22|5C|0D|0A|20)")


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

    @classmethod
    def parse(
        cls,
        values: Sequence[Any],
        default_concepts: Sequence[str] = (),
        axes: Mapping[str, Any] | None = None,
        default_on: bool = False,
    ) -> Arguments:
        """From positional values or from one mapping of names to values; ``None`` and what is left out are defaults.

        With ``enabled`` false nothing else is looked at, but unknown names are refused always. Whoever writes ``None``
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
        if not enabled:
            return cls()
        missing = {"concepts": default_concepts}
        known = {name: _READ[name](name, value) for name, value in {**missing, **given}.items()}
        known["strengths"] = tuple({**dict(known.get("strengths", ())), **dict(added)}.items())
        found = cls(**known)
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
        if not self.enabled:
            return {}
        texts = {KEY: joined(self.concepts) or _NONE}
        for name, label in _LABELS.items():
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                texts[f"{KEY} {label}"] = show(name, value)
        return texts


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
    return value


def pasted(name: str, parameters: Mapping[str, Any]) -> Any:
    """The value of a control for pasted parameters; None where they say nothing of this script."""
    if KEY not in parameters:
        return None
    if name == "enabled":
        return True
    if name == "concepts":
        text = str(parameters[KEY])
        return [] if text == _NONE else separated(text)
    default = show(name, _DEFAULTS[name])
    written = parameters.get(f"{KEY} {_LABELS[name]}")
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


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _preset(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in PRESETS:
        raise _wrong(name, f"one of {', '.join(PRESETS)}", value)
    return value


def _strength(name: str, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= STRONGEST:
        raise _wrong(name, f"a number from 0 to {STRONGEST:g}", value)
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
}
