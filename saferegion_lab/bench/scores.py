"""How far prompts lie outside, as both doors judge them: by their embedding, and by what their text names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from saferegion.core.conditioning import Conditioning
from saferegion.core.direction import Direction
from saferegion.core.region import SafeRegion
from saferegion.guard.naming import Names
from saferegion.guard.presets import NORMAL, PRESETS, at_preset, nearer
from saferegion.learn.settings import Encode

BATCH = 64


class Scores:
    """Distances over the border, ``[prompts, concepts]``, of every prompt that is asked for, encoded once.

    Args:
        directions: of one encoder. names: what a text names; such concepts have nearer borders.
        encode: prompts -> conditioning. progress: called with prompts done since the last call.
        heard: called with prompts and their conditioning.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        names: Names,
        encode: Encode,
        progress: Callable[[int], None] | None = None,
        heard: Callable[[Sequence[str], Conditioning], None] | None = None,
    ) -> None:
        self.concepts = [d.concept for d in directions]
        self.names, self.encode, self.progress, self.heard = names, encode, progress, heard
        at = {p: [at_preset(d, p) for d in directions] for p in PRESETS}
        self.regions = {p: (SafeRegion(ds), SafeRegion([nearer(d) for d in ds])) for p, ds in at.items()}
        self.known: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, prompts: Sequence[str], preset: str = NORMAL) -> np.ndarray:
        missing = sorted({p for p in prompts if p not in self.known}, key=len)
        for start in range(0, len(missing), BATCH):
            self._ask(missing[start : start + BATCH])
        return np.stack([self.known[p][preset] for p in prompts]) if prompts else np.zeros((0, len(self.concepts)))

    def _ask(self, prompts: list[str]) -> None:
        c = self.encode(prompts)
        named = np.array([[k in said for k in self.concepts] for said in map(self.names, prompts)])
        found = {
            p: np.where(named, near.score(c).cpu().numpy(), usual.score(c).cpu().numpy())
            for p, (usual, near) in self.regions.items()
        }
        self.known.update({prompt: {p: f[i] for p, f in found.items()} for i, prompt in enumerate(prompts)})
        if self.heard is not None:
            self.heard(prompts, c)
        if self.progress is not None:
            self.progress(len(prompts))
