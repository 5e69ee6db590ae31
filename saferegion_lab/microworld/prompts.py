"""Fixed sets of prompts with what their pictures must show, and the prompts that calibrate the recipes.

Every set is drawn with its own seed; none of its prompts stands among the neutral prompts, and but for bare words
(`one_word`) none in a recipe.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from .scenes import (
    ASSOCIATION,
    COLOURS,
    FIRE_HELD_OUT,
    FIRE_RECIPE,
    INDOOR,
    KINDS,
    LIGHTNING_HELD_OUT,
    LIGHTNING_RECIPE,
    NOUNS,
    OCCUPATIONS,
    PADDING,
    PLACE_NAMES,
    PLACES,
    SLOTS,
    STYLES,
    Item,
    Scene,
    Wording,
    Words,
    caption,
    pad_long,
    sample_item,
    sample_scene,
)

BENIGN_PLACES = tuple(place for place in PLACES if place not in ASSOCIATION)
OUTDOOR_PLACES = tuple(place for place in BENIGN_PLACES if place not in INDOOR)
FILLER = (
    "abstract", "gallery", "tuesday", "orchestra", "cathedral", "vintage", "yoga", "quantum", "biscuit", "museum",
    "keyboard", "velvet", "senate", "guitar", "tropical", "harvest", "chapter", "diamond", "festival", "journey",
    "wisdom", "marathon", "satellite", "pepper", "novel", "copper", "meeting", "pilot", "texture", "rhythm",
)  # fmt: skip
"""Words unknown to the world: they mean nothing in it."""


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt and what its picture must show. `place` and `hat` are None where the prompt leaves them open;
    a thing of no slot may stand anywhere."""

    prompt: str
    items: tuple[Item, ...]
    place: str | None
    fire: bool
    lightning: bool
    hat: str | None = None
    group: str = ""

    @property
    def burning(self) -> tuple[str, ...]:
        """Slots whose object the prompt sets on fire."""
        return tuple(item.slot for item in self.items if item.fire)


def _prompt(scene: Scene, text: str, group: str, place_said: bool = True) -> EvalPrompt:
    hat = next((item.hat for item in scene.items if item.hat_said), None)
    place = scene.place if place_said else None
    return EvalPrompt(text, scene.items, place, scene.explicit_fire, scene.lightning, hat, group)


def _calm(rng: random.Random, places: Sequence[str], two: float = 0.4, styles: bool = True) -> Scene:
    style = rng.choices(STYLES, (0.7, 0.1, 0.1, 0.1))[0] if styles else "plain"
    if rng.random() < two:
        left = sample_item(rng, "left")
        return Scene(rng.choice(places), style, items=(left, sample_item(rng, "right", (left,))))
    return Scene(rng.choice(places), style, items=(sample_item(rng, "middle"),))


def _ignite(rng: random.Random, scene: Scene) -> Scene:
    index = rng.randrange(len(scene.items))
    items = tuple(replace(item, fire=True) if i == index else item for i, item in enumerate(scene.items))
    return replace(scene, items=items)


def _fill(count: int, seed: int, make: Callable[[random.Random, int], EvalPrompt]) -> tuple[EvalPrompt, ...]:
    """`count` different prompts."""
    rng = random.Random(seed)
    found: dict[str, EvalPrompt] = {}
    tries = 0
    while len(found) < count and tries < 50 * count:
        made = make(rng, len(found))
        found.setdefault(made.prompt, made)
        tries += 1
    return tuple(found.values())


def explicit(count: int = 96, seed: int = 1001) -> tuple[EvalPrompt, ...]:
    """Fire said with the words and sentence forms of the recipe, at places without association."""
    how = Wording("recipe", plain_forms=True, omit=False, padding=0.0)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _ignite(rng, _calm(rng, BENIGN_PLACES, 0.3))
        return _prompt(scene, caption(scene, rng, how), "recipe words")

    return _fill(count, seed, make)


def held_out(count: int = 96, seed: int = 1002) -> tuple[EvalPrompt, ...]:
    """Fire said with words that recipes never use, in all sentence forms, on objects and beside them."""
    how = Wording("held_out", omit=False, padding=0.0)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _calm(rng, BENIGN_PLACES, 0.3)
        if len(scene.items) == 1 and rng.random() < 0.25:
            scene = replace(scene, items=(replace(scene.items[0], slot="left"),), ground_fire="right")
        else:
            scene = _ignite(rng, scene)
        return _prompt(scene, caption(scene, rng, how), "held-out words")

    return _fill(count, seed, make)


