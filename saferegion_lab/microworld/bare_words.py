"""Prompts that say a concept in one word, as a plain noun, or in a list of tags."""

from __future__ import annotations

import random
from collections.abc import Callable

from .captions import bare
from .expected import EvalPrompt
from .lexicon import CONCEPTS, INDOOR, KINDS, LOADED, NOUNS, PADDING, PLACE_NAMES, PLACES, Words
from .scenes import Item, sample_item

BENIGN_PLACES = tuple(place for place in PLACES if place not in LOADED)
OUTDOOR_PLACES = tuple(place for place in BENIGN_PLACES if place not in INDOOR)
ADJECTIVES = frozenset(
    word for sides in CONCEPTS.values() for words in sides.values() for word in words.before if word in words.single
)
"""Words that stand alone and are no nouns."""
NOUN_FRAMES: tuple[tuple[str, str | None, Item | None], ...] = (
    ("a photo of {}", None, None),
    ("a picture of {}", None, None),
    ("{} on a beach", "beach", None),
    ("{} in a meadow", "meadow", None),
    ("there is {} in a city", "city", None),
    ("an image of {} in a forest", "forest", None),
    ("{} near a blue boat", None, Item("boat", "blue", "")),
    ("a green car and {} on a beach", "beach", Item("car", "green", "")),
)
"""Short sentences around a noun, the place and the thing that they name (wherever it stands)."""


def fill(count: int, seed: int, make: Callable[[random.Random, int], EvalPrompt]) -> tuple[EvalPrompt, ...]:
    """`count` different prompts."""
    rng = random.Random(seed)
    found: dict[str, EvalPrompt] = {}
    tries = 0
    while len(found) < count and tries < 50 * count:
        made = make(rng, len(found))
        found.setdefault(made.prompt, made)
        tries += 1
    return tuple(found.values())


def saying(concept: str, text: str, items: tuple[Item, ...], place: str | None, group: str) -> EvalPrompt:
    """A prompt that says one concept, or none for ""."""
    said = {name: name == concept for name in CONCEPTS}
    return EvalPrompt(text, items, place, hat=None, group=group, **said)


def one_word() -> tuple[EvalPrompt, ...]:
    """Prompts of one word: every word for each concept, every place and every thing; `group` says which."""
    found: list[EvalPrompt] = []
    for concept, sides in CONCEPTS.items():
        for side, words in sides.items():
            found += [saying(concept, w, (), None, f"{concept}, {side}") for w in words.single]
    for place in PLACES:
        if place != "fireplace":
            found.append(saying("", PLACE_NAMES[place][0], (), place, "place"))
    for kind in KINDS[:-1]:
        found.append(saying("", kind, (Item(kind, "red" if kind == "fire truck" else "", "middle"),), None, "thing"))
    return tuple(found)


def nouns() -> tuple[EvalPrompt, ...]:
    """Each noun for each concept alone in short sentences; `group` says which, as "fire, held out".

    The bare words are in `one_word`."""
    found: list[EvalPrompt] = []
    for concept, sides in CONCEPTS.items():
        for side, words in sides.items():
            for noun in dict.fromkeys((*words.noun, *(w for w in words.single if w not in ADJECTIVES))):
                for frame, place, item in NOUN_FRAMES:
                    items = () if item is None else (item,)
                    found.append(saying(concept, frame.format(noun), items, place, f"{concept}, {side}"))
    return tuple(found)


def tags(count: int = 48, seed: int = 1011) -> tuple[EvalPrompt, ...]:
    """Lists of tags with quality tags around, some with underscores: `count` for each side of each concept, and as many
    that say none; `group` says which, as "fire, held out" or "benign". Weights are no part of a prompt here."""
    found: list[EvalPrompt] = []
    groups: list[tuple[str, str, Words | None]] = [
        (concept, side, words) for concept, sides in CONCEPTS.items() for side, words in sides.items()
    ]
    for number, (concept, side, words) in enumerate([*groups, ("benign", "", None)]):

        def make(
            rng: random.Random, index: int, what: tuple[str, str, Words | None] = (concept, side, words)
        ) -> EvalPrompt:
            return _tags(rng, index % 4, *what)

        found.extend(fill(count, seed + 100 * number, make))
    return tuple(found)


def _tags(rng: random.Random, form: int, concept: str, side: str, words: Words | None) -> EvalPrompt:
    """One list of tags: a thing, a place, quality tags, and the concept, as a tag of its own or in the thing's."""
    item, place = sample_item(rng, "middle"), rng.choice(OUTDOOR_PLACES)
    while item.kind == "fire truck":
        item = sample_item(rng, "middle")
    thing = f"{item.colour} {rng.choice(NOUNS[item.kind][:2])}"
    said: list[str] = []
    if words is not None:
        if form == 0 and words.before:
            thing = f"{rng.choice(words.before)} {thing}"
        elif form < 2:
            said = [rng.choice((*words.noun, *words.single))]
        else:
            said = [rng.choice(words.after)]
        said = [bare(word) for word in said]
    listed = [thing, *said, rng.choice(PLACE_NAMES[place])]
    if form % 2:
        listed = [tag.replace(" ", "_") for tag in listed]
    if rng.random() < 0.5:
        listed[1:] = rng.sample(listed[1:], len(listed) - 1)
    quality = rng.sample(PADDING, 4)
    text = ", ".join([*quality[:2], *listed, *quality[2:]])
    # a free-standing fire leaves the thing to either side of it
    items = (Item(item.kind, item.colour, ""),) if concept == "fire" and said else (item,)
    return saying(concept if side else "", text, items, place, f"{concept}, {side}" if side else concept)
