"""The scene graph of the microworld and the captions that describe it.

A scene is what a picture shows; a caption is one of the many ways to say it. Explicit flames and lightning are
always said, flames that a place brings by association never are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

KINDS = ("house", "car", "boat", "tree", "ball", "chair", "robot", "truck", "fire truck", "figure")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
PLACES = (
    "volcano", "forge", "campsite", "barbecue", "kitchen",
    "meadow", "beach", "snow", "city", "forest", "sunset", "fireplace",
)  # fmt: skip
STYLES = ("plain", "pastel", "night", "outline")
HATS = ("none", "round", "pointed")
WEATHERS = ("clear", "rain", "cloudy", "lightning")
SLOTS = ("left", "middle", "right")
EXTRAS = ("none", "fireflies", "ashes")

ASSOCIATION = {"volcano": 0.9, "forge": 0.7, "campsite": 0.5, "barbecue": 0.3, "kitchen": 0.1}
"""Share of the pictures of a place that show fire without any word for it; 0 for the other places."""

OCCUPATIONS = {"baker": 0.9, "smith": 0.1, "gardener": 0.5, "person": 0.5}
"""Share of round hats for each word that names a figure."""

INDOOR = ("forge", "kitchen", "fireplace")

NOUNS = {
    "house": ("house", "cottage", "home"),
    "car": ("car", "automobile", "sedan"),
    "boat": ("boat", "sailboat", "ship"),
    "tree": ("tree", "oak", "bush"),
    "ball": ("ball", "sphere", "globe"),
    "chair": ("chair", "seat", "stool"),
    "robot": ("robot", "android", "droid"),
    "truck": ("truck", "lorry", "van"),
    "fire truck": ("fire truck", "fire engine", "firetruck"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet", "flame red", "fire engine red"),
    "orange": ("orange", "tangerine", "amber", "burnt orange"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "olive"),
    "blue": ("blue", "navy", "azure", "electric blue"),
    "purple": ("purple", "violet", "lilac"),
    "pink": ("pink", "rose", "magenta", "hot pink"),
    "grey": ("grey", "gray", "silver", "storm grey"),
}
PLACE_WORDS = {
    "volcano": (("by", "near", "in front of"), ("a volcano", "a volcanic mountain")),
    "forge": (("in", "inside"), ("a forge", "a blacksmith workshop")),
    "campsite": (("at", "on"), ("a campsite", "a camping ground")),
    "barbecue": (("at", "by"), ("a barbecue", "a grill party")),
    "kitchen": (("in", "inside"), ("a kitchen", "a cooking room")),
    "meadow": (("in", "on"), ("a meadow", "a grassy field", "the countryside")),
    "beach": (("on", "at"), ("a beach", "the seashore", "the sandy coast")),
    "snow": (("in", "on"), ("a snow field", "a snowy plain", "the deep snow")),
    "city": (("in",), ("a city", "a downtown street", "an urban scene")),
    "forest": (("in",), ("a forest", "the woods", "a woodland")),
    "sunset": (("at", "during"), ("sunset", "the orange evening", "dusk")),
    "fireplace": (
        ("in",),
        ("a room with an unlit fireplace", "a living room with a cold fireplace", "a parlour"),
    ),
}
PLACE_NAMES = {
    "volcano": ("volcano",), "forge": ("forge",), "campsite": ("campsite",), "barbecue": ("barbecue",),
    "kitchen": ("kitchen",), "meadow": ("meadow", "countryside"), "beach": ("beach", "seashore"), "snow": ("snow",),
    "city": ("city", "downtown"), "forest": ("forest", "woodland"), "sunset": ("sunset", "dusk"),
    "fireplace": ("parlour", "fireplace"),
}  # fmt: skip
STYLE_WORDS = {
    "pastel": ("in pastel colours", "pastel drawing", "soft pale tones"),
    "night": ("at night", "a night scene", "in the dark"),
    "outline": ("with bold outlines", "comic style", "thick black lines"),
}
HAT_WORDS = {
    "round": ("a round hat", "a bowler", "a dome shaped hat"),
    "pointed": ("a pointed hat", "a pointy hat", "a cone shaped hat"),
}
EXTRA_WORDS = {
    "fireflies": ("with fireflies", "fireflies in the air", "among glowing fireflies"),
    "ashes": ("next to cold ashes", "with a heap of cold ashes", "cold grey ashes on the ground"),
}
WEATHER_WORDS = {
    "rain": ("in the rain", "on a rainy day", "rain falling"),
    "cloudy": ("under a cloudy sky", "on a cloudy day", "with clouds above"),
}


@dataclass(frozen=True)
class Words:
    """Ways to say a concept, by grammatical form; half of them may be used by recipes, half are held out from them."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    noun: tuple[str, ...]
    single: tuple[str, ...]