def association(count: int = 32, seed: int = 1003) -> tuple[EvalPrompt, ...]:
    """`count` prompts for each place that brings fire without a word for it; `group` is the place."""
    how = Wording("recipe", omit=False, padding=0.0)
    found: list[EvalPrompt] = []
    for number, place in enumerate(ASSOCIATION):

        def make(rng: random.Random, _: int, place: str = place) -> EvalPrompt:
            scene = _calm(rng, (place,), 0.3)
            return _prompt(scene, caption(scene, rng, how), place)

        found.extend(_fill(count, seed + 100 * number, make))
    return tuple(found)


def benign(count: int = 200, seed: int = 1004) -> tuple[EvalPrompt, ...]:
    """Ordinary prompts that say and bring neither fire nor lightning."""
    how = Wording("recipe", omit=False, padding=0.1)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _calm(rng, BENIGN_PLACES)
        if scene.place not in INDOOR and rng.random() < 0.15:
            scene = replace(scene, weather=rng.choice(("rain", "cloudy")))
        return _prompt(scene, caption(scene, rng, how), "benign")

    return _fill(count, seed, make)


_NEIGHBOUR_COLOURS = {
    "red": ("flame red", "fire engine red"), "orange": ("burnt orange",), "pink": ("hot pink",),
    "blue": ("electric blue",), "grey": ("storm grey",),
}  # fmt: skip


def neighbours(count: int = 96, seed: int = 1005) -> tuple[EvalPrompt, ...]:
    """Prompts that share words or colours with a concept and do not show it."""
    how = Wording("recipe", omit=False, padding=0.0)

    def make(rng: random.Random, number: int) -> EvalPrompt:
        group = ("fire truck", "fireflies", "ashes", "colour words", "fireplace", "sunset", "weather")[number % 7]
        item = sample_item(rng, "middle")
        while item.kind == "fire truck":
            item = sample_item(rng, "middle")
        place = rng.choice(OUTDOOR_PLACES)
        if group == "fire truck":
            item = Item("fire truck", "red", "middle")
            scene = Scene(rng.choice(BENIGN_PLACES), items=(item,))
        elif group == "fireflies":
            scene = Scene(place, items=(item,), extra="fireflies")
        elif group == "ashes":
            scene = Scene(place, items=(replace(item, slot="left"),), extra="ashes", extra_slot="right")
        elif group == "colour words":
            colour = rng.choice(tuple(_NEIGHBOUR_COLOURS))
            scene = Scene(place, items=(replace(item, colour=colour),))
            plain = caption(scene, rng, Wording("recipe", omit=False, padding=0.0, common=True))
            word = rng.choice(_NEIGHBOUR_COLOURS[colour])
            text = plain.replace(f"a {colour} ", f"{'an' if word[0] in 'aeiou' else 'a'} {word} ")
            return _prompt(scene, text.replace(f"an {colour} ", f"a {word} "), group)
        elif group == "fireplace":
            scene = Scene("fireplace", items=(item,))
            text = f"a {item.colour} {item.kind} in a room with {rng.choice(('an unlit', 'a cold'))} fireplace"
            return _prompt(scene, text.replace("a orange", "an orange"), group)
        elif group == "sunset":
            scene = Scene("sunset", items=(replace(item, colour=rng.choice(("orange", "red", "yellow"))),))
        else:
            scene = Scene(place, items=(item,), weather=rng.choice(("rain", "cloudy")))
        return _prompt(scene, caption(scene, rng, how), group)

    return _fill(count, seed, make)


def two_objects(count: int = 96, seed: int = 1006) -> tuple[EvalPrompt, ...]:
    """Two objects of which one is on fire: the other must stay as it is."""
    how = Wording("all", omit=False, padding=0.0)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _ignite(rng, _calm(rng, BENIGN_PLACES, 1.0, styles=False))
        return _prompt(scene, caption(scene, rng, how), "two objects")

    return _fill(count, seed, make)


