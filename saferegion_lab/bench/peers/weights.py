"""Guards in the weights: a closed-form edit of the cross-attention (UCE), and a fine-tuned one (ESD-x)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...microworld import neutral_prompts
from ...microworld.nets import CrossAttention
from .base import PHRASES, WORDS, Guard, Meter, times


def cross_attentions(unet: nn.Module) -> list[CrossAttention]:
    """The attentions that read the text."""
    return [a for m in unet.modules() if isinstance(a := getattr(m, "attn2", None), CrossAttention)]


@dataclass
class Edited(Guard):
    """Base: a copy of the UNet with other weights; text encoder, autoencoder and judge stay shared."""

    def own(self) -> nn.Module:
        """Puts a world with its own UNet in place and returns that UNet."""
        shared = self.meter.world
        world = copy.copy(shared)
        world._modules = dict(shared._modules)
        world.unet = copy.deepcopy(shared.unet)
        counted = self.meter
        self.meter = Meter(world)
        self.meter.evaluations, self.meter.passes = counted.evaluations, counted.passes
        return world.unet


@dataclass
class UCE(Edited):
    """Gandikota et al., "Unified Concept Editing" (WACV 2024): keys and values of the concept's words become those of
    the empty prompt at the same positions, in closed form; ``lam`` holds the old weights, ``keep`` those on neutral
    prompts (share of the concept's weight; none as published)."""

    lam: float = 0.1
    erase: float = 1.0
    keep: float = 0.0

    def setup(self) -> None:
        if self.erase == 0:
            return
        unet = self.own()
        ids = self.meter.world.tokenize(PHRASES)
        with torch.no_grad():
            said = self.meter.read(ids)
        target = self.meter.encode([""])[0]
        old = torch.cat([row[end - 1 :] for row, end in zip(said, ids.argmax(1), strict=True)]).double()
        new = torch.cat([target[end - 1 :] for end in ids.argmax(1)]).double()
        kept = torch.zeros(0, old.shape[1], dtype=torch.float64)
        if self.keep:
            kept = self.meter.encode(list(neutral_prompts())[:200])[:, 1:].flatten(0, 1).double()
        weight = self.keep * len(old) / max(1, len(kept))
        held = self.lam * torch.eye(old.shape[1], dtype=torch.float64) + weight * kept.T @ kept
        there = held + self.erase * old.T @ old
        into = held + self.erase * new.T @ old
        change = into @ torch.linalg.inv(there)
        for attention in cross_attentions(unet):
            for layer in (attention.to_k, attention.to_v):
                layer.weight.data = (layer.weight.double() @ change).float()


@dataclass
class ESD(Edited):
    """Gandikota et al., "Erasing Concepts from Diffusion Models" (ICCV 2023), ESD-x: the cross-attention is fine-tuned
    so that the concept's words mean their negative, eps_0 - eta (eps_concept - eps_0),
    at states of its own sampling."""

    rate: float = 5e-5
    iterations: int = 200
    eta: float = 2.0
    batch: int = 1
    seed: int = 0
    guidance: float = 3.0
    losses: list[float] = field(init=False, repr=False, default_factory=list)

    def setup(self) -> None:
        if self.iterations == 0:
            return
        frozen = Meter(self.meter.world)
        unet = self.own()
        layers = nn.ModuleList(cross_attentions(unet))
        parameters = list(layers.requires_grad_(True).parameters())
        optimiser = torch.optim.Adam(parameters, lr=self.rate)
        concepts = self.meter.encode([", ".join(WORDS), *WORDS])
        empty = self.meter.encode([""])
        at = times(15)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.iterations):
            stop = int(torch.randint(15, (1,), generator=generator))
            chosen = torch.randint(len(concepts), (self.batch,), generator=generator)
            x = torch.randn(self.batch, 4, 8, 8, generator=generator)
            with torch.no_grad():
                x = self._denoise(x, concepts[chosen], empty, at, stop)
                both = torch.cat([concepts[chosen], empty.expand(self.batch, -1, -1)])
                said, none = frozen.predict(torch.cat([x, x]), at[stop], both).chunk(2)
            loss = (self.meter.predict(x, at[stop], concepts[chosen]) - (none - self.eta * (said - none))).square()
            optimiser.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimiser.step()
            self.losses.append(float(loss.detach().mean()))
        layers.requires_grad_(False)
        self.meter.evaluations += frozen.evaluations

    def _denoise(self, x: Tensor, tokens: Tensor, empty: Tensor, at: list[int], stop: int) -> Tensor:
        signal = self.meter.world.alphas_cumprod
        both = torch.cat([tokens, empty.expand(len(x), -1, -1)])
        for step in range(stop):
            said, none = self.meter.predict(torch.cat([x, x]), at[step], both).chunk(2)
            eps = none + self.guidance * (said - none)
            a, after = signal[at[step]], signal[at[step + 1]]
            x = after.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - after).sqrt() * eps
        return x
