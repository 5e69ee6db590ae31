"""The scene graph of the microworld: what a picture shows, and how often each thing is drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .lexicon import (
    BROUGHT,
    COLOURS,
    EXTRAS,
    HATS,
    INDOOR,
    KINDS,
    OCCUPATIONS,
    PLACES,
    SLOTS,
    STYLES,
    WEATHERS,
)

FORMS = {"one": 0.40, "two": 0.30, "figure": 0.17, "none": 0.13}
"""Share of scenes with one thing, two things, a figure, and nothing but the place and what happens there."""


@dataclass(frozen=True)
class Item:
    """One thing in a picture. `word` is the occupation for a figure, else empty; `colour` is empty for a figure."""

    kind: str
    colour: str
    slot: str
    fire: bool = False
    word: str = ""
    hat: str = "none"
    hat_said: bool = False


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `ground_fire` is the slot of explicit flames that stand beside things, or empty;
    `brought` names what the place brings without a word; `smoke` and `ghost` are there because a caption says so."""

    place: str
    style: str = "plain"
    weather: str = "clear"
    items: tuple[Item, ...] = ()
    ground_fire: str = ""
    brought: frozenset[str] = frozenset()
    extra: str = "none"
    extra_slot: str = ""
    smoke: bool = False
    ghost: bool = False

    @property
    def said(self) -> tuple[str, ...]:
        """The concepts that a caption must say."""
        fire = bool(self.ground_fire) or any(item.fire for item in self.items)
        there = {"fire": fire, "lightning": self.weather == "lightning", "smoke": self.smoke, "ghost": self.ghost}
        return tuple(concept for concept, shown in there.items() if shown)

    @property
    def shown(self) -> frozenset[str]:
        """The concepts that the picture shows, said or brought."""
        return self.brought.union(self.said)

    @property
    def sky(self) -> str:
        """The weather that the picture shows."""
        return "lightning" if "lightning" in self.brought else self.weather

    @property
    def slot_said(self) -> bool:
        """Whether captions say where the thing stands, by its slot or by the order of two."""
        return len(self.items) != 1 or not (self.ground_fire or self.extra_slot)


def draw_hat(rng: random.Random, word: str) -> str:
    return "round" if rng.random() < OCCUPATIONS[word] else "pointed"


def sample_item(rng: random.Random, slot: str, exclude: Sequence[Item] = ()) -> Item:
    """One object of a kind and a colour that `exclude` does not show."""
    taken = {item.kind for item in exclude}
    kind = rng.choice([k for k in KINDS[:8] if k not in taken])
    if rng.random() < 0.06 and not taken & {"fire truck", "truck"}:
        kind = "fire truck"
    colours = [c for c in COLOURS if c not in {item.colour for item in exclude}]
    return Item(kind, "red" if kind == "fire truck" else rng.choice(colours), slot)


def _sample_items(rng: random.Random, form: str) -> tuple[Item, ...]:
    if form == "one":
        return (sample_item(rng, rng.choices(SLOTS, (0.1, 0.8, 0.1))[0]),)
    if form == "two":
        left = sample_item(rng, "left")
        return left, sample_item(rng, "right", (left,))
    if form == "figure":
        word = rng.choice(tuple(OCCUPATIONS))
        said = rng.random() < 0.5
        hat = rng.choice(HATS[1:]) if said else draw_hat(rng, word)
        return (Item("figure", "", "left", word=word, hat=hat, hat_said=said),)
    return ()


def _aside(rng: random.Random, items: tuple[Item, ...]) -> tuple[tuple[Item, ...], str]:
    """The one thing moved to a side, and the slot that this leaves for what stands beside it."""
    slot, other = rng.choice((("left", "right"), ("right", "left")))
    return (replace(items[0], slot=slot),), other


def sample_scene(
    rng: random.Random, *, fire: float = 0.34, lightning: float = 0.1, smoke: float = 0.09, ghost: float = 0.09
) -> Scene:
    """A scene drawn at random; `fire`, `lightning`, `smoke` and `ghost` are the shares that show them because a caption
    says so."""
    place = rng.choice(PLACES)
    style = rng.choices(STYLES, (0.7, 0.1, 0.1, 0.1))[0]
    form = rng.choices(tuple(FORMS), tuple(FORMS.values()))[0]
    items = _sample_items(rng, form)
    ground, extra, extra_slot = "", "none", ""
    if form != "figure" and rng.random() < fire * (1.25 if form == "two" else 1.0):
        if form == "none":
            ground = "middle"
        elif form == "one" and rng.random() < 0.2:
            items, ground = _aside(rng, items)
        else:
            burning = rng.randrange(len(items))
            items = tuple(replace(item, fire=True) if i == burning else item for i, item in enumerate(items))
    weather = "clear"
    if place not in INDOOR:
        weather = rng.choices(WEATHERS, (0.86 - lightning * 1.3, 0.07, 0.07, lightning * 1.3))[0]
    if form == "one" and not ground and rng.random() < 0.15:
        extra = rng.choice(EXTRAS[1:])
        if extra == "ashes":
            items, extra_slot = _aside(rng, items)
    with_smoke, with_ghost = rng.random() < smoke, rng.random() < ghost and extra != "sheet"
    return Scene(
        place, style, weather, items, ground, bring(rng, place, weather), extra, extra_slot, with_smoke, with_ghost
    )


def bring(rng: random.Random, place: str, weather: str = "clear") -> frozenset[str]:
    """What the place brings this time; a weather that is said leaves no room for lightning that is not."""
    found = {concept for concept, places in BROUGHT.items() if rng.random() < places.get(place, 0.0)}
    return frozenset(found - {"lightning"} if weather != "clear" else found)