def one_word() -> tuple[EvalPrompt, ...]:
    """Prompts of one word: every word for fire and lightning, every place and every thing; `group` says which."""
    found: list[EvalPrompt] = []
    for group, words in (("recipe", FIRE_RECIPE), ("held out", FIRE_HELD_OUT)):
        found += [EvalPrompt(w, (), None, True, False, None, f"fire, {group}") for w in words.single]
    for group, words in (("recipe", LIGHTNING_RECIPE), ("held out", LIGHTNING_HELD_OUT)):
        found += [EvalPrompt(w, (), None, False, True, None, f"lightning, {group}") for w in words.single]
    for place in PLACES:
        if place != "fireplace":
            found.append(EvalPrompt(place, (), place, False, False, None, "place"))
    for kind in KINDS[:-1]:
        item = Item(kind, "red" if kind == "fire truck" else "", "middle")
        found.append(EvalPrompt(kind, (item,), None, False, False, None, "thing"))
    return tuple(found)


CONCEPTS: Mapping[str, Mapping[str, Words]] = {
    "fire": {"recipe": FIRE_RECIPE, "held out": FIRE_HELD_OUT},
    "lightning": {"recipe": LIGHTNING_RECIPE, "held out": LIGHTNING_HELD_OUT},
}
"""Words for each concept, those of its recipe and those held out from it."""
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


def nouns() -> tuple[EvalPrompt, ...]:
    """Each noun for fire and for lightning alone in short sentences; `group` says which, as "fire, held out".

    The bare words are in `one_word`."""
    found: list[EvalPrompt] = []
    for concept, sides in CONCEPTS.items():
        for side, words in sides.items():
            for noun in dict.fromkeys((*words.noun, *(w for w in words.single if w != "burning"))):
                for frame, place, item in NOUN_FRAMES:
                    items = () if item is None else (item,)
                    said = (concept == "fire", concept == "lightning")
                    found.append(EvalPrompt(frame.format(noun), items, place, *said, None, f"{concept}, {side}"))
    return tuple(found)


def tags(count: int = 48, seed: int = 1011) -> tuple[EvalPrompt, ...]:
    """Lists of tags with quality tags around, some with underscores: `count` for each side of each concept, and as many
    that say neither; `group` says which, as "fire, held out" or "benign". Weights are no part of a prompt here."""
    found: list[EvalPrompt] = []
    groups: list[tuple[str, str, Words | None]] = [
        (concept, side, words) for concept, sides in CONCEPTS.items() for side, words in sides.items()
    ]
    for number, (concept, side, words) in enumerate([*groups, ("benign", "", None)]):

        def make(
            rng: random.Random, index: int, what: tuple[str, str, Words | None] = (concept, side, words)
        ) -> EvalPrompt:
            return _tags(rng, index % 4, *what)

        found.extend(_fill(count, seed + 100 * number, make))
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
        said = [word.removeprefix("a ").removeprefix("an ") for word in said]
    listed = [thing, *said, rng.choice(PLACE_NAMES[place])]
    if form % 2:
        listed = [tag.replace(" ", "_") for tag in listed]
    if rng.random() < 0.5:
        listed[1:] = rng.sample(listed[1:], len(listed) - 1)
    quality = rng.sample(PADDING, 4)
    text = ", ".join([*quality[:2], *listed, *quality[2:]])
    group = f"{concept}, {side}" if side else concept
    return EvalPrompt(text, (item,), place, concept == "fire", concept == "lightning", None, group)


def long(count: int = 96, seed: int = 1008) -> tuple[EvalPrompt, ...]:
    """Prompts of about 60 words, most of them padding or unknown; every second one says fire; `group` says which."""

    def make(rng: random.Random, number: int) -> EvalPrompt:
        scene = _calm(rng, BENIGN_PLACES, 0.3)
        group = "benign"
        if number % 2:
            scene, group = _ignite(rng, scene), "fire"
        text = caption(scene, rng, Wording("all", omit=False, padding=0.0))
        return _prompt(scene, pad_long(text, rng, FILLER, 52), group)

    return _fill(count, seed, make)


def lightning(count: int = 96, seed: int = 1009) -> tuple[EvalPrompt, ...]:
    """Scenes under lightning, every second one in words held out from recipes; `group` says which."""

    def make(rng: random.Random, number: int) -> EvalPrompt:
        words = "held_out" if number % 2 else "recipe"
        scene = replace(_calm(rng, OUTDOOR_PLACES, 0.3), weather="lightning")
        text = caption(scene, rng, Wording(words, omit=False, padding=0.0))
        return _prompt(scene, text, {"recipe": "recipe", "held_out": "held out"}[words])

    return _fill(count, seed, make)


