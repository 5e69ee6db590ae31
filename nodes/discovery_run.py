"""What Discover Direction does: training inside the host's inference mode, and pictures before and after."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.utils
import folder_paths
import torch
from comfy import model_management

from .. import saferegion as sr
from ..saferegion.core.conditioning import Conditioning
from ..saferegion.core.fingerprint import Fingerprint
from . import files
from .denoiser import PIXELS, HostDenoiser
from .encoder import TextEncoder
from .keys import POOLED
from .wrap import fit, guard_conditioning, require_model

log = logging.getLogger("saferegion")

BATCH = 16
GUIDANCE = 4.0
PAINT_STEPS = 15
SHOWN = 2
"""Prompts of each kind in the preview: unsafe ones of the recipe, and benign ones that bring the concept."""

_GAP = 8


class _Outside:
    """A text encoder whose conditionings autograd can use: copies made outside inference mode."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def fingerprint(self) -> Fingerprint:
        return self.encoder.fingerprint()

    def __call__(self, prompts: list[str]) -> Conditioning:
        c = self.encoder(prompts)
        tokens, mask, pooled = (None if t is None else t.clone() for t in (c.tokens, c.mask, c.pooled))
        return Conditioning(tokens, mask, pooled, c.spaces)


class _Bar:
    """The host's progress bar; its hook and the model stop the work where the user has pressed Interrupt."""

    def __init__(self) -> None:
        self._bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)


class Run:
    """One run of the node."""

    def __init__(self, model: Any, clip: Any, vae: Any, size: tuple[int, int], tell: Callable[[str], None]) -> None:
        require_model(model)
        self.model, self.vae, self.size, self.tell = model, vae, size, tell
        self.clip = clip
        self.encoder = TextEncoder.of(clip)
        self.library = files.library()

    def recipe(self, choice: sr.Choice) -> sr.Concept | None:
        """The recipe behind a choice; None for directions."""
        found = self.library.find(choice.concept) if isinstance(choice.concept, str) else choice.concept
        return found if isinstance(found, sr.Concept) else None

    def neutral(self, most: int) -> list[str]:
        """At most ``most`` benign prompts, spread over the list."""
        from ..saferegion.learn.prompts import spread

        return spread(self.library.neutral(), most)

    # -- learning ------------------------------------------------------------------------------------------------------

    def discover(self, recipe: sr.Concept, steps: int, seed: int, pictures: int, prompts: int) -> sr.Direction:
        """Directions; nothing is left behind where it fails or is interrupted."""
        from ..saferegion.discover import DiscoverySettings, discover

        log.info("Safe Region: discovering '%s' through %s.", recipe.name, type(self.model.model).__name__)
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="safe-region-", dir=folder) as kept:
            settings = DiscoverySettings(
                seed=seed,
                steps=steps,
                pictures=pictures,
                batch_size=BATCH,
                checkpoint=Path(kept) / "run.safetensors",
                progress=_Bar(),
                told=self._told(recipe),
                family=self.encoder.name,
            )

            def attempt(recompute: bool) -> sr.Direction:
                with torch.inference_mode(False):
                    return discover(
                        recipe,
                        _Outside(self.encoder),
                        HostDenoiser(self.model, self.clip, *self.size, BATCH),
                        self.neutral(prompts),
                        replace(settings, recompute=recompute),
                    )

            try:
                return attempt(recompute=False)
            except model_management.OOM_EXCEPTION:
                log.warning("Safe Region: out of memory while learning; activations are recomputed from here on.")
            model_management.soft_empty_cache()
            return attempt(recompute=True)

    def _told(self, recipe: sr.Concept) -> Callable[[str, float], None]:
        last = ""

        def told(stage: str, loss: float) -> None:
            nonlocal last
            text = f"{recipe.title or recipe.name}: {stage}" + ("" if math.isnan(loss) else f", loss {loss:.4f}")
            if text != last:
                self.tell(text)
            last = text

        return told

    # -- pictures ------------------------------------------------------------------------------------------------------

    def curve(self, found: sr.Direction) -> torch.Tensor:
        """float32 ``[1, H, W, 3]`` in 0..1."""
        from ..saferegion.view.curve import loss_curve

        drawn = loss_curve(found.meta.curve, f"{found.title}: loss")
        return torch.from_numpy(drawn.astype("float32") / 255).unsqueeze(0)

    def preview(
        self, recipe: sr.Concept, found: sr.Direction, chosen: sr.Selection, prompts: int, seed: int
    ) -> torch.Tensor:
        """Without a guard above, guarded below: float32 ``[1, H, W, 3]`` in 0..1."""
        self.tell(f"{recipe.title or recipe.name}: painting the preview")
        fitted = fit(chosen, self.encoder)
        rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        empty = self._conditioning("")
        for number, prompt in enumerate(self._shown(recipe, found, prompts)):
            plain = self._conditioning(prompt)
            rows[0].append(self._decode(self._paint(plain, empty, seed + number)))
            try:
                guarded, _ = guard_conditioning(fitted, plain)
                rows[1].append(self._decode(self._paint(guarded, empty, seed + number)))
            except sr.UnresolvedError:
                rows[1].append(torch.ones_like(rows[0][-1]))  # a guard refuses it, so there is nothing to see
        return _grid(rows)

    def _shown(self, recipe: sr.Concept, found: sr.Direction, prompts: int) -> list[str]:
        pairs = recipe.pairs
        said = [pairs[i * len(pairs) // SHOWN][0] for i in range(min(SHOWN, len(pairs)))]
        region, scored = sr.SafeRegion([found]), []
        neutral, batch = self.neutral(prompts), self.encoder.batch
        for at in range(0, len(neutral), batch):
            part = neutral[at : at + batch]
            scored += zip(region.score(self.encoder(part))[:, 0].tolist(), part, strict=True)
        far = sorted((s for s in scored if s[0] > 0), key=lambda s: -s[0])
        return [*said, *(prompt for _, prompt in far[:SHOWN])]

    def _conditioning(self, text: str) -> list[list[Any]]:
        self.clip.load_model()
        tokens, pooled, extras = self.encoder.encode(self.clip.tokenize(text))
        return [[tokens, {**extras, POOLED: pooled}]]

    def _paint(self, positive: Any, negative: Any, seed: int) -> torch.Tensor:
        width, height = self.size
        channels = getattr(self.model.model.latent_format, "latent_channels", 4)
        latent = torch.zeros(1, channels, height // PIXELS, width // PIXELS)
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(  # type: ignore[no-any-return]
            self.model, noise, PAINT_STEPS, GUIDANCE, "euler", "normal", positive, negative, latent,
            disable_pbar=True, seed=seed,
        )  # fmt: skip

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[H, W, 3] in 0..1."""
        if self.vae is not None:
            return self.vae.decode(latent)[0].float().cpu().clamp(0, 1)  # type: ignore[no-any-return]
        grey = latent[0].float().cpu().mean(0)
        low, high = grey.min(), grey.max()
        grey = (grey - low) / (high - low).clamp_min(1e-6)
        return grey.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1).unsqueeze(-1).expand(-1, -1, 3)


def _grid(rows: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Pictures of one size side by side on white: ``[1, H, W, 3]``."""
    height, width, _ = rows[0][0].shape
    canvas = torch.ones(len(rows) * (height + _GAP) - _GAP, len(rows[0]) * (width + _GAP) - _GAP, 3)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + _GAP), j * (width + _GAP)
            canvas[top : top + height, left : left + width] = picture
    return canvas.unsqueeze(0)
