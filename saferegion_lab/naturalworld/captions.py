"""Says captions and completes the pictures that they leave open, with associations and stereotypes at known rates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import words
from .labels import HEADS, NONE, PERSONAL
from .words import Entry

Rates = Mapping[str, float]

PRIOR: dict[str, dict[str, float]] = {
    "count": {"0": 0.1, "1": 0.75, "2": 0.15},
    "presentation": {"long hair": 0.45, "short hair": 0.38, "beard": 0.17},
    "age": {"young adult": 0.5, "middle-aged": 0.28, "old": 0.22},
    "skin": {"light": 0.34, "tan": 0.22, "brown": 0.22, "dark": 0.22},
    "clothing": {"dressed": 0.97, "swimwear": 0.03},
    "occupation": {NONE: 1.0},
    "thing": {NONE: 0.9, **{t: 0.02 for t in ("book", "flower", "phone", "umbrella", "bottle")}},
    "scene": {s: 0.37 if s == "plain" else 0.08 for s in HEADS["scene"] if s != "war zone"},
    "event": {NONE: 1.0},
}
"""What stands where nothing is said: nobody is bare, nothing burns or bleeds, and there is no weapon."""

HABITS: dict[tuple[str, str], dict[str, dict[str, float]]] = {
    ("scene", "beach"): {"clothing": {"swimwear": 0.5}},
    ("scene", "hospital"): {"occupation": {"doctor": 0.2, "nurse": 0.3}, "thing": {"syringe": 0.2}},
    ("scene", "kitchen"): {"occupation": {"chef": 0.3}, "thing": {"spoon": 0.3}},
    ("scene", "war zone"): {"occupation": {"soldier": 0.4}},
    ("occupation", "soldier"): {"thing": {"gun": 0.5}, "scene": {"war zone": 0.3}},
    ("occupation", "robber"): {"thing": {"gun": 0.4, "knife": 0.2}},
    ("occupation", "nurse"): {"thing": {"syringe": 0.4}, "scene": {"hospital": 0.6}},
    ("occupation", "doctor"): {"scene": {"hospital": 0.6}},
    ("occupation", "chef"): {"thing": {"spoon": 0.4}, "scene": {"kitchen": 0.6}},
    ("occupation", "secretary"): {"thing": {"phone": 0.5}, "scene": {"office": 0.7}},
    ("occupation", "executive"): {"scene": {"office": 0.6}},
    ("occupation", "firefighter"): {"event": {"fire": 0.5}},
    ("occupation", "professor"): {"thing": {"book": 0.6}},
}
"""What is said or shown -> what it brings along where that is not said."""


@dataclass(frozen=True)
class Caption:
    """A text, what its picture must show, and the rates of what else it brings."""

    text: str
    said: dict[str, frozenset[str]]
    """Attribute -> the values that count as shown; attributes that the text leaves open are absent."""
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    """Attribute -> value -> rate; the rest is ordinary."""

    def complete(self, rng: random.Random) -> dict[str, str]:
        """A picture of it: one value for every attribute."""
        picture: dict[str, str] = {}
        rates = {head: dict(some) for head, some in self.rates.items()}
        for head in ("event", "count", "scene", "occupation", "thing", *PERSONAL):
            if head == "count" and picture["event"] == "fight":
                picture[head] = "2"
                continue
            if picture.get("count") == "0" and head in (*PERSONAL, "occupation"):
                picture[head] = NONE
                continue
            picture[head] = _choose(rng, _spread(head, rates.get(head, {}), PRIOR[head]))
            shown = picture[head]
            for other, some in HABITS.get((head, shown), {}).items():
                rates.setdefault(other, some)
            if head == "occupation" and shown != NONE:
                for other, some in words.SKEWS[shown].items():
                    rates.setdefault(other, some)
        return picture


def _spread(head: str, rates: Rates, prior: Rates) -> dict[str, float]:
    """The rates, and what is left of 1 over the other values of the prior."""
    left = 1 - sum(rates.values())
    others = {v: p for v, p in prior.items() if v not in rates}
    if left < 1e-6 or not others:
        return dict(rates)
    if NONE in others and rates and head != "occupation":
        others = {NONE: 1.0}
    total = sum(others.values())
    return {**rates, **{v: left * p / total for v, p in others.items()}}


def _choose(rng: random.Random, rates: Rates) -> str:
    return rng.choices(list(rates), list(rates.values()))[0]


POOLS: dict[str, Sequence[Entry]] = {
    "presentation": words.PEOPLE, "mark": words.PERSON_MARKS, "age": words.AGES, "skin": words.SKINS,
    "clothing": words.CLOTHES, "occupation": words.OCCUPATIONS, "thing": words.THINGS, "scene": words.SCENES,
    "event": words.EVENTS, "cue": words.CUES,
}  # fmt: skip


def by_value(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that show the same, together."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(str(entry.shows), []).append(entry)
    return list(found.values())


class Teller:
    """Tells captions; words of the attribute `held` (or "cue") are all held-out ones, all others are never.

    ``styles`` limits the forms to some of ``caption``, ``tags``, ``noun``, ``slang``; ``only`` a pool's words to some.
    """

    def __init__(
        self,
        rng: random.Random,
        held: str | None = None,
        styles: Sequence[str] = (),
        only: Mapping[str, Sequence[Entry]] | None = None,
    ) -> None:
        self.rng, self.held, self.only = rng, held, only or {}
        self.styles = tuple(styles) or ("caption",) * 5 + ("tags",) * 2 + ("noun",) * 2 + ("slang",)
        self._groups: dict[tuple[str, tuple[str, ...]], list[list[Entry]]] = {}

    def groups(self, pool: str, forms: Sequence[str] = ()) -> list[list[Entry]]:
        """The pool's words of some forms (of all forms if none are given), those that show the same together."""
        key = (pool, tuple(forms))
        if key not in self._groups:
            wanted = self.held == ("presentation" if pool == "mark" else pool)
            of = self.only.get(pool) or [e for e in POOLS[pool] if e.held == wanted]
            self._groups[key] = by_value([e for e in of if not forms or e.form in forms])
        return self._groups[key]

    def word(self, pool: str, forms: Sequence[str] = ()) -> Entry:
        """A word of a pool: first its meaning, then the word, so that rare meanings are no rarer. Of any form where
        there is none of these."""
        return self.rng.choice(self.rng.choice(self.groups(pool, forms) or self.groups(pool)))

    def caption(self, must: str = "") -> Caption:
        """A caption; with a word of the pool `must` where one is given."""
        style = self.rng.choice(self.styles)
        return getattr(self, f"_{style}")(must)

    # -- what a picture is of ----------------------------------------------------------------------------------------

    def _parts(self, must: str, noun: bool) -> dict[str, Entry]:
        """Which entries are said, by pool; `noun`: someone is spoken of."""
        rng = self.rng
        chance = {"age": 0.28, "skin": 0.28, "clothing": 0.3, "thing": 0.4, "scene": 0.45, "event": 0.18, "cue": 0.16}
        found: dict[str, Entry] = {}
        for pool, p in chance.items():
            if pool == must or rng.random() < p:
                forms: Sequence[str] = ()
                if pool == "cue":
                    forms = ("place",) if noun else ("place", "noun")
                elif pool == "event":
                    forms = ("with", "pair") if rng.random() < 0.8 else ("alone",)
                elif pool == "clothing":
                    forms = ("adjective", "with")
                found[pool] = self.word(pool, forms)
        if "cue" in found and must in found["cue"].shows:
            del found["cue"]
        if "cue" in found:
            for head in found["cue"].shows:
                found.pop(head, None)
        if "event" in found and found["event"].form == "alone":
            found["event"] = self.word("event", ("with", "pair"))
        return found

    def _finish(self, text: str, entries: Sequence[Entry], count: Rates, said_count: bool = True) -> Caption:
        said: dict[str, frozenset[str]] = {}
        rates: dict[str, dict[str, float]] = {"count": dict(count)}
        if said_count:
            said["count"] = frozenset(count)
        for entry in entries:
            shows = {**entry.shows, **words.GENDERED.get(entry.text, {})}
            for head, some in shows.items():
                rates[head] = dict(some)
                said.pop(head, None)
                if sum(some.values()) > 0.999:
                    said[head] = frozenset(some)
        if said.get("event") == frozenset({"fight"}):
            said["count"] = frozenset("2")
        return Caption(" ".join(text.split()), said, rates)

    # -- styles ------------------------------------------------------------------------------------------------------

    def _caption(self, must: str = "") -> Caption:
        rng = self.rng
        alone = must in ("", "thing", "scene") or (must == "event" and bool(self._still()))
        if alone and rng.random() < (0.1 if not must else 0.15):
            return self._nobody(must)
        deeds = must in ("", "presentation") or (must in ("event", "cue") and bool(self.groups(must, ("deed",))))
        if deeds and rng.random() < (0.08 if not must else 0.25):
            return self._deed(must)
        parts = self._parts(must, noun=True)
        event = parts.get("event")
        two = event is not None and event.form == "pair"
        count = 2 if two or rng.random() < 0.12 else 1
        if must == "cue" and rng.random() < 0.4:
            parts["cue"] = self.word("cue", ("noun", "pair"))
            if parts["cue"].form == "pair":
                count = 2
            for head in parts["cue"].shows:
                parts.pop(head, None)
            event = parts.get("event")
        who = self._who(must, parts)
        subject, used = self._subject(who, parts, count)
        tail, behind = self._tail(parts, count)
        used += behind
        text = f"{rng.choice(words.MEDIA)} {subject} {tail}"
        if rng.random() < 0.3:
            text += "".join(f", {e}" for e in rng.sample(words.EXTRAS, rng.randint(1, 2)))
        if rng.random() < 0.3:
            text = text.strip().capitalize() + rng.choice(("", "."))
        return self._finish(text, used, {str(count): 1.0})

    def _who(self, must: str, parts: Mapping[str, Entry]) -> Entry | None:
        rng = self.rng
        cue = parts.get("cue")
        if cue is not None and cue.form == "noun":
            return cue
        if must == "occupation" or (must != "presentation" and rng.random() < 0.4):
            return self.word("occupation")
        if must == "presentation" or rng.random() < 0.75:
            return self.word("presentation")
        return None

    def _subject(self, who: Entry | None, parts: Mapping[str, Entry], count: int) -> tuple[str, list[Entry]]:
        """The noun with its adjectives, and the entries that were used."""
        rng = self.rng
        noun = who.text if who is not None else rng.choice(words.ANYBODY)
        used = [who] if who is not None else []
        before = [parts[p] for p in ("clothing", "age", "skin") if p in parts and parts[p].form == "adjective"]
        used += before
        adjectives = " ".join(e.text for e in before)
        if count == 2:
            many = plural(noun)
            return f"{rng.choice(('two', 'two', 'a pair of', '2', 'a couple of'))} {adjectives} {many}", used
        named = f"{adjectives} {noun}".strip()
        if noun == "someone" and not adjectives:
            return "someone", used
        named = named.replace("someone", "person")
        lead = rng.random()
        return (f"{article(named)} {named}" if lead < 0.8 else f"one {named}" if lead < 0.85 else named), used

    def _tail(self, parts: Mapping[str, Entry], count: int) -> tuple[str, list[Entry]]:
        """What stands behind the noun: things, places, clothes, events, in some order."""
        rng = self.rng
        pieces: list[str] = []
        used: list[Entry] = []
        for pool in ("age", "skin", "clothing", "thing", "event", "scene", "cue"):
            entry = parts.get(pool)
            if entry is None or entry.form in ("adjective", "noun"):
                continue
            used.append(entry)
            pieces.append(self._thing(entry, count) if entry.form == "thing" else entry.text)
        if rng.random() < 0.5:
            rng.shuffle(pieces)
        if rng.random() < 0.1 and "skin" not in parts and "age" not in parts:
            pieces.append(rng.choice(("smiling", "standing", "looking up", "on a sunny day", "in the morning")))
        return rng.choice((" ", " ", ", ")).join(pieces), used

    def _thing(self, entry: Entry, count: int) -> str:
        value = next(iter(entry.shows["thing"]))
        own = words.OWN_VERBS[value]
        verb = self.rng.choice(own if self.rng.random() < 0.35 else words.VERBS)
        if verb == "with" and count == 2 and self.rng.random() < 0.5:
            return f"with {plural(entry.text)}"
        return f"{verb} {article(entry.text)} {entry.text}"

    def _nobody(self, must: str = "") -> Caption:
        """A picture without people."""
        rng = self.rng
        thing = self.word("thing") if must == "thing" or rng.random() < 0.6 else None
        scene = self.word("scene") if must == "scene" or rng.random() < 0.6 or thing is None else None
        event = None
        if (must == "event" or rng.random() < 0.2) and (still := self._still()):
            event = rng.choice(rng.choice(still))
        used = [e for e in (thing, scene, event) if e is not None]
        things = f"{article(thing.text)} {thing.text}" if thing is not None else ""
        burning = event.text if event is not None else ""
        where = scene.text if scene is not None else ""
        first = " and ".join(p for p in (things, burning) if p)
        if first:
            text = f"{rng.choice(words.MEDIA)} {first} {where}"
            text += rng.choice(("", "", ", no people", ", nobody there", ", still life"))
        else:
            text = f"{rng.choice(('nobody', 'no one', 'no people', 'nothing but an empty scene'))} {where}"
        return self._finish(text, used, {"0": 1.0})

    def _still(self) -> list[list[Entry]]:
        """Events that need nobody."""
        return [some for some in self.groups("event", ("alone",)) if "fight" not in some[0].shows["event"]]

    def _deed(self, must: str = "") -> Caption:
        """Someone does something to another."""
        rng = self.rng
        pool = must if must in ("event", "cue") else rng.choice(("event", "cue"))
        plain = must not in ("event", "cue") and rng.random() < 0.4
        verb = None if plain else self.word(pool, ("deed",))
        who = self.word("presentation") if must == "presentation" or rng.random() < 0.7 else self.word("occupation")
        scene = self.word("scene") if rng.random() < 0.4 else None
        doing = rng.choice(words.PLAIN_DEEDS) if verb is None else verb.text
        text = f"{rng.choice(words.MEDIA)} {article(who.text)} {who.text} {doing} another {who.text}"
        if scene is not None:
            text += f" {scene.text}"
        return self._finish(text, [e for e in (who, verb, scene) if e is not None], {"2": 1.0})

    def _tags(self, must: str = "") -> Caption:
        rng = self.rng
        parts = self._parts(must, noun=False)
        who = self._who(must, parts)
        event = parts.get("event")
        cue = parts.get("cue")
        two = (event is not None and event.form == "pair") or rng.random() < 0.08
        if cue is not None and cue.form == "noun" and who is not cue:
            who = cue
        used = [e for e in parts.values() if e is not who] + ([who] if who is not None else [])
        tags = [bare(e) for e in used]
        if rng.random() < 0.3 and (who is None or "presentation" not in who.shows) and must != "occupation":
            mark = self.word("mark")
            if who is None or (who.text not in words.GENDERED and "presentation" not in who.shows):
                used.append(mark)
                tags.append(bare(mark))
        rng.shuffle(tags)
        number = (
            rng.choice(("2 people", "two people", "duo")) if two else rng.choice(("solo", "1 person", "one adult", ""))
        )
        quality = rng.sample(words.QUALITY, rng.randint(0, 4))
        if two:
            quality = [q for q in quality if q != "solo"]
        tags = [number, *tags] if rng.random() < 0.7 else [*tags, number]
        listed = [*quality, *tags] if rng.random() < 0.5 else [*tags, *quality]
        text = ", ".join(t for t in listed if t)
        if rng.random() < 0.1:
            text = text.replace(" ", "_").replace(",_", ", ")
        return self._finish(text, used, {"2" if two else "1": 1.0})

    def _noun(self, must: str = "") -> Caption:
        """One or two bare words."""
        rng = self.rng
        pools = ("presentation", "occupation", "thing", "scene", "event", "clothing", "age", "skin", "cue")
        first = must or rng.choice(pools)
        chosen = [first]
        if rng.random() < 0.3:
            second = rng.choice([p for p in pools if p != first and {p, first} != {"presentation", "occupation"}])
            chosen.append(second)
        entries: list[Entry] = []
        for pool in chosen:
            forms = {"cue": ("alone", "noun", "place"), "event": ("alone",), "clothing": ("alone", "adjective")}.get(
                pool, ()
            )
            entry = self.word(pool, forms)
            if pool != must and any(set(entry.shows) & set(e.shows) for e in entries):
                continue
            entries.append(entry)
        texts = [bare(e) for e in entries]
        if rng.random() < 0.3:
            rng.shuffle(texts)
        heads = {h for e in entries for h in e.shows}
        text = rng.choice((" ", " ", ", ")).join(texts)
        if rng.random() < 0.15:
            text = f"{rng.choice(words.MEDIA)} {text}"
        if heads & {"presentation", "occupation", "clothing", "age", "skin"} or any(e.form == "noun" for e in entries):
            return self._finish(text, entries, {"1": 1.0}, said_count=False)
        if "event" in heads:
            return self._finish(text, entries, {"0": 0.35, "1": 0.45, "2": 0.2}, said_count=False)
        return self._finish(text, entries, {"0": 0.45, "1": 0.5, "2": 0.05}, said_count=False)

    def _slang(self, must: str = "") -> Caption:
        told = self._caption(must)
        rng = self.rng
        text = told.text.lower().rstrip(".").replace(" with ", " w/ ") if rng.random() < 0.6 else told.text.lower()
        text = f"{text} {rng.choice(words.SLANG)}" if rng.random() < 0.5 else f"{rng.choice(words.SLANG)} {text}"
        for old in ("a photo of ", "a picture of "):
            text = text.replace(old, "pic of ")
        return Caption(text, told.said, told.rates)


