"""Trains the autoencoder on fresh drawings; latents times 0.18215 have mean 0 and unit covariance."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saferegion_lab.microworld.nets import Autoencoder
from saferegion_lab.microworld.scenes import Scene, sample_scene
from tests.microworld.draw import draw

SCALE = 0.18215
SIZES = {"width": 64, "multipliers": [1, 1, 1, 1], "blocks": 0}


def drawings(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 64, 64, 3]"""
    rng = random.Random(seed)
    return np.stack([draw(sample_scene(rng), rng) for _ in range(count)])


def emphasis(count: int, seed: int) -> np.ndarray:
    """Where the drawings of the same count and seed differ from their empty place: bool [count, 64, 64]."""
    rng = random.Random(seed)
    masks = []
    for _ in range(count):
        scene = sample_scene(rng)
        state = rng.getstate()
        empty = draw(Scene(scene.place, scene.style, scene.weather), rng)
        rng.setstate(state)
        full = draw(scene, rng)
        masks.append(np.abs(full.astype(int) - empty).max(-1) > 12)
    return np.stack(masks)


def to_unit(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1 to 1"""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def fold(model: Autoencoder, pictures: Tensor) -> None:
    """Whitens the latents: linear maps go into quant_conv and post_quant_conv, the log variance becomes a constant."""
    with torch.no_grad():
        raw = torch.cat([model.moments(batch)[:, :4] for batch in pictures.split(64)])
        flat = raw.permute(1, 0, 2, 3).flatten(1)
        mean = flat.mean(1)
        values, vectors = torch.linalg.eigh(torch.cov(flat))
        whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T / SCALE
        back = torch.linalg.inv(whiten)
        quant, post = model.quant_conv, model.post_quant_conv
        quant.bias[:4] = whiten @ (quant.bias[:4] - mean)
        quant.weight[:4] = torch.einsum("ij,jkab->ikab", whiten, quant.weight[:4])
        quant.weight[4:] = 0
        quant.bias[4:] = -14.0
        old = post.weight[:, :, 0, 0].clone()
        post.bias += old @ mean
        post.weight[:, :, 0, 0] = old @ back


def normalised(raw: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), keepdim=True)
    return (raw - mean) / std, std


def train(out: Path, seconds: float, batch: int, rate: float, compiled: bool, resume: Path | None) -> None:
    torch.manual_seed(0)
    model = Autoencoder(**SIZES)
    if resume is not None:
        model.load_state_dict(torch.load(resume, weights_only=True)["model"])
        with torch.no_grad():
            model.post_quant_conv.weight /= SCALE
    print("parameters", sum(p.numel() for p in model.parameters()))
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4, betas=(0.9, 0.98))
    pool = to_unit(drawings(12000, seed=11))
    weights = torch.from_numpy(1.0 + 5.0 * emphasis(12000, seed=11))[:, None].float()

    def forward(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, std = normalised(model.moments(x)[:, :4].float())
        return model.decode(z + 0.05 * noise).float(), std

    if compiled:
        forward = torch.compile(forward)
    start = time.time()
    step = 0
    while True:
        share = (time.time() - start) / seconds
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - share) ** 0.7
        chosen = torch.randint(len(pool), (batch,))
        x, weight = pool[chosen], weights[chosen]
        with torch.autocast("cpu", torch.bfloat16):
            decoded, std = forward(x, torch.randn(batch, 4, 8, 8))
        error = decoded - x
        edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
            error.diff(dim=-2).abs() * weight[..., 1:, :]
        ).mean()
        loss = (
            (error.abs() * weight).mean()
            + 2 * (error.square() * weight).mean()
            + edges
            + 1e-3 * std.log().square().mean()
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.997, step / (step + 20))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        if step % 25 == 0:
            print(
                f"{step} {time.time() - start:.0f}s loss {loss.item():.4f} mse {error.square().mean().item():.5f}",
                flush=True,
            )
        if step % 300 == 0:
            torch.save({"model": average, "sizes": SIZES}, out.with_suffix(".part"))
    final = Autoencoder(**SIZES)
    final.load_state_dict(average)
    with torch.no_grad():
        statistics = torch.cat([final.moments(b)[:, :4] for b in pool[:1024].split(64)])
        flat = statistics.permute(1, 0, 2, 3).flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        final.quant_conv.weight[:4] /= std[:, None, None, None]
        final.quant_conv.bias[:4] = (final.quant_conv.bias[:4] - mean) / std
    fold(final, pool[:1024])
    torch.save({"model": final.state_dict(), "sizes": SIZES}, out)
    fresh = to_unit(drawings(256, seed=12))
    with torch.no_grad():
        z = final.moments(fresh)[:, :4]
        back = final.decode(z)
    print("fresh mse", (back - fresh).square().mean().item(), "latent std", (z * SCALE).std((0, 2, 3)).tolist())


def train_decoder(out: Path, resume: Path, seconds: float, batch: int, rate: float, count: int = 14000) -> None:
    """Goes on with the decoder alone, on latents with a little noise: the encoder, and so every latent, stays."""
    torch.manual_seed(2)
    saved = torch.load(resume, weights_only=True)
    model = Autoencoder(**saved["sizes"])
    model.load_state_dict(saved["model"])
    pool = to_unit(drawings(count, seed=13))
    weights = torch.from_numpy(1.0 + 5.0 * emphasis(count, seed=13))[:, None].float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = torch.cat([model.moments(part)[:, :4].float() * SCALE for part in pool.split(64)])
    parameters = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, betas=(0.9, 0.98))
    start, step = time.time(), 0
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - share) ** 0.7
        chosen = torch.randint(count, (batch,))
        x, weight = pool[chosen], weights[chosen]
        z = latents[chosen]
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode((z + 0.15 * torch.rand(batch, 1, 1, 1) * torch.randn_like(z)) / SCALE).float()
        error = decoded - x
        edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
            error.diff(dim=-2).abs() * weight[..., 1:, :]
        ).mean()
        loss = (error.abs() * weight).mean() + 2 * (error.square() * weight).mean() + edges
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        decay = min(0.997, step / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        if step % 25 == 0:
            print(
                f"{step} {time.time() - start:.0f}s loss {loss.item():.4f} mse {error.square().mean().item():.5f}",
                flush=True,
            )
    with torch.no_grad():
        for p, mean in zip(parameters, average, strict=True):
            p.copy_(mean)
        torch.save({"model": model.state_dict(), "sizes": saved["sizes"]}, out)
        fresh = to_unit(drawings(256, seed=12))
        print("fresh mse", (model.decode(model.moments(fresh)[:, :4]) - fresh).square().mean().item())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--resume", type=Path, help="goes on from an autoencoder trained before")
    parser.add_argument("--drawings", type=int, default=14000)
    parser.add_argument("--freeze-encoder", action="store_true", help="trains the decoder alone")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.freeze_encoder:
        if args.resume is None:
            parser.error("--freeze-encoder goes on from an autoencoder: name it with --resume.")
        train_decoder(args.out, args.resume, args.seconds, args.batch, args.rate, args.drawings)
    else:
        train(args.out, args.seconds, args.batch, args.rate, args.compile, args.resume)
