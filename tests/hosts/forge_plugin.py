"""An extension for the tests: Stable Diffusion 1.x is of the microworld's widths."""

import json
from pathlib import Path

import huggingface_guess
from backend import loader
from backend.text_processing import classic_engine

ROOT = Path(__file__).resolve().parent.parent
models = huggingface_guess.model_list
sizes = json.loads((ROOT / "sizes.json").read_text(encoding="utf-8"))


models.SD15.unet_config.update(context_dim=sizes["context_dim"], model_channels=sizes["model_channels"])
models.SD15.unet_extra_config.update(num_heads=sizes["num_heads"])
if hasattr(loader, "HF"):
    loader.HF = str(ROOT / "huggingface")
else:
    loader.dir_path = str(ROOT)

_init = classic_engine.ClassicTextProcessingEngine.__init__


def any_width(self, *values, **named):
    _init(self, *values, **{**named, "embedding_expected_shape": -1})


if _init.__name__ != "any_width":
    classic_engine.ClassicTextProcessingEngine.__init__ = any_width
