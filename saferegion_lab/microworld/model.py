"""The microworld: a latent diffusion model with the architecture of Stable Diffusion 1.x at small widths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saferegion.core.conditioning import Conditioning

from .judge import Judge, JudgeNet
from .nets import Autoencoder, UNet

DATA = Path(__file__).parent / "data"
TOKENIZER = DATA / "tokenizer"
WEIGHTS = DATA / "microworld.safetensors"
VOCABULARY = 49408
LATENT_SCALE = 0.18215
LENGTH = 77
TRAINED_STEPS = 1000

EpsHook = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(t, x_t, eps given the prompt, eps given the unconditional prompt) -> the eps to use."""


def alphas_cumprod(steps: int = TRAINED_STEPS) -> Tensor:
    """Share of signal power at each step, float32 [steps]: the scaled linear schedule of Stable Diffusion 1.x."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


class MicroWorld(nn.Module):
    """Text encoder, UNet and autoencoder with the widths of `config`; get the trained one from `load`."""

    latent_shape = (4, 8, 8)
    alphas_cumprod: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        text = CLIPTextConfig(
            vocab_size=VOCABULARY,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            attn_implementation="eager",
            **config["text"],
        )
        self.text = CLIPTextModel(text)
        self.unet = UNet(**config["unet"])
        self.autoencoder = Autoencoder(**config["autoencoder"])
        self.tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER))
        self.register_buffer("alphas_cumprod", alphas_cumprod(), persistent=False)
        self._judge: Judge | None = None

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int64 [B, 77]: begin, the prompt, end, and the end token again up to 77."""
        if isinstance(prompts, str):
            raise ValueError("tokenize and encode take a list of prompts: put the one prompt into a list.")
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        found: Tensor = ids.input_ids.to(self.device)
        return found

    def token_strings(self, prompt: str) -> list[str]:
        """The 77 tokens of a prompt as readable strings, for heat maps."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokenize([prompt])[0].tolist())
        return [token.replace("</w>", "") for token in tokens]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts: tokens float32 [B, 77, D]; every token but the begin token may move."""
        ids = self.tokenize(prompts)
        rows = [self.text(input_ids=part).last_hidden_state.float() for part in ids.split(64)]
        width = self.config["text"]["hidden_size"]
        tokens = torch.cat(rows) if rows else torch.zeros(0, LENGTH, width, device=self.device)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device)
        mask[:, 0] = False
        return Conditioning(tokens, mask)

    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The noise in x_t [B, 4, 8, 8] at steps t (int or [B]); differentiable; the dtype of x_t."""
        steps = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        tokens = conditioning.tokens.to(x_t.device, self.dtype)
        if len(tokens) == 1 and len(x_t) > 1:
            tokens = tokens.expand(len(x_t), -1, -1)
        eps: Tensor = self.unet(x_t.to(self.dtype), steps, tokens).to(x_t.dtype)
        return eps

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents float32 [B, 4, 8, 8]; each picture's noise depends on its own seed alone."""
        rows = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(rows).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        uncond: Conditioning | None = None,
        *,
        seeds: Sequence[int],
        steps: int = 15,
        guidance: float = 4.0,
        progress: Callable[[int, int], None] | None = None,
        eps_hook: EpsHook | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Latents float32 [B, 4, 8, 8] of the conditioning (one row, or one a seed) by deterministic DDIM.

        `uncond` (default: the empty prompt) is what classifier-free guidance steers away from; `eps_hook` may replace
        the guided noise; `progress` hears (steps done, steps in all). `batch` bounds the memory and the picture does
        not depend on it beyond rounding.
        """
        seeds = list(seeds)
        if len(conditioning.tokens) not in (1, len(seeds)):
            raise ValueError(
                f"{len(conditioning.tokens)} conditionings and {len(seeds)} seeds: give one seed to each conditioning."
            )
        if not 1 <= steps <= TRAINED_STEPS:
            raise ValueError(f"steps must be 1 to {TRAINED_STEPS}; got {steps}.")
        empty = uncond if uncond is not None else self.encode([""])
        times = torch.linspace(TRAINED_STEPS - 1, 0, steps + 1).round().long().tolist()[:-1]
        if len(empty.tokens) not in (1, len(seeds)):
            raise ValueError("uncond must have one row, or one for each seed.")
        results = []
        parts = range(0, len(seeds), batch)
        for number, at in enumerate(parts):
            part = seeds[at : at + batch]
            x = self.noise(part)
            positive = _rows(conditioning.tokens, at, len(part))
            negative = _rows(empty.tokens, at, len(part))
            both = Conditioning(torch.cat([positive, negative.to(positive)]))
            for index, t in enumerate(times):
                eps, eps_empty = self.predict(torch.cat([x, x]), t, both).chunk(2)
                if eps_hook is None:
                    guided = eps_empty + guidance * (eps - eps_empty)
                else:
                    guided = eps_hook(t, x, eps, eps_empty)
                a = self.alphas_cumprod[t]
                clean = (x - (1 - a).sqrt() * guided) / a.sqrt()
                after = self.alphas_cumprod[times[index + 1]] if index + 1 < steps else torch.ones_like(a)
                x = after.sqrt() * clean + (1 - after).sqrt() * guided
                if progress is not None:
                    progress(number * steps + index + 1, len(parts) * steps)
            results.append(x)
        return torch.cat(results) if results else torch.zeros(0, *self.latent_shape, device=self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures of latents [B, 4, 8, 8]: uint8 [B, 64, 64, 3]."""
        rows = [self.autoencoder.decode(part.to(self.dtype) / LATENT_SCALE).float().cpu() for part in latents.split(64)]
        pictures = torch.cat(rows) if rows else torch.zeros(0, 3, 64, 64)
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> Tensor:
        """Latents float32 [B, 4, 8, 8] of pictures uint8 [B, 64, 64, 3] (the mean of the autoencoder's moments)."""
        if pictures.ndim != 4 or pictures.shape[1:] != (64, 64, 3) or pictures.dtype != np.uint8:
            raise ValueError(f"Pictures must be uint8 [B, 64, 64, 3]; got {pictures.dtype} {list(pictures.shape)}.")
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows = [self.autoencoder.moments(p.to(self.device, self.dtype))[:, :4].float() for p in x.split(64)]
        return torch.cat(rows) * LATENT_SCALE if rows else torch.zeros(0, *self.latent_shape, device=self.device)

    def judge(self) -> Judge:
        """The classifier that says what a picture shows."""
        if self._judge is None:
            self._judge = Judge(_judge_state())
        return self._judge

    def export(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Path:
        """Writes the whole model in the original key layout of Stable Diffusion 1.x checkpoints.

        Beside `NAME.safetensors`: `NAME.json` (the widths) and `NAME-tokenizer/`. Each file is written under another
        name and then renamed, so that a broken export leaves nothing half-written.
        """
        target = Path(path)
        if target.suffix != ".safetensors":
            raise ValueError(f"The export is a .safetensors file; got {target.name!r}.")
        part = target.with_name(target.name + ".part")
        try:
            save_file(dict(self._original_layout(dtype)), str(part), metadata={"format": "pt"})
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        sizes = target.with_suffix(".json.part")
        sizes.write_text(json.dumps(host_config(self.config), indent=1) + "\n", encoding="utf-8")
        os.replace(sizes, target.with_suffix(".json"))
        shutil.copytree(TOKENIZER, target.with_name(target.stem + "-tokenizer"), dirs_exist_ok=True)
        return target

    def _original_layout(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for key, value in self.text.state_dict().items():
            name = key.removeprefix("text_model.")
            kept = value if "position_ids" in key else value.to(dtype)
            yield f"cond_stage_model.transformer.text_model.{name}", kept.contiguous()
        if not any(key.endswith("position_ids") for key in self.text.state_dict()):
            ids = torch.arange(LENGTH)[None]
            yield "cond_stage_model.transformer.text_model.embeddings.position_ids", ids
        for prefix, module in (("model.diffusion_model", self.unet), ("first_stage_model", self.autoencoder)):
            for key, weight in module.state_dict().items():
                yield f"{prefix}.{key}", weight.to(dtype).contiguous()
        signal = alphas_cumprod().double()
        previous = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
        schedule = {
            "betas": 1 - signal / previous, "alphas_cumprod": signal, "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": signal.sqrt(), "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - signal).log(), "sqrt_recip_alphas_cumprod": signal.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
        }  # fmt: skip
        for key, value in schedule.items():
            yield key, value.float()


def _rows(tokens: Tensor, at: int, count: int) -> Tensor:
    return tokens.expand(count, -1, -1) if len(tokens) == 1 else tokens[at : at + count]


def host_config(config: dict[str, Any]) -> dict[str, Any]:
    """The widths in the words of the original configuration files, for hosts that need them spelt out."""
    unet, auto, text = config["unet"], config["autoencoder"], config["text"]
    deepest = len(unet["multipliers"]) - 1
    return {
        "unet": {
            "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": unet["width"],
            "attention_resolutions": [2**level for level in range(deepest)], "num_res_blocks": unet["blocks"],
            "channel_mult": unet["multipliers"], "num_heads": 8, "use_spatial_transformer": True,
            "transformer_depth": 1, "context_dim": unet["context_width"], "legacy": False,
        },
        "first_stage": {
            "embed_dim": 4, "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3,
            "ch": auto["width"], "ch_mult": auto["multipliers"], "num_res_blocks": auto["blocks"],
            "attn_resolutions": [], "dropout": 0.0,
        },
        "text": {**text, "vocab_size": VOCABULARY, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407},
        "schedule": {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": TRAINED_STEPS},
        "scale_factor": LATENT_SCALE,
    }  # fmt: skip


def _open(device: str = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(str(WEIGHTS), framework="pt", device=device) as file:
            return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError as error:
        raise OSError(f"The weights of the microworld are missing at {WEIGHTS}: install the package again.") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}


def _judge_state() -> dict[str, Tensor]:
    return _part(_open()[1], "judge.")


def load(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MicroWorld:
    """The trained microworld, in evaluation mode and without gradients on its weights.

    Raises:
        OSError: the weights are missing from the installed package.
    """
    config, tensors = _open()
    world = MicroWorld(config)
    text = _part(tensors, "text.")
    known, table = tensors["known"].long(), text.pop("embeddings.token_embedding.weight")
    full = table[-1:].expand(VOCABULARY, -1).clone()
    full[known] = table[:-1]
    text["embeddings.token_embedding.weight"] = full
    own = world.text.state_dict()
    prefix = "text_model." if any(key.startswith("text_model.") for key in own) else ""
    missing, unexpected = world.text.load_state_dict({prefix + k: v for k, v in text.items()}, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise OSError(f"The weights at {WEIGHTS} do not fit this version: install the package again.")
    world.unet.load_state_dict(_part(tensors, "unet."))
    world.autoencoder.load_state_dict(_part(tensors, "autoencoder."))
    world = world.to(device=device, dtype=dtype).eval().requires_grad_(False)
    world.alphas_cumprod = alphas_cumprod().to(device)
    return world


def judge_only() -> Judge:
    """The judge without the rest of the world."""
    return Judge(_judge_state())


__all__ = ["Judge", "JudgeNet", "MicroWorld", "alphas_cumprod", "judge_only", "load"]
