"""Recipes of balance: gates, axes of people's looks, and the roles and sentences that both are set in.

*Gate*: what a prompt may say (``holds``) and what looks like it and does not (``spares``). *Axis*: 2 to 8 groups, each
with as many ways to say it, in the same order, and a gate of its own: whether a prompt states the attribute already.
Words stand before a role ("female nurse"), after it ("nurse with a beard") or instead of it ("actress"); ``prompts``
stand alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError
from ..core.quota import FEWEST_GROUPS, MOST_GROUPS
from .places import vectors_folder
from .recipes import LONGEST, NAME
from .vocabulary import fill, naming, unbalanced
from .yaml_text import line_of, load

FOLDER = "balance"
"""Of the bundled recipes, in ``vectors/``; and of own ones, in a user's folder."""
PEOPLE_FORMAT, GATE_FORMAT, AXIS_FORMAT = "saferegion-people/1", "saferegion-gate/1", "saferegion-axis/1"
PERSON = "person"
"""The gate that must be open; all others must be shut."""
FORMS = ("before", "after", "instead", "prompts")
FEW = 60
"""Words of a form up to which each is set in two frames, else in one."""
FEWEST_ROLES = 12
LEAST = 40
"""Prompts that a form makes at least, as far as there are frames."""
STRIDE = 5
"""From one frame, or one role, to the next."""
MOST_WORDS = 600
_NO_ARTICLE = (
    "people men women children kids guys ladies police she he her him it they someone somebody my our your his their "
    "this three four five six seven twenty several many both rows madam sir grandma grandpa mum dad herself himself"
)
BARE = frozenset(re.findall(r"\w+", _NO_ARTICLE))
"""Words before or after which no article stands."""

_PEOPLE = {"format", "name", "version", "licence", "roles", "frames"}
_GATE = {"format", "name", "title", "version", "licence", "holds", "spares"}
_AXIS = {"format", "name", "title", "version", "licence", "groups", "stated", "unstated"}


@dataclass(frozen=True)
class Said:
    """A prompt, and the word that it hangs on: prompts of one word are fitted on together or held out together."""

    text: str
    word: str


