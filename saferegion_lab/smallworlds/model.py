"""A small text-to-image model: trained from scratch by one command, kept in the cache folder, the same each time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saferegion.core.conditioning import Conditioning

from .nets import BEGIN, END, PAD, UNKNOWN, Encoder, Patches, Unet
from .scenes import SPECS, Painter, Scene, Spec, sample

Tensor = torch.Tensor
LEVELS = 1000
BATCH = 48
RATE = 2e-3
UNSAID = 0.12
"""Share of training prompts that are replaced by the empty prompt."""


def cache_folder() -> Path:
    """Where trained weights are kept: ``SAFE_REGION_CACHE``, or ``~/.cache/saferegion``, and there ``smallworlds``."""
    return Path(os.environ.get("SAFE_REGION_CACHE") or Path.home() / ".cache" / "saferegion") / "smallworlds"


def schedule(kind: str) -> Tensor:
    """ᾱ, float64 [1000]: ``linear`` betas (Ho et al.), ``cosine`` (Nichol and Dhariwal), or of a straight ``flow``."""
    if kind == "linear":
        return torch.cumprod(1 - torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64), 0)
    share = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    if kind == "cosine":
        return torch.cos((share + 0.008) / 1.008 * torch.pi / 2).square().clamp(1e-4, 0.9999)
    return (1 - share).square() / ((1 - share).square() + share.square())


class SmallWorld(nn.Module):
    """Text encoder and denoiser of a :class:`Spec`; a ``Denoiser`` as :func:`saferegion.discover` takes it.

    ``latent_shape`` (C, S, S); ``alphas_cumprod`` float32 [1000] of the equivalent variance-preserving process.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.painter = spec, Painter(spec)
        self.latent_shape = (spec.channels, spec.side, spec.side)
        self.text = Encoder(spec.encoder, len(spec.vocabulary), spec.length, spec.width)
        self.net = (Unet if spec.net == "unet" else Patches)(spec.side, spec.channels, spec.width)
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", schedule(spec.schedule).float(), persistent=False)
        self._ids = {word: i for i, word in enumerate(spec.vocabulary)}

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Ids int64 [B, L]: begin, the words, end, padding."""
        rows = []
        for prompt in prompts:
            words = [self._ids.get(w, UNKNOWN) for w in prompt.lower().replace(",", " ").split()]
            row = [BEGIN, *words[: self.spec.length - 2], END]
            rows.append(row + [PAD] * (self.spec.length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.spec.length)

    def mask(self, ids: Tensor) -> Tensor:
        """Bool [B, L], the tokens that may move: all but the begin token; of a bag, no padding either, which its
        denoiser does not attend to."""
        mask = torch.ones_like(ids, dtype=torch.bool) if self.spec.encoder != "bag" else ids != PAD
        return mask & (torch.arange(ids.shape[1]) > 0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Tokens float32 [B, L, D] with their mask."""
        ids = self.tokenize(prompts)
        device = self.alphas_cumprod.device
        return Conditioning(self.text(ids.to(device)), self.mask(ids).to(device))

    def eps(self, x_t: Tensor, t: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The noise in x_t at steps t [B]; what the network predicts, brought to it by a change of variables."""
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        signal, noise = a.sqrt(), (1 - a).sqrt()
        where = (t + 0.5) / LEVELS
        seen = mask if self.spec.encoder == "bag" else None
        if self.spec.prediction == "flow":  # x_s = (1 − s) x₀ + s n and u = n − x₀, so n = x_s + (1 − s) u
            x_s = x_t / (signal + noise)
            return x_s + signal / (signal + noise) * self.net(x_s, where, tokens, seen)
        out = self.net(x_t, where, tokens, seen)
        return out if self.spec.prediction == "eps" else signal * out + noise * x_t

    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The noise in x_t [B, C, S, S] at steps t (int or [B]); differentiable in the conditioning."""
        steps = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        mask = getattr(conditioning, "mask", getattr(conditioning, "movable", None))
        tokens = conditioning.tokens.expand(len(x_t), -1, -1)
        return self.eps(x_t, steps, tokens, None if mask is None else mask.expand(len(x_t), -1)).to(x_t.dtype)

    def noise(self, seeds: Iterable[int]) -> Tensor:
        """Standard normal latents [B, C, S, S], each from its own seed."""
        return torch.stack([torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    @torch.no_grad()
    def sample(
        self, conditioning: Conditioning, seeds: Sequence[int], steps: int = 15, guidance: float = 3.0,
        late: Conditioning | None = None, window: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """Latents by deterministic DDIM with guidance; ``late`` is the conditioning behind the share ``window``."""
        x, empty = self.noise(seeds), self.encode([""])
        times = torch.linspace(LEVELS - 1, 0, steps + 1).round().long().tolist()
        for index, t in enumerate(times[:-1]):
            c = conditioning if late is None or index < window * steps else late
            without = self.predict(x, t, empty)
            eps = without + guidance * (self.predict(x, t, c) - without)
            a = float(self.alphas_cumprod[t])
            after = float(self.alphas_cumprod[times[index + 1]]) if index + 2 < len(times) else 1.0
            x = after**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - after) ** 0.5 * eps
        return x

    def judge(self, latents: Tensor) -> list[Scene]:
        """What each latent shows."""
        return self.painter.judge(latents)


def weights(spec: Spec) -> Path:
    """The file of a world's weights in the cache folder."""
    return cache_folder() / f"{spec.name}-{spec.seed}-{spec.steps}.safetensors"


def train(name: str, told: Callable[[int, float, float], None] | None = None) -> Path:
    """Train a world from its seed and keep its weights (exponential mean); ``told(step, loss, seconds)``."""
    spec = SPECS[name]
    torch.manual_seed(spec.seed)
    world, draw, words = SmallWorld(spec), torch.Generator().manual_seed(spec.seed), random.Random(spec.seed)
    mean = {k: v.detach().clone() for k, v in world.state_dict().items()}
    optimiser = torch.optim.AdamW(world.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=spec.steps, pct_start=0.05)
    start = time.monotonic()
    for step in range(spec.steps):
        said, scenes = zip(*(sample(spec, words) for _ in range(BATCH)), strict=True)
        texts = ["" if words.random() < UNSAID else s.prompt for s in said]
        x, ids = world.painter.paint(scenes, draw), world.tokenize(texts)
        t = torch.randint(LEVELS, (BATCH,), generator=draw)
        n, a = torch.randn(x.shape, generator=draw), world.alphas_cumprod[t].view(-1, 1, 1, 1)
        tokens = world.text(ids)
        got = world.eps(a.sqrt() * x + (1 - a).sqrt() * n, t, tokens, world.mask(ids))
        loss = ((got - n).square() * _weight(spec, a)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(world.parameters(), 1.0)
        optimiser.step()
        rate.step()
        with torch.no_grad():
            keep = min(0.998, (1 + step) / (10 + step))
            for k, v in world.state_dict().items():
                mean[k].lerp_(v, 1 - keep) if v.is_floating_point() else mean[k].copy_(v)
        if told is not None and (step + 1) % 100 == 0:
            told(step + 1, float(loss), time.monotonic() - start)
    path = weights(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({k: v.contiguous() for k, v in mean.items()}, str(part))
    os.replace(part, path)
    return path


def _weight(spec: Spec, a: Tensor) -> Tensor:
    """What turns the squared error of ε into that of what the network predicts."""
    if spec.prediction == "v":
        return 1 / a
    return torch.ones_like(a) if spec.prediction == "eps" else ((a.sqrt() + (1 - a).sqrt()) / a.sqrt()).square()


def load(name: str) -> SmallWorld:
    """The trained world, frozen.

    Raises:
        OSError: it was not trained yet.
    """
    if name not in SPECS:
        raise OSError(f"There is no small world {name!r}: {', '.join(SPECS)} are.")
    path = weights(SPECS[name])
    if not path.is_file():
        raise OSError(f"'{name}' is not trained yet: python -m saferegion_lab.smallworlds train {name}")
    world = SmallWorld(SPECS[name])
    world.load_state_dict(load_file(str(path)), strict=False)
    return world.eval().requires_grad_(False)
