"""The frozen diffusion model: asked in batches, counted, checked; and how it paints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from ..core.conditioning import Conditioning
from ..core.errors import DiscoverError
from .settings import DiscoverySettings

Tensor = torch.Tensor
Encode = Callable[[list[str]], Conditioning]
Watch = Callable[[int, Tensor, Tensor, Tensor], None]
"""(number of the step, x_t, ε without and with the prompt), each [B, C, H, W]."""


class Denoiser(Protocol):
    """What discovery needs of a diffusion model; nothing of a host.

    ``latent_shape`` (C, H, W) of one picture; ``alphas_cumprod`` [num_train_timesteps] float, the trained schedule.
    ``predict`` takes x_t [B, C, H, W] float32, t (int or int64 [B]) and a conditioning of B rows, and returns the noise
    [B, C, H, W], differentiable in the conditioning. ``parameters`` are frozen while discovering.
    """

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def alphas_cumprod(self) -> Tensor: ...
    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor: ...
    def parameters(self) -> Iterable[Tensor]: ...


class Model:
    """A denoiser and a text encoder, as discovery asks them."""

    def __init__(self, denoiser: Denoiser, encode: Encode, settings: DiscoverySettings, total: int) -> None:
        self.denoiser, self.encode, self.settings, self.total = denoiser, encode, settings, total
        self.batch_size, self.done = settings.batch_size, 0
        self.signal = denoiser.alphas_cumprod.detach().double().cpu()
        self.device = next((p.device for p in denoiser.parameters()), denoiser.alphas_cumprod.device)
        self.shape = tuple(denoiser.latent_shape)
        self.times = self.schedule(settings.sampling_steps)

    def schedule(self, steps: int) -> list[int]:
        """Trained steps at which ``steps`` sampling steps ask the model, from noise down."""
        times: list[int] = torch.linspace(len(self.signal) - 1, 0, steps + 1).round().long().tolist()
        return times[:-1]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradients for the weights meanwhile."""
        parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        try:
            for p in parameters:
                p.requires_grad_(False)
            yield
        finally:
            for p in parameters:
                p.requires_grad_(True)

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts' conditioning, floating."""
        with torch.no_grad():
            return self.encode(list(prompts))

    def noise(self, count: int, *words: object) -> Tensor:
        """Standard normal [count, C, H, W] on the device, each row from ``words``, the seed and its number alone."""
        rows = []
        for i in range(count):
            told = hashlib.sha256(repr((self.settings.seed, *words, i)).encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))
            rows.append(torch.randn(self.shape, generator=draw))
        return torch.stack(rows).to(self.device)

    def predict(self, x: Tensor, t: int, c: Conditioning) -> Tensor:
        """Noise in ``x`` [B, C, H, W] float32; ``c`` has B rows or one. Finite, or DiscoverError. Without gradients it
        is asked in batches, which are halved where memory runs out."""
        if torch.is_grad_enabled():
            rows = [self._pass(x, t, c.expand(len(x)) if len(c.tokens) == 1 else c)]
        else:
            rows = self._batches(x, t, c.expand(len(x)) if len(c.tokens) == 1 else c)
        self.done += len(x)
        self.report()
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _batches(self, x: Tensor, t: int, c: Conditioning) -> list[Tensor]:
        rows, at = [], 0
        while at < len(x):
            part = slice(at, at + self.batch_size)
            try:
                rows.append(self._pass(x[part], t, c[part]))
            except torch.cuda.OutOfMemoryError:
                self.halve()
                continue
            at += len(rows[-1])
        return rows

    def halve(self) -> None:
        """Ask for half as many rows a pass from now on.

        Raises:
            DiscoverError: it is one row already.
        """
        if self.batch_size == 1:
            raise DiscoverError("The device ran out of memory at one picture a pass; free some first.") from None
        self.batch_size //= 2

    def _pass(self, x: Tensor, t: int, c: Conditioning) -> Tensor:
        def once(tokens: Tensor, pooled: Tensor | None) -> Tensor:
            kind = self.settings.autocast
            with torch.autocast(x.device.type, kind or torch.bfloat16, enabled=kind is not None):
                return self.denoiser.predict(x, t, c.replace(tokens, pooled)).float()

        if self.settings.recompute and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            eps = checkpoint(once, c.tokens, c.pooled, use_reentrant=False)
        else:
            eps = once(c.tokens, c.pooled)
        if eps.shape != x.shape:
            raise DiscoverError(f"The denoiser returned {list(eps.shape)} for latents {list(x.shape)}.")
        if not bool(torch.isfinite(eps.detach()).all()):
            raise DiscoverError(f"The denoiser returned NaN or infinite values at step {t}; load a working model.")
        return eps  # type: ignore[no-any-return]

    def report(self) -> None:
        """Tell how far it is; where a host stops the work, this raises."""
        if self.settings.progress is not None:
            self.settings.progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Tell that it is done."""
        if self.settings.progress is not None:
            self.settings.progress(self.done, self.done)

    def step(self, number: int, x: Tensor, eps: Tensor) -> Tensor:
        """The state after step ``number`` of deterministic DDIM (Song et al. 2021)."""
        now = float(self.signal[self.times[number]])
        after = float(self.signal[self.times[number + 1]]) if number + 1 < len(self.times) else 1.0
        clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(after) * clean + math.sqrt(1 - after) * eps

    def noise_in(self, x: Tensor, clean: Tensor, number: int) -> Tensor:
        """The noise in the state ``x`` of step ``number`` beside the picture ``clean`` that came out, [B, C, H, W]."""
        signal = float(self.signal[self.times[number]])
        return (x - math.sqrt(signal) * clean) / math.sqrt(1 - signal)

    def acts(self, number: int) -> bool:
        """Whether step ``number`` of the sampling lies in the window."""
        start, end = self.settings.window
        return start <= number / len(self.times) < end

    @torch.no_grad()
    def paint(
        self, c: Conditioning, x: Tensor, watch: Watch | None = None, plain: Conditioning | None = None
    ) -> Tensor:
        """Latents of ``c`` [B rows] from the noise ``x`` by DDIM with classifier-free guidance. ``plain``: what is
        painted outside the window. ``watch`` sees every step."""
        empty = self.conditioning([""])
        for number, t in enumerate(self.times):
            without = self.predict(x, t, empty)
            given = self.predict(x, t, c if plain is None or self.acts(number) else plain)
            if watch is not None:
                watch(number, x, without, given)
            x = self.step(number, x, without + self.settings.guidance * (given - without))
        return x
