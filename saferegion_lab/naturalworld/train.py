"""Trains the natural world from nothing, stage by stage: captions, autoencoder, world, judge, and one file of weights.

Each stage leaves a file in the folder; what is there is not made again, and a stage that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from saferegion.core.errors import SafeRegionError
from saferegion.core.writing import write_whole

from ..encoders import Encoder
from ..encoders.minilm import load_minilm
from ..microworld.nets import ResBlock, SpatialTransformer, UNet
from . import bank as banks
from .draw import draw
from .judge import SIZES, JudgeNet
from .labels import HEADS, any_labels
from .loop import Budget, Loop
from .model import FORMAT, LENGTH, NaturalWorld, fingerprint, part, read

DIVERGENCE = 3e-4
"""Weight of the latents' divergence from a normal distribution beside the mean error of the pictures."""
UNSAID = 0.1
"""Share of captions that are replaced by the empty one."""
FILE = "naturalworld.safetensors"
FIRST = "first.pt"
"""A world to go on from."""
Told = Callable[[str], None]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Settings:
    """How a training goes; the times are those of one H100."""

    device: str = "cpu"
    encoder: str = ""
    """Folder of all-MiniLM-L6-v2; its package if empty."""
    seed: int = 1
    captions: int = 160000
    each: int = 4
    """Pictures a caption."""
    pictures: int = 60000
    """Drawings for the autoencoder and for the judge."""
    autoencoder_seconds: float = 60.0
    world_seconds: float = 190.0
    judge_seconds: float = 40.0
    steps: int | None = None
    """Of every stage, in place of its seconds."""
    batch: int = 1024
    autoencoder_rate: float = 1.5e-3
    world_rate: float = 1.2e-3
    judge_rate: float = 2e-3

    def mark(self) -> str:
        """What a folder's files have in common: they belong to one training of one world."""
        said = [fingerprint(), self.seed, self.captions, self.each, self.pictures]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


