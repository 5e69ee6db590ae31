"""The networks of the microworld, laid out like Stable Diffusion 1.x at small widths.

The attribute names give the key names of the original checkpoints (`model.diffusion_model.*`, `first_stage_model.*`),
so that an export is a prefix. Layout after Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t [B] at `width / 2` frequencies from 1 down to 1/10000: float32 [B, width]."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them."""

    def __init__(self, inner: int, outer: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outer))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outer), nn.SiLU(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of [B, heads, N, D]; written out on a CPU, where that is much faster for heads this narrow."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1).to(v.dtype) @ v


class CrossAttention(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context_width, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_width, heads)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        size = x.shape[-2:]
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, size))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stem(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


class UNet(nn.Module):
    """Predicts the noise in latents [B, 4, H, W] at steps t [B], conditioned on tokens [B, T, context_width].

    Attention at every level but the deepest and in the middle, as in Stable Diffusion 1.x."""

    def __init__(
        self,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        context_width: int,
        heads: int = 8,
        latent: int = 4,
    ) -> None:
        super().__init__()
        emb = 4 * width
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        deepest = len(multipliers) - 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([Stem(latent, width, 3, padding=1)])])
        skips, now = [width], width
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                layers: list[nn.Module] = [ResBlock(now, multiplier * width, emb)]
                now = multiplier * width
                if level < deepest:
                    layers.append(SpatialTransformer(now, context_width, heads))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(now)
            if level < deepest:
                self.input_blocks.append(nn.ModuleList([Downsample(now)]))
                skips.append(now)
        self.middle_block = nn.ModuleList(
            [ResBlock(now, now, emb), SpatialTransformer(now, context_width, heads), ResBlock(now, now, emb)]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(deepest, -1, -1):
            for index in range(blocks + 1):
                layers = [ResBlock(now + skips.pop(), multipliers[level] * width, emb)]
                now = multipliers[level] * width
                if level < deepest:
                    layers.append(SpatialTransformer(now, context_width, heads))
                if level and index == blocks:
                    layers.append(Upsample(now))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, latent, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.width).to(next(self.time_embed.parameters()).dtype))
        skips = []
        for layers in self.input_blocks:
            for layer in layers.children():
                x = layer(x, emb, context)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb, context)
        for layers in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in layers.children():
                x = layer(x, emb, context)
        return self.out(x)


class AutoencoderBlock(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inner, eps=1e-6)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outer, eps=1e-6)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AutoencoderAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (y.flatten(2).transpose(1, 2) for y in (self.q(h), self.k(h), self.v(h)))
        mixed = attend(q, k, v).transpose(1, 2).unflatten(2, tuple(x.shape[-2:]))
        return x + self.proj_out(mixed)


class Level(nn.Module):
    """The blocks of one resolution, with `downsample` or `upsample` behind them where there is one."""

    def __init__(self, blocks: Sequence[nn.Module], **resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        for name, module in resample.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name, module in self.named_children():
            x = x if name == "block" else module(x)
        return x


class Resample(nn.Module):
    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, padding=1) if up else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = AutoencoderBlock(width, width)
        self.attn_1 = AutoencoderAttention(width)
        self.block_2 = AutoencoderBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        now = width
        for level, multiplier in enumerate(multipliers):
            outer = width * multiplier
            layers = [AutoencoderBlock(now if i == 0 else outer, outer) for i in range(blocks)]
            now = outer
            last = level == len(multipliers) - 1
            self.down.append(Level(layers, **({} if last else {"downsample": Resample(now, up=False)})))
        self.mid = Middle(now)
        self.norm_out = nn.GroupNorm(32, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, latent: int) -> None:
        super().__init__()
        now = width * multipliers[-1]
        self.conv_in = nn.Conv2d(latent, now, 3, padding=1)
        self.mid = Middle(now)
        levels: list[Level] = []
        for level in range(len(multipliers) - 1, -1, -1):
            outer = width * multipliers[level]
            layers = [AutoencoderBlock(now if i == 0 else outer, outer) for i in range(blocks + 1)]
            now = outer
            levels.insert(0, Level(layers, **({"upsample": Resample(now, up=True)} if level else {})))
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Pictures [B, 3, 8h, 8w] in -1 to 1 to moments [B, 8, h, w] (mean, log variance) and latents [B, 4, h, w] back."""

    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, latent: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(width, multipliers, blocks, latent)
        self.decoder = Decoder(width, multipliers, blocks, latent)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def moments(self, pictures: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))
