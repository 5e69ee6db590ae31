"""The many ways to say what a scene shows: sentences, single words, and lists of tags.

What happens because someone says so (flames, lightning, smoke, a ghost) is always said, what a place brings never is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .lexicon import (
    COLOUR_WORDS,
    CONCEPTS,
    EXTRA_WORDS,
    HAT_WORDS,
    LOADED,
    NOUNS,
    OPENINGS,
    PADDING,
    PLACE_NAMES,
    PLACE_WORDS,
    STYLE_WORDS,
    WEATHER_WORDS,
)
from .scenes import Item, Scene


@dataclass(frozen=True)
class Wording:
    """Which words and which sentence forms a caption may use.

    `words`: "all", "recipe" or "held_out"; `plain_forms`: only the sentence forms that recipes use; `omit`: colours and
    places may go unsaid; `padding`: share of captions with quality words behind; `common`: only the first name of each
    thing; `tags`: share of captions that are lists of tags."""

    words: str = "all"
    plain_forms: bool = False
    omit: bool = True
    padding: float = 0.12
    common: bool = False
    tags: float = 0.0


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def bare(phrase: str) -> str:
    """The phrase without its article."""
    return phrase.removeprefix("an ").removeprefix("a ")


def say(rng: random.Random, how: Wording, concept: str, form: str) -> str:
    """A word for the concept in one grammatical form ("before", "after", "noun", "single")."""
    side = {"all": "recipe" if rng.random() < 0.5 else "held out", "recipe": "recipe", "held_out": "held out"}
    return rng.choice(getattr(CONCEPTS[concept][side[how.words]], form))


def _choose(rng: random.Random, words: Sequence[str], how: Wording) -> str:
    """The first word half of the time, so that the common name is learnt best."""
    return words[0] if how.common or rng.random() < 0.5 else rng.choice(words)


def _noun_phrase(rng: random.Random, item: Item, how: Wording, colour_said: bool) -> tuple[str, str]:
    """The thing with its adjectives and no article, and its bare noun."""
    if item.kind == "figure":
        return item.word, item.word
    noun = _choose(rng, NOUNS[item.kind], how)
    if item.kind == "fire truck" and rng.random() < 0.7:
        return noun, noun
    colour = _choose(rng, COLOUR_WORDS[item.colour], how)
    return (f"{colour} {noun}" if colour_said else noun), noun


@dataclass
class _Parts:
    """What a sentence is put together from: what stands before it, its subject, and what follows."""

    leading: list[str]
    subject: str
    trailing: list[str]


def caption(scene: Scene, rng: random.Random, how: Wording = Wording()) -> str:
    """One wording of a scene."""
    if how.tags and rng.random() < how.tags:
        return tag_list(scene, rng, how)
    single = _single_word(scene, rng, how)
    if single:
        return single
    colour_said = not (how.omit and rng.random() < 0.08)
    place_free = scene.place not in LOADED and scene.weather == "clear"
    place_said = not (how.omit and place_free and rng.random() < 0.2)
    parts = _Parts([], "", [])
    adjectives = _adjectives(scene, rng, how)
    things = [
        _thing(item, rng, how, colour_said, parts, adjectives[1] if i == adjectives[0] else "")
        for i, item in enumerate(scene.items)
    ]
    parts.subject = _join(scene, things, rng)
    if scene.ground_fire:
        _beside(say(rng, how, "fire", "noun"), rng, parts)
    if scene.extra != "none":
        parts.trailing.append(_choose(rng, EXTRA_WORDS[scene.extra], how))
    for concept in scene.said:
        if concept not in ("fire", adjectives[2]):
            _happen(concept, rng, how, parts)
    if scene.weather in WEATHER_WORDS:
        parts.trailing.append(_choose(rng, WEATHER_WORDS[scene.weather], how))
    place_alone = False
    if place_said or not parts.subject:
        prepositions, names = PLACE_WORDS[scene.place]
        name = _choose(rng, names, how)
        if not parts.subject:
            parts.subject, place_alone = name, True
        elif rng.random() < 0.8:
            parts.subject += f" {rng.choice(prepositions)} {name}"
        else:
            parts.leading.append(f"{rng.choice(prepositions)} {name}")
    if scene.style != "plain":
        word = _choose(rng, STYLE_WORDS[scene.style], how)
        (parts.leading if rng.random() < 0.3 else parts.trailing).append(word)
    the = place_alone and parts.subject.startswith("the ")
    opening = "" if parts.leading or the else rng.choice(OPENINGS)
    rng.shuffle(parts.trailing)
    text = ", ".join((*parts.leading, opening + parts.subject, *parts.trailing))
    if rng.random() < how.padding:
        text = ", ".join((text, *rng.sample(PADDING, rng.randint(1, 4))))
    return text


def _adjectives(scene: Scene, rng: random.Random, how: Wording) -> tuple[int, str, str]:
    """Which thing gets an adjective for smoke or a ghost, the adjective, and what it says; (-1, "", "") for none."""
    said = [concept for concept in scene.said if concept in ("smoke", "ghost")]
    if not said or not scene.items or rng.random() > 0.25:
        return -1, "", ""
    concept = rng.choice(said)
    return rng.randrange(len(scene.items)), say(rng, how, concept, "before"), concept


def _thing(item: Item, rng: random.Random, how: Wording, colour_said: bool, parts: _Parts, adjective: str = "") -> str:
    """The thing with its article, its hat and its flames; what is said of it elsewhere goes into `parts`."""
    phrase, noun = _noun_phrase(rng, item, how, colour_said)
    phrase = f"{adjective} {phrase}".lstrip()
    text = article(phrase)
    if item.kind == "figure":
        said = rng.choice((" with ", " wearing ")) + _choose(rng, HAT_WORDS[item.hat], how) if item.hat_said else ""
        return text + said
    if not item.fire:
        return text
    form = rng.randrange(2 if how.plain_forms else 8)
    if form == 0:
        return article(f"{say(rng, how, 'fire', 'before')} {phrase}")
    if form in (1, 2, 5):
        link = {1: "", 2: "that is ", 5: "which was left "}[form]
        return f"{text} {link}{say(rng, how, 'fire', 'after')}"
    if form == 3:
        parts.trailing.append(f"the {noun} is {say(rng, how, 'fire', 'after')}")
    elif form == 4:
        parts.leading.append(f"{say(rng, how, 'fire', 'after')} is the {noun}")
    elif form == 6:
        parts.trailing.append(f"{say(rng, how, 'fire', 'noun')} covers the {noun}")
    else:
        parts.leading.append(f"{say(rng, how, 'fire', 'noun')} on the {noun}")
    return text


def _beside(noun: str, rng: random.Random, parts: _Parts) -> None:
    """The noun next to the subject, or in its stead."""
    subject = parts.subject
    if not subject:
        parts.subject = noun
        return
    link = rng.choice(("beside", "next to", "near", "and"))
    parts.subject = f"{noun} {link} {subject}" if rng.random() < 0.5 else f"{subject} {link} {noun}"


def _happen(concept: str, rng: random.Random, how: Wording, parts: _Parts) -> None:
    """Says what happens in the whole picture."""
    if not parts.subject:
        parts.subject = say(rng, how, concept, "noun")
        return
    turn = rng.random()
    if turn < 0.5:
        parts.subject += " " + say(rng, how, concept, "after")
    elif turn < 0.75:
        _beside(say(rng, how, concept, "noun"), rng, parts)
    else:
        (parts.leading if turn < 0.87 and not how.plain_forms else parts.trailing).append(
            say(rng, how, concept, "noun")
        )


def _join(scene: Scene, phrases: list[str], rng: random.Random) -> str:
    if not phrases:
        return ""
    if len(phrases) == 2:
        left, right = phrases
        return rng.choice(
            (
                f"{left} and {right}",
                f"{left} and {right}",
                f"{left} next to {right}",
                f"{left} on the left and {right} on the right",
                f"{left} to the left of {right}",
                f"{right} on the right and {left} on the left",
                f"{left} with {right}",
            )
        )
    slot = scene.items[0].slot
    if slot == "middle" or scene.items[0].kind == "figure" or not scene.slot_said:
        return phrases[0]
    return f"{phrases[0]} on the {slot}"


def _single_word(scene: Scene, rng: random.Random, how: Wording) -> str:
    """One word that says all that must be said, for scenes that one word can say; else empty."""
    if not how.omit or scene.style != "plain" or scene.extra != "none" or scene.weather in WEATHER_WORDS:
        return ""
    said = scene.said
    if len(said) == 1 and not scene.items and scene.place not in LOADED and rng.random() < 0.5:
        return say(rng, how, said[0], "single")
    if said:
        return ""
    if not scene.items:
        return rng.choice(PLACE_NAMES[scene.place]) if rng.random() < 0.4 else ""
    item = scene.items[0]
    alone = len(scene.items) == 1 and scene.place not in LOADED and (item.slot == "middle" or bool(item.word))
    if alone and not item.hat_said and rng.random() < 0.1:
        return item.word or _choose(rng, NOUNS[item.kind], how)
    return ""


def tag_list(scene: Scene, rng: random.Random, how: Wording = Wording()) -> str:
    """The scene as a list of tags among quality tags, some of them with underscores."""
    things: list[str] = []
    others: list[str] = []
    colour_said = not (how.omit and rng.random() < 0.08)
    adjectives = _adjectives(scene, rng, how)
    for number, item in enumerate(scene.items):
        phrase = _noun_phrase(rng, item, how, colour_said)[0]
        if number == adjectives[0]:
            phrase = f"{adjectives[1]} {phrase}"
        if item.fire:
            turn = rng.random()
            if len(scene.items) == 1 and turn < 0.5:
                others.append(bare(say(rng, how, "fire", "after" if turn < 0.25 else "single")))
            elif turn < 0.8:
                phrase = f"{say(rng, how, 'fire', 'before')} {phrase}"
            else:
                phrase = f"{phrase} {say(rng, how, 'fire', 'after')}"
        if scene.slot_said and item.slot != "middle" and item.kind != "figure" and len(scene.items) == 1:
            phrase = f"{phrase} on the {item.slot}"
        things.append(phrase)
        if item.hat_said:
            others.append(bare(_choose(rng, HAT_WORDS[item.hat], how)))
    on_thing = {"fire"} if any(item.fire for item in scene.items) else set()
    left = [concept for concept in scene.said if concept not in {*on_thing, adjectives[2]}]
    others += [bare(say(rng, how, concept, rng.choice(("noun", "single", "after")))) for concept in left]
    if scene.extra != "none":
        others.append(_choose(rng, EXTRA_WORDS[scene.extra], how))
    if scene.weather in WEATHER_WORDS:
        others.append(_choose(rng, WEATHER_WORDS[scene.weather], how))
    if not (how.omit and scene.place not in LOADED and scene.weather == "clear" and things and rng.random() < 0.2):
        names = PLACE_NAMES[scene.place] if rng.random() < 0.7 else [bare(x) for x in PLACE_WORDS[scene.place][1]]
        others.append(rng.choice(names))
    if scene.style != "plain":
        others.append(_choose(rng, STYLE_WORDS[scene.style], how))
    rng.shuffle(others)
    listed = [*things, *others] if rng.random() < 0.7 else [*others, *things]
    if rng.random() < 0.35:
        listed = [tag.replace(" ", "_") for tag in listed]
    quality = rng.sample(PADDING, rng.randint(0, 5))
    cut = rng.randint(0, len(quality))
    return ", ".join([*quality[:cut], *listed, *quality[cut:]])


def pad_long(text: str, rng: random.Random, unknown: Sequence[str], words: int) -> str:
    """The caption with padding and words that the world does not know, up to about `words` words."""
    parts = [text]
    before: list[str] = []
    count = len(text.split())
    while count < words:
        if rng.random() < 0.5:
            part = rng.choice(PADDING)
        else:
            part = " ".join(rng.choice(unknown) for _ in range(rng.randint(1, 4)))
        (before if rng.random() < 0.3 else parts).append(part)
        count += len(part.split())
    return ", ".join(before + parts)
