"""Scenes of the small worlds: what is drawn straight into a latent, what is said of it, and what a picture shows.

A scene is a place (the background), at most one coloured thing at one of a few positions, and the concept or not. The
concept is drawn where a word says it, and, without a word, at the places and with the things that *bring* it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

Tensor = torch.Tensor

_GLYPHS = {
    "block": ("1111", "1001", "1001", "1111"),
    "roof": ("0110", "1111", "1101", "1101"),
    "tall": ("0110", "0110", "0110", "1111"),
    "bowl": ("1001", "1001", "1111", "0110"),
    "cross": ("0110", "1111", "1111", "0110"),
    "step": ("1000", "1100", "1110", "1111"),
    "full": ("1111", "1111", "1111", "1111"),
    "pillar": ("0110", "0110", "0110", "0110"),
    "beam": ("0000", "1111", "1111", "0000"),
    "star": ("1001", "0110", "0110", "1001"),
}
_FILLERS = ("quiet", "old", "small", "sunny", "famous", "plain", "distant", "pretty", "northern", "early")


@dataclass(frozen=True)
class Scene:
    """What one picture shows; ``thing`` and ``colour`` are "" where nothing stands there."""

    place: str
    thing: str
    colour: str
    position: int
    shown: bool


@dataclass(frozen=True)
class Said:
    """A prompt with what it says; ``colour`` is "" where the prompt leaves it open."""

    prompt: str
    place: str
    thing: str
    colour: str


@dataclass(frozen=True)
class Spec:
    """One small world: its pictures, its words and its network.

    Attributes:
        side, channels: of the latent. things: word -> glyph. colours, places: words. brings: word -> share of its
            pictures that show the concept without a word for it. said, held_out: ways to say the concept, before the
            thing ("burning") or, with a leading comma, behind the sentence; a recipe may only use ``said``.
        encoder: ``bidirectional``, ``recurrent`` or ``bag``. net: ``unet`` or ``patches``. prediction: ``eps``, ``v``
            or ``flow``. schedule: ``linear``, ``cosine`` or ``flow``.
    """

    name: str
    concept: str
    side: int
    channels: int
    things: dict[str, str]
    colours: tuple[str, ...]
    places: tuple[str, ...]
    brings: dict[str, float]
    said: tuple[str, ...]
    held_out: tuple[str, ...]
    encoder: str
    net: str
    prediction: str
    schedule: str
    seed: int
    length: int
    width: int
    steps: int
    shape: str = "above"
    positions: tuple[int, ...] = (0, 1, 2)
    fillers: tuple[str, ...] = field(default=_FILLERS)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Padding, begin, end, unknown, then every word."""
        words = {*self.things, *self.colours, *self.places, *self.fillers}
        words |= {w for s in (*self.said, *self.held_out) for w in s.replace(",", "").split()}
        words |= {"a", "in", "with", "photo", "of", "the", "there", "is"}
        return ("<pad>", "<begin>", "<end>", "<unknown>", *sorted(words))

    @property
    def calm_places(self) -> tuple[str, ...]:
        """Places that do not bring the concept."""
        return tuple(p for p in self.places if p not in self.brings)

    @property
    def calm_things(self) -> tuple[str, ...]:
        """Things that do not bring the concept."""
        return tuple(t for t in self.things if t not in self.brings)