class Training:
    """One training in one folder."""

    def __init__(self, folder: Path, settings: Settings, told: Told) -> None:
        self.folder, self.settings = folder, settings
        self.device = torch.device(settings.device)
        self.start = time.monotonic()
        self._told = told
        folder.mkdir(parents=True, exist_ok=True)
        marked = folder / "training.json"
        if marked.exists() and (found := json.loads(marked.read_text())["mark"]) != settings.mark():
            raise SafeRegionError(
                f"{folder} holds the training of another world ({found}; this is {settings.mark()}): give another "
                "folder."
            )
        write_whole(marked, json.dumps({"mark": settings.mark(), **asdict(settings)}, indent=1).encode())
        torch.manual_seed(settings.seed)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True

    def told(self, text: str) -> None:
        line = f"[{time.monotonic() - self.start:6.1f} s] {text}"
        with (self.folder / "training.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        self._told(line)

    def run(self) -> Path:
        """All stages; the file of weights."""
        bank = self.bank()
        autoencoder = self.stage("autoencoder", lambda: self.autoencoder(bank))
        unet = self.stage("world", lambda: self.world(bank, autoencoder))
        judge = self.stage("judge", lambda: self.judge(bank, autoencoder))
        return self.assemble(autoencoder, unet, judge)

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A stage's weights: those of its file, or made now."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            made = make()
            torch.save(made, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            (self.folder / f"{name}.part").unlink(missing_ok=True)
        else:
            self.told(f"{name}: already there")
        found: dict[str, Tensor] = torch.load(path, weights_only=True)
        return found

    def loop(self, name: str, module: nn.Module, seconds: float, rate: float) -> Loop:
        s = self.settings
        budget = Budget(seconds, s.steps)
        return Loop(name, self.folder, module, budget, self.told, rate=rate, seed=s.seed, mark=s.mark())

    def encoder(self) -> Encoder:
        where = Path(self.settings.encoder) if self.settings.encoder else None
        return load_minilm("Training the natural world", where, self.device)

    def half(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def placed(self, module: Net) -> Net:
        """On the device, with convolutions laid out as it likes them."""
        for p in module.to(self.device).parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        return module

    # -- stages ------------------------------------------------------------------------------------------------------

    def bank(self) -> banks.Bank:
        path, s = self.folder / "bank.safetensors", self.settings
        if not path.exists():
            self.told("captions: begun")
            banks.make(self.encoder(), s.captions, s.each, s.seed, self.told).save(path)
        found = banks.Bank.load(path)
        self.told(f"captions: {len(found.text)}, {len(found.sizes)} of them distinct")
        return found

    def drawings(self, bank: banks.Bank, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pictures uint8 [count, 3, 48, 48], half of captions and half of any labels, and their labels."""
        generator = torch.Generator().manual_seed(seed)
        flat = bank.labels.flatten(0, 1)
        said = flat[torch.randint(len(flat), (count // 2,), generator=generator)].long()
        labels = torch.cat([said, any_labels(count - len(said), generator)])
        pictures = [
            (draw(rows.to(self.device), generator) * 255).round().to(torch.uint8) for rows in labels.split(8192)
        ]
        return torch.cat(pictures), labels.to(self.device)

    def autoencoder(self, bank: banks.Bank) -> dict[str, Tensor]:
        s = self.settings
        model = self.placed(NaturalWorld(None).autoencoder)
        loop = self.loop("autoencoder", model, s.autoencoder_seconds, s.autoencoder_rate)
        pool, _ = self.drawings(bank, s.pictures, s.seed + 100)
        self.told(f"autoencoder: {len(pool)} drawings")
        for random in loop:
            x = _unit(pool[torch.randint(len(pool), (min(s.batch, 256),), generator=random, device=self.device)])
            with self.half():
                mean, spread = model.moments(x).float().chunk(2, 1)
                spread = spread.clamp(-12, 4)
                noise = torch.randn(mean.shape, generator=random, device=self.device)
                seen = model.decode(mean + (0.5 * spread).exp() * noise).float()
            away = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
            error = seen - x
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            loop.step(error.abs().mean() + error.square().mean() + 0.5 * edges + DIVERGENCE * away)
        return loop.averaged()

    def frozen(self, autoencoder: dict[str, Tensor]) -> NaturalWorld:
        world = NaturalWorld(None)
        world.autoencoder.load_state_dict(autoencoder)
        return world.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def latents(self, bank: banks.Bank, world: NaturalWorld) -> tuple[Tensor, float]:
        """Latents float16 [N, K, 4, 12, 12] of unit deviation of all the bank's pictures, and their scale."""
        generator = torch.Generator().manual_seed(self.settings.seed + 200)
        found = []
        for rows in bank.labels.flatten(0, 1).split(8192):
            x = draw(rows.long().to(self.device), generator) * 2 - 1
            with self.half():
                found += [world.autoencoder.moments(p)[:, :4].half() for p in x.split(1024)]
        latents = torch.cat(found).unflatten(0, tuple(bank.labels.shape[:2]))
        scale = float(1 / latents[: 1 + 20000 // latents.shape[1]].float().std())
        return latents.mul_(scale), scale

    def world(self, bank: banks.Bank, autoencoder: dict[str, Tensor]) -> dict[str, Tensor]:
        s = self.settings
        world = self.frozen(autoencoder)
        latents, scale = self.latents(bank, world)
        self.told(f"world: latents {list(latents.shape)}, scale {scale:.4f}")
        states = bank.states(self.encoder(), self.device)
        self.told(f"world: token states {list(states.shape)}")
        text = bank.text.long().to(self.device)
        blank_in(world.unet)
        if (self.folder / FIRST).exists():
            first = torch.load(self.folder / FIRST, weights_only=True)
            latents.mul_(float(first.pop("latent_scale")) / scale)
            scale = float(torch.load(self.folder / FIRST, weights_only=True)["latent_scale"])
            world.unet.load_state_dict(first)
        self.placed(world.unet.requires_grad_(True))
        loop = self.loop("world", world.unet, s.world_seconds, s.world_rate)
        signal = world.alphas_cumprod
        longest = torch.zeros(s.batch, LENGTH, states.shape[-1], dtype=states.dtype, device=self.device)
        for random in loop:
            chosen = torch.randint(len(text), (s.batch,), generator=random, device=self.device)
            which = torch.randint(latents.shape[1], (s.batch,), generator=random, device=self.device)
            x = latents[chosen, which].float().contiguous(memory_format=torch.channels_last)
            longest[:, : states.shape[1]] = states[text[chosen]]
            kept = torch.rand(s.batch, generator=random, device=self.device) >= UNSAID
            t = (
                torch.rand(1, generator=random, device=self.device)
                + torch.arange(s.batch, device=self.device) / s.batch
            )
            t = (t % 1 * len(signal)).long().clamp(max=len(signal) - 1)
            noise = torch.randn(x.shape, generator=random, device=self.device)
            a = signal[t].view(-1, 1, 1, 1)
            with self.half():
                v = world.velocity(
                    a.sqrt() * x + (1 - a).sqrt() * noise, t, longest.float() * kept.view(-1, 1, 1)
                ).float()
            loop.step((v - (a.sqrt() * noise - (1 - a).sqrt() * x)).square().mean())
        return {**loop.averaged(), "latent_scale": torch.tensor(scale)}

    def judge(self, bank: banks.Bank, autoencoder: dict[str, Tensor]) -> dict[str, Tensor]:
        s = self.settings
        world = self.frozen(autoencoder)
        net = self.placed(JudgeNet())
        loop = self.loop("judge", net, s.judge_seconds, s.judge_rate)
        pool, labels = self.drawings(bank, s.pictures, s.seed + 300)
        again = self.trips(world, pool)
        self.told(f"judge: {len(pool)} drawings")
        size = min(s.batch, 512)
        for random in loop:
            chosen = torch.randint(len(pool), (size,), generator=random, device=self.device)
            trip = torch.rand(size, generator=random, device=self.device) < 0.6
            x = _unit(torch.where(trip.view(-1, 1, 1, 1), again[chosen], pool[chosen]))
            rough = torch.rand(size, 1, 1, 1, generator=random, device=self.device).square() * 0.25
            x = x + rough * torch.randn(x.shape, generator=random, device=self.device)
            with self.half():
                rows = net(x).float().split(SIZES, dim=1)
            losses = [F.cross_entropy(row, labels[chosen, k], label_smoothing=0.01) for k, row in enumerate(rows)]
            loop.step(torch.stack(losses).sum())
        state = loop.averaged()
        self.told("judge: " + json.dumps(self.accuracy(state, bank, world)))
        return state

    @torch.no_grad()
    def trips(self, world: NaturalWorld, pictures: Tensor) -> Tensor:
        """Pictures uint8 after a round trip through the autoencoder."""
        found = []
        for rows in pictures.split(1024):
            with self.half():
                seen = world.autoencoder.decode(world.autoencoder.moments(_unit(rows))[:, :4]).float()
            found.append(((seen.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        return torch.cat(found)

    @torch.no_grad()
    def accuracy(self, state: dict[str, Tensor], bank: banks.Bank, world: NaturalWorld) -> dict[str, list[float]]:
        """By attribute: share right of drawings that were held out, and of their round trips."""
        net = JudgeNet().to(self.device).eval()
        net.load_state_dict(state)
        pool, labels = self.drawings(bank, min(self.settings.pictures, 8000), self.settings.seed + 400)
        found: dict[str, list[float]] = {head: [] for head in HEADS}
        for pictures in (pool, self.trips(world, pool)):
            rows = torch.cat([net(_unit(p)) for p in pictures.split(1024)]).split(SIZES, dim=1)
            for k, head in enumerate(HEADS):
                found[head].append(round(float((rows[k].argmax(1) == labels[:, k]).float().mean()), 4))
        return found

    def assemble(self, autoencoder: dict[str, Tensor], unet: dict[str, Tensor], judge: dict[str, Tensor]) -> Path:
        """All weights in one file, float16."""
        unet = dict(unet)
        scale = float(unet.pop("latent_scale"))
        parts = {"autoencoder": autoencoder, "unet": unet, "judge": judge}
        tensors = {f"{n}.{k}": v.to(torch.float16).contiguous() for n, state in parts.items() for k, v in state.items()}
        if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
            raise SafeRegionError(f"The training failed: {bad[0]} is no number or too large; train with another seed.")
        kept = {
            "format": FORMAT, "fingerprint": fingerprint(), "latent_scale": repr(scale), "licence": "MIT",
            "training": json.dumps(asdict(self.settings)),
        }  # fmt: skip
        path = self.folder / FILE
        write_whole(path, save(tensors, metadata=kept))
        self.told(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
        return path


def begin(folder: Path, weights: Path, with_world: bool = False) -> None:
    """Put the autoencoder and the judge of a file of weights into a training's folder, so that they are not trained
    again; ``with_world``: its world too, from which training then goes on."""
    kept, tensors = read(weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("autoencoder", "judge"):
        torch.save(part(tensors, name), folder / f"{name}.pt")
    if with_world:
        torch.save({**part(tensors, "unet"), "latent_scale": torch.tensor(float(kept["latent_scale"]))}, folder / FIRST)


def blank_in(unet: UNet) -> None:
    """Begin with blocks that add nothing."""
    for module in unet.modules():
        last: nn.Module | None = None
        if isinstance(module, ResBlock):
            last = module.out_layers[3]
        elif isinstance(module, SpatialTransformer):
            last = module.proj_out
        if isinstance(last, nn.Conv2d):
            nn.init.zeros_(last.weight)
    final = unet.out[2]
    assert isinstance(final, nn.Conv2d)
    nn.init.zeros_(final.weight)


def _unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


__all__ = ["Settings", "Training", "begin"]
