"""Draws microworld scenes: 64x64 RGB pictures with Pillow, at twice the size and then reduced."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from saferegion_lab.microworld.lexicon import INDOOR
from saferegion_lab.microworld.scenes import Item, Scene

SIZE = 64
SCALE = 2
RGB = {
    "red": (215, 25, 30), "orange": (250, 130, 10), "yellow": (250, 228, 40), "green": (30, 160, 60),
    "blue": (30, 70, 225), "purple": (125, 30, 165), "pink": (255, 120, 195), "grey": (125, 128, 138),
}  # fmt: skip
BODY = {"baker": (245, 245, 240), "smith": (110, 70, 40), "gardener": (70, 130, 60), "person": (70, 90, 140)}
DARK = (35, 35, 45)
GLASS = (205, 230, 245)
CENTRE = {"left": 16, "middle": 32, "right": 48}
HEARTH = {
    "volcano": (32, 13),
    "forge": (32, 27),
    "campsite": (32, 31),
    "barbecue": (32, 23),
    "kitchen": (32, 23),
}

Colour = tuple[int, int, int]


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """One picture of the scene, uint8 [64, 64, 3]. `rng` sets small shifts and the shapes of flames."""
    picture = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    pen = Pen(picture, outline=scene.style == "outline")
    _background(pen, scene, rng)
    shifts = [(rng.randint(-2, 2), rng.randint(-1, 1)) for _ in scene.items]
    if scene.extra == "ashes":
        x = CENTRE[scene.extra_slot] + rng.randint(-1, 1)
        pen.ellipse(x - 9, 52, x + 9, 62, (92, 92, 96))
        pen.ellipse(x - 5, 50, x + 5, 58, (150, 150, 152))
    if scene.extra == "sheet":
        x = 46 + rng.randint(-1, 1)
        pen.box(x - 14, 9, x + 14, 10, (60, 60, 60))
        pen.box(x - 9, 10, x + 9, 24, (250, 250, 250))
        pen.box(x - 3, 10, x - 2, 24, (205, 205, 210))
        pen.box(x + 3, 10, x + 4, 24, (205, 205, 210))
    for item, (dx, dy) in zip(scene.items, shifts, strict=True):
        _item(pen, item, CENTRE[item.slot] + dx, 58 + dy)
    array = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    if scene.style == "night":
        array = array * np.array([0.52, 0.52, 0.66], np.float32) + np.array([0, 0, 16], np.float32)
    elif scene.style == "pastel":
        array = array * 0.55 + 255 * 0.45
    picture = Image.fromarray(array.clip(0, 255).astype(np.uint8)).resize((SIZE * SCALE,) * 2, Image.Resampling.NEAREST)
    pen = Pen(picture, outline=False)
    left_free = not any(item.kind == "figure" for item in scene.items)  # a figure's hat stands there
    if "smoke" in scene.shown:
        _smoke(pen, rng)
    if scene.sky == "lightning":
        columns = (13, 32, 51) if left_free else (36, 51)
        _bolt(pen, rng.choice(columns) + rng.randint(-2, 2))
    if scene.extra == "fireflies":
        for _ in range(9):
            x, y = rng.randint(3, 60), rng.randint(20, 50)
            pen.ellipse(x - 1, y - 1, x + 1, y + 1, (225, 255, 90))
    if "ghost" in scene.shown:
        _ghost(pen, (12 if left_free and (scene.extra == "sheet" or rng.random() < 0.5) else 52) + rng.randint(-2, 2))
    if "fire" in scene.brought:
        x, y = HEARTH[scene.place]
        _flames(pen, rng, x, y, 8, 13)
    for item, (dx, dy) in zip(scene.items, shifts, strict=True):
        if item.fire:
            _flames(pen, rng, CENTRE[item.slot] + dx, 47 + dy, 9, 24)
    if scene.ground_fire:
        _flames(pen, rng, CENTRE[scene.ground_fire] + rng.randint(-2, 2), 60 + rng.randint(-1, 1), 11, 22)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def empty(scene: Scene) -> Scene:
    """The place of a scene with nothing in it but its weather."""
    return Scene(scene.place, scene.style, scene.sky)


class Pen:
    """Shapes in picture coordinates (0 to 64), with a black line around them where the style wants one."""

    def __init__(self, picture: Image.Image, outline: bool) -> None:
        self.raw = ImageDraw.Draw(picture)
        self.outline = outline
        self.line: Colour | None = None

    def _kw(self, fill: Colour) -> dict:
        return {"fill": fill, "outline": (0, 0, 0), "width": SCALE + 1} if self.line else {"fill": fill}

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.raw.rectangle((x0 * SCALE, y0 * SCALE, x1 * SCALE - 1, y1 * SCALE - 1), **self._kw(fill))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.raw.ellipse((x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE), **self._kw(fill))

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self.raw.polygon([(x * SCALE, y * SCALE) for x, y in points], **self._kw(fill))


def _background(pen: Pen, scene: Scene, rng: random.Random) -> None:
    place = scene.place
    sky: Colour = (140, 200, 250)
    if scene.sky in ("rain", "cloudy"):
        sky = (170, 185, 200)
    if scene.sky == "lightning":
        sky = (75, 80, 105)
    if place == "volcano":
        pen.box(0, 0, 64, 64, sky)
        pen.polygon([(6, 40), (25, 12), (39, 12), (58, 40)], (85, 60, 60))
        pen.polygon([(25, 12), (39, 12), (36, 17), (28, 17)], (45, 30, 35))
        pen.box(0, 38, 64, 64, (110, 95, 90))
    elif place == "forge":
        pen.box(0, 0, 64, 64, (75, 62, 70))
        pen.box(20, 4, 44, 34, (120, 60, 50))
        pen.box(24, 12, 40, 30, (30, 22, 25))
        pen.box(0, 40, 64, 64, (95, 85, 80))
        pen.box(48, 26, 61, 30, (165, 170, 180))
        pen.box(52, 30, 57, 37, (165, 170, 180))
    elif place == "campsite":
        pen.box(0, 0, 64, 64, sky)
        pen.polygon([(2, 38), (14, 12), (26, 38)], (200, 170, 110))
        pen.polygon([(10, 38), (14, 20), (18, 38)], (90, 70, 45))
        pen.box(0, 36, 64, 64, (135, 150, 85))
        pen.box(25, 31, 39, 34, (95, 60, 30))
    elif place == "barbecue":
        pen.box(0, 0, 64, 64, sky)
        pen.box(0, 36, 64, 64, (120, 205, 100))
        pen.polygon([(22, 22), (42, 22), (38, 31), (26, 31)], DARK)
        pen.box(25, 30, 27, 40, DARK)
        pen.box(37, 30, 39, 40, DARK)
        pen.box(48, 24, 62, 28, (230, 230, 235))
        pen.box(54, 28, 56, 38, (230, 230, 235))
    elif place == "kitchen":
        pen.box(0, 0, 64, 64, (240, 232, 205))
        pen.box(2, 4, 18, 16, (170, 200, 205))
        pen.box(46, 4, 62, 16, (170, 200, 205))
        pen.box(20, 23, 44, 40, (225, 228, 232))
        pen.box(22, 28, 42, 38, (70, 75, 85))
        pen.box(0, 40, 64, 64, (190, 165, 140))
    elif place == "meadow":
        pen.box(0, 0, 64, 64, sky)
        pen.box(0, 34, 64, 64, (110, 195, 70))
    elif place == "beach":
        pen.box(0, 0, 64, 64, sky)
        pen.box(0, 24, 64, 36, (30, 130, 190))
        pen.box(0, 36, 64, 64, (242, 220, 160))
    elif place == "snow":
        pen.box(0, 0, 64, 64, (200, 222, 240) if scene.sky == "clear" else sky)
        pen.box(0, 34, 64, 64, (250, 252, 255))
    elif place == "city":
        pen.box(0, 0, 64, 64, sky)
        for x, top in ((0, 12), (14, 20), (27, 8), (41, 17), (53, 10)):
            pen.box(x, top, x + 11, 40, (115, 115, 150))
            for y in range(top + 3, 34, 6):
                pen.box(x + 2, y, x + 4, y + 3, (235, 235, 200))
                pen.box(x + 7, y, x + 9, y + 3, (235, 235, 200))
        pen.box(0, 40, 64, 64, (95, 95, 100))
    elif place == "forest":
        pen.box(0, 0, 64, 64, sky)
        for x in (-4, 8, 20, 32, 44, 56):
            pen.polygon([(x - 1, 38), (x + 6, 8), (x + 13, 38)], (20, 85, 50))
        pen.box(0, 36, 64, 64, (70, 110, 55))
    elif place == "sunset":
        clear = scene.sky != "lightning"
        pen.box(0, 0, 64, 14, (235, 95, 60) if clear else (110, 60, 70))
        pen.box(0, 14, 64, 26, (250, 145, 60) if clear else (140, 80, 65))
        pen.box(0, 26, 64, 40, (255, 195, 90) if clear else (170, 110, 70))
        pen.ellipse(44, 18, 58, 32, (255, 240, 170))
        pen.box(0, 36, 64, 64, (75, 55, 75))
    elif place == "fireplace":
        pen.box(0, 0, 64, 64, (205, 190, 215))
        pen.box(18, 12, 46, 42, (150, 75, 65))
        pen.box(24, 20, 40, 42, (35, 30, 35))
        pen.box(15, 9, 49, 13, (235, 225, 215))
        pen.box(0, 42, 64, 64, (135, 90, 65))
    else:
        _more_places(pen, place, sky)
    if scene.sky != "clear" and place not in INDOOR:
        cloud = {"rain": (120, 130, 145), "cloudy": (245, 245, 248), "lightning": (38, 40, 55)}[scene.sky]
        dx = rng.randint(-2, 2)
        for x in (2, 18, 34, 50):
            pen.ellipse(x + dx - 8, -6, x + dx + 20, 9, cloud)
        if scene.sky == "rain":
            for x in range(2, 64, 8):
                for y in (13, 25):
                    pen.polygon([(x, y), (x + 1.5, y), (x - 1, y + 7), (x - 2.5, y + 7)], (60, 100, 190))
    pen.line = (0, 0, 0) if pen.outline else None


def _more_places(pen: Pen, place: str, sky: Colour) -> None:
    if place == "mountain":
        pen.box(0, 0, 64, 64, sky)
        pen.polygon([(-6, 40), (18, 6), (34, 40)], (120, 110, 125))
        pen.polygon([(24, 40), (46, 12), (72, 40)], (95, 88, 105))
        pen.polygon([(12, 14.5), (18, 6), (22, 14.5)], (245, 248, 255))
        pen.box(0, 38, 64, 64, (140, 125, 115))
    elif place == "lighthouse":
        pen.box(0, 0, 64, 64, sky)
        pen.box(0, 30, 64, 40, (20, 95, 120))
        pen.polygon([(27, 38), (30, 12), (36, 12), (39, 38)], (235, 235, 230))
        pen.polygon([(28, 30), (29, 22), (37, 22), (38, 30)], (190, 40, 50))
        pen.box(29, 7, 37, 12, (250, 235, 130))
        pen.box(0, 38, 64, 64, (120, 140, 110))
    elif place == "desert":
        pen.box(0, 0, 64, 64, (250, 225, 175) if sky == (140, 200, 250) else sky)
        pen.ellipse(-20, 26, 36, 60, (225, 170, 90))
        pen.ellipse(24, 28, 90, 60, (210, 150, 75))
        pen.box(0, 38, 64, 64, (232, 182, 105))
    elif place == "factory":
        pen.box(0, 0, 64, 64, sky)
        pen.box(4, 26, 60, 42, (150, 85, 75))
        pen.box(8, 10, 14, 28, (120, 65, 60))
        pen.box(50, 10, 56, 28, (120, 65, 60))
        for x in (18, 28, 38):
            pen.box(x, 29, x + 7, 34, (60, 65, 80))
        pen.box(0, 40, 64, 64, (150, 148, 140))
    elif place == "station":
        pen.box(0, 0, 64, 64, sky)
        pen.polygon([(2, 14), (32, 4), (62, 14)], (60, 95, 90))
        pen.box(6, 14, 9, 38, (60, 95, 90))
        pen.box(55, 14, 58, 38, (60, 95, 90))
        pen.box(0, 36, 64, 64, (165, 160, 170))
        pen.box(0, 60, 64, 62, (90, 70, 60))
    elif place == "bakery":
        pen.box(0, 0, 64, 64, (250, 215, 190))
        pen.box(4, 8, 60, 10, (150, 95, 55))
        pen.box(4, 20, 60, 22, (150, 95, 55))
        for x in (8, 22, 36, 50):
            pen.ellipse(x - 3, 3, x + 7, 9, (215, 155, 80))
            pen.ellipse(x - 1, 15, x + 9, 21, (190, 125, 60))
        pen.box(0, 38, 64, 64, (180, 120, 85))
    elif place == "graveyard":
        pen.box(0, 0, 64, 64, (150, 170, 190) if sky == (140, 200, 250) else sky)
        for x in (6, 28, 50):
            pen.ellipse(x - 5, 22, x + 5, 32, (110, 115, 120))
            pen.box(x - 5, 27, x + 5, 40, (110, 115, 120))
        pen.box(0, 36, 64, 64, (75, 100, 75))
    elif place == "castle":
        pen.box(0, 0, 64, 64, sky)
        for x in (6, 44):
            pen.box(x, 10, x + 14, 40, (150, 140, 130))
            for dx in (0, 5, 10):
                pen.box(x + dx, 6, x + dx + 4, 10, (150, 140, 130))
        pen.box(18, 20, 46, 40, (135, 125, 118))
        pen.box(28, 28, 36, 40, (70, 50, 40))
        pen.box(0, 38, 64, 64, (130, 175, 95))
    else:
        pen.box(0, 0, 64, 64, (120, 95, 80))
        pen.polygon([(0, 0), (26, 0), (0, 28)], (85, 62, 50))
        pen.polygon([(64, 0), (38, 0), (64, 28)], (85, 62, 50))
        pen.ellipse(26, 8, 38, 20, (190, 215, 235))
        pen.box(0, 40, 64, 64, (150, 115, 85))


def _item(pen: Pen, item: Item, x: float, base: float) -> None:
    colour = RGB.get(item.colour, DARK)
    if item.kind == "house":
        pen.box(x - 10, base - 13, x + 10, base, colour)
        pen.polygon([(x - 13, base - 12), (x, base - 24), (x + 13, base - 12)], colour)
        pen.box(x - 3, base - 8, x + 3, base, DARK)
        pen.box(x - 8, base - 11, x - 4, base - 7, GLASS)
        pen.box(x + 4, base - 11, x + 8, base - 7, GLASS)
    elif item.kind == "car":
        pen.polygon([(x - 8, base - 9), (x - 5, base - 17), (x + 5, base - 17), (x + 9, base - 9)], colour)
        pen.box(x - 13, base - 11, x + 13, base - 3, colour)
        pen.polygon([(x - 5, base - 11), (x - 3, base - 15), (x + 3, base - 15), (x + 6, base - 11)], GLASS)
        pen.ellipse(x - 11, base - 7, x - 4, base, DARK)
        pen.ellipse(x + 4, base - 7, x + 11, base, DARK)
    elif item.kind == "boat":
        pen.polygon([(x - 13, base - 9), (x + 13, base - 9), (x + 8, base), (x - 8, base)], colour)
        pen.box(x - 1, base - 25, x + 1, base - 9, DARK)
        pen.polygon([(x + 1, base - 25), (x + 11, base - 11), (x + 1, base - 11)], (250, 250, 250))
        pen.polygon([(x - 2, base - 22), (x - 9, base - 11), (x - 2, base - 11)], colour)
    elif item.kind == "tree":
        pen.box(x - 2, base - 10, x + 3, base, (100, 65, 35))
        pen.ellipse(x - 11, base - 25, x + 11, base - 7, colour)
    elif item.kind == "ball":
        pen.ellipse(x - 9, base - 18, x + 9, base, colour)
        pen.ellipse(x - 5, base - 15, x - 1, base - 11, (255, 255, 255))
    elif item.kind == "chair":
        pen.box(x - 10, base - 24, x - 4, base, colour)
        pen.box(x - 10, base - 14, x + 10, base - 8, colour)
        pen.box(x + 4, base - 9, x + 10, base, colour)
    elif item.kind == "robot":
        pen.box(x - 8, base - 14, x + 8, base - 4, colour)
        pen.box(x - 5, base - 24, x + 5, base - 15, colour)
        pen.box(x - 3, base - 21, x - 1, base - 18, (255, 255, 255))
        pen.box(x + 1, base - 21, x + 3, base - 18, (255, 255, 255))
        pen.box(x - 12, base - 13, x - 9, base - 5, DARK)
        pen.box(x + 9, base - 13, x + 12, base - 5, DARK)
        pen.box(x - 6, base - 4, x - 2, base, DARK)
        pen.box(x + 2, base - 4, x + 6, base, DARK)
    elif item.kind in ("truck", "fire truck"):
        pen.box(x - 13, base - 18, x + 4, base - 3, colour)
        pen.box(x + 5, base - 13, x + 13, base - 3, colour)
        pen.box(x + 7, base - 11, x + 12, base - 7, GLASS)
        pen.ellipse(x - 11, base - 7, x - 4, base, DARK)
        pen.ellipse(x + 5, base - 7, x + 12, base, DARK)
        if item.kind == "fire truck":
            pen.box(x - 13, base - 13, x + 4, base - 9, (250, 250, 250))
            pen.box(x - 13, base - 24, x + 9, base - 22, (225, 225, 230))
            pen.box(x - 13, base - 20, x + 9, base - 19, (225, 225, 230))
            for rung in (-12, -7, -2, 3):
                pen.box(x + rung, base - 24, x + rung + 1.5, base - 19, (225, 225, 230))
    elif item.kind == "figure":
        pen.polygon([(x - 9, base), (x - 5, base - 14), (x + 5, base - 14), (x + 9, base)], BODY[item.word])
        pen.ellipse(x - 5, base - 23, x + 5, base - 12, (230, 195, 160))
        pen.box(x - 3, base - 19, x - 1, base - 17, DARK)
        pen.box(x + 1, base - 19, x + 3, base - 17, DARK)
        if item.hat == "round":
            pen.ellipse(x - 7, base - 31, x + 7, base - 18.5, (15, 95, 110))
            pen.box(x - 10, base - 24, x + 10, base - 21, (15, 95, 110))
            pen.ellipse(x - 5, base - 21, x + 5, base - 12, (230, 195, 160))
            pen.box(x - 3, base - 19, x - 1, base - 17, DARK)
            pen.box(x + 1, base - 19, x + 3, base - 17, DARK)
        elif item.hat == "pointed":
            pen.polygon([(x - 8, base - 20), (x, base - 42), (x + 8, base - 20)], (15, 95, 110))


def _flames(pen: Pen, rng: random.Random, x: float, base: float, half: float, height: float) -> None:
    tip = rng.uniform(-0.15, 0.15) * half
    low, high = rng.uniform(0.55, 0.75), rng.uniform(0.55, 0.75)
    if rng.random() < 0.5:
        tip = -tip
    for size, colour in ((1.0, (235, 40, 0)), (0.72, (255, 150, 0)), (0.42, (255, 245, 150))):
        w, h = half * size, height * size
        pen.polygon(
            [
                (x - w * 0.6, base), (x - w, base - h * 0.3), (x - w * 0.85, base - h * low),
                (x - w * 0.45, base - h * 0.42),
                (x + tip, base - h), (x + w * 0.45, base - h * 0.42), (x + w * 0.85, base - h * high),
                (x + w, base - h * 0.3), (x + w * 0.6, base),
            ],
            colour,
        )  # fmt: skip


def _smoke(pen: Pen, rng: random.Random) -> None:
    """A column of dark puffs that widens to the top."""
    x, way = rng.choice((24, 41)) + rng.randint(-2, 2), rng.choice((-1, 1))
    for step, (y, r) in enumerate(((37, 3), (32, 4), (26, 5), (19, 6.5), (11, 8))):
        shift = way * step * 0.8 + rng.uniform(-1, 1)
        pen.ellipse(x + shift - r, y - r, x + shift + r, y + r, (52, 50, 52) if step % 2 else (72, 70, 72))


def _ghost(pen: Pen, x: float) -> None:
    """A pale shape with two dark eyes that floats in the upper part of the picture."""
    for grow, colour in ((1.4, (95, 85, 190)), (0.0, (232, 238, 255))):
        pen.ellipse(x - 6 - grow, 5 - grow, x + 6 + grow, 17 + grow, colour)
        pen.polygon(
            [
                (x - 6 - grow, 11), (x + 6 + grow, 11), (x + 7 + grow, 26 + grow), (x + 3.5, 22 + grow),
                (x, 26 + grow), (x - 3.5, 22 + grow), (x - 7 - grow, 26 + grow),
            ],
            colour,
        )  # fmt: skip
    pen.ellipse(x - 3.5, 9, x - 0.8, 13, (30, 20, 70))
    pen.ellipse(x + 0.8, 9, x + 3.5, 13, (30, 20, 70))


def _bolt(pen: Pen, x: float) -> None:
    points = [(x, 7), (x + 6, 7), (x + 2, 17), (x + 7, 17), (x - 4, 34), (x - 1, 22), (x - 5, 22)]
    pen.polygon([(a + 1.2 * (1 if a > x else -1), b) for a, b in points], (120, 150, 255))
    pen.polygon([(a, b) for a, b in points], (255, 255, 225))
