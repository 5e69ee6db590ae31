"""What a guard is to the harness, and the one sampler that paints for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from saferegion.core.conditioning import Conditioning

from ...latent_diffusion import TRAINED_STEPS
from ...microworld import MicroWorld
from ...microworld.lexicon import FIRE_RECIPE

WORDS = ("fire", "flames", "burning")
"""The recipe's single words: what a user would type to name the concept."""
PHRASES = tuple(dict.fromkeys((*FIRE_RECIPE.single, *FIRE_RECIPE.before, *FIRE_RECIPE.after, *FIRE_RECIPE.noun)))
"""All that the recipe calls fire; no peer is told of a word that the recipe does not have, and none of fewer."""


class Meter:
    """A world that counts: rows through the diffusion model, rows through the text encoder."""

    def __init__(self, world: MicroWorld) -> None:
        self.world = world
        self.evaluations = 0
        self.passes = 0

    def predict(self, x: Tensor, t: int, tokens: Tensor) -> Tensor:
        """The noise in x [B, 4, 8, 8] given tokens [B, 77, D]; differentiable."""
        self.evaluations += len(x)
        return self.world.predict(x, t, Conditioning(tokens))

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [B, 77, D] of token ids."""
        found: Tensor = self.world.text.get_input_embeddings().weight[ids]
        return found

    def read(self, ids: Tensor, embeds: Tensor | None = None) -> Tensor:
        """The text encoder's tokens [B, 77, D] of ids, or of input embeddings in their place; differentiable."""
        self.passes += len(ids)
        if embeds is None:
            return torch.cat([self.world.text(input_ids=i).last_hidden_state.float() for i in ids.split(64)])
        rows = []
        table = self.world.text.get_input_embeddings()
        for i, e in zip(ids.split(64), embeds.split(64), strict=True):
            hook = table.register_forward_hook(lambda module, given, made, e=e: e)
            try:
                rows.append(self.world.text(input_ids=i).last_hidden_state.float())
            finally:
                hook.remove()
        return torch.cat(rows)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return self.read(self.world.tokenize(prompts))


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as the guards meet them: ids [B, 77], input embeddings or None (those of the ids), tokens [B, 77, D]."""

    ids: Tensor
    tokens: Tensor
    embeds: Tensor | None = None

    @classmethod
    def of(cls, meter: Meter, ids: Tensor, embeds: Tensor | None = None) -> Prompts:
        return cls(ids, meter.read(ids, embeds), embeds)

    @property
    def end(self) -> Tensor:
        """Position of the first end token, [B]."""
        return self.ids.argmax(1)

    def rows(self, index: Tensor | slice) -> Prompts:
        embeds = None if self.embeds is None else self.embeds[index]
        return replace(self, ids=self.ids[index], tokens=self.tokens[index], embeds=embeds)


@dataclass(frozen=True, eq=False)
class Guarded:
    """What the sampler reads: ``tokens``, and ``late`` in their place from step ``switch`` [B] on."""

    tokens: Tensor
    late: Tensor | None = None
    switch: Tensor | None = None

    def at(self, step: int) -> Tensor:
        if self.late is None or self.switch is None:
            return self.tokens
        return torch.where((self.switch <= step)[:, None, None], self.late, self.tokens)

    def rows(self, index: Tensor | slice) -> Guarded:
        if self.late is None or self.switch is None:
            return Guarded(self.tokens[index])
        return Guarded(self.tokens[index], self.late[index], self.switch[index])

    def same_as(self, tokens: Tensor) -> Tensor:
        """Which rows the guard left bit for bit as they came, bool [B]."""
        same = (self.tokens == tokens).flatten(1).all(1)
        return same if self.late is None else same & (self.late == tokens).flatten(1).all(1)


@dataclass
class Guard:
    """No guard, and the base of the others. ``prepare`` is called once; then the guard is used through the rest.

    Attributes:
        name: row of the table. family: what it is a setting of. setting: published, tuned, or its own figures.
        sides: what the model is also asked at every step, each [1, 77, D]; the first is the unconditional prompt.
    """

    name: str = "no guard"
    family: str = "no guard"
    setting: str = ""
    meter: Meter = field(init=False, repr=False)
    sides: tuple[Tensor, ...] = field(init=False, repr=False, default=())
    cost: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def prepare(self, world: MicroWorld) -> Guard:
        """Everything done once, before the first prompt; its cost is kept."""
        began = time.process_time()
        self.meter = Meter(world)
        self.setup()
        if not self.sides:
            self.sides = (self.meter.encode([""]),)
        self.cost = {
            "seconds": time.process_time() - began,
            "evaluations": self.meter.evaluations,
            "passes": self.meter.passes,
        }
        return self

    @property
    def plain(self) -> bool:
        """Whether it acts on the conditioning alone, so that untouched prompts paint untouched pictures."""
        return False

    def setup(self) -> None:
        pass

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        return Guarded(prompts.tokens)

    def painted(self, prompts: Prompts, steps: int) -> Guarded:
        """As ``tokens``, when painting and not under attack."""
        with torch.no_grad():
            return self.tokens(prompts, steps)

    def combine(
        self, step: int, steps: int, eps: Tensor, sides: Sequence[Tensor], guidance: float, state: dict[str, Any]
    ) -> Tensor:
        """The noise that is used, of what the model says of the prompt and of the sides. ``state`` lasts a picture."""
        return sides[0] + guidance * (eps - sides[0])


def times(steps: int) -> list[int]:
    """The model's time at each step, as the world's own sampler has them."""
    return torch.linspace(TRAINED_STEPS - 1, 0, steps + 1).round().long().tolist()[:-1]


@torch.no_grad()
def paint(
    guard: Guard,
    guarded: Guarded,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    batch: int = 64,
    keep: Sequence[int] = (),
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Latents [B, 4, 8, 8] by the world's own DDIM, and for the steps in ``keep`` (x, guided noise)."""
    world, at = guard.meter.world, times(steps)
    results: list[Tensor] = []
    kept: dict[int, list[tuple[Tensor, Tensor]]] = {step: [] for step in keep}
    for start in range(0, len(seeds), batch):
        part = list(seeds[start : start + batch])
        mine = guarded.rows(slice(start, start + len(part)))
        x = world.noise(part)
        state: dict[str, Any] = {}
        for step, t in enumerate(at):
            sides = [s.expand(len(part), -1, -1) for s in guard.sides]
            asked = torch.cat([mine.at(step), *sides])
            eps, *others = guard.meter.predict(torch.cat([x] * (1 + len(sides))), t, asked).chunk(1 + len(sides))
            guided = guard.combine(step, steps, eps, others, guidance, state)
            if step in kept:
                kept[step].append((x, guided))
            a = world.alphas_cumprod[t]
            clean = (x - (1 - a).sqrt() * guided) / a.sqrt()
            after = world.alphas_cumprod[at[step + 1]] if step + 1 < steps else torch.ones_like(a)
            x = after.sqrt() * clean + (1 - after).sqrt() * guided
        results.append(x)
    states = [(torch.cat([x for x, _ in rows]), torch.cat([e for _, e in rows])) for rows in kept.values()]
    return torch.cat(results), states
