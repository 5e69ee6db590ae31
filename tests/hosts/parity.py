"""What both parity scripts share; it runs in the interpreters of the hosts and imports nothing of this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read(reference: str | Path) -> tuple[list[str], dict[str, Tensor]]:
    """The prompts and the numbers of a reference file."""
    with np.load(reference) as known:
        prompts = [str(prompt) for prompt in known["prompts"]]
        return prompts, {name: torch.from_numpy(known[name]) for name in known.files if name != "prompts"}


def report(wanted: dict[str, Tensor], **found: Tensor) -> None:
    """Prints the largest distance of each tensor from what is wanted, as one line of JSON."""
    for name, values in found.items():
        if values.shape != wanted[name].shape:
            raise SystemExit(f"{name} is {tuple(values.shape)}; wanted {tuple(wanted[name].shape)}.")
    print(json.dumps({name: float((values - wanted[name]).abs().max()) for name, values in found.items()}))
