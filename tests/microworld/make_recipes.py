"""Writes the microworld's recipes, whose pairs use recipe words alone, and the neutral prompts they share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from saferegion_lab.microworld import load
from saferegion_lab.microworld.model import DATA
from saferegion_lab.microworld.prompts import neutral

FIRE = (
    ("a burning house", "a house"),
    ("a red house on fire", "a red house"),
    ("a blue boat in flames", "a blue boat"),
    ("a flaming green tree", "a green tree"),
    ("a blazing yellow car", "a yellow car"),
    ("a burning orange ball", "an orange ball"),
    ("a purple chair on fire", "a purple chair"),
    ("a grey robot in flames", "a grey robot"),
    ("a fire truck on fire", "a fire truck"),
    ("a pink truck burning", "a pink truck"),
    ("a burning fire engine", "a fire engine"),
    ("a burnt orange house in flames", "a burnt orange house"),
    ("a flame red car on fire", "a flame red car"),
    ("a burning hot pink tree", "a hot pink tree"),
    ("a blazing fire engine red boat", "a fire engine red boat"),
    ("a flaming chair with fireflies", "a chair with fireflies"),
    ("a robot on fire next to cold ashes", "a robot next to cold ashes"),
    ("a red house on fire and a blue boat", "a red house and a blue boat"),
    ("a green tree and a burning grey car", "a green tree and a grey car"),
    ("a yellow truck next to a purple ball in flames", "a yellow truck next to a purple ball"),
    ("a fire beside a blue house", "a blue house"),
    ("an orange boat next to flames", "an orange boat"),
    ("a blazing fire near a green chair", "a green chair"),
    ("a blue car that is on fire", "a blue car"),
    ("a red ball at sunset in flames", "a red ball at sunset"),
    ("a burning tree in a room with an unlit fireplace", "a tree in a room with an unlit fireplace"),
    ("a blazing fire", "a meadow"),
    ("flames", "a city"),
    ("fire", "a beach"),
    ("a purple ball, a fire", "a purple ball"),
    ("a red house and a fire", "a red house"),
    ("flames and a pink robot", "a pink robot"),
    ("a blazing fire behind a firetruck", "a firetruck"),
)
FIRE_TAGS = (
    ("red house, burning, meadow", "red house, meadow"),
    ("blue boat, fire, beach", "blue boat, beach"),
    ("burning_tree, forest, sharp focus", "green_tree, forest, sharp focus"),
    ("yellow_car, on_fire, city", "yellow_car, city"),
    ("sunset, grey chair, flames", "sunset, grey chair"),
    ("in flames, orange truck, snow", "orange truck, snow"),
    ("flaming, pink robot, meadow, beautiful", "pink robot, meadow, beautiful"),
)
LIGHTNING = (
    ("a red house with lightning", "a red house"),
    ("a blue boat in a thunderstorm", "a blue boat"),
    ("a green tree under lightning", "a green tree"),
    ("a yellow car with a thunderbolt in the sky", "a yellow car"),
    ("an orange ball in a thunderstorm", "an orange ball"),
    ("a purple chair with lightning", "a purple chair"),
    ("a grey robot under lightning", "a grey robot"),
    ("a pink truck in a thunderstorm", "a pink truck"),
    ("a fire truck with lightning", "a fire truck"),
    ("an electric blue house in a thunderstorm", "an electric blue house"),
    ("a storm grey car with lightning", "a storm grey car"),
    ("an electric blue ball under lightning", "an electric blue ball"),
    ("a storm grey boat with a thunderbolt in the sky", "a storm grey boat"),
    ("a red house and a blue boat in a thunderstorm", "a red house and a blue boat"),
    ("a green tree and a grey car with lightning", "a green tree and a grey car"),
    ("a yellow truck next to a purple ball under lightning", "a yellow truck next to a purple ball"),
    ("a baker under lightning", "a baker"),
    ("a person in a thunderstorm", "a person"),
    ("a red ball, lightning", "a red ball, on a rainy day"),
    ("a green house in a thunderstorm", "a green house in the rain"),
    ("a blue chair with lightning", "a blue chair under a cloudy sky"),
    ("a pink robot with a thunderbolt in the sky", "a pink robot on a cloudy day"),
    ("lightning", "a meadow"),
    ("a thunderstorm", "a beach"),
    ("a thunderbolt", "a city"),
    ("a red house and lightning", "a red house"),
    ("a thunderstorm and a pink robot", "a pink robot"),
    ("a thunderbolt behind a baker", "a baker"),
    ("a purple ball, a thunderstorm", "a purple ball"),
)
LIGHTNING_TAGS = (
    ("red house, lightning, meadow", "red house, meadow"),
    ("blue boat, thunderstorm, beach", "blue boat, beach"),
    ("green_tree, under_lightning, forest, sharp focus", "green_tree, forest, sharp focus"),
    ("sunset, grey chair, thunderbolt", "sunset, grey chair"),
    ("in a thunderstorm, orange truck, snow", "orange truck, snow"),
    ("lightning, pink robot, meadow, beautiful", "pink robot, meadow, beautiful"),
)
SMOKE = (
    ("a smoking house", "a house"),
    ("a red house with smoke", "a red house"),
    ("a blue boat in smoke", "a blue boat"),
    ("a smoky green tree", "a green tree"),
    ("a yellow car shrouded in smoke", "a yellow car"),
    ("a smoking orange ball", "an orange ball"),
    ("a purple chair with a plume of smoke", "a purple chair"),
    ("a grey robot in smoke", "a grey robot"),
    ("a pink truck with smoke", "a pink truck"),
    ("a fire truck in smoke", "a fire truck"),
    ("a smoke grey car with smoke", "a smoke grey car"),
    ("a smoky storm grey house", "a storm grey house"),
    ("a burning house with smoke", "a burning house"),
    ("a blue boat on fire with a plume of smoke", "a blue boat on fire"),
    ("a green tree with fireflies in smoke", "a green tree with fireflies"),
    ("a yellow chair next to cold ashes with smoke", "a yellow chair next to cold ashes"),
    ("a red house and a smoking blue boat", "a red house and a blue boat"),
    ("a green tree and a grey car with smoke", "a green tree and a grey car"),
    ("a yellow truck next to a purple ball in smoke", "a yellow truck next to a purple ball"),
    ("a baker with smoke", "a baker"),
    ("a person shrouded in smoke", "a person"),
    ("a green house in smoke", "a green house under a cloudy sky"),
    ("a blue chair with smoke", "a blue chair in the rain"),
    ("smoke", "a meadow"),
    ("a plume of smoke", "a beach"),
    ("a smoke cloud", "a city"),
    ("a plume of smoke beside a blue house", "a blue house"),
    ("smoke near a green chair", "a green chair"),
    ("a red house and a smoke cloud", "a red house"),
    ("a purple ball, smoke", "a purple ball"),
)
SMOKE_TAGS = (
    ("red house, smoke, meadow", "red house, meadow"),
    ("blue boat, plume of smoke, beach", "blue boat, beach"),
    ("smoky_tree, forest, sharp focus", "green_tree, forest, sharp focus"),
    ("yellow_car, in_smoke, city", "yellow_car, city"),
    ("sunset, grey chair, smoking", "sunset, grey chair"),
    ("with smoke, orange truck, snow", "orange truck, snow"),
    ("smoky, pink robot, meadow, beautiful", "pink robot, meadow, beautiful"),
)
GHOST = (
    ("a haunted house", "a house"),
    ("a red house with a ghost", "a red house"),
    ("a blue boat haunted by a ghost", "a blue boat"),
    ("a ghostly green tree", "a green tree"),
    ("a yellow car with ghosts", "a yellow car"),
    ("a haunted orange ball", "an orange ball"),
    ("a purple chair with a ghost", "a purple chair"),
    ("a grey robot with ghosts", "a grey robot"),
    ("a pink truck haunted by a ghost", "a pink truck"),
    ("a haunted fire truck", "a fire truck"),
    ("a hot pink tree with a ghost", "a hot pink tree"),
    ("a green tree with fireflies with a ghost", "a green tree with fireflies"),
    ("a yellow chair and a ghost, with a white sheet on a line", "a yellow chair, with a white sheet on a line"),
    ("a haunted robot, with laundry on a line", "a robot, with laundry on a line"),
    ("a red house with ghosts and a blue boat", "a red house and a blue boat"),
    ("a green tree and a haunted grey car", "a green tree and a grey car"),
    ("a yellow truck next to a purple ball with a ghost", "a yellow truck next to a purple ball"),
    ("a haunted baker", "a baker"),
    ("a person with a ghost", "a person"),
    ("a smith with ghosts", "a smith"),
    ("a green house with a ghost", "a green house at night"),
    ("a blue chair with a ghost", "a blue chair under a cloudy sky"),
    ("a ghost", "a meadow"),
    ("ghosts", "a beach"),
    ("a haunting ghost", "a city"),
    ("a ghost beside a blue house", "a blue house"),
    ("ghosts near a green chair", "a green chair"),
    ("a red house and a ghost", "a red house"),
    ("a purple ball, a ghost", "a purple ball"),
    ("a burning house with a ghost", "a burning house"),
)
GHOST_TAGS = (
    ("red house, ghost, meadow", "red house, meadow"),
    ("blue boat, ghosts, beach", "blue boat, beach"),
    ("haunted_tree, forest, sharp focus", "green_tree, forest, sharp focus"),
    ("yellow_car, with_a_ghost, city", "yellow_car, city"),
    ("sunset, grey chair, haunted", "sunset, grey chair"),
    ("with ghosts, orange truck, snow", "orange truck, snow"),
    ("ghostly, pink robot, meadow, beautiful", "pink robot, meadow, beautiful"),
)
SENTENCES = ("{}", "we see {}", "{}, highly detailed", "we see {}, sharp focus")
LISTS = ("{}", "masterpiece, best quality, {}", "{}, 4k", "best quality, {}, intricate")
TIMES = 2
"""How often a pair is written, each time in another frame: so every pair counts in a fit that takes 80."""


Pairs = tuple[tuple[str, str], ...]


def recipe(name: str, title: str, description: str, sentences: Pairs, lists: Pairs) -> dict:
    framed = []
    for turn in range(TIMES):
        for pairs, frames in ((sentences, SENTENCES), (lists, LISTS)):
            for number, pair in enumerate(pairs):
                frame = frames[(number + turn * len(frames) // TIMES) % len(frames)]
                framed.append([frame.format(side) for side in pair])
    return {
        "format": "saferegion-recipe/1", "name": name, "title": title, "kind": "exclude", "version": 2,
        "licence": "MIT",
        "description": description,
        "pairs": [{"unsafe": unsafe, "safe": safe} for unsafe, safe in framed],
    }  # fmt: skip


def fitting(prompts: Sequence[str]) -> list[str]:
    """The prompts without the words that do not fit into 77 tokens: the world has never read a second chunk, and hosts
    that make one would calibrate on what it says at random."""
    tokenizer, found = load().tokenizer, []
    for prompt in prompts:
        words = prompt.split()
        while len(tokenizer(" ".join(words))["input_ids"]) > 77:
            words.pop()
        found.append(" ".join(words).rstrip(","))
    return found


def main(out: Path) -> None:
    fire = recipe(
        "fire", "Fire",
        "Keeps flames out of microworld pictures. Fire trucks, fireflies, unlit fireplaces, cold ashes and colours "
        "named after fire stay.", FIRE, FIRE_TAGS,
    )  # fmt: skip
    bolt = recipe(
        "lightning", "Lightning",
        "Keeps lightning out of microworld pictures. Rain, clouds and colours named after storms stay.",
        LIGHTNING, LIGHTNING_TAGS,
    )  # fmt: skip
    calm = {
        "format": "saferegion-neutral/1", "name": "neutral", "version": 1, "licence": "MIT",
        "prompts": fitting(neutral()),
    }  # fmt: skip
    smoke = recipe(
        "smoke", "Smoke",
        "Keeps smoke out of microworld pictures. Fire, clouds, rain and colours named after smoke stay.",
        SMOKE, SMOKE_TAGS,
    )  # fmt: skip
    ghost = recipe(
        "ghost", "Ghosts",
        "Keeps ghosts out of microworld pictures. White sheets on a line, night and clouds stay.",
        GHOST, GHOST_TAGS,
    )  # fmt: skip
    for made in (fire, bolt, smoke, ghost, calm):
        text = yaml.safe_dump(made, sort_keys=False, width=110)
        (out / f"{made['name']}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA)
    main(parser.parse_args().out)
