"""The microworld as a pipeline of diffusers, and as the folder that ``StableDiffusionPipeline.from_pretrained`` reads.

Nothing is trained or changed: the weights go through diffusers' own conversion from the original layout.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..denoisers import unet_config
from .model import LATENT_SCALE, TOKENIZER, MicroWorld, load

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."


def pipeline(world: MicroWorld | None = None) -> Any:
    """A ``StableDiffusionPipeline`` on the microworld's weights, float32 on the CPU; pictures of 64 x 64."""
    import diffusers
    from diffusers.loaders import single_file_utils
    from transformers import CLIPTokenizer

    world = load() if world is None else world
    layout = dict(world._original_layout(torch.float32))
    shapes = {k.removeprefix(_UNET): tuple(v.shape) for k, v in layout.items() if k.startswith(_UNET)}
    unet = diffusers.UNet2DConditionModel(sample_size=8, **unet_config(shapes, {}, Path("microworld")))
    unet_part = {k: v for k, v in layout.items() if k.startswith(_UNET)}
    unet.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(unet_part, config=unet.config))
    sizes = world.config["autoencoder"]
    widths = [sizes["width"] * m for m in sizes["multipliers"]]
    vae = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=sizes["blocks"],
        latent_channels=4,
        sample_size=64,
        scaling_factor=LATENT_SCALE,
    )
    vae_part = {k: v for k, v in layout.items() if k.startswith(_VAE)}
    vae.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(vae_part, vae.config))
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=world.text.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(str(TOKENIZER)),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(folder: str | os.PathLike[str], world: MicroWorld | None = None) -> Path:
    """Write the pipeline as a folder. Returns its path."""
    target = Path(folder)
    pipeline(world).save_pretrained(str(target), safe_serialization=True)
    return target


__all__ = ["pipeline", "save"]