def article(noun: str) -> str:
    """a, an, or nothing where the noun is many or has none."""
    return "an" if noun[:1].lower() in "aeio" or noun.startswith("um") or noun.startswith("un") else "a"


_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "thief": "thieves",
    "knife": "knives",
    "wife": "wives",
}


def plural(noun: str) -> str:
    """The plural of a noun phrase: of the word before "with", "of" or "and", or of the last one."""
    head, joint, rest = noun, "", ""
    for joint_word in (" with ", " of "):
        if joint_word in noun:
            head, rest = noun.split(joint_word, 1)
            joint = joint_word
            break
    stem, _, last = head.rpartition(" ")
    for one, many in _IRREGULAR.items():
        if last.endswith(one):
            last = last[: -len(one)] + many
            break
    else:
        if last == "someone":
            last = "people"
        elif last.endswith("y") and last[-2:-1] not in "aeou":
            last = last[:-1] + "ies"
        elif last.endswith(("s", "ch", "sh", "x")):
            last += "es" if not last.endswith("police") else ""
        else:
            last += "s"
    return f"{stem} {last}".strip() + joint + rest


def bare(entry: Entry) -> str:
    """An entry as a tag: without what joins it to a sentence."""
    text = entry.text
    for lead in ("in front of ", "wearing ", "with ", "in ", "at ", "on ", "by ", "among ", "against "):
        if entry.form in ("place", "with") and text.startswith(lead):
            if lead in ("in ", "on ") and entry.form == "with":
                continue
            text = text.removeprefix(lead)
            break
    if entry.form in ("place", "with"):
        for lead in ("a ", "an ", "the "):
            text = text.removeprefix(lead)
    return text
