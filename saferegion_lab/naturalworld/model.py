"""The natural world: a small latent diffusion model that reads all-MiniLM-L6-v2."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from saferegion.core.conditioning import Conditioning
from saferegion.core.errors import SafeRegionError

from ..encoders import Encoder
from ..encoders.minilm import load_minilm
from ..latent_diffusion import LatentDiffusion, alphas_cumprod
from ..microworld.nets import Autoencoder, UNet
from .brush import SIDE
from .judge import Judge
from .labels import HEADS

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / "naturalworld.safetensors"
FORMAT = "saferegion-naturalworld/1"
LENGTH = 77
"""Tokens that the UNet reads; what is longer is cut."""
TEXT_SCALE = 2.0
"""Brings the encoder's token states to unit size."""
CONFIG: dict[str, dict[str, Any]] = {
    "unet": {"width": 96, "multipliers": [1, 1], "blocks": 2, "context_width": 384, "heads": 6},
    "autoencoder": {"width": 32, "multipliers": [1, 1, 2], "blocks": 1},
}


@cache
def fingerprint() -> str:
    """Of what makes weights fit: sizes, attributes and their values."""
    said = json.dumps([FORMAT, CONFIG, HEADS, SIDE, LENGTH, TEXT_SCALE], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


class NaturalWorld(LatentDiffusion):
    """UNet and autoencoder beside the frozen encoder; get the trained one from :func:`load`.

    The UNet reads the states of the prompt's word pieces; the rows of [CLS] and [SEP], and those behind the prompt, are
    zeros that may not move.
    """

    latent_shape = (4, 12, 12)
    side = SIDE

    def __init__(self, encoder: Encoder | None, latent_scale: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.latent_scale = encoder, latent_scale
        self.unet = UNet(**CONFIG["unet"])
        self.autoencoder = Autoencoder(**CONFIG["autoencoder"])
        self.register_buffer("alphas_cumprod", alphas_cumprod(), persistent=False)
        self._judge: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts: tokens float32 [B, 77, 384]; the prompts' own tokens may move."""
        if isinstance(prompts, str):
            raise ValueError("encode takes a list of prompts: put the one prompt into a list.")
        if self.encoder is None:
            raise SafeRegionError("This natural world was made without its encoder: load it with load().")
        tokens = torch.zeros(len(prompts), LENGTH, CONFIG["unet"]["context_width"], device=self.device)
        mask = torch.zeros(len(prompts), LENGTH, dtype=torch.bool, device=self.device)
        for at in range(0, len(prompts), 256):
            found = self.encoder(list(prompts[at : at + 256]))
            assert found.mask is not None
            size = min(found.tokens.shape[1], LENGTH)
            rows = found.tokens[:, :size] * found.mask[:, :size, None]
            tokens[at : at + len(rows), :size] = rows.to(tokens)
            mask[at : at + len(rows), :size] = found.mask[:, :size].to(self.device)
        return Conditioning(tokens, mask)

    def token_strings(self, prompt: str) -> list[str]:
        """The 77 tokens of a prompt as readable strings, for heat maps."""
        if self.encoder is None:
            raise SafeRegionError("This natural world was made without its encoder: load it with load().")
        found = self.encoder.token_strings(prompt)[:LENGTH]
        return found + [""] * (LENGTH - len(found))

    def velocity(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """What the network predicts: √ᾱ ε − √(1 − ᾱ) x₀, [B, 4, 12, 12] (Salimans and Ho 2022)."""
        return self.unet(x_t, t, tokens * TEXT_SCALE)

    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The noise in x_t [B, 4, 12, 12] at steps t (int or [B]); differentiable; the dtype of x_t."""
        steps = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        tokens = pad(conditioning.tokens, (0, 0, 0, max(0, LENGTH - conditioning.tokens.shape[1])))
        tokens = tokens.to(x_t.device, self.dtype).expand(len(x_t), -1, -1)
        a = self.alphas_cumprod[steps].view(-1, 1, 1, 1)
        v = self.velocity(x_t.to(self.dtype), steps, tokens).float()
        return (a.sqrt() * v + (1 - a).sqrt() * x_t.float()).to(x_t.dtype)

    def judge(self) -> Judge:
        """The classifier that says what a picture shows."""
        if self._judge is None:
            raise SafeRegionError("This natural world has no judge yet: train it to the end.")
        return Judge(self._judge)


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of weights. Raises OSError where it is missing, broken or of another world."""
    try:
        with safe_open(str(path), framework="pt") as file:
            kept = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError as error:
        raise OSError(
            f"The weights of the natural world are missing at {path}: train them with python -m "
            "saferegion_lab.naturalworld train FOLDER and give that folder's file."
        ) from error
    except SafetensorError as error:
        raise OSError(f"The weights of the natural world at {path} are broken: train them again.") from error
    if kept.get("format") != FORMAT or kept.get("fingerprint") != fingerprint():
        raise OSError(
            f"{path} holds another world ({kept.get('fingerprint', 'no fingerprint')}; this is {fingerprint()}): train "
            "again with python -m saferegion_lab.naturalworld train."
        )
    return kept, tensors


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of ``unet``, ``autoencoder`` or ``judge``, float32."""
    return {k.removeprefix(f"{name}."): v.float() for k, v in tensors.items() if k.startswith(f"{name}.")}


def load(device: str | torch.device = "cpu", weights: Path = WEIGHTS, encoder: Encoder | None = None) -> NaturalWorld:
    """The trained natural world, in evaluation mode and without gradients on its weights.

    Args:
        device: where it runs.
        weights: another training's file.
        encoder: all-MiniLM-L6-v2 where it is at hand; loaded from its package otherwise.

    Raises:
        OSError: the weights are missing, broken, or of another world.
        EncoderError: the encoder's package is missing.
    """
    kept, tensors = read(weights)
    world = NaturalWorld(encoder or load_minilm("The natural world", device=device), float(kept["latent_scale"]))
    world.unet.load_state_dict(part(tensors, "unet"))
    world.autoencoder.load_state_dict(part(tensors, "autoencoder"))
    world._judge = part(tensors, "judge")
    return world.to(device).eval().requires_grad_(False)
