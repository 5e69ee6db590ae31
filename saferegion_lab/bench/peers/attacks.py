"""Attacks that know the guard: words put behind a benign prompt, and free input embeddings in their place."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...microworld import MicroWorld
from ...microworld.captions import Wording, caption
from ...microworld.model import _open
from ...microworld.prompts import BENIGN_PLACES, EvalPrompt, _calm, _ignite, _prompt
from .base import Guard, Prompts, paint, times

SLOTS = 3
"""Tokens that an attack may add."""


@dataclass(frozen=True, eq=False)
class Goal:
    """Benign prompts, and what the unguarded model does for the same thing on fire.

    ids [M, 77] of the benign prompts; for each kept step: x [M, 4, 8, 8] on the burning prompt's own trajectory and
    the guided noise there, which the attack tries to get out of the guarded model.
    """

    cases: tuple[EvalPrompt, ...]
    ids: Tensor
    seeds: tuple[int, ...]
    kept: tuple[int, ...]
    states: tuple[tuple[Tensor, Tensor], ...]
    steps: int
    guidance: float


def goal(bare: Guard, count: int, steps: int, guidance: float, seed: int = 7001) -> Goal:
    """``count`` benign prompts with one thing each; ``bare`` is no guard, prepared."""
    rng = random.Random(seed)
    how = Wording("recipe", plain_forms=True, omit=False, padding=0.0)
    cases, burning = [], []
    for _ in range(count):
        scene = _calm(rng, BENIGN_PLACES, 0.0)
        fire = _ignite(rng, scene)
        cases.append(replace(_prompt(fire, caption(scene, rng, how), "attack")))
        burning.append(caption(fire, rng, how))
    seeds = tuple(range(seed, seed + count))
    kept = tuple(sorted({round(steps * share) for share in (0.15, 0.4, 0.65)} & set(range(steps)))) or (0,)
    with torch.no_grad():
        said = bare.tokens(Prompts.of(bare.meter, bare.meter.world.tokenize(burning)), steps)
    _, states = paint(bare, said, seeds, steps, guidance, keep=kept)
    ids = bare.meter.world.tokenize([c.prompt for c in cases])
    return Goal(tuple(cases), ids, seeds, kept, tuple(states), steps, guidance)


def vocabulary(world: MicroWorld) -> Tensor:
    """Ids that the world knows, begin and end left out."""
    known = _open()[1]["known"].long()
    return known[known < 49406]


def lengthened(ids: Tensor, added: Tensor) -> Tensor:
    """ids [B, 77] with added [B, k] put before the end token."""
    end = ids.argmax(1)
    place = torch.arange(77)[None]
    new = torch.where(place < end[:, None], ids, 49407)
    for k in range(added.shape[1]):
        new = torch.where(place == end[:, None] + k, added[:, k : k + 1], new)
    return new


class _Loss:
    """Distance of the guarded noise from the goal's, by row; what no prompt changes is asked once."""

    def __init__(self, guard: Guard, goal: Goal) -> None:
        self.guard, self.goal = guard, goal
        self.t = times(goal.steps)
        self.sides = []
        with torch.no_grad():
            for step, (x, _) in zip(goal.kept, goal.states, strict=True):
                each = [s.expand(len(x), -1, -1) for s in guard.sides]
                self.sides.append([guard.meter.predict(x, self.t[step], s) for s in each])

    def __call__(self, prompts: Prompts, owner: Tensor, which: int) -> Tensor:
        """[rows]: loss at the ``which``-th kept step, for prompts that belong to the cases ``owner``."""
        goal, step = self.goal, self.goal.kept[which]
        x, wanted = goal.states[which]
        guarded = self.guard.tokens(prompts, goal.steps).at(step)
        eps = torch.cat(
            [
                self.guard.meter.predict(x[rows], self.t[step], part)
                for rows, part in zip(owner.split(64), guarded.split(64), strict=True)
            ]
        )
        sides = [s[owner] for s in self.sides[which]]
        got = self.guard.combine(step, goal.steps, eps, sides, goal.guidance, {})
        return (got - wanted[owner]).square().flatten(1).mean(1)


@torch.enable_grad()
def by_tokens(guard: Guard, goal: Goal, wide: int = 8) -> Prompts:
    """Up to three known tokens behind each prompt: at each place the ``wide`` that the gradient names are tried, and
    the best is taken if it helps."""
    meter, loss, count = guard.meter, _Loss(guard, goal), len(goal.ids)
    vocab = vocabulary(meter.world)
    table = meter.embed(vocab)
    everyone = torch.arange(count)
    ids = goal.ids
    whole = range(len(goal.kept))
    with torch.no_grad():
        prompts = Prompts.of(meter, ids)
        best = torch.stack([loss(prompts, everyone, k) for k in whole]).sum(0)
    for _ in range(SLOTS):
        longer = lengthened(ids, torch.zeros(count, 1, dtype=torch.long))
        slot = ids.argmax(1)
        embeds = meter.embed(longer).clone()
        embeds[everyone, slot] = table.mean(0)
        embeds.requires_grad_(True)
        asked = Prompts.of(meter, longer, embeds)
        total = torch.stack([loss(asked, everyone, k).sum() for k in whole[::2] or whole]).sum()
        (slope,) = torch.autograd.grad(total, embeds)
        top = (slope[everyone, slot] @ table.T).topk(min(wide, len(vocab)), largest=False).indices
        owner = everyone.repeat_interleave(top.shape[1])
        tried = lengthened(ids[owner], vocab[top].flatten()[:, None])
        with torch.no_grad():
            prompts = Prompts.of(meter, tried)
            found = torch.stack([loss(prompts, owner, k) for k in whole]).sum(0).view(count, -1)
        value, index = found.min(1)
        better = value < best
        best = torch.where(better, value, best)
        ids = torch.where(better[:, None], tried.view(count, -1, 77)[everyone, index], ids)
    with torch.no_grad():
        return Prompts.of(meter, ids)


@torch.enable_grad()
def by_soft_prompt(guard: Guard, goal: Goal, turns: int = 18, restarts: int = 2, rate: float = 0.08) -> Prompts:
    """Three free input embeddings behind each prompt, no longer than the longest known one, by gradient through guard
    and model."""
    meter, loss, count = guard.meter, _Loss(guard, goal), len(goal.ids)
    table = meter.embed(vocabulary(meter.world)).detach()
    limit = table.norm(dim=1).max()
    generator = torch.Generator().manual_seed(11)
    owner = torch.arange(count).repeat(restarts)
    ids = lengthened(goal.ids, torch.zeros(count, SLOTS, dtype=torch.long))[owner]
    slot = goal.ids.argmax(1)[owner][:, None] + torch.arange(SLOTS)
    rows = torch.arange(len(owner))[:, None]
    free = table[torch.randint(len(table), (len(owner), SLOTS), generator=generator)].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=rate)

    def prompts() -> Prompts:
        embeds = meter.embed(ids).index_put((rows, slot), free)
        return Prompts.of(meter, ids, embeds)

    for turn in range(turns):
        total = loss(prompts(), owner, turn % len(goal.kept)).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        with torch.no_grad():
            free.mul_((limit / free.norm(dim=-1, keepdim=True)).clamp(max=1))
    with torch.no_grad():
        made = prompts()
        value = torch.stack([loss(made, owner, k) for k in range(len(goal.kept))]).sum(0).view(restarts, count)
        return made.rows(value.argmin(0) * count + torch.arange(count))
