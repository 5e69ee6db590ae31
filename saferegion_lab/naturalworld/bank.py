"""The captions that a training says, with their pictures' labels and the encoder's ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from saferegion.core.writing import write_whole

from ..encoders import Encoder
from .captions import Teller
from .labels import to_labels
from .model import CONFIG, LENGTH

Told = Callable[[str], None]


@dataclass(frozen=True)
class Bank:
    """Distinct texts' ids, all behind each other int16 [sum of sizes] and their sizes int16 [texts]; which text each
    caption is, int32 [N]; and the labels of K pictures of it, uint8 [N, K, heads]."""

    ids: Tensor
    sizes: Tensor
    text: Tensor
    labels: Tensor

    def save(self, path: Path) -> None:
        write_whole(path, save({k: v.contiguous() for k, v in vars(self).items()}))

    @classmethod
    def load(cls, path: Path) -> Bank:
        return cls(**load_file(str(path)))

    def states(self, encoder: Encoder, device: torch.device, batch: int = 512) -> Tensor:
        """The encoder's states of every text, float16 [texts, longest, 384]; begin, end and padding are zeros."""
        model: Any = encoder.tower.model  # type: ignore[attr-defined]
        sizes = self.sizes.long()
        longest = int(sizes.max())
        found = torch.zeros(len(sizes), longest, CONFIG["unet"]["context_width"], dtype=torch.float16, device=device)
        at = torch.arange(longest)
        padded = torch.zeros(len(sizes), longest, dtype=torch.long)
        padded[at[None] < sizes[:, None]] = self.ids.long()
        with torch.no_grad():
            for rows in sizes.argsort().split(batch):
                size = int(sizes[rows].max())
                there = (at[None, :size] < sizes[rows, None]).to(device)
                out = model(input_ids=padded[rows, :size].to(device), attention_mask=there.long()).last_hidden_state
                inner = (at[None, :size] > 0) & (at[None, :size] < sizes[rows, None] - 1)
                found[rows.to(device), :size] = (out * inner.to(device)[..., None]).half()
        return found


def make(encoder: Encoder, captions: int, each: int, seed: int, told: Told) -> Bank:
    """So many captions, each with `each` pictures."""
    rng = random.Random(seed)
    teller = Teller(rng)
    number: dict[str, int] = {}
    text, labels = [], []
    for done in range(captions):
        caption = teller.caption()
        text.append(number.setdefault(caption.text, len(number)))
        labels.append(to_labels(caption.complete(rng) for _ in range(each)).to(torch.uint8))
        if (done + 1) % 20000 == 0:
            told(f"{done + 1} of {captions} captions")
    ids = _ids(encoder, list(number))
    return Bank(
        torch.cat([torch.tensor(row, dtype=torch.int16) for row in ids]),
        torch.tensor([len(row) for row in ids], dtype=torch.int16),
        torch.tensor(text, dtype=torch.int32),
        torch.stack(labels),
    )


def _ids(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    words: Any = encoder.tower.words  # type: ignore[attr-defined]
    return [words.windows(text, LENGTH)[0] for text in texts]
