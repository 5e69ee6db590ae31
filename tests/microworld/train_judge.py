"""Trains the judge on fresh drawings, on their autoencoder round trips, and on both with noise and colour jitter."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saferegion_lab.microworld.judge import HEADS, JudgeNet
from saferegion_lab.microworld.nets import Autoencoder
from saferegion_lab.microworld.scenes import SLOTS, Scene, sample_scene
from tests.microworld.draw import draw
from tests.microworld.train_autoencoder import SCALE, to_unit


def truth(scene: Scene) -> dict[str, str]:
    """The right label of every head."""
    items = {item.slot: item for item in scene.items}
    style = "plain" if scene.style == "outline" and not scene.items else scene.style  # lines are drawn around things
    answer = {
        "fire": "yes" if scene.fire else "no", "place": scene.place, "style": style, "weather": scene.weather,
        "hat": next((item.hat for item in scene.items if item.kind == "figure"), "none"),
    }  # fmt: skip
    for slot in SLOTS:
        item = items.get(slot)
        answer[f"kind_{slot}"] = item.kind if item else "none"
        answer[f"colour_{slot}"] = (item.colour or "none") if item else "none"
        answer[f"flame_{slot}"] = "yes" if scene.ground_fire == slot or (item and item.fire) else "no"
    return answer


def labels(scenes: list[Scene]) -> Tensor:
    """int64 [B, heads]"""
    rows = [[HEADS[name].index(label) for name, label in truth(scene).items()] for scene in scenes]
    order = list(truth(scenes[0]))
    return torch.tensor(rows)[:, [order.index(name) for name in HEADS]]


def split(logits: Tensor) -> list[Tensor]:
    return list(logits.split([len(v) for v in HEADS.values()], dim=1))


def jitter(x: Tensor) -> Tensor:
    n = len(x)
    x = x * (1 + 0.08 * torch.randn(n, 3, 1, 1)) + 0.05 * torch.randn(n, 3, 1, 1)
    x = x + 0.15 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = (torch.rand(n, 1, 1, 1) * 1.2 - 0.4).clamp(0, 1)
    return (x + mix * (blurred - x)).clamp(-1, 1)


def world(count: int, seed: int, vae: Autoencoder | None, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Drawings, their round trips (through latents with a little noise) and the labels."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    drawn = to_unit(np.stack([draw(scene, rng) for scene in scenes]))
    back = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in drawn.split(32):
            if vae is None:
                back.append(part)
                continue
            z = vae.moments(part)[:, :4].float()
            z = z + noise / SCALE * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
            back.append(vae.decode(z).float().clamp(-1, 1))
    return drawn, torch.cat(back), labels(scenes)


def accuracy(net: JudgeNet, pictures: Tensor, target: Tensor) -> dict[str, float]:
    with torch.no_grad():
        logits = torch.cat([net(part) for part in pictures.split(256)])
    hits = [(row.argmax(1) == target[:, i]).float().mean().item() for i, row in enumerate(split(logits))]
    return dict(zip(HEADS, hits, strict=True))


def train(
    out: Path,
    autoencoder: Path | None,
    seconds: float,
    count: int,
    batch: int,
    rate: float,
    resume: Path | None = None,
) -> None:
    torch.manual_seed(3)
    vae = None
    if autoencoder is not None:
        saved = torch.load(autoencoder, weights_only=True)
        vae = Autoencoder(**saved["sizes"]).eval()
        vae.load_state_dict(saved["model"])
    drawn, back, target = world(count, 31, vae, 0.25)
    net = JudgeNet()
    if resume is not None:
        net.load_state_dict(torch.load(resume, weights_only=True))
    print("parameters", sum(p.numel() for p in net.parameters()), flush=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    average = {k: v.clone() for k, v in net.state_dict().items()}
    start, step = time.time(), 0
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - share)
        chosen = torch.randint(count, (batch,))
        half = torch.rand(batch, 1, 1, 1) < 0.4
        x = jitter(torch.where(half, drawn[chosen], back[chosen]))
        goal = target[chosen]
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x).float()
        loss = sum(F.cross_entropy(row, goal[:, i]) for i, row in enumerate(split(logits)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
        decay = min(0.995, step / (step + 10))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        if step % 100 == 0:
            print(f"{step} {time.time() - start:.0f}s loss {loss.item():.3f}", flush=True)
    net.load_state_dict(average)
    torch.save(net.state_dict(), out)
    drawn, back, target = world(2000, 32, vae, 0.0)
    for name, pictures in (("drawings", drawn), ("round trips", back)):
        print(name, {k: round(v, 4) for k, v in accuracy(net, pictures, target).items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--resume", type=Path, help="goes on from a judge trained before")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--drawings", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    train(args.out, args.autoencoder, args.seconds, args.drawings, args.batch, args.rate, args.resume)
