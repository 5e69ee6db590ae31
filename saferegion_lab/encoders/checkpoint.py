"""The text encoder inside a Stable Diffusion single-file checkpoint; nothing else of the file is read.

Key layouts: SD1.x and SDXL's first encoder are transformers' CLIP under a prefix; SD2.x and SDXL's second encoder are
OpenCLIP (github.com/mlfoundations/open_clip), whose query, key and value are one matrix and whose projection is
transposed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import EncoderError, first_line, transformers

HEAD_WIDTH = 64
_SD1 = "cond_stage_model.transformer."
_SD2 = "cond_stage_model.model."
_SDXL_L = "conditioner.embedders.0.transformer."
_SDXL_G = "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_SPLIT = ("q_proj", "k_proj", "v_proj")


def read(path: Path, device: str | torch.device, dtype: torch.dtype) -> tuple[str, list[Any]]:
    """Family (``sd1``, ``sd2`` or ``sdxl``) and its transformers CLIP models.

    SD2 comes without its last layer, as its conditioning is the last but one with the final norm.

    Raises:
        EncoderError: no text encoder of these families, a truncated file, or missing or misshapen tensors.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = set(file.keys())
            family = _family(keys, path)
            sizes = _sidecar(path)
            if family == "sd1":
                models = [_clip(file, keys, _inner(keys, _SD1), sizes[0], path, device, dtype)]
            elif family == "sd2":
                models = [_open_clip(file, keys, _SD2, sizes[0], path, device, dtype, cut=1, project=False)]
            else:
                models = [
                    _clip(file, keys, _inner(keys, _SDXL_L), sizes[0], path, device, dtype),
                    _open_clip(file, keys, _SDXL_G, sizes[1], path, device, dtype, cut=0, project=True),
                ]
    except SafetensorError as error:
        raise EncoderError(
            f"{path} is not a whole .safetensors file ({first_line(error)}): download or write it again."
        ) from error
    return family, models


def _family(keys: Iterable[str], path: Path) -> str:
    def has(prefix: str) -> bool:
        return any(k.startswith(prefix) for k in keys)

    for prefix, family in ((_SDXL_G, "sdxl"), (_SD2, "sd2"), (_SD1, "sd1")):
        if has(prefix):
            return family
    if has(_REFINER):
        raise EncoderError(f"{path} is an SDXL refiner: give the SDXL base checkpoint.")
    if has("text_encoders."):
        raise EncoderError(
            f"{path} is a checkpoint of another family than SD1, SD2 and SDXL: give its diffusers directory."
        )
    raise EncoderError(
        f"{path} holds no text encoder of SD1, SD2 or SDXL: give the whole checkpoint, or a transformers or "
        "diffusers directory."
    )


def _inner(keys: Iterable[str], prefix: str) -> str:
    """The prefix with ``text_model.``, where the file has it (files of old versions of transformers do not)."""
    longer = prefix + "text_model."
    return longer if any(k.startswith(longer) for k in keys) else prefix


def _sidecar(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What NAME.json says about the first and the second text encoder; empty where it says nothing.

    ``{"num_attention_heads": N}``, at the top or in ``text_encoder`` (or ``text``) and ``text_encoder_2``.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}, {}
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{beside} is not JSON ({first_line(error)}): mend it or remove it.") from error
    if not isinstance(data, dict):
        return {}, {}
    first, second = data.get("text_encoder", data.get("text", data)), data.get("text_encoder_2", {})
    return (first if isinstance(first, dict) else {}), (second if isinstance(second, dict) else {})


