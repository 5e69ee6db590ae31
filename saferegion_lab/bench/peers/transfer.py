"""Directions of one checkpoint on others, and guards on top of each other (``saferegion bench peers --transfer``)."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saferegion.core.errors import SafeRegionError
from saferegion.guard.library import cache_folder

from ... import microworld
from ...microworld import MicroWorld
from ...microworld.captions import caption
from ...microworld.scenes import sample_scene
from .. import machine
from .base import Guard, Guarded, Prompts
from .measure import BENIGN, UNSAFE, Bench, axes_of, cells, row
from .ours import Ours
from .rows import FAMILIES
from .weights import cross_attentions

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Training:
    """How another checkpoint is made of the bundled one; text encoder and autoencoder stay as they are.

    ``style``: all pictures in it while the captions do not say so (None: the drawings' own styles).
    ``redrawn``: the attentions that read the text start from random weights of this seed; None: from the bundled ones.
    """

    name: str
    iterations: int
    rate: float
    style: str | None = None
    redrawn: int | None = None
    batch: int = 32
    scenes: int = 1200
    seed: int = 3


TRAININGS = (
    Training("fine-tuned on night scenes", 200, 3e-4, style="night"),
    Training("text attention trained anew from another seed", 500, 1e-3, redrawn=77),
)


def trained(world: MicroWorld, how: Training, progress: Progress | None = None) -> MicroWorld:
    """The world after training; kept in the cache folder.

    Raises:
        SafeRegionError: the drawings are not there: they come with a checkout, not with an installed package.
    """
    other = copy.copy(world)
    other._modules = dict(world._modules)
    other.unet = copy.deepcopy(world.unet)
    mark = hashlib.sha256(json.dumps(vars(how), sort_keys=True).encode())
    for p in world.unet.parameters():
        mark.update(p.numpy().tobytes())
    kept = cache_folder() / "peers" / f"world-{mark.hexdigest()[:16]}.safetensors"
    if not kept.is_file():
        _train(other, how, progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in other.unet.state_dict().items()}, str(part))
        part.replace(kept)
    other.unet.load_state_dict(load_file(str(kept)))
    other.unet.eval().requires_grad_(False)
    return other


def _train(world: MicroWorld, how: Training, progress: Progress | None) -> None:
    draw = _drawing()
    rng, generator = random.Random(how.seed), torch.Generator().manual_seed(how.seed)
    said = [sample_scene(rng) for _ in range(how.scenes)]
    shown = said if how.style is None else [replace(s, style=how.style) for s in said]
    said = said if how.style is None else [replace(s, style="plain") for s in said]
    latents = torch.cat(
        [world.encode_pictures(np.stack([draw(s, rng) for s in shown[i : i + 64]])) for i in range(0, len(shown), 64)]
    )
    if how.redrawn is not None:
        own = torch.Generator().manual_seed(how.redrawn)
        for attention in cross_attentions(world.unet):
            for layer in attention.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.data.normal_(0, layer.in_features**-0.5, generator=own)
    world.unet.requires_grad_(True)
    optimiser = torch.optim.AdamW(world.unet.parameters(), lr=how.rate, weight_decay=1e-3, betas=(0.9, 0.98))
    signal = world.alphas_cumprod
    weights = 1 / (signal + 0.05)
    weights = weights / weights.mean()
    for step in range(how.iterations):
        for group in optimiser.param_groups:
            group["lr"] = how.rate * min(1.0, (step + 1) / 30) * (1 - 0.95 * step / how.iterations)
        chosen = torch.randint(how.scenes, (how.batch,), generator=generator)
        texts = ["" if rng.random() < 0.1 else caption(said[i], rng) for i in chosen.tolist()]
        x, noise = latents[chosen], torch.randn(how.batch, *world.latent_shape, generator=generator)
        t = ((torch.rand(1, generator=generator) + torch.arange(how.batch) / how.batch) % 1 * 1000).long()
        a = signal[t][:, None, None, None]
        eps = world.predict(a.sqrt() * x + (1 - a).sqrt() * noise, t, world.encode(texts))
        loss = ((eps - noise).square().mean((1, 2, 3)) * weights[t]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(world.unet.parameters(), 1.0)
        optimiser.step()
        if progress is not None:
            progress(step + 1, how.iterations)


def _drawing() -> Callable[..., np.ndarray]:
    root = str(Path(__file__).parents[3])
    sys.path.insert(0, root)
    try:
        from tests.microworld.draw import draw
    except ImportError as error:
        raise SafeRegionError(
            "Other checkpoints are trained on the drawings in tests/microworld: run this in a checkout of the project."
        ) from error
    finally:
        sys.path.remove(root)
    return draw


@dataclass
class Stacked(Guard):
    """A safe region first, and a peer on what it leaves."""

    first: Ours = field(default_factory=Ours)
    peer: Guard = field(default_factory=Guard)

    def setup(self) -> None:
        world = self.meter.world
        self.first.prepare(world)
        self.peer.prepare(world)
        self.meter, self.sides = self.peer.meter, self.peer.sides

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        return self._on(self.peer.tokens, self.first.tokens(prompts, steps), prompts, steps)

    def painted(self, prompts: Prompts, steps: int) -> Guarded:
        return self._on(self.peer.painted, self.first.painted(prompts, steps), prompts, steps)

    def _on(self, peer: Callable[[Prompts, int], Guarded], left: Guarded, prompts: Prompts, steps: int) -> Guarded:
        """The peer on what ours leaves, in each part of the sampling in which ours leaves something else."""
        first = peer(replace(prompts, tokens=left.tokens), steps)
        if left.late is None:
            return first
        late = peer(replace(prompts, tokens=left.late), steps)
        if first.late is not None or late.late is not None:
            raise SafeRegionError("A peer with a window of its own cannot be stacked on one.")
        return Guarded(first.tokens, late.tokens, left.switch)

    def combine(
        self, step: int, steps: int, eps: Tensor, sides: Sequence[Tensor], guidance: float, state: dict[str, Any]
    ) -> Tensor:
        return self.peer.combine(step, steps, eps, sides, guidance, state)


def run(
    pictures: int = 32,
    steps: int = 15,
    guidance: float = 4.0,
    progress: Progress | None = None,
    discovered: Path | None = None,
) -> dict[str, Any]:
    """Ours on every checkpoint, with directions of the bundled one; then on top of peers, on the bundled one."""
    from . import discovers

    world = microworld.load()
    learned = {}
    for how in ("closed form", *(("discovered", "both") if discovers() else ())):
        ours = Ours(how=how, file=discovered)
        ours.prepare(world)
        learned[how] = ours.region.directions
    sets = cells(pictures)
    rows: list[dict[str, Any]] = []
    worlds = [("bundled", world), *((t.name, trained(world, t, progress)) for t in TRAININGS)]
    total = len(worlds) * (1 + len(learned)) + 2 * 4
    for name, here in worlds:
        bench = Bench(here, sets, steps, guidance)
        axes = axes_of(bench.plain[BENIGN].features)
        guards = [Guard(), *(Ours(name=f"safe region, {how}", given=d) for how, d in learned.items())]
        for guard in guards:
            rows.append({"table": "checkpoints", "world": name, **row(bench, guard.prepare(here), None, axes)})
            if progress is not None:
                progress(len(rows), total)
        if here is world:
            best = "both" if "both" in learned else "closed form"
            for one in peers():
                for guard in (
                    one,
                    Stacked(f"safe region ({best}) + {one.name}", first=Ours(given=learned[best]), peer=one),
                ):
                    made = row(bench, guard.prepare(here), None, axes)
                    rows.append({"table": "composition", "world": name, **made})
                    if progress is not None:
                        progress(len(rows), total)
    return {
        "machine": machine(),
        "pictures": pictures,
        "steps": steps,
        "guidance": guidance,
        "trainings": [vars(t) for t in TRAININGS],
        "rows": rows,
    }


def peers() -> list[Guard]:
    """What ours is put on top of: the negative prompt, SLD medium, and both peers in the weights."""
    by = {f.name: f for f in FAMILIES}
    weights = [by[n].guard("tuned" if by[n].tuned else "", by[n].tuned or {}) for n in ("UCE", "ESD-x")]
    return [by["negative prompt"].guard("", {}), by["SLD"].guard("medium", by["SLD"].published["medium"]), *weights]


def tables(result: dict[str, Any]) -> list[Table]:
    """Transfer, then composition."""
    found = []
    titles = {"checkpoints": "directions of the bundled checkpoint on others", "composition": "on top of peers"}
    for kind, title in titles.items():
        table = Table("checkpoint", "guard", *UNSAFE, "content, benign", "identical", "drift", "evaluations")
        table.title = f"{title}; share of pictures that show fire, {result['pictures']} a cell"
        for r in result["rows"]:
            if r["table"] == kind:
                table.add_row(
                    r["world"], r["guard"], *(f"{r[n][0]:.2f} [dim]{r[n][1]:.2f}-{r[n][2]:.2f}[/dim]" for n in UNSAFE),
                    f"{r['content'][0]:.2f}", f"{r['identical'][0]:.0%}", f"{r['drift'][0]:.4f}",
                    f"{r['evaluations']:g}",
                )  # fmt: skip
        found.append(table)
    return found
