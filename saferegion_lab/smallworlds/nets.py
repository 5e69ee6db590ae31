"""Networks of the small worlds: three text encoders and two denoisers of about half a million weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor
PAD, BEGIN, END, UNKNOWN = range(4)


class Attention(nn.Module):
    """Attention of x [B, N, D] to y [B, M, E]; ``mask`` bool [B, M]: what may be attended to."""

    def __init__(self, width: int, other: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(other, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        k, v = self.kv(y).chunk(2, dim=-1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (self.q(x), k, v))
        far = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            far = far.masked_fill(~mask[:, None, None], -math.inf)
        return self.out((far.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    def __init__(self, width: int, times: int = 3) -> None:
        super().__init__(nn.Linear(width, times * width), nn.GELU(), nn.Linear(times * width, width))


class Encoder(nn.Module):
    """Ids [B, L] to tokens [B, L, D]: ``bidirectional`` transformer, ``recurrent`` (causal), or a ``bag`` in which no
    token knows another."""

    def __init__(self, kind: str, words: int, length: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.words, self.at = nn.Embedding(words, width), nn.Parameter(0.1 * torch.randn(length, width))
        if kind == "bidirectional":
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
            self.attend = nn.ModuleList(Attention(width, width) for _ in range(2))
            self.mix = nn.ModuleList(Mlp(width) for _ in range(2))
        elif kind == "recurrent":
            self.past = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if self.kind == "recurrent":
            return self.norm(x + self.past(x)[0])
        x = x + self.at
        if self.kind == "bidirectional":
            for i in range(2):
                h = self.norms[2 * i](x)
                x = x + self.attend[i](h, h)
                x = x + self.mix[i](self.norms[2 * i + 1](x))
        return self.norm(x)


def level_features(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of the noise level t [B] in 0 to 1: [B, width]."""
    rates = torch.exp(torch.linspace(0, math.log(200.0), width // 2, device=t.device))
    angles = t.float()[:, None] * rates * math.pi
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Patches(nn.Module):
    """A transformer on a 4x4 grid of patches, its layers modulated by the noise level (Peebles and Xie, DiT)."""

    def __init__(self, side: int, channels: int, context: int, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.patch = side // 4
        self.width = width
        inner = channels * self.patch**2
        self.inward, self.outward = nn.Linear(inner, width), nn.Linear(width, inner)
        self.at = nn.Parameter(0.1 * torch.randn(16, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulate = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(depth))
        self.own = nn.ModuleList(Attention(width, width) for _ in range(depth))
        self.cross = nn.ModuleList(Attention(width, context) for _ in range(depth))
        self.mix = nn.ModuleList(Mlp(width) for _ in range(depth))
        for layer in (*self.modulate, self.outward):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        n = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        h, time = self.inward(n) + self.at, self.time(level_features(t, self.width))
        for modulate, own, cross, mix in zip(self.modulate, self.own, self.cross, self.mix, strict=True):
            a, b, c, d, e, g = modulate(time).unsqueeze(1).chunk(6, dim=-1)
            y = F.layer_norm(h, h.shape[-1:]) * (1 + a) + b
            h = h + (1 + c) * own(y, y)
            h = h + cross(F.layer_norm(h, h.shape[-1:]), context, mask)
            h = h + (1 + g) * mix(F.layer_norm(h, h.shape[-1:]) * (1 + d) + e)
        out = self.outward(F.layer_norm(h, h.shape[-1:])).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, (4, 4)), self.patch)


class Block(nn.Module):
    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)])
        self.time = nn.Linear(time, outer)
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.one(F.silu(self.norms[0](x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.two(F.silu(self.norms[1](h)))


class Unet(nn.Module):
    """Convolutions at two resolutions, attention to the words at the lower one."""

    def __init__(self, side: int, channels: int, context: int, width: int = 32, deep: int = 64) -> None:
        super().__init__()
        self.width = deep
        self.time = nn.Sequential(nn.Linear(deep, deep), nn.SiLU(), nn.Linear(deep, deep), nn.SiLU())
        self.stem, self.down = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, deep, 2, stride=2)
        self.blocks = nn.ModuleList(
            Block(*sizes, deep)
            for sizes in ((width, width), (deep, deep), (deep, deep), (deep, deep), (2 * width, width), (width, width))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(deep) for _ in range(4))
        self.own = nn.ModuleList(Attention(deep, deep) for _ in range(2))
        self.cross = nn.ModuleList(Attention(deep, context) for _ in range(2))
        self.up = nn.ConvTranspose2d(deep, width, 2, stride=2)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def _attend(self, i: int, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        y = self.norms[2 * i](h)
        h = h + self.own[i](y, y)
        h = h + self.cross[i](self.norms[2 * i + 1](h), context, mask)
        return h.transpose(1, 2).unflatten(2, x.shape[-2:])

    def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        time = self.time(level_features(t, self.width))
        wide = self.blocks[0](self.stem(x), time)
        h = self._attend(0, self.blocks[1](self.down(wide), time), context, mask)
        h = self.blocks[3](self._attend(1, self.blocks[2](h, time), context, mask), time)
        h = self.blocks[4](torch.cat([wide, self.up(h)], dim=1), time)
        return self.out(self.blocks[5](h, time))