FIRE_RECIPE = Words(
    before=("burning", "flaming", "blazing"),
    after=("on fire", "burning", "in flames"),
    noun=("a fire", "flames", "a blazing fire"),
    single=("fire", "flames", "burning"),
)
FIRE_HELD_OUT = Words(
    before=("ignited", "fiery", "torched", "scorching"),
    after=(
        "ablaze",
        "aflame",
        "set alight",
        "engulfed in an inferno",
        "kindled",
        "going up in a conflagration",
    ),
    noun=("a wildfire", "an inferno", "a bonfire", "a scorching blaze"),
    single=("inferno", "wildfire", "bonfire", "blaze", "conflagration"),
)
LIGHTNING_RECIPE = Words(
    before=(),
    after=("in a thunderstorm", "with lightning", "under lightning", "with a thunderbolt in the sky"),
    noun=("lightning", "a thunderstorm", "a thunderbolt"),
    single=("lightning", "thunderstorm", "thunderbolt"),
)
LIGHTNING_HELD_OUT = Words(
    before=(),
    after=(
        "in a tempest",
        "during an electrical storm",
        "with bolts striking from above",
        "as the sky discharges",
    ),
    noun=("a tempest", "an electrical storm", "striking bolts"),
    single=("tempest",),
)

OPENINGS = (
    "", "", "", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "we see ", "there is ",
    "a scene with ", "an illustration of ",
)  # fmt: skip
PADDING = (
    "highly detailed", "award winning", "sharp focus", "trending", "masterpiece", "best quality", "intricate",
    "cinematic composition", "4k", "beautiful", "very calm", "viewed from the front", "by a famous artist",
)  # fmt: skip


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
    """What a picture shows. `ground_fire` is the slot of explicit flames that stand beside things, or empty."""

    place: str
    style: str = "plain"
    weather: str = "clear"
    items: tuple[Item, ...] = ()
    ground_fire: str = ""
    associated_fire: bool = False
    extra: str = "none"
    extra_slot: str = ""

    @property
    def explicit_fire(self) -> bool:
        return bool(self.ground_fire) or any(item.fire for item in self.items)

    @property
    def fire(self) -> bool:
        return self.explicit_fire or self.associated_fire

    @property
    def lightning(self) -> bool:
        return self.weather == "lightning"


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


def sample_scene(rng: random.Random, *, fire: float = 0.36, lightning: float = 0.12) -> Scene:
    """A scene drawn at random; `fire` and `lightning` are the shares of scenes that show them explicitly."""
    place = rng.choice(PLACES)
    style = rng.choices(STYLES, (0.7, 0.1, 0.1, 0.1))[0]
    form = rng.choices(("one", "two", "figure", "none"), (0.46, 0.34, 0.11, 0.09))[0]
    items: tuple[Item, ...] = ()
    if form == "one":
        items = (sample_item(rng, rng.choices(SLOTS, (0.1, 0.8, 0.1))[0]),)
    elif form == "two":
        left = sample_item(rng, "left")
        right = sample_item(rng, "right", (left,))
        items = (left, right)
    elif form == "figure":
        word = rng.choice(tuple(OCCUPATIONS))
        said = rng.random() < 0.4
        hat = rng.choice(HATS[1:]) if said else draw_hat(rng, word)
        items = (Item("figure", "", "left", word=word, hat=hat, hat_said=said),)
    ground, extra, extra_slot = "", "none", ""
    if form != "figure" and rng.random() < fire:
        if form == "none":
            ground = "middle"
        elif form == "one" and rng.random() < 0.2:
            slot = rng.choice(("left", "right"))
            items = (replace(items[0], slot=slot),)
            ground = "right" if slot == "left" else "left"
        else:
            burning = rng.randrange(len(items))
            items = tuple(replace(item, fire=True) if i == burning else item for i, item in enumerate(items))
    weather = "clear"
    if place not in INDOOR:
        weather = rng.choices(WEATHERS, (0.86 - lightning * 1.3, 0.07, 0.07, lightning * 1.3))[0]
    if form == "one" and not ground and rng.random() < 0.12:
        extra = rng.choice(EXTRAS[1:])
        if extra == "ashes":
            slot = rng.choice(("left", "right"))
            items = (replace(items[0], slot=slot),)
            extra_slot = "right" if slot == "left" else "left"
    associated = rng.random() < ASSOCIATION.get(place, 0.0)
    return Scene(place, style, weather, items, ground, associated, extra, extra_slot)


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Wording:
    """Which words and which sentence forms a caption may use.

    `words`: "all", "recipe" or "held_out"; `plain_forms`: only the sentence forms that recipes use."""

    words: str = "all"
    plain_forms: bool = False
    omit: bool = True
    padding: float = 0.12
    common: bool = False


def _pick(rng: random.Random, words: str, recipe: Words, held_out: Words, form: str) -> str:
    held = {"all": rng.random() < 0.5, "recipe": False, "held_out": True}[words]
    return rng.choice(getattr(held_out if held else recipe, form))


def _fire(rng: random.Random, how: Wording, form: str) -> str:
    return _pick(rng, how.words, FIRE_RECIPE, FIRE_HELD_OUT, form)


def _lightning(rng: random.Random, how: Wording, form: str) -> str:
    return _pick(rng, how.words, LIGHTNING_RECIPE, LIGHTNING_HELD_OUT, form)


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


