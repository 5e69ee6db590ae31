"""The microworld: a latent diffusion model with the architecture of Stable Diffusion 1.x at small widths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saferegion.core.conditioning import Conditioning
from saferegion.core.errors import SafeRegionError

from ..latent_diffusion import TRAINED_STEPS, LatentDiffusion, alphas_cumprod
from .judge import Judge, JudgeNet
from .nets import Autoencoder, UNet

DATA = Path(__file__).parent / "data"
TOKENIZER = DATA / "tokenizer"
WEIGHTS = DATA / "microworld.safetensors"
FORMAT = "saferegion-microworld/2"
"""Of the weights: what the judge says and which words there are belongs to it."""
VOCABULARY = 49408
LATENT_SCALE = 0.18215
LENGTH = 77


class MicroWorld(LatentDiffusion):
    """Text encoder, UNet and autoencoder with the widths of `config`; get the trained one from `load`."""

    latent_shape = (4, 8, 8)
    side = 64
    latent_scale = LATENT_SCALE

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
            raise SafeRegionError(f"The export is a .safetensors file; got {target.name!r}.")
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
            if file.metadata().get("format") != FORMAT:
                raise OSError(f"The weights at {WEIGHTS} are those of another world: install the package again.")
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
