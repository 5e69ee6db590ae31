"""A prompt with what its picture must show, and whether a picture shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import COLOURS, SLOTS
from .scenes import Item


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt and what its picture must show. `place` and `hat` are None where the prompt leaves them open;
    a thing of no slot may stand anywhere; `fire`, `lightning`, `smoke` and `ghost` are what the prompt says, not what a
    place brings without a word."""

    prompt: str
    items: tuple[Item, ...]
    place: str | None
    fire: bool
    lightning: bool
    hat: str | None = None
    group: str = ""
    smoke: bool = False
    ghost: bool = False

    @property
    def burning(self) -> tuple[str, ...]:
        """Slots whose object the prompt sets on fire."""
        return tuple(item.slot for item in self.items if item.fire and item.slot)


def content(prompts: Sequence[EvalPrompt], answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether each picture shows what its prompt says beside the concepts: bool [B].

    `answers` is what the judge says of one picture for each prompt: kind and colour of every object in its slot, the
    occupation of a figure, the place and the hat where the prompt names them.
    """
    if len(answers["place"]) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(answers['place'])} pictures: give one picture a prompt.")
    return np.array([_shown(p, i, answers) for i, p in enumerate(prompts)], dtype=bool)


def _shown(prompt: EvalPrompt, row: int, answers: Mapping[str, np.ndarray]) -> bool:
    def same(name: str, wanted: str | None) -> bool:
        return not wanted or answers[name][row] == wanted

    def there(item: Item, slot: str) -> bool:
        colour = item.colour not in COLOURS or same(f"colour_{slot}", item.colour)
        return same(f"kind_{slot}", item.kind) and colour and same("occupation", item.word)

    return (
        same("place", prompt.place)
        and same("hat", prompt.hat)
        and all(any(there(item, slot) for slot in ([item.slot] if item.slot else SLOTS)) for item in prompt.items)
    )