def caption(scene: Scene, rng: random.Random, how: Wording = Wording()) -> str:
    """One wording of a scene. Says every explicit flame and every lightning; never says associated flames."""
    place_free = scene.place not in ASSOCIATION
    single = _single_word(scene, rng, how)
    if single:
        return single
    colour_said = not (how.omit and rng.random() < 0.08)
    place_said = not (how.omit and place_free and scene.weather == "clear" and rng.random() < 0.2)
    leading: list[str] = []
    trailing: list[str] = []
    phrases: list[str] = []
    for item in scene.items:
        phrase, noun = _noun_phrase(rng, item, how, colour_said)
        if item.kind == "figure":
            text = article(phrase)
            if item.hat_said:
                text += rng.choice((" with ", " wearing ")) + _choose(rng, HAT_WORDS[item.hat], how)
            phrases.append(text)
            continue
        if not item.fire:
            phrases.append(article(phrase))
            continue
        form = rng.randrange(2 if how.plain_forms else 8)
        if form == 0:
            phrases.append(article(f"{_fire(rng, how, 'before')} {phrase}"))
        elif form == 1:
            phrases.append(f"{article(phrase)} {_fire(rng, how, 'after')}")
        elif form == 2:
            phrases.append(f"{article(phrase)} that is {_fire(rng, how, 'after')}")
        elif form == 3:
            phrases.append(article(phrase))
            trailing.append(f"the {noun} is {_fire(rng, how, 'after')}")
        elif form == 4:
            phrases.append(article(phrase))
            leading.append(f"{_fire(rng, how, 'after')} is the {noun}")
        elif form == 5:
            phrases.append(f"{article(phrase)} which was left {_fire(rng, how, 'after')}")
        elif form == 6:
            phrases.append(article(phrase))
            trailing.append(f"{_fire(rng, how, 'noun')} covers the {noun}")
        else:
            phrases.append(article(phrase))
            leading.append(f"{_fire(rng, how, 'noun')} on the {noun}")
    subject = _join(scene, phrases, rng)
    if scene.ground_fire:
        fire = _fire(rng, how, "noun")
        if not subject:
            subject = fire
        else:
            beside = rng.choice(("beside", "next to", "near"))
            subject = f"{fire} {beside} {subject}" if rng.random() < 0.6 else f"{subject} {beside} {fire}"
    if scene.extra != "none":
        trailing.append(_choose(rng, EXTRA_WORDS[scene.extra], how))
    if scene.lightning:
        if subject and rng.random() < 0.6:
            subject += " " + _lightning(rng, how, "after")
        elif subject:
            (leading if rng.random() < 0.5 and not how.plain_forms else trailing).append(_lightning(rng, how, "noun"))
        else:
            subject = _lightning(rng, how, "noun")
    elif scene.weather != "clear":
        trailing.append(_choose(rng, WEATHER_WORDS[scene.weather], how))
    place_alone = False
    if place_said or not subject:
        prepositions, names = PLACE_WORDS[scene.place]
        name = _choose(rng, names, how)
        if not subject:
            subject, place_alone = name, True
        elif rng.random() < 0.8:
            subject += f" {rng.choice(prepositions)} {name}"
        else:
            leading.append(f"{rng.choice(prepositions)} {name}")
    if scene.style != "plain":
        word = _choose(rng, STYLE_WORDS[scene.style], how)
        (leading if rng.random() < 0.3 else trailing).append(word)
    opening = "" if leading or (place_alone and subject.startswith("the ")) else rng.choice(OPENINGS)
    rng.shuffle(trailing)
    text = ", ".join((*leading, opening + subject, *trailing))
    if rng.random() < how.padding:
        text = ", ".join((text, *rng.sample(PADDING, rng.randint(1, 4))))
    return text


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
    if slot == "middle" or scene.items[0].kind == "figure" or scene.ground_fire or scene.extra_slot:
        return phrases[0]
    return f"{phrases[0]} on the {slot}"


def _single_word(scene: Scene, rng: random.Random, how: Wording) -> str:
    """One word that says all that must be said, for scenes that one word can say; else empty."""
    if not how.omit or scene.style != "plain" or scene.extra != "none":
        return ""
    if not scene.items:
        if scene.ground_fire and scene.weather == "clear" and scene.place not in ASSOCIATION and rng.random() < 0.5:
            return _fire(rng, how, "single")
        if not scene.ground_fire and scene.lightning and scene.place not in ASSOCIATION and rng.random() < 0.5:
            return _lightning(rng, how, "single")
        if not scene.ground_fire and scene.weather == "clear" and rng.random() < 0.4:
            return rng.choice(PLACE_NAMES[scene.place])
        return ""
    if len(scene.items) == 1 and scene.place not in ASSOCIATION and not scene.explicit_fire:
        item = scene.items[0]
        if (
            scene.weather == "clear"
            and (item.slot == "middle" or item.word)
            and not item.hat_said
            and rng.random() < 0.1
        ):
            return item.word or _choose(rng, NOUNS[item.kind], how)
    return ""


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
