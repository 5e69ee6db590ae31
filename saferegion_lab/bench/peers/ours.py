"""Safe regions as rows of the table: compiled alone, discovered alone, both; and the paper's additive vector."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saferegion.core.conditioning import Conditioning
from saferegion.core.direction import Direction
from saferegion.core.errors import SafeRegionError
from saferegion.core.region import SafeRegion
from saferegion.guard.files import load_directions
from saferegion.guard.library import cache_folder
from saferegion.learn.compile import compile
from saferegion.learn.recipes import Concept, read_recipe

from ... import microworld
from .base import Guard, Guarded, Meter, Prompts


def recipe() -> Concept:
    return read_recipe(microworld.DATA / "fire.yaml")


class _Denoiser:
    """A world that counts, as discovery sees it."""

    latent_shape = (4, 8, 8)

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.alphas_cumprod = meter.world.alphas_cumprod

    def predict(self, x: torch.Tensor, t: torch.Tensor | int, c: Conditioning) -> torch.Tensor:
        self.meter.evaluations += len(x)
        return self.meter.world.predict(x, t, c)

    def parameters(self) -> Iterable[torch.Tensor]:
        return self.meter.world.unet.parameters()


def _digest(world: microworld.MicroWorld) -> str:
    """Of the model's weights and of the code that discovers."""
    from saferegion.discover import run

    h = hashlib.sha256()
    for p in (*world.unet.parameters(), *world.text.parameters()):
        h.update(p.detach().numpy().tobytes())
    for path in sorted(Path(run.__file__).parent.glob("*.py")):
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def learned(meter: Meter, method: str, seed: int = 0) -> Direction:
    """What discovery finds on this world; kept in the cache folder."""
    from saferegion.discover import discover, discover_vector

    world = meter.world
    kept = cache_folder() / "peers" / f"{method}-{seed}-{_digest(world)}.safetensors"
    if kept.is_file():
        return load_directions(kept)

    def encode(prompts: list[str]) -> Conditioning:
        meter.passes += len(prompts)
        return world.encode(prompts)

    if method == "vector":
        found = discover_vector(recipe(), encode, _Denoiser(meter), seed=seed, steps=410, rate=0.02, group=4)
    else:
        found = discover(recipe(), encode, _Denoiser(meter), microworld.neutral_prompts(), seed=seed)
    kept.parent.mkdir(parents=True, exist_ok=True)
    found.save(kept)
    return found


@dataclass
class Ours(Guard):
    """``how``: closed form (compiled alone), discovered (alone), or both beside each other. ``file``: the discovered
    direction from a file; without it it is learned here. ``given``: all the directions. Each acts in its own window of
    steps."""

    how: str = "closed form"
    strength: float = 1.0
    mode: str = field(init=False, repr=False, default="project")
    given: Sequence[Direction] = ()
    file: Path | None = None
    region: SafeRegion = field(init=False, repr=False)

    def setup(self) -> None:
        self.region = SafeRegion(list(self.given or self.learn()), self.strength, self.mode)

    def learn(self) -> list[Direction]:
        found = []
        if self.how != "discovered":
            world = self.meter.world

            def encode(prompts: list[str]) -> Conditioning:
                self.meter.passes += len(prompts)
                return world.encode(prompts)

            found.append(compile(recipe(), encode, microworld.neutral_prompts()))
        if self.how != "closed form":
            found.append(load_directions(self.file) if self.file else learned(self.meter, "region"))
        return found

    def _switched(self, act: Callable[[SafeRegion], torch.Tensor], tokens: torch.Tensor, steps: int) -> Guarded:
        """The tokens of the first step, and those of the first later step in which another window is open."""
        regions = [self.region.at(step / steps) for step in range(steps)]
        made = [tokens if r is None else act(r) for r in dict.fromkeys(regions)]
        if len(made) == 1:
            return Guarded(made[0])
        if len(made) > 2:
            raise SafeRegionError("The harness paints directions whose windows open or close once.")
        first = next(step for step, r in enumerate(regions) if r is not regions[0])
        return Guarded(made[0], made[1], torch.full((len(tokens),), first))

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        may = _mask(prompts.tokens)
        return self._switched(lambda r: r.project(prompts.tokens, may), prompts.tokens, steps)

    def painted(self, prompts: Prompts, steps: int) -> Guarded:
        c = Conditioning(prompts.tokens, _mask(prompts.tokens))
        with torch.no_grad():
            return self._switched(lambda r: r.apply(c)[0].tokens, prompts.tokens, steps)

    @property
    def plain(self) -> bool:
        return True


@dataclass
class PaperVector(Ours):
    """Li et al. (WWW 2025): c + beta (b x a), in the window of steps that it was learned for."""

    mode: str = field(init=False, repr=False, default="steer")

    def learn(self) -> list[Direction]:
        return [learned(self.meter, "vector")]


def _mask(tokens: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    mask[:, 0] = False
    return mask
