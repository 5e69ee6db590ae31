"""Trains the text encoder and the UNet together on latents of drawn scenes; captions are said anew at every step."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saferegion_lab.microworld import nets
from saferegion_lab.microworld.model import TOKENIZER, alphas_cumprod
from saferegion_lab.microworld.nets import Autoencoder, ResBlock, SpatialTransformer, UNet
from saferegion_lab.microworld.scenes import Scene, caption, pad_long, sample_scene
from saferegion_lab.microworld.words import unknown_words
from tests.microworld.draw import draw
from tests.microworld.train_autoencoder import SCALE, to_unit

TEXT = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 64,
}  # fmt: skip
UNET = {"width": 64, "multipliers": [1, 1], "blocks": 2, "context_width": 64}


def known_ids(tokenizer: CLIPTokenizer, seed: int = 5) -> list[int]:
    """Ids of all tokens that captions use, in order; every other id shares one row."""
    rng = random.Random(seed)
    texts = [caption(sample_scene(rng), rng) for _ in range(30000)]
    return sorted({i for ids in tokenizer(texts).input_ids for i in ids})


def build(known: int) -> tuple[nn.Module, UNet]:
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=known + 1, attn_implementation="eager", bos_token_id=0, eos_token_id=1, **TEXT)
    )
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


def latents_of(model: Autoencoder, scenes: list[Scene], rng: random.Random) -> Tensor:
    rows = []
    with torch.no_grad():
        for at in range(0, len(scenes), 64):
            pictures = to_unit(np.stack([draw(scene, rng) for scene in scenes[at : at + 64]]))
            with torch.autocast("cpu", torch.bfloat16):
                rows.append(model.moments(pictures)[:, :4].float() * SCALE)
    return torch.cat(rows)


def attend_narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`nets.attend` without autocast's detour through float32."""
    with torch.autocast("cpu", enabled=False):
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def train(
    out: Path,
    autoencoder: Path,
    seconds: float,
    batch: int,
    rate: float,
    count: int,
    compiled: bool,
    resume: Path | None = None,
) -> None:
    nets.attend = attend_narrow
    torch.manual_seed(1)
    rng = random.Random(21)
    saved = torch.load(autoencoder, weights_only=True)
    vae = Autoencoder(**saved["sizes"]).eval()
    vae.load_state_dict(saved["model"])
    tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER))
    known = known_ids(tokenizer)
    lookup = torch.full((49408,), len(known))
    lookup[torch.tensor(known)] = torch.arange(len(known))
    unknown = unknown_words(tokenizer, known)
    print(f"{len(known)} tokens known, {len(unknown)} filler words", flush=True)
    began = time.time()
    scenes = [sample_scene(rng) for _ in range(count)]
    cache = out.with_suffix(f".latents{count}")
    if cache.exists():
        latents = torch.load(cache, weights_only=True)
    else:
        latents = latents_of(vae, scenes, rng)
        torch.save(latents, cache)
    print(f"latents {tuple(latents.shape)} std {latents.std():.3f} in {time.time() - began:.0f}s", flush=True)
    text, unet = build(len(known))
    if resume is not None:
        before = torch.load(resume, weights_only=True)
        text.load_state_dict(before["text"])
        unet.load_state_dict(before["unet"])
    parameters = [*text.parameters(), *unet.parameters()]
    print("unet", sum(p.numel() for p in unet.parameters()), "text", sum(p.numel() for p in text.parameters()))
    signal = alphas_cumprod()
    weights = 1 / (signal + 0.05)  # early steps decide what is painted where, and their plain errors are small
    weights = weights / weights.mean()

    def say(indices: list[int]) -> Tensor:
        texts = []
        for index in indices:
            if rng.random() < 0.1:
                texts.append("")
                continue
            words = caption(scenes[index], rng)
            if rng.random() < 0.12:
                words = pad_long(words, rng, unknown, rng.choice((len(words.split()) + 2, 20, 40, 60)))
            texts.append(words)
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        return lookup[ids]

    def loss_of(ids: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        predicted = unet(noisy, t, text(input_ids=ids).last_hidden_state.repeat(2, 1, 1))
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weight).mean()

    step_loss = torch.compile(loss_of) if compiled else loss_of
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3, betas=(0.9, 0.98), foreach=True)
    average = [p.detach().clone() for p in parameters]
    start, step, running = time.time(), 0, 1.0
    last_save = start
    while (share := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        chosen = torch.randint(count, (batch // 2,))
        ids = say(chosen.tolist())
        chosen = chosen.repeat(2)
        t = ((torch.rand(1) + torch.arange(batch) / batch) % 1 * 1000).long()
        t = t[torch.randperm(batch)]
        x = latents[chosen]
        noise = torch.randn_like(x)
        a = signal[t][:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            loss = step_loss(ids, a.sqrt() * x + (1 - a).sqrt() * noise, t, noise, weights[t])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        decay = min(0.998, (step + 1) / (step + 30))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0 or step in (3, 10):
            print(f"{step} {time.time() - start:.0f}s loss {running:.4f}", flush=True)
        if time.time() - last_save > 120:
            last_save = time.time()
            save(out, text, unet, parameters, average, known, saved)
    save(out, text, unet, parameters, average, known, saved)


def save(out: Path, text: nn.Module, unet: UNet, parameters: list, average: list, known: list[int], vae: dict) -> None:
    """One file with the averaged weights, written beside and then renamed."""
    mean = {id(p): a for p, a in zip(parameters, average, strict=True)}
    state = {
        "unet": {k: mean[id(p)].clone() for k, p in unet.named_parameters()},
        "text": {k: mean[id(p)].clone() for k, p in text.named_parameters()},
        "vae": vae["model"], "known": torch.tensor(known),
        "config": json.dumps({"text": TEXT, "unet": UNET, "autoencoder": vae["sizes"]}),
    }  # fmt: skip
    part = out.with_suffix(".tmp")
    torch.save(state, part)
    part.replace(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=40000)
    parser.add_argument("--resume", type=Path, help="goes on from a world trained before")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    train(
        args.out,
        args.autoencoder,
        args.seconds,
        args.batch,
        args.rate,
        args.scenes,
        args.compile,
        args.resume,
    )