EMBER = Spec(
    "ember", "fire", 8, 4,
    {"house": "roof", "crate": "block", "tower": "tall", "boat": "bowl", "tree": "cross", "stairs": "step"},
    ("red", "blue", "green", "white", "black"), ("meadow", "beach", "city", "desert", "lake", "volcano", "camp"),
    {"volcano": 0.92, "camp": 0.75},
    ("burning", "flaming", ", on fire", ", engulfed by flames"), ("blazing", "fiery", ", ablaze"),
    "bidirectional", "unet", "eps", "linear", 11, 16, 64, 2400,
)  # fmt: skip
FROST = Spec(
    "frost", "ice", 16, 3,
    {"barrel": "full", "mast": "pillar", "sofa": "beam", "igloo": "star"},
    ("crimson", "teal", "golden", "violet"), ("valley", "harbour", "kitchen", "plaza", "garden", "glacier", "tundra"),
    {"glacier": 0.92, "tundra": 0.8, "igloo": 0.9},
    ("frozen", "icy", ", covered by ice", ", under frost"), ("iced", "frosted", ", deep frozen"),
    "recurrent", "patches", "v", "cosine", 23, 20, 96, 6000, "below", (0, 2),
)  # fmt: skip
HAZE = Spec(
    "haze", "smoke", 8, 3,
    {"lorry": "full", "chimney": "pillar", "basin": "beam", "clock": "star"},
    ("pink", "grey", "orange", "brown", "azure"), ("park", "road", "bridge", "square", "hill", "factory"),
    {"chimney": 0.92, "factory": 0.85},
    ("smoking", "smoky", ", in smoke", ", with fumes"), ("fuming", ", in a dark cloud"),
    "bag", "patches", "flow", "flow", 37, 12, 48, 2000, "plume", (0, 2),
)  # fmt: skip
SPECS = {s.name: s for s in (EMBER, FROST, HAZE)}


