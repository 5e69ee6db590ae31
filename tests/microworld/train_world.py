"""Trains the text encoder and the UNet together on latents of drawings; captions are said anew all the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saferegion_lab.microworld import nets
from saferegion_lab.microworld.model import alphas_cumprod
from saferegion_lab.microworld.nets import ResBlock, SpatialTransformer, UNet

from .drawings import Drawings, Speaker
from .stage import Log, Pace, Stage, finished
from .text import TextNet
from .train_autoencoder import encode, load, narrow

TEXT = {
    "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 96,
}  # fmt: skip
UNET = {"width": 64, "multipliers": [1, 1], "blocks": 2, "context_width": 96}
EMPTY = 0.1
"""Share of pictures that are learnt without their caption, for guidance."""


def build(known: int) -> tuple[TextNet, UNet]:
    text = TextNet(known + 1, TEXT)
    for module in text.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3 if module.num_embeddings != 77 else 0.1)
    unet = UNet(**UNET)
    for module in unet.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.out_layers[3].weight)
        elif isinstance(module, SpatialTransformer):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(unet.out[2].weight)
    return text, unet


def attend_narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`nets.attend` without autocast's detour through float32."""
    with torch.autocast("cpu", enabled=False):
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def train(
    folder: Path, drawings: Drawings, before: dict[str, Any], pace: Pace, batch: int, device: torch.device,
    signature: str, log: Log, compiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`world.pt` of the folder, trained unless it is there: {"unet", "text", "vae", "known", "config"}."""
    out = folder / "world.pt"
    if done := finished(out, signature):
        return done
    torch.manual_seed(1)
    written_out = nets.attend
    nets.attend = attend_narrow if device.type == "cpu" else F.scaled_dot_product_attention
    latents = encode(load(before, device), drawings.pictures(drawings.count, device))
    log(f"world: latents {tuple(latents.shape)}, deviation {latents.std():.3f}")
    bank = drawings.bank().to(device)
    text, unet = build(len(drawings.known))
    text, unet = text.to(device), unet.to(device)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (unet, text)]
    log(f"world: {sizes[0]} weights in the UNet, {sizes[1]} in the text encoder, {len(drawings.known)} tokens known")
    stage = Stage(folder / "world.part", pace, [text, unet], device, signature, log)
    signal = alphas_cumprod().to(device)
    weights = 1 / (signal + 0.05)  # early steps decide what is painted where, and their plain errors are small
    weights = weights / weights.mean()
    nothing = torch.from_numpy(Speaker(drawings.known).ids([""])).to(device)
    rows = torch.arange(batch, device=device) / batch

    def step_loss(ids: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        predicted = unet(noisy, t, text(ids).repeat(2, 1, 1))
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weight).mean()

    fast = torch.compile(step_loss) if compiled else step_loss

    def loss() -> Tensor:
        """Each scene twice, half of all steps apart."""
        chosen = torch.randint(len(latents), (batch // 2,), device=device)
        unsaid = torch.rand(batch // 2, 1, device=device) < EMPTY
        ids = torch.where(unsaid, nothing, bank[chosen]).long()
        t = ((torch.rand(1, device=device) + rows) % 1 * 1000).long()
        x = latents[chosen].repeat(2, 1, 1, 1)
        noise = torch.randn_like(x)
        a = signal[t][:, None, None, None]
        with narrow(device):
            return fast(ids, a.sqrt() * x + (1 - a).sqrt() * noise, t, noise, weights[t])

    stage.run(loss, lambda: drawings.refresh(bank))
    nets.attend = written_out
    state = {
        "unet": {key: value.detach().cpu().clone() for key, value in unet.state_dict().items()},
        "text": {key: value.detach().cpu().clone() for key, value in text.state_dict().items()},
        "vae": before["model"], "known": torch.tensor(drawings.known),
        "config": json.dumps({"text": TEXT, "unet": UNET, "autoencoder": before["sizes"]}),
    }  # fmt: skip
    stage.finish(out, state)
    return state
