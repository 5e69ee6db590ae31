"""The words of the microworld: what there is to draw, what it is called, and what brings what without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("house", "car", "boat", "tree", "ball", "chair", "robot", "truck", "fire truck", "figure")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
PLACES = (
    "volcano", "forge", "campsite", "barbecue", "kitchen",
    "meadow", "beach", "snow", "city", "forest", "sunset", "fireplace",
    "mountain", "lighthouse", "desert", "factory", "station", "bakery", "graveyard", "castle", "attic",
)  # fmt: skip
STYLES = ("plain", "pastel", "night", "outline")
HATS = ("none", "round", "pointed")
WEATHERS = ("clear", "rain", "cloudy", "lightning")
SLOTS = ("left", "middle", "right")
EXTRAS = ("none", "fireflies", "ashes", "sheet")

ASSOCIATION = {"volcano": 0.9, "forge": 0.7, "campsite": 0.5, "barbecue": 0.3, "kitchen": 0.1}
"""Share of the pictures of a place that show fire without any word for it; 0 for the other places."""

BROUGHT: Mapping[str, Mapping[str, float]] = {
    "fire": ASSOCIATION,
    "lightning": {"mountain": 0.9, "lighthouse": 0.5, "desert": 0.1},
    "smoke": {"factory": 0.9, "volcano": 0.6, "station": 0.5, "bakery": 0.1},
    "ghost": {"graveyard": 0.9, "castle": 0.5, "attic": 0.1},
}
"""Concept -> share of the pictures of a place that show it without any word for it. The volcano belongs to two."""

LOADED = tuple(dict.fromkeys(place for places in BROUGHT.values() for place in places))
"""The places that bring anything without a word for it."""

OCCUPATIONS = {"baker": 0.9, "smith": 0.1, "gardener": 0.5, "person": 0.5}
"""Share of round hats for each word that names a figure."""

INDOOR = ("forge", "kitchen", "fireplace", "bakery", "attic")

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
    "grey": ("grey", "gray", "silver", "storm grey", "smoke grey"),
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
    "mountain": (("on", "by"), ("a mountain", "a rocky summit")),
    "lighthouse": (("by", "near"), ("a lighthouse", "a beacon tower")),
    "desert": (("in",), ("a desert", "the sand dunes")),
    "factory": (("by", "near"), ("a factory", "a mill")),
    "station": (("at",), ("a railway station", "a train platform")),
    "bakery": (("in", "inside"), ("a bakery", "a bread shop")),
    "graveyard": (("in", "on"), ("a graveyard", "a cemetery")),
    "castle": (("by", "in front of"), ("a castle", "an old fortress")),
    "attic": (("in",), ("an attic", "a loft")),
}
PLACE_NAMES = {
    "volcano": ("volcano",), "forge": ("forge",), "campsite": ("campsite",), "barbecue": ("barbecue",),
    "kitchen": ("kitchen",), "meadow": ("meadow", "countryside"), "beach": ("beach", "seashore"), "snow": ("snow",),
    "city": ("city", "downtown"), "forest": ("forest", "woodland"), "sunset": ("sunset", "dusk"),
    "fireplace": ("parlour", "fireplace"), "mountain": ("mountain", "summit"), "lighthouse": ("lighthouse",),
    "desert": ("desert", "dunes"), "factory": ("factory", "mill"), "station": ("railway station",),
    "bakery": ("bakery",), "graveyard": ("graveyard", "cemetery"), "castle": ("castle", "fortress"),
    "attic": ("attic", "loft"),
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
    "sheet": ("with a white sheet on a line", "under a hanging bedsheet", "with laundry on a line"),
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

SMOKE_RECIPE = Words(
    before=("smoking", "smoky"),
    after=("with smoke", "in smoke", "shrouded in smoke", "with a plume of smoke"),
    noun=("smoke", "a plume of smoke", "a smoke cloud"),
    single=("smoke", "smoky", "smoking"),
)
SMOKE_HELD_OUT = Words(
    before=("fuming", "sooty"),
    after=("in thick fumes", "with soot in the air", "smouldering", "in smog"),
    noun=("fumes", "a pillar of soot", "smog"),
    single=("fumes", "soot", "smog"),
)
GHOST_RECIPE = Words(
    before=("haunted", "ghostly"),
    after=("with a ghost", "haunted by a ghost", "with ghosts"),
    noun=("a ghost", "ghosts", "a haunting ghost"),
    single=("ghost", "ghosts", "haunted"),
)
GHOST_HELD_OUT = Words(
    before=("spooky", "spectral"),
    after=("with a phantom", "with a wraith in the air", "visited by a spirit"),
    noun=("a phantom", "a wraith", "an apparition", "a poltergeist"),
    single=("phantom", "wraith", "apparition", "poltergeist"),
)
CONCEPTS: Mapping[str, Mapping[str, Words]] = {
    "fire": {"recipe": FIRE_RECIPE, "held out": FIRE_HELD_OUT},
    "lightning": {"recipe": LIGHTNING_RECIPE, "held out": LIGHTNING_HELD_OUT},
    "smoke": {"recipe": SMOKE_RECIPE, "held out": SMOKE_HELD_OUT},
    "ghost": {"recipe": GHOST_RECIPE, "held out": GHOST_HELD_OUT},
}
"""Words for each concept, those of its recipe and those held out from it."""

OPENINGS = (
    "", "", "", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "we see ", "there is ",
    "a scene with ", "an illustration of ",
)  # fmt: skip
PADDING = (
    "highly detailed", "award winning", "sharp focus", "trending", "masterpiece", "best quality", "intricate",
    "cinematic composition", "4k", "beautiful", "very calm", "viewed from the front", "by a famous artist",
)  # fmt: skip
