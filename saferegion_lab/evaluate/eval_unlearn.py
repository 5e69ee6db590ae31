"""The guard as a technique of the benchmark ``eval-unlearn`` (PyPI; before ``eval-learn``), which finds it by the
entry point ``safe_region``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saferegion.core.errors import UnresolvedError
from saferegion.guard.library import Library

from .painters import load_pipeline
from .settings import EvaluationError

log = logging.getLogger("saferegion")
GREY = (127, 127, 127)
"""Painted where a prompt is refused, since the benchmark wants as many pictures as prompts."""


class SafeRegionTechnique:
    """A pipeline of diffusers, guarded.

    Args:
        model_id: folder, single file or hub id. erase_concept: names of concepts with commas between them.
        strength, mode, preset: as in :func:`saferegion.diffusers.guard`. library: a folder of own recipes.
        device, use_fp16, num_inference_steps, guidance_scale: as in the benchmark's other techniques.

    Raises:
        EvaluationError: the model cannot be read. SafeRegionError: it cannot be guarded.
    """

    def __init__(
        self,
        model_id: str = "",
        erase_concept: str = "nudity",
        strength: float = 1.0,
        mode: str = "project",
        preset: str = "normal",
        library: str | None = None,
        device: str | None = None,
        use_fp16: bool = True,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ) -> None:
        import saferegion.diffusers as door

        if not model_id:
            raise EvaluationError("safe_region needs model_id: a folder of diffusers, a .safetensors, or a hub id.")
        names = [n.strip() for n in erase_concept.split(",") if n.strip()]
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "float16" if use_fp16 and self.device.startswith("cuda") else "float32"
        self.pipe = load_pipeline(model_id, {"dtype": dtype}).to(self.device)
        settings = door.DoorSettings(library=Library((Path(library),) if library else ()))
        door.guard(self.pipe, names, strength=strength, mode=mode, preset=preset, settings=settings)
        self.steps, self.guidance = num_inference_steps, guidance_scale
        self.refused = 0

    def generate(self, prompts: Sequence[str], seed: int | None = None, **options: Any) -> list[Any]:
        """One PIL picture a prompt, each with its own seed; a grey one where the prompt is refused."""
        from PIL import Image

        call = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, **options}
        pictures: list[Any] = []
        for i, prompt in enumerate(prompts):
            generator = None if seed is None else torch.Generator(self.device).manual_seed(seed + i)
            try:
                pictures.append(self.pipe(prompt=prompt, generator=generator, **call).images[0])
            except UnresolvedError as error:
                self.refused += 1
                log.warning("Refused, so grey: %s", error)
                size = pictures[-1].size if pictures else (512, 512)
                pictures.append(Image.new("RGB", size, GREY))
        return pictures