@dataclass(frozen=True)
class People:
    """``roles``: one person of whom nothing else is said. ``frames``: sentences, with ``{}`` or ``{a}``."""

    roles: tuple[str, ...]
    frames: tuple[str, ...]

    def set(self, phrase: str, number: int) -> str:
        """A phrase in a frame, counted round; names, pronouns, numbers and plurals without an article."""
        frame = self.frames[number * STRIDE % len(self.frames)]
        first, *_, last = phrase.split() * 2
        bare = first.lower() in BARE or last in BARE or (first[0].isupper() and last[0].isupper())
        return fill(frame.replace("{a}", "{}") if bare else frame, phrase)

    def role(self, number: int) -> str:
        """A role, counted round."""
        return self.roles[number * STRIDE % len(self.roles)]

    @property
    def many(self) -> bool:
        """Whether there are enough roles to hold words out; a small world has none to spare."""
        return len(self.roles) >= FEWEST_ROLES

    def each(self, words: int) -> int:
        """In how many frames each of so many words is set."""
        usual = 2 if words <= FEW else 1
        return min(len(self.frames), max(usual, -(-LEAST // max(1, words))))

    def said(self) -> list[Said]:
        """Every role, in two frames at least."""
        count = len(self.roles)
        each = max(2, self.each(count))
        return [Said(self.set(r, i + k * count), r) for i, r in enumerate(self.roles) for k in range(each)]


@dataclass(frozen=True)
class Words:
    """Words by where they stand."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def said(self, people: People) -> list[Said]:
        """Every word with a role, in one frame or two; prompts as they are."""
        found = []
        for form in ("before", "after", "instead"):
            listed: tuple[str, ...] = getattr(self, form)
            for i, word in enumerate(listed):
                for k in range(people.each(len(listed))):
                    role = people.role(2 * i + k)
                    phrase = {"before": f"{word} {role}", "after": f"{role} {word}", "instead": word}[form]
                    found.append(Said(people.set(phrase, i + k), word))
        return [*found, *(Said(p, p) for p in self.prompts)]

    def every(self) -> tuple[str, ...]:
        """The words, without the prompts."""
        return (*self.before, *self.after, *self.instead)


@dataclass(frozen=True)
class GateRecipe:
    """What a prompt may say that decides whether it is balanced.

    Attributes:
        name: of the gate. title: what is said where it leaves a prompt untouched.
        holds, spares: what says it, and what does not.
        opens: the prompt is balanced only where it holds (else: only where it does not).
        axes: names of axes that it counts for; empty: for all.
    """

    name: str
    title: str
    holds: Words
    spares: Words
    opens: bool = False
    axes: tuple[str, ...] = ()
    people: People = People((), ())

    def said(self) -> tuple[list[Said], list[Said]]:
        """Prompts that say it, and prompts that do not. Roles of which nothing else is said stand beside."""
        holds, spares = self.holds.said(self.people), self.spares.said(self.people)
        (holds if self.opens else spares).extend(self.people.said())
        known = {s.text for s in holds}
        return holds, [s for s in spares if s.text not in known]

    def digest(self) -> str:
        """SHA-256, hex, of the prompts."""
        return _digest([self.name, self.opens, [[(s.text, s.word) for s in side] for side in self.said()]])


@dataclass(frozen=True)
class Group:
    """``says``: ways to say it, with ``{}`` where the role goes."""

    name: str
    says: tuple[str, ...]


@dataclass(frozen=True)
class AxisRecipe:
    """An axis of people's looks. ``stated``: the gate that tells whether a prompt says it already. ``gates``: those of
    the axis' own in the place of the bundled ones (None: those bundled)."""

    name: str
    title: str
    groups: tuple[Group, ...]
    stated: GateRecipe
    gates: tuple[GateRecipe, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the groups."""
        return tuple(g.name for g in self.groups)

    def said(self, count: int) -> list[list[Said]]:
        """Of each group ``count`` prompts, that differ from those of the other groups in it alone; and the same roles
        in the same frames without any group, last."""
        people = self.stated.people
        rows: list[list[Said]] = [[] for _ in range(len(self.groups) + 1)]
        for i in range(count):
            role = people.role(i)
            for row, group in zip(rows, self.groups, strict=False):
                row.append(
                    Said(people.set(group.says[i % len(group.says)].replace("{a}", "{}").replace("{}", role), i), role)
                )
            rows[-1].append(Said(people.set(role, i), role))
        return rows

    def digest(self) -> str:
        """SHA-256, hex, of what the groups and the gate are fitted on."""
        groups = [[g.name, *g.says] for g in self.groups]
        return _digest([self.name, groups, self.stated.people.roles, self.stated.people.frames, self.stated.digest()])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


# -- files -----------------------------------------------------------------------------------------------------------


def balance_folder() -> Path:
    """The bundled recipes of balance."""
    return vectors_folder() / FOLDER


@cache
def bundled_people() -> People:
    """The roles and sentences that come with the package."""
    return read_people(balance_folder() / "people.yaml")


@cache
def bundled_gates() -> tuple[GateRecipe, ...]:
    """The gates that come with the package, :data:`PERSON` first."""
    found = [read_gate(p) for p in sorted(balance_folder().glob("gate-*.yaml"))]
    return tuple(sorted(found, key=lambda g: not g.opens))


def read_people(path: str | Path) -> People:
    """Read roles and frames. Raises RecipeError."""
    path = Path(path)
    data = _file(path, PEOPLE_FORMAT, _PEOPLE)
    return _people(data, path.name)


def _people(data: Mapping[str, Any], where: str) -> People:
    frames = _listed(data["frames"], f"{where}: 'frames'")
    for frame in frames:
        if sum(frame.count(mark) for mark in ("{}", "{a}")) != 1:
            raise RecipeError(f"{where}{line_of(frame)}: a frame holds one of {{}}, {{a}} once; got {frame!r}.")
    return People(_listed(data["roles"], f"{where}: 'roles'"), frames)


def read_gate(path: str | Path) -> GateRecipe:
    """Read a gate. Raises RecipeError with one sentence that says what to mend."""
    path = Path(path)
    data = _file(path, GATE_FORMAT, _GATE, {"opens", "axes", "beside"})
    return _gate(data, path.name, bundled_people())


def read_axis(path: str | Path) -> AxisRecipe:
    """Read an axis. Raises RecipeError with one sentence that says what to mend.

    An own axis may bring its own ``people`` (roles and frames) and its own ``gates``, a list of gates that take the
    place of the bundled ones.
    """
    path = Path(path)
    where = path.name
    data = _file(path, AXIS_FORMAT, _AXIS, {"beside", "people", "gates"})
    people = bundled_people()
    if "people" in data:
        own = data["people"]
        if not isinstance(own, dict) or set(own) != {"roles", "frames"}:
            raise RecipeError(f"{where}: 'people' must have exactly the keys 'roles' and 'frames'.")
        people = _people(own, where)
    groups = _groups(data["groups"], where)
    told = {"name": data["name"], "title": data["title"], "holds": data["stated"], "spares": data["unstated"]}
    stated = _gate(told, where, people)
    gates = None
    if "gates" in data:
        listed = data["gates"]
        if not isinstance(listed, list) or not listed or not all(isinstance(g, dict) for g in listed):
            raise RecipeError(f"{where}: 'gates' must be a list of gates.")
        for g in listed:
            if missing := sorted({"name", "title", "holds", "spares"} - set(g)):
                raise RecipeError(f"{where}: a gate lacks the key '{missing[0]}'.")
        gates = tuple(_gate(g, where, people) for g in listed)
        if sum(g.opens for g in gates) != 1:
            raise RecipeError(f"{where}: one of the 'gates' must tell whether anybody is to be seen ('opens: true').")
    return AxisRecipe(str(data["name"]), str(data["title"]).strip(), groups, stated, gates)


def _file(path: Path, form: str, required: set[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    data = load(path)
    if data.get("format") != form:
        raise RecipeError(f"{path.name}: its first line must be 'format: {form}'.")
    if missing := sorted(required - set(data)):
        raise RecipeError(f"{path.name}: the key '{missing[0]}' is missing.")
    if unknown := sorted(map(str, set(data) - required - {"description", *optional})):
        raise RecipeError(f"{path.name}: unknown key '{unknown[0]}'.")
    if not isinstance(data["name"], str) or not NAME.fullmatch(data["name"]):
        raise RecipeError(f"{path.name}: 'name' must be lower-case letters, digits and dashes; got {data['name']!r}.")
    return data


def _gate(data: Mapping[str, Any], where: str, people: People) -> GateRecipe:
    holds, spares = (_words(data[k], f"{where}: '{k}'") for k in ("holds", "spares"))
    if not isinstance(data.get("opens", False), bool):
        raise RecipeError(f"{where}: 'opens' must be true or false.")
    axes = _listed(data["axes"], f"{where}: 'axes'") if "axes" in data else ()
    return GateRecipe(
        str(data["name"]), str(data["title"]).strip(), holds, spares, bool(data.get("opens", False)), axes, people
    )


def _groups(value: Any, where: str) -> tuple[Group, ...]:
    if not isinstance(value, list) or not FEWEST_GROUPS <= len(value) <= MOST_GROUPS:
        count = len(value) if isinstance(value, list) else "no"
        raise RecipeError(f"{where}: an axis has {FEWEST_GROUPS} to {MOST_GROUPS} groups; got {count}.")
    found = []
    for group in value:
        if not isinstance(group, dict) or set(group) != {"name", "says"} or not isinstance(group["name"], str):
            raise RecipeError(f"{where}: a group must have exactly the keys 'name' and 'says'.")
        says = _listed(group["says"], f"{where}: group '{group['name']}'")
        for text in says:
            if sum(text.count(mark) for mark in ("{}", "{a}")) != 1:
                raise RecipeError(f"{where}{line_of(text)}: each way to say a group holds {{}} once; got {text!r}.")
        found.append(Group(group["name"].strip(), says))
    if len({g.name for g in found}) < len(found):
        raise RecipeError(f"{where}: two groups have one name; give each its own.")
    if any(c in g.name for g in found for c in ",:;=\n") or not all(g.name for g in found):
        raise RecipeError(f"{where}: a group's name is one line without , : ; and =.")
    if len({len(g.says) for g in found}) > 1:
        raise RecipeError(f"{where}: give every group as many ways to say it, in the same order.")
    return tuple(found)


def _words(value: Any, where: str) -> Words:
    if not isinstance(value, dict) or not value or not set(value) <= set(FORMS):
        raise RecipeError(f"{where} must list words by where they stand: {', '.join(FORMS)}.")
    found = {k: _listed(v, f"{where}, '{k}'", empty=k == "prompts") for k, v in value.items()}
    if sum(map(len, found.values())) > MOST_WORDS:
        raise RecipeError(f"{where} has too many words; at most {MOST_WORDS} are allowed.")
    return Words(**found)


def _listed(value: Any, where: str, empty: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where} must be a list with at least one text.")
    for text in value:
        if not isinstance(text, str) or not (text.strip() or empty) or len(text) > LONGEST:
            raise RecipeError(
                f"{where}{line_of(text)}: a word must be text that is not empty; got {text!r} (put quotes around it)."
            )
        if wrong := unbalanced(text):
            raise RecipeError(f"{where}{line_of(text)}: {text!r} has a {wrong} without its other half.")
    return tuple(str(v).strip() for v in value)


__all__ = [
    "PERSON", "AxisRecipe", "GateRecipe", "Group", "People", "Said", "Words", "balance_folder", "bundled_gates",
    "bundled_people", "naming", "read_axis", "read_gate", "read_people",
]  # fmt: skip
