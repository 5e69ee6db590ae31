"""Says what a microworld picture shows: a small classifier trained on drawings and on their autoencoder round trips."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lexicon import COLOURS, EXTRAS, HATS, KINDS, OCCUPATIONS, PLACES, SLOTS, STYLES, WEATHERS

KIND_LABELS = ("none", *KINDS)
COLOUR_LABELS = ("none", *COLOURS)
HEADS: dict[str, tuple[str, ...]] = {
    "fire": ("no", "yes"),
    "place": PLACES,
    "style": STYLES,
    "weather": WEATHERS,
    "hat": HATS,
    **{f"kind_{slot}": KIND_LABELS for slot in SLOTS},
    **{f"colour_{slot}": COLOUR_LABELS for slot in SLOTS},
    **{f"flame_{slot}": ("no", "yes") for slot in SLOTS},
    "occupation": ("none", *OCCUPATIONS),
    "extra": EXTRAS,
    "smoke": ("no", "yes"),
    "ghost": ("no", "yes"),
}


class JudgeNet(nn.Module):
    """Pictures float [B, 3, 64, 64] in -1 to 1 to the logits of all heads, in the order of HEADS: [B, all labels]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 64)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1)
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, w) for w in widths[1:])
        self.hidden = nn.Linear(64 * 16, 160)
        self.out = nn.Linear(160, sum(map(len, HEADS.values())))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        return self.out(F.silu(self.hidden(x.flatten(1))))


class Judge:
    """`judge(pictures uint8 [B, 64, 64, 3])` gives, by name:

    `fire`, `lightning`, `smoke`, `ghost`: float32 [B], probabilities; `flame_left`, `flame_middle`, `flame_right`:
    float32 [B], probability of flames on or in place of what stands in that slot; `kind_SLOT`, `colour_SLOT`, `place`,
    `style`, `hat`, `weather`, `occupation`, `extra`: arrays of str [B], the likeliest label ("none": nothing there; a
    figure has the colour "none").
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.net = JudgeNet()
        self.net.load_state_dict(state)
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, pictures: np.ndarray) -> dict[str, Tensor]:
        """Raw scores by head: float32 [B, labels of the head]."""
        if pictures.ndim != 4 or pictures.shape[1:] != (64, 64, 3) or pictures.dtype != np.uint8:
            raise ValueError(f"Pictures must be uint8 [B, 64, 64, 3]; got {pictures.dtype} {list(pictures.shape)}.")
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        width = self.net.out.out_features
        rows = torch.cat([self.net(part) for part in x.split(256)]) if len(x) else torch.zeros(0, width)
        return dict(zip(HEADS, rows.split([len(labels) for labels in HEADS.values()], dim=1), strict=True))

    def __call__(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        answer: dict[str, np.ndarray] = {}
        for name, row in self.logits(pictures).items():
            if HEADS[name] == ("no", "yes"):
                answer[name] = row.softmax(1)[:, 1].numpy()
            else:
                answer[name] = np.array(HEADS[name])[row.argmax(1).numpy()]
            if name == "weather":
                answer["lightning"] = row.softmax(1)[:, WEATHERS.index("lightning")].numpy()
        return answer