class _Source:
    """The tensors of one model in the file, by transformers' names without ``text_model.``."""

    def __init__(self, file: Any, keys: set[str], prefix: str, path: Path) -> None:
        self.file, self.keys, self.prefix, self.path = file, keys, prefix, path

    def key(self, name: str) -> str:
        return self.prefix + name

    def need(self, name: str) -> str:
        key = self.key(name)
        if key not in self.keys:
            raise EncoderError(
                f"{self.path} lacks the tensor '{key}': its text encoder is incomplete, get the file again."
            )
        return key

    def shape(self, name: str) -> list[int]:
        return list(self.file.get_slice(self.need(name)).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(self.need(name))

    def layers(self, start: str) -> int:
        found = [int(m[1]) for k in self.keys if (m := re.match(re.escape(self.prefix + start) + r"(\d+)\.", k))]
        return max(found, default=-1) + 1


class _OpenSource(_Source):
    """OpenCLIP's names and shapes."""

    def key(self, name: str) -> str:
        if name == "text_projection.weight":
            plain = self.prefix + "text_projection"
            return plain if plain in self.keys else self.prefix + name
        if match := _LAYER.fullmatch(name):
            block, part, kind = match.groups()
            split = part.removeprefix("self_attn.") in _SPLIT
            inner = f"attn.in_proj_{kind}" if split else f"{_OPEN_LAYER[part]}.{kind}"
            return f"{self.prefix}transformer.resblocks.{block}.{inner}"
        return self.prefix + _OPEN[name]

    def tensor(self, name: str) -> torch.Tensor:
        key = self.need(name)
        part = name.rsplit(".", 2)[-2]
        if part in _SPLIT:
            whole = self.file.get_slice(key)
            width = whole.get_shape()[0] // 3
            i = _SPLIT.index(part)
            return whole[i * width : (i + 1) * width]
        tensor = self.file.get_tensor(key)
        return tensor.T if key.endswith("text_projection") else tensor


def _clip(
    file: Any,
    keys: set[str],
    prefix: str,
    sizes: dict[str, Any],
    path: Path,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    source = _Source(file, keys, prefix, path)
    return _build(source, source.layers("encoder.layers."), "quick_gelu", sizes, None, device, dtype)


def _open_clip(
    file: Any,
    keys: set[str],
    prefix: str,
    sizes: dict[str, Any],
    path: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    cut: int,
    project: bool,
) -> Any:
    source = _OpenSource(file, keys, prefix, path)
    projection = None
    if project:
        shape = source.shape("text_projection.weight")
        projection = shape[0] if source.key("text_projection.weight").endswith(".weight") else shape[-1]
    layers = source.layers("transformer.resblocks.") - cut
    return _build(source, layers, "gelu", sizes, projection, device, dtype)


def _build(
    source: _Source,
    layers: int,
    activation: str,
    sizes: dict[str, Any],
    projection: int | None,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    """A transformers CLIP text model with sizes from the file, filled from it without a random start."""
    vocabulary, width = source.shape("embeddings.token_embedding.weight")
    positions = source.shape("embeddings.position_embedding.weight")[0]
    if layers < 1:
        source.need("encoder.layers.0.layer_norm1.weight")
        raise EncoderError(f"{source.path} has a text encoder of too few layers: get the file again.")
    lib = transformers()
    config = lib.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=source.shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=layers,
        num_attention_heads=_heads(width, sizes, source.path),
        max_position_embeddings=positions,
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    with torch.device("meta"):
        model = (lib.CLIPTextModel if projection is None else lib.CLIPTextModelWithProjection)(config)
    state: dict[str, torch.Tensor] = {}
    for name, empty in model.state_dict().items():
        if name.endswith("position_ids"):
            continue
        inner = name.removeprefix("text_model.")
        tensor = source.tensor(inner)
        if tensor.shape != empty.shape:
            raise EncoderError(
                f"{source.path}: tensor '{source.key(inner)}' gives {list(tensor.shape)}, and {list(empty.shape)} "
                "would fit the rest of its text encoder; get the file again."
            )
        state[name] = tensor.to(device, dtype)
    model.load_state_dict(state, strict=False, assign=True)
    for module in model.modules():
        if "position_ids" in module._buffers:
            module._buffers["position_ids"] = torch.arange(positions, device=device).unsqueeze(0)
    return model


def _heads(width: int, sizes: dict[str, Any], path: Path) -> int:
    heads = sizes.get("num_attention_heads", sizes.get("heads"))
    if heads is None:
        if width % HEAD_WIDTH == 0:
            return width // HEAD_WIDTH
        raise EncoderError(
            f"The text encoder of {path} is {width} wide, which is no multiple of {HEAD_WIDTH}: say "
            f'{{"num_attention_heads": N}} in {path.with_suffix(".json").name} beside it.'
        )
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise EncoderError(
            f"{path.with_suffix('.json')} says {heads!r} attention heads, which do not divide the width {width}: "
            "mend it."
        )
    return heads
