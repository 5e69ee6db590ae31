"""Text models in transformers directories, and which of them a diffusers pipeline holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .errors import EncoderError, first_line, quiet, transformers
from .towers import LONGEST, ClipTower, RowTower

BUNDLED_TOKENIZER = Path(__file__).resolve().parent.parent / "microworld" / "data" / "tokenizer"
"""OpenAI's CLIP tokenizer."""

CLIP_VOCABULARY = 49408
CLIP_TYPES = ("clip", "clip_text_model")
T5_TYPES = ("t5", "umt5", "mt5")
BERT_TYPES = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WEIGHTS = re.compile(r"model(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?:-\d+-of-\d+)?\.safetensors")


def model_type(folder: Path) -> str:
    """``model_type`` of a directory's config.json. Raises EncoderError."""
    path = folder / "config.json"
    if not path.is_file():
        raise EncoderError(
            f"{folder} is no text encoder (it has neither config.json nor a diffusers pipeline's text_encoder/): "
            "give a transformers or diffusers directory, or a Stable Diffusion .safetensors."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"{path} does not say its model_type: give a transformers model's directory.") from error
    return str(found)


def kind(folder: Path) -> str:
    """``clip``, ``t5`` or ``bert``. Raises EncoderError for anything else."""
    found = model_type(folder)
    for name, types in (("clip", CLIP_TYPES), ("t5", T5_TYPES), ("bert", BERT_TYPES)):
        if found in types:
            return name
    raise EncoderError(
        f"{folder} is a '{found}', which is not a text encoder that can be read; known are "
        f"{', '.join((*CLIP_TYPES, *T5_TYPES, *BERT_TYPES))}."
    )


def read_clip(
    folder: Path,
    tokenizer: Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    pad: str | int = "end",
    penultimate: bool = False,
    project: bool = False,
) -> ClipTower:
    """A CLIP tower; ``pad`` is an id, ``"end"`` (the end token) or ``"tokenizer"`` (what the tokenizer says)."""
    lib = transformers()
    model = _model(lib.CLIPTextModelWithProjection if project else lib.CLIPTextModel, folder, device, dtype)
    if tokenizer is None and _has_tokenizer(folder):
        tokenizer = folder
    if tokenizer is None and model.config.vocab_size == CLIP_VOCABULARY:
        tokenizer = BUNDLED_TOKENIZER
    words = read_tokenizer(tokenizer or folder)
    given = pad if isinstance(pad, int) else None
    return ClipTower(model, words, words.pad_token_id if pad == "tokenizer" else given, penultimate)


def read_t5(
    folder: Path,
    tokenizer: Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    least: int = 1,
    masked: bool = True,
) -> RowTower:
    """A T5, mT5 or UMT5 encoder."""
    lib = transformers()
    names = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel"}
    name = names[model_type(folder)]
    cls = getattr(lib, name, None)
    if cls is None:
        raise EncoderError(f"transformers {lib.__version__} has no {name}: pip install --upgrade transformers.")
    model = _model(cls, folder, device, dtype)
    return RowTower(model, read_tokenizer(tokenizer or folder), False, LONGEST, least, masked)


def read_bert(folder: Path, tokenizer: Path | None, device: str | torch.device, dtype: torch.dtype) -> RowTower:
    """A BERT-like encoder; windows are as long as it has positions."""
    model = _model(transformers().AutoModel, folder, device, dtype)
    words = read_tokenizer(tokenizer or folder)
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:
        positions -= int(padding) + 1
    return RowTower(model, words, True, min(positions, int(words.model_max_length), LONGEST))


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a directory. Raises EncoderError."""
    if not _has_tokenizer(folder):
        raise EncoderError(f"{folder} holds no tokenizer: give the directory of the encoder's own.")
    try:
        with quiet():
            return transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise EncoderError(f"The tokenizer in {folder} cannot be read: {first_line(error)}.") from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model"))


def _model(cls: Any, folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {_dtype_option(): dtype}
    if variant := _variant(folder):
        options["variant"] = variant
    try:
        with quiet():
            model, info = cls.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
    except SafetensorError as error:
        raise EncoderError(
            f"{folder} holds a .safetensors that is not whole ({first_line(error)}): download it again."
        ) from error
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        raise EncoderError(f"The text encoder in {folder} cannot be read: {first_line(error)}.") from error
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler.") and "position_ids" not in k)
    if missing:
        raise EncoderError(f"{folder} lacks the tensor '{missing[0]}': get its weights again, whole.")
    return model.to(device)


def _variant(folder: Path) -> str | None:
    """``fp16`` where the only weights are model.fp16.safetensors, and so on. Raises EncoderError without weights."""
    found = [m["variant"] for p in sorted(folder.glob("*.safetensors")) if (m := _WEIGHTS.fullmatch(p.name))]
    if not found:
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise EncoderError(
                f"{folder} holds its weights as a pickle, which can run code when it is read: convert it to "
                ".safetensors."
            )
        raise EncoderError(f"{folder} holds no model.safetensors: get the encoder's weights as .safetensors.")
    return None if None in found else found[0]


def _dtype_option() -> str:
    major, minor = (int(n) for n in transformers().__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
