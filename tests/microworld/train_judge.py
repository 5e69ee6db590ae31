"""Trains the judge on drawings, on their autoencoder round trips, and on both with noise and colour jitter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saferegion_lab.microworld.judge import HEADS, JudgeNet

from .drawings import Drawings, draw_chunk
from .stage import Log, Pace, Stage, finished
from .train_autoencoder import decode, encode, load, narrow, to_unit

FRESH = 2000
"""Drawings that the judge is tried on, none of which it has seen."""


def split(logits: Tensor) -> list[Tensor]:
    return list(logits.split([len(v) for v in HEADS.values()], dim=1))


def jitter(x: Tensor) -> Tensor:
    n, device = len(x), x.device
    x = x * (1 + 0.08 * torch.randn(n, 3, 1, 1, device=device)) + 0.05 * torch.randn(n, 3, 1, 1, device=device)
    x = x + 0.15 * torch.rand(n, 1, 1, 1, device=device) * torch.randn_like(x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = (torch.rand(n, 1, 1, 1, device=device) * 1.2 - 0.4).clamp(0, 1)
    return (x + mix * (blurred - x)).clamp(-1, 1)


def accuracy(net: JudgeNet, pictures: Tensor, target: Tensor) -> dict[str, float]:
    with torch.no_grad():
        logits = torch.cat([net(part) for part in pictures.split(256)])
    hits = [(row.argmax(1) == target[:, i]).float().mean().item() for i, row in enumerate(split(logits))]
    return dict(zip(HEADS, hits, strict=True))


def round_trips(vae: Any, pictures: Tensor, noise: float) -> Tensor:
    """Pictures uint8 [B, 3, 64, 64] through latents with up to `noise` on them: uint8 again."""
    rows = []
    for part in pictures.split(2000):
        z = encode(vae, part)
        z = z + noise * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)
        rows.append(((decode(vae, z) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(rows)


def train(
    folder: Path, drawings: Drawings, autoencoder: dict[str, Any], pace: Pace, batch: int, device: torch.device,
    signature: str, log: Log, most: int,
) -> dict[str, Any]:  # fmt: skip
    """`judge.pt` of the folder, trained unless it is there: {"model"}."""
    out = folder / "judge.pt"
    if done := finished(out, signature):
        return done
    torch.manual_seed(3)
    vae = load(autoencoder, device)
    count = min(most, drawings.count)
    drawn, target = drawings.pictures(count, device), drawings.labels(count, device)
    back = round_trips(vae, drawn, 0.25)
    net = JudgeNet().to(device)
    log(f"judge: {sum(p.numel() for p in net.parameters())} weights, {count} drawings")
    stage = Stage(folder / "judge.part", pace, [net], device, signature, log)

    def loss() -> Tensor:
        chosen = torch.randint(count, (batch,), device=device)
        half = torch.rand(batch, 1, 1, 1, device=device) < 0.4
        x, goal = jitter(to_unit(torch.where(half, drawn[chosen], back[chosen]))), target[chosen]
        with narrow(device):
            logits = net(x).float()
        return torch.stack([F.cross_entropy(row, goal[:, i]) for i, row in enumerate(split(logits))]).sum()

    stage.run(loss)
    state = {"model": {key: value.detach().cpu().clone() for key, value in net.state_dict().items()}}
    stage.finish(out, state)
    for name, pictures, labels in fresh(vae, drawings.seed, device):
        found = {key: round(share, 4) for key, share in accuracy(net, pictures, labels).items()}
        log(f"judge on {FRESH} fresh {name}: {found}")
    return state


def fresh(vae: Any, seed: int, device: torch.device) -> list[tuple[str, Tensor, Tensor]]:
    """Drawings that no training has seen, and their round trips, each with the labels."""
    chunks = [draw_chunk(-1 - number, seed, False) for number in range(FRESH // 1000)]
    drawn = torch.from_numpy(np.concatenate([pictures for pictures, _, _ in chunks])).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.concatenate([labels for _, _, labels in chunks])).long().to(device)
    drawn = drawn.to(device)
    return [("drawings", to_unit(drawn), labels), ("round trips", to_unit(round_trips(vae, drawn, 0.0)), labels)]
