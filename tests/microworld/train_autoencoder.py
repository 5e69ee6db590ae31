"""Trains the autoencoder on drawings; latents times 0.18215 have mean 0 and unit covariance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferegion_lab.microworld.nets import Autoencoder

from .drawings import Drawings
from .stage import Log, Pace, Stage, finished

SCALE = 0.18215
SIZES = {"width": 64, "multipliers": [1, 1, 1, 1], "blocks": 0}
POOL = 60000
"""Most drawings that an autoencoder is trained on."""


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 to float32 in -1 to 1"""
    return pictures.float() / 127.5 - 1


def narrow(device: torch.device) -> Any:
    """Autocast to bfloat16 where the machine computes in it; without the cache of weights on a GPU, whose graph could
    not follow it."""
    gpu = device.type == "cuda"
    able = gpu or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able, cache_enabled=not gpu)


def encode(model: Autoencoder, pictures: Tensor, batch: int = 256) -> Tensor:
    """Latents float32 [B, 4, 8, 8], scaled, of pictures uint8 [B, 3, 64, 64] on any device; on that of the model."""
    device = next(model.parameters()).device
    with torch.no_grad(), narrow(device):
        rows = [model.moments(to_unit(part.to(device)))[:, :4].float() * SCALE for part in pictures.split(batch)]
    return torch.cat(rows)


def decode(model: Autoencoder, latents: Tensor, batch: int = 256) -> Tensor:
    """Pictures float32 [B, 3, 64, 64] in -1 to 1 of scaled latents."""
    with torch.no_grad(), narrow(latents.device):
        return torch.cat([model.decode(part / SCALE).float().clamp(-1, 1) for part in latents.split(batch)])


def fold(model: Autoencoder, pictures: Tensor) -> None:
    """Whitens the latents: linear maps go into quant_conv and post_quant_conv, the log variance becomes a constant."""
    with torch.no_grad():
        raw = torch.cat([model.moments(batch)[:, :4] for batch in pictures.split(64)])
        flat = raw.permute(1, 0, 2, 3).flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        values, vectors = torch.linalg.eigh(torch.cov((flat - mean[:, None]) / std[:, None]))
        whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T / SCALE
        back = torch.linalg.inv(whiten)
        quant, post = model.quant_conv, model.post_quant_conv
        quant.bias[:4] = whiten @ ((quant.bias[:4] - mean) / std)
        quant.weight[:4] = torch.einsum("ij,jkab->ikab", whiten, quant.weight[:4] / std[:, None, None, None])
        quant.weight[4:] = 0
        quant.bias[4:] = -14.0
        post.weight[:, :, 0, 0] = post.weight[:, :, 0, 0].clone() @ back


def normalised(raw: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), keepdim=True)
    return (raw - mean) / std, std


def distance(decoded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """How far pictures are from what they should be; `weight` makes things count more than their background."""
    error = decoded - x
    across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return (error.abs() * weight).mean() + 2 * (error.square() * weight).mean() + across + down


class Batches:
    """Random pictures and the weights of their pixels, out of the first `count` drawings."""

    def __init__(self, drawings: Drawings, count: int, batch: int, device: torch.device) -> None:
        self.pictures, self.masks = drawings.pictures(count, device), drawings.masks(count, device)
        self.batch, self.device = batch, device

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, pictures in -1 to 1, weights."""
        chosen = torch.randint(len(self.pictures), (self.batch,), device=self.device)
        return chosen, to_unit(self.pictures[chosen]), 1.0 + 5.0 * self.masks[chosen].float()


def train(
    folder: Path, drawings: Drawings, pace: Pace, batch: int, device: torch.device, signature: str, log: Log
) -> dict[str, Any]:
    """`autoencoder.pt` of the folder, trained unless it is there: {"model", "sizes"}."""
    out = folder / "autoencoder.pt"
    if done := finished(out, signature):
        return done
    torch.manual_seed(0)
    model = Autoencoder(**SIZES).to(device)
    stage = Stage(folder / "autoencoder.part", pace, [model], device, signature, log)
    count = min(POOL, drawings.count)
    pick = Batches(drawings, count, batch, device)
    log(f"autoencoder: {sum(p.numel() for p in model.parameters())} weights, {count} drawings")

    def loss() -> Tensor:
        _, x, weight = pick()
        with narrow(device):
            z, std = normalised(model.moments(x)[:, :4].float())
            decoded = model.decode(z + 0.05 * torch.randn_like(z)).float()
        return distance(decoded, x, weight) + 1e-3 * std.log().square().mean()

    stage.run(loss)
    fold(model, to_unit(pick.pictures[:1024]))
    log(f"autoencoder: mean squared error {_error(model, drawings, device):.5f}")
    stage.finish(out, {"model": _cpu(model), "sizes": SIZES})
    return {"model": _cpu(model), "sizes": SIZES}


def train_decoder(
    folder: Path, drawings: Drawings, before: dict[str, Any], pace: Pace, batch: int, device: torch.device,
    signature: str, log: Log,
) -> dict[str, Any]:  # fmt: skip
    """`decoder.pt`: goes on with the decoder alone, on latents with a little noise: the encoder, and so every latent,
    stays."""
    out = folder / "decoder.pt"
    if done := finished(out, signature):
        return done
    torch.manual_seed(2)
    model = load(before, device)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    stage = Stage(folder / "decoder.part", pace, [model], device, signature, log)
    pick = Batches(drawings, min(POOL, drawings.count), batch, device)
    latents = encode(model, pick.pictures)

    def loss() -> Tensor:
        chosen, x, weight = pick()
        z = latents[chosen]
        noise = 0.15 * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(z)
        with narrow(device):
            decoded = model.decode((z + noise) / SCALE).float()
        return distance(decoded, x, weight)

    stage.run(loss)
    log(f"decoder: mean squared error {_error(model, drawings, device):.5f}")
    stage.finish(out, {"model": _cpu(model), "sizes": before["sizes"]})
    return {"model": _cpu(model), "sizes": before["sizes"]}


def load(saved: dict[str, Any], device: torch.device) -> Autoencoder:
    """The autoencoder of a finished stage."""
    model = Autoencoder(**saved["sizes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def _cpu(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}


def _error(model: Autoencoder, drawings: Drawings, device: torch.device) -> float:
    """Mean squared error of the round trip of the last drawings, which the autoencoder has not seen where there are
    more than `POOL`."""
    last = drawings.last(500).to(device)
    return float((decode(model, encode(model, last)) - to_unit(last)).square().mean())
