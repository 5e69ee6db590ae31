"""Puts the trained parts into saferegion_lab/microworld/data/microworld.safetensors, in float16."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from saferegion_lab.microworld.model import WEIGHTS


def main(world: Path, judge: Path, decoder: Path | None, out: Path) -> None:
    state = torch.load(world, weights_only=True)
    autoencoder = dict(state["vae"])
    if decoder is not None:
        tuned = torch.load(decoder, weights_only=True)["model"]
        autoencoder.update({k: v for k, v in tuned.items() if k.startswith(("decoder.", "post_quant_conv."))})
    parts = {
        "unet.": state["unet"], "autoencoder.": autoencoder, "judge.": torch.load(judge, weights_only=True),
        "text.": {k.removeprefix("text_model."): v for k, v in state["text"].items()},
    }  # fmt: skip
    tensors = {
        prefix + key: value.to(torch.float16).contiguous()
        for prefix, part in parts.items()
        for key, value in part.items()
        if "position_ids" not in key
    }
    if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{bad[0]} does not fit float16: train again with more weight decay.")
    tensors["known"] = state["known"].to(torch.int32)
    config = json.loads(state["config"])
    part = out.with_suffix(".part")
    save_file(
        tensors,
        str(part),
        metadata={"config": json.dumps(config), "format": "saferegion-microworld/1", "licence": "MIT"},
    )
    os.replace(part, out)
    print(f"{out.name}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("--decoder", type=Path, help="an autoencoder whose decoder replaces that of the world")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    main(args.world, args.judge, args.decoder, args.out)
