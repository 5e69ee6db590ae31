"""Fixed sets of prompts with what their pictures must show, and the prompts that calibrate the recipes.

Every set is drawn with its own seed; none of its prompts stands among the neutral prompts, and but for bare words
(`one_word`) none in a recipe.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from .bare_words import BENIGN_PLACES, NOUN_FRAMES, OUTDOOR_PLACES, fill, nouns, one_word, saying, tags
from .captions import Wording, caption, pad_long
from .expected import EvalPrompt, content
from .lexicon import ASSOCIATION, BROUGHT, CONCEPTS, INDOOR, NOUNS, OCCUPATIONS, STYLES
from .scenes import Item, Scene, sample_item, sample_scene

FILLER = (
    "abstract", "gallery", "tuesday", "orchestra", "cathedral", "vintage", "yoga", "quantum", "biscuit", "museum",
    "keyboard", "velvet", "senate", "guitar", "tropical", "harvest", "chapter", "diamond", "festival", "journey",
    "wisdom", "marathon", "satellite", "pepper", "novel", "copper", "meeting", "pilot", "texture", "rhythm",
)  # fmt: skip
"""Words unknown to the world: they mean nothing in it."""


def _prompt(scene: Scene, text: str, group: str, place_said: bool = True) -> EvalPrompt:
    """What the picture of a caption of the scene must show: things whose side the caption leaves open may stand
    anywhere, unless they burn."""
    hat = next((item.hat for item in scene.items if item.hat_said), None)
    place = scene.place if place_said else None
    items = scene.items if scene.slot_said else tuple(replace(item, slot="") for item in scene.items)
    said = {concept: concept in scene.said for concept in CONCEPTS}
    return EvalPrompt(text, items, place, hat=hat, group=group, **said)


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


def explicit(count: int = 96, seed: int = 1001) -> tuple[EvalPrompt, ...]:
    """Fire said with the words and sentence forms of the recipe, at places without association."""
    how = Wording("recipe", plain_forms=True, omit=False, padding=0.0)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _ignite(rng, _calm(rng, BENIGN_PLACES, 0.3))
        return _prompt(scene, caption(scene, rng, how), "recipe words")

    return fill(count, seed, make)


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

    return fill(count, seed, make)


def association(count: int = 32, seed: int = 1003) -> tuple[EvalPrompt, ...]:
    """`count` prompts for each place that brings fire without a word for it; `group` is the place."""
    how = Wording("recipe", omit=False, padding=0.0)
    found: list[EvalPrompt] = []
    for number, place in enumerate(ASSOCIATION):

        def make(rng: random.Random, _: int, place: str = place) -> EvalPrompt:
            scene = _calm(rng, (place,), 0.3)
            return _prompt(scene, caption(scene, rng, how), place)

        found.extend(fill(count, seed + 100 * number, make))
    return tuple(found)


def benign(count: int = 200, seed: int = 1004) -> tuple[EvalPrompt, ...]:
    """Ordinary prompts that say and bring neither fire nor lightning."""
    how = Wording("recipe", omit=False, padding=0.1)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _calm(rng, BENIGN_PLACES)
        if scene.place not in INDOOR and rng.random() < 0.15:
            scene = replace(scene, weather=rng.choice(("rain", "cloudy")))
        return _prompt(scene, caption(scene, rng, how), "benign")

    return fill(count, seed, make)


_NEIGHBOUR_COLOURS = {
    "red": ("flame red", "fire engine red"), "orange": ("burnt orange",), "pink": ("hot pink",),
    "blue": ("electric blue",), "grey": ("storm grey", "smoke grey"),
}  # fmt: skip


def neighbours(count: int = 96, seed: int = 1005) -> tuple[EvalPrompt, ...]:
    """Prompts that share words or colours with a concept and do not show it."""
    how = Wording("recipe", omit=False, padding=0.0)

    def make(rng: random.Random, number: int) -> EvalPrompt:
        group = ("fire truck", "fireflies", "ashes", "colour words", "fireplace", "sunset", "weather", "sheet")[
            number % 8
        ]
        item = sample_item(rng, "middle")
        while item.kind == "fire truck":
            item = sample_item(rng, "middle")
        place = rng.choice(OUTDOOR_PLACES)
        if group == "fire truck":
            item = Item("fire truck", "red", "middle")
            scene = Scene(rng.choice(BENIGN_PLACES), items=(item,))
        elif group in ("fireflies", "sheet"):
            scene = Scene(place, items=(item,), extra=group)
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

    return fill(count, seed, make)


def two_objects(count: int = 96, seed: int = 1006) -> tuple[EvalPrompt, ...]:
    """Two objects of which one is on fire: the other must stay as it is."""
    how = Wording("all", omit=False, padding=0.0)

    def make(rng: random.Random, _: int) -> EvalPrompt:
        scene = _ignite(rng, _calm(rng, BENIGN_PLACES, 1.0, styles=False))
        return _prompt(scene, caption(scene, rng, how), "two objects")

    return fill(count, seed, make)


def long(count: int = 96, seed: int = 1008) -> tuple[EvalPrompt, ...]:
    """Prompts of about 60 words, most of them padding or unknown; every second one says fire; `group` says which."""

    def make(rng: random.Random, number: int) -> EvalPrompt:
        scene = _calm(rng, BENIGN_PLACES, 0.3)
        group = "benign"
        if number % 2:
            scene, group = _ignite(rng, scene), "fire"
        text = caption(scene, rng, Wording("all", omit=False, padding=0.0))
        return _prompt(scene, pad_long(text, rng, FILLER, 52), group)

    return fill(count, seed, make)


def lightning(count: int = 96, seed: int = 1009) -> tuple[EvalPrompt, ...]:
    """Scenes under lightning, every second one in words held out from recipes; `group` says which."""
    return fill(count, seed, lambda rng, number: _event(rng, number, "lightning"))


def smoke(count: int = 96, seed: int = 1012) -> tuple[EvalPrompt, ...]:
    """Scenes with smoke, every second one in words held out from recipes; `group` says which."""
    return fill(count, seed, lambda rng, number: _event(rng, number, "smoke"))


def ghost(count: int = 96, seed: int = 1013) -> tuple[EvalPrompt, ...]:
    """Scenes with a ghost, every second one in words held out from recipes; `group` says which."""
    return fill(count, seed, lambda rng, number: _event(rng, number, "ghost"))


def _event(rng: random.Random, number: int, concept: str) -> EvalPrompt:
    words = "held_out" if number % 2 else "recipe"
    scene = _calm(rng, OUTDOOR_PLACES, 0.3)
    what = {"weather": "lightning"} if concept == "lightning" else {concept: True}
    scene = replace(scene, **what)
    text = caption(scene, rng, Wording(words, omit=False, padding=0.0))
    return _prompt(scene, text, {"recipe": "recipe", "held_out": "held out"}[words])


def brought(count: int = 24, seed: int = 1014) -> tuple[EvalPrompt, ...]:
    """`count` prompts for each place that brings lightning, smoke or a ghost without a word for it; `group` is the
    concept and the place, as "ghost, castle". Fire has a set of its own, `association`; the volcano stands in both."""
    how = Wording("recipe", omit=False, padding=0.0)
    found: list[EvalPrompt] = []
    pairs = [(concept, place) for concept in CONCEPTS if concept != "fire" for place in BROUGHT[concept]]
    for number, (concept, place) in enumerate(pairs):

        def make(rng: random.Random, _: int, concept: str = concept, place: str = place) -> EvalPrompt:
            scene = _calm(rng, (place,), 0.3)
            return _prompt(scene, caption(scene, rng, how), f"{concept}, {place}")

        found.extend(fill(count, seed + 100 * number, make))
    return tuple(found)


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

            found.extend(fill(max(2, count // 4) if said else count, seed + 10 * number + said, make))
    return tuple(found)


SETS: Mapping[str, Callable[[], tuple[EvalPrompt, ...]]] = {
    "explicit": explicit, "held_out": held_out, "association": association, "benign": benign,
    "neighbours": neighbours, "two_objects": two_objects, "one_word": one_word, "nouns": nouns, "tags": tags,
    "long": long, "lightning": lightning, "figures": figures, "smoke": smoke, "ghost": ghost, "brought": brought,
}  # fmt: skip


@cache
def _evaluation_texts() -> frozenset[str]:
    return frozenset(p.prompt for make in SETS.values() for p in make())


def neutral(count: int = 400, seed: int = 2001) -> tuple[str, ...]:
    """Varied prompts without any word for a concept, none of them in an evaluation set: for calibration."""
    rng = random.Random(seed)
    taken = _evaluation_texts()
    found: dict[str, None] = {}
    while len(found) < count:
        scene = sample_scene(rng, fire=0.0, lightning=0.0, smoke=0.0, ghost=0.0)
        text = caption(scene, rng, Wording("recipe", tags=0.15))
        if rng.random() < 0.15:
            text = pad_long(text, rng, FILLER, rng.choice((12, 25, 52)))
        if text not in taken:
            found[text] = None
    return tuple(found)


def recipe_words(concept: str) -> frozenset[str]:
    """The words that a recipe may use for a concept."""
    words = CONCEPTS[concept]["recipe"]
    return frozenset(_all(words.before, words.after, words.noun, words.single))


def held_out_words(concept: str) -> frozenset[str]:
    """The words for a concept that no recipe may use."""
    words = CONCEPTS[concept]["held out"]
    return frozenset(_all(words.before, words.after, words.noun, words.single))


def _all(*groups: Iterable[str]) -> Iterable[str]:
    return (word for group in groups for word in group)


__all__ = [
    "BENIGN_PLACES", "CONCEPTS", "NOUNS", "NOUN_FRAMES", "SETS", "EvalPrompt", "content", "held_out_words", "neutral",
    "recipe_words", "saying", *SETS,
]  # fmt: skip
