"""What Forge and Forge Neo need to load the microworld's checkpoint: its sizes, beside the configurations they bring.

Forge reads the sizes of text encoders and autoencoders from folders of its own, by the name of the family, and
recognises a UNet by its widths. A test-only extension in the data directory points it to a family of small widths.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

FAMILY = "runwayml/stable-diffusion-v1-5"
EXTENSION = Path(__file__).with_name("forge_plugin.py")


def write(data: Path, checkout: Path, sizes: dict[str, Any]) -> None:
    """``sizes``: as the export of the microworld writes them beside the checkpoint."""
    extension = data / "extensions" / "microworld-sizes"
    (extension / "scripts").mkdir(parents=True)
    shutil.copyfile(EXTENSION, extension / "scripts" / "microworld_sizes.py")
    (extension / "sizes.json").write_text(json.dumps(sizes["unet"]), encoding="utf-8")
    stock = checkout / "backend" / "huggingface" / FAMILY
    family = extension / "huggingface" / FAMILY
    shutil.copytree(stock, family, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    _change(family / "text_encoder" / "config.json", sizes["text"])
    first = sizes["first_stage"]
    widths = [first["ch"] * m for m in first["ch_mult"]]
    _change(
        family / "vae" / "config.json",
        {"block_out_channels": widths, "layers_per_block": first["num_res_blocks"], "sample_size": first["resolution"]},
    )


def agreed(checkout: Path) -> dict[str, str]:
    """Settings without which Neo waits for a key: that the user has seen what its last version broke."""
    source = (checkout / "modules" / "launch_utils.py").read_text(encoding="utf-8")
    version = re.search(r'^VERSION_UID\b[^=]*=\s*"([^"]*)"', source, re.M)
    return {"VERSION_UID": version[1]} if version else {}


def _change(file: Path, values: dict[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**known, **values}), encoding="utf-8")
