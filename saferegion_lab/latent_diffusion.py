"""What the worlds with an autoencoder share: schedule, noise, sampling, and pictures to latents and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from saferegion.core.conditioning import Conditioning

from .microworld.nets import Autoencoder, UNet

TRAINED_STEPS = 1000

EpsHook = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(t, x_t, eps given the prompt, eps given the unconditional prompt) -> the eps to use."""


def alphas_cumprod(steps: int = TRAINED_STEPS) -> Tensor:
    """Share of signal power at each step, float32 [steps]: the scaled linear schedule of Stable Diffusion 1.x."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


def to_unit(pictures: np.ndarray, side: int) -> Tensor:
    """Pictures uint8 [B, side, side, 3] as float32 [B, 3, side, side] in -1 to 1. Raises ValueError for others."""
    if pictures.ndim != 4 or pictures.shape[1:] != (side, side, 3) or pictures.dtype != np.uint8:
        raise ValueError(f"Pictures must be uint8 [B, {side}, {side}, 3]; got {pictures.dtype} {list(pictures.shape)}.")
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class LatentDiffusion(nn.Module):
    """A UNet on the latents of an autoencoder; ``encode`` and ``predict`` are a world's own.

    Latents have the shape (C, h, w) of ``latent_shape`` and are those of the autoencoder times ``latent_scale``;
    pictures are ``side`` x ``side``.
    """

    latent_shape: tuple[int, int, int]
    side: int
    latent_scale: float
    unet: UNet
    autoencoder: Autoencoder
    alphas_cumprod: Tensor

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The noise in x_t [B, C, h, w] at steps t (int or [B])."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents float32 [B, C, h, w]; each picture's noise depends on its own seed alone."""
        rows = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(rows).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        uncond: Conditioning | None = None,
        *,
        seeds: Sequence[int],
        steps: int = 15,
        guidance: float = 4.0,
        progress: Callable[[int, int], None] | None = None,
        eps_hook: EpsHook | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Latents float32 [B, C, h, w] of the conditioning (one row, or one a seed) by deterministic DDIM.

        `uncond` (default: the empty prompt) is what classifier-free guidance steers away from; `eps_hook` may replace
        the guided noise; `progress` hears (steps done, steps in all). `batch` bounds the memory and the picture does
        not depend on it beyond rounding.
        """
        seeds = list(seeds)
        if len(conditioning.tokens) not in (1, len(seeds)):
            raise ValueError(
                f"{len(conditioning.tokens)} conditionings and {len(seeds)} seeds: give one seed to each conditioning."
            )
        if not 1 <= steps <= TRAINED_STEPS:
            raise ValueError(f"steps must be 1 to {TRAINED_STEPS}; got {steps}.")
        empty = uncond if uncond is not None else self.encode([""])
        times = torch.linspace(TRAINED_STEPS - 1, 0, steps + 1).round().long().tolist()[:-1]
        if len(empty.tokens) not in (1, len(seeds)):
            raise ValueError("uncond must have one row, or one for each seed.")
        results = []
        parts = range(0, len(seeds), batch)
        for number, at in enumerate(parts):
            part = seeds[at : at + batch]
            x = self.noise(part)
            positive = _rows(conditioning.tokens, at, len(part))
            negative = _rows(empty.tokens, at, len(part))
            both = Conditioning(torch.cat([positive, negative.to(positive)]))
            for index, t in enumerate(times):
                eps, eps_empty = self.predict(torch.cat([x, x]), t, both).chunk(2)
                if eps_hook is None:
                    guided = eps_empty + guidance * (eps - eps_empty)
                else:
                    guided = eps_hook(t, x, eps, eps_empty)
                a = self.alphas_cumprod[t]
                clean = (x - (1 - a).sqrt() * guided) / a.sqrt()
                after = self.alphas_cumprod[times[index + 1]] if index + 1 < steps else torch.ones_like(a)
                x = after.sqrt() * clean + (1 - after).sqrt() * guided
                if progress is not None:
                    progress(number * steps + index + 1, len(parts) * steps)
            results.append(x)
        return torch.cat(results) if results else torch.zeros(0, *self.latent_shape, device=self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures of latents [B, C, h, w]: uint8 [B, side, side, 3]."""
        rows = [
            self.autoencoder.decode(part.to(self.dtype) / self.latent_scale).float().cpu() for part in latents.split(64)
        ]
        pictures = torch.cat(rows) if rows else torch.zeros(0, 3, self.side, self.side)
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> Tensor:
        """Latents float32 [B, C, h, w] of pictures uint8 [B, side, side, 3] (the mean of the autoencoder's moments)."""
        x = to_unit(pictures, self.side)
        rows = [
            self.autoencoder.moments(p.to(self.device, self.dtype))[:, : self.latent_shape[0]].float()
            for p in x.split(64)
        ]
        return torch.cat(rows) * self.latent_scale if rows else torch.zeros(0, *self.latent_shape, device=self.device)


def _rows(tokens: Tensor, at: int, count: int) -> Tensor:
    return tokens.expand(count, -1, -1) if len(tokens) == 1 else tokens[at : at + count]
