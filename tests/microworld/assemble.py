"""Puts the trained parts into saferegion_lab/microworld/data/microworld.safetensors, in float16."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saferegion_lab.microworld.model import FORMAT, WEIGHTS


def write(
    world: dict[str, Any], judge: dict[str, Any], autoencoder: dict[str, Any], out: Path, more: dict[str, str]
) -> int:
    """Writes the file and returns its size in bytes; the decoder is that of `autoencoder`, the encoder that on whose
    latents the world was trained."""
    tuned = {k: v for k, v in autoencoder["model"].items() if k.startswith(("decoder.", "post_quant_conv."))}
    parts = {
        "unet.": world["unet"],
        "autoencoder.": world["vae"] | tuned,
        "judge.": judge["model"],
        "text.": world["text"],
    }
    tensors = {
        prefix + key: value.to(torch.float16).contiguous()
        for prefix, part in parts.items()
        for key, value in part.items()
        if "position_ids" not in key
    }
    if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{bad[0]} does not fit float16: train again with more weight decay.")
    tensors["known"] = world["known"].to(torch.int32)
    part = out.with_suffix(".part")
    metadata = {"config": world["config"], "format": FORMAT, "licence": "MIT", **more}
    save_file(tensors, str(part), metadata=metadata)
    os.replace(part, out)
    return out.stat().st_size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where a training has left its parts")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    world, judge, tuned = (
        torch.load(args.folder / f"{name}.pt", weights_only=True) for name in ("world", "judge", "decoder")
    )
    if len({one["signature"] for one in (world, judge, tuned)}) > 1:
        parser.error("the parts belong to different worlds: train them in one folder.")
    size = write(world, judge, tuned, args.out, {"world": world["signature"]})
    print(f"{args.out.name}: {size / 1e6:.2f} MB")