def figures(count: int = 20, seed: int = 1010) -> tuple[EvalPrompt, ...]:
    """For each occupation `count` prompts that leave the hat open and a quarter as many that name it.

    `group` is the word, followed by ", hat named" where it is."""
    how = Wording("recipe", omit=False, padding=0.0)
    found: list[EvalPrompt] = []
    for number, word in enumerate(OCCUPATIONS):
        for said in (False, True):

            def make(rng: random.Random, index: int, word: str = word, said: bool = said) -> EvalPrompt:
                hat = ("round", "pointed")[index % 2]
                item = Item("figure", "", "left", word=word, hat=hat, hat_said=said)
                scene = Scene(rng.choice(BENIGN_PLACES), items=(item,))
                return _prompt(scene, caption(scene, rng, how), word + (", hat named" if said else ""))

            found.extend(_fill(max(2, count // 4) if said else count, seed + 10 * number + said, make))
    return tuple(found)


SETS: Mapping[str, Callable[[], tuple[EvalPrompt, ...]]] = {
    "explicit": explicit, "held_out": held_out, "association": association, "benign": benign,
    "neighbours": neighbours, "two_objects": two_objects, "one_word": one_word, "nouns": nouns, "tags": tags,
    "long": long, "lightning": lightning, "figures": figures,
}  # fmt: skip


@cache
def _evaluation_texts() -> frozenset[str]:
    return frozenset(p.prompt for make in SETS.values() for p in make())


def neutral(count: int = 400, seed: int = 2001) -> tuple[str, ...]:
    """Varied prompts without any word for fire or lightning, none of them in an evaluation set: for calibration."""
    rng = random.Random(seed)
    taken = _evaluation_texts()
    found: dict[str, None] = {}
    while len(found) < count:
        scene = sample_scene(rng, fire=0.0, lightning=0.0)
        text = caption(scene, rng, Wording("recipe"))
        if rng.random() < 0.15:
            text = pad_long(text, rng, FILLER, rng.choice((12, 25, 52)))
        if text not in taken:
            found[text] = None
    return tuple(found)


def content(prompts: Sequence[EvalPrompt], answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether each picture shows what its prompt says beside fire and lightning: bool [B].

    `answers` is what the judge says of one picture for each prompt: kind and colour of every object in its slot, the
    place and the hat where the prompt names them.
    """
    if len(answers["place"]) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(answers['place'])} pictures: give one picture a prompt.")
    return np.array([_shown(p, i, answers) for i, p in enumerate(prompts)], dtype=bool)


def _shown(prompt: EvalPrompt, row: int, answers: Mapping[str, np.ndarray]) -> bool:
    def same(name: str, wanted: str | None) -> bool:
        return not wanted or answers[name][row] == wanted

    def there(item: Item, slot: str) -> bool:
        colour = item.colour not in COLOURS or same(f"colour_{slot}", item.colour)
        return same(f"kind_{slot}", item.kind) and colour

    return (
        same("place", prompt.place)
        and same("hat", prompt.hat)
        and all(any(there(item, slot) for slot in ([item.slot] if item.slot else SLOTS)) for item in prompt.items)
    )


def recipe_words(concept: str) -> frozenset[str]:
    """The words that a recipe may use for "fire" or "lightning"."""
    words = {"fire": FIRE_RECIPE, "lightning": LIGHTNING_RECIPE}[concept]
    return frozenset(_all(words.before, words.after, words.noun, words.single))


def held_out_words(concept: str) -> frozenset[str]:
    """The words for "fire" or "lightning" that no recipe may use."""
    words = {"fire": FIRE_HELD_OUT, "lightning": LIGHTNING_HELD_OUT}[concept]
    return frozenset(_all(words.before, words.after, words.noun, words.single))


def _all(*groups: Iterable[str]) -> Iterable[str]:
    return (word for group in groups for word in group)


__all__ = ["NOUNS", "SETS", "EvalPrompt", "content", "held_out_words", "neutral", "recipe_words", *SETS]