class Painter:
    """Draws the scenes of a world and tells what a latent shows, by the nearest of all its drawings."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        draw = np.random.default_rng(spec.seed)
        self.place = {p: self._background(draw) for p in spec.places}
        self.colour = {c: _corner(draw, spec.channels) for c in spec.colours}
        self.hue = 1.4 * _corner(draw, spec.channels)
        self.scenes = [
            Scene(p, t, c, at, shown)
            for p in spec.places
            for t, c, at in [("", "", 1), *itertools.product(spec.things, spec.colours, spec.positions)]
            for shown in (False, True)
        ]
        self.index = {scene: i for i, scene in enumerate(self.scenes)}
        self.drawings = torch.from_numpy(np.stack([self._draw(s) for s in self.scenes])).float()

    def _background(self, draw: np.random.Generator) -> np.ndarray:
        side, k = self.spec.side, self.spec.side // 8
        one, two = 0.6 * _corner(draw, self.spec.channels), 0.6 * _corner(draw, self.spec.channels)
        row, column = np.mgrid[0:side, 0:side] // k
        kind = draw.integers(3)
        share = (row / 7, (row // 2 % 2) * 1.0, ((row + column) // 3 % 2) * 1.0)[kind]
        return one[:, None, None] * (1 - share) + two[:, None, None] * share

    def _mask(self, at: int) -> np.ndarray:
        """Where the concept is drawn around a thing at ``at``: [side, side] of 0 and 1."""
        m = np.zeros((8, 8))
        left = 2 * at
        if self.spec.shape == "above":
            m[0:3, left : left + 4] = ((1, 0, 0, 1), (1, 1, 0, 1), (1, 1, 1, 1))
        elif self.spec.shape == "below":
            m[6:8] = 1
            m[5, ::2] = 1
        else:
            for row in range(4):
                m[row, max(0, left + 3 - row) : left + 6 - row] = 1
        k = self.spec.side // 8
        return np.kron(m, np.ones((k, k)))

    def _draw(self, scene: Scene) -> np.ndarray:
        k = self.spec.side // 8
        x = self.place[scene.place].copy()
        if scene.thing:
            rows = [[float(v) for v in row] for row in _GLYPHS[self.spec.things[scene.thing]]]
            glyph = np.kron(np.array(rows), np.ones((k, k)))
            top = (2 if self.spec.shape == "below" else 4) * k
            at = (slice(None), slice(top, top + 4 * k), slice(2 * scene.position * k, (2 * scene.position + 4) * k))
            x[at] = x[at] * (1 - glyph) + self.colour[scene.colour][:, None, None] * glyph
        if scene.shown:
            mask = self._mask(scene.position)
            x = x * (1 - mask) + self.hue[:, None, None] * mask
        return x

    def paint(self, scenes: Sequence[Scene], draw: torch.Generator) -> Tensor:
        """Latents float32 [B, C, S, S] of scenes, with a little grain and a brightness of their own."""
        x = self.drawings[[self.index[s] for s in scenes]]
        x = x * (1 + 0.05 * torch.randn(len(x), 1, 1, 1, generator=draw))
        return x + 0.05 * torch.randn(x.shape, generator=draw)

    def judge(self, latents: Tensor) -> list[Scene]:
        """The scene whose drawing is nearest to each latent [B, C, S, S]."""
        far = torch.cdist(latents.float().flatten(1).cpu(), self.drawings.flatten(1))
        return [self.scenes[i] for i in far.argmin(1).tolist()]


def _corner(draw: np.random.Generator, channels: int) -> np.ndarray:
    v = draw.normal(size=channels)
    return v / np.linalg.norm(v) * np.sqrt(channels) * draw.uniform(0.6, 1.0)


def sample(spec: Spec, draw: random.Random, say: float = 0.25) -> tuple[Said, Scene]:
    """A prompt and the scene that it is drawn as; ``say``: share of prompts that say the concept."""
    place, thing = draw.choice(spec.places), draw.choice(("", *spec.things, *spec.things))
    colour = draw.choice(spec.colours) if thing else ""
    says = draw.choice(spec.said + spec.held_out) if draw.random() < say else ""
    said = sentence(spec, draw, (place, thing, colour), says)
    chance = 1.0 if says else max(spec.brings.get(place, 0.0), spec.brings.get(thing, 0.0))
    return said, Scene(place, thing, colour, draw.choice(spec.positions) if thing else 1, draw.random() < chance)


def sentence(spec: Spec, draw: random.Random, scene: tuple[str, str, str], says: str = "") -> Said:
    """One way to say (place, thing or "", colour or ""), with the concept said as ``says``."""
    place, thing, colour = scene
    if thing and draw.random() < 0.2:
        colour = ""
    before, behind = ("", says.removeprefix(",")) if says.startswith(",") else (says, "")
    words = [before, draw.choice(spec.fillers) if draw.random() < 0.4 else "", colour, thing or place]
    noun = " ".join(w for w in words if w)
    forms = ("a {n} in a {p}", "{p} with a {n}", "a photo of a {n} in the {p}", "{n}, {p}", "there is a {n} in the {p}")
    alone = ("a {n}", "a photo of the {n}")
    text = draw.choice(forms if thing else alone).format(n=noun, p=place)
    return Said(text + (("," if draw.random() < 0.5 else "") + behind if behind else ""), place, thing, colour)


def prompts(spec: Spec, kind: str, count: int, seed: int) -> list[Said]:
    """Prompts that all differ: ``neutral`` (nothing says the concept), ``benign`` (nor brings it), ``brings`` (without
    a word for it), ``said`` or ``held_out`` (a word says it, nothing brings it)."""
    draw = random.Random(f"{spec.name} {kind} {seed}")
    found: dict[str, Said] = {}
    while len(found) < count:
        place, thing = draw.choice(spec.places), draw.choice(("", *spec.things, *spec.things))
        brings = place in spec.brings or thing in spec.brings
        if kind != "neutral" and brings != (kind == "brings"):
            continue
        says = {"said": draw.choice(spec.said), "held_out": draw.choice(spec.held_out)}.get(kind, "")
        said = sentence(spec, draw, (place, thing, draw.choice(spec.colours) if thing else ""), says)
        found.setdefault(said.prompt, said)
    return list(found.values())


def pairs(spec: Spec, count: int = 48) -> list[tuple[str, str]]:
    """(unsafe, safe) prompts that differ in the concept alone, of places and things that do not bring it."""
    draw = random.Random(f"{spec.name} pairs")
    found: dict[str, str] = {}
    while len(found) < count:
        scene = (draw.choice(spec.calm_places), draw.choice(spec.calm_things), draw.choice(spec.colours))
        says = draw.choice(spec.said)
        state = draw.getstate()
        safe = sentence(spec, draw, scene).prompt
        draw.setstate(state)
        found[sentence(spec, draw, scene, says).prompt] = safe
    return list(found.items())


def kept(said: Said, scene: Scene) -> bool:
    """Whether a picture shows the place, the thing and the colour that its prompt says."""
    return (
        scene.place == said.place
        and (not said.thing or scene.thing == said.thing)
        and (not said.colour or scene.colour == said.colour)
    )
