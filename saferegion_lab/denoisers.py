"""Noise predictors of Stable Diffusion 1 and 2 from disk, through diffusers, for :func:`saferegion.discover`.

Used by the command line only: inside a host, the host's own model is used. Nothing is fetched and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saferegion.core.conditioning import Conditioning
from saferegion.core.errors import SafeRegionError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
PIXELS = 8
"""Side of the square of pixels that one latent stands for."""

_UNET = "model.diffusion_model."
_HEADS = 8
_HEAD_WIDTH = 64
_SD2_WIDTH = 1024
_STEPS = 1000
_KNOWN = "known are Stable Diffusion 1 and 2, as a .safetensors checkpoint or a diffusers folder"

Shapes = Mapping[str, tuple[int, ...]]


class DenoiserError(SafeRegionError):
    """A diffusion model that cannot be read: not there, not one, incomplete, or of a family that is not known."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A diffusers UNet as :func:`saferegion.discover` takes it.

    Attributes:
        unet: ``UNet2DConditionModel``, frozen, on its device.
        alphas_cumprod: share of signal power at each step, float32 ``[num_train_timesteps]``, on the same device.
        latent_shape: (channels, height, width) of what is painted while it is learned.
        prediction: what the network gives: one of :data:`PREDICTIONS`.
    """

    unet: Any
    alphas_cumprod: torch.Tensor
    latent_shape: tuple[int, int, int]
    prediction: str = "epsilon"

    def predict(self, x_t: torch.Tensor, t: torch.Tensor | int, conditioning: Conditioning) -> torch.Tensor:
        """The noise in ``x_t`` [B, C, H, W] at steps ``t`` (int or [B]); differentiable; the dtype of ``x_t``."""
        steps = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        tokens = conditioning.tokens.to(x_t.device, self.unet.dtype)
        if len(tokens) == 1 and len(x_t) > 1:
            tokens = tokens.expand(len(x_t), -1, -1)
        out = self.unet(x_t.to(self.unet.dtype), steps, encoder_hidden_states=tokens, return_dict=False)[0].to(
            x_t.dtype
        )
        if self.prediction == "epsilon":
            return out
        signal = self.alphas_cumprod.to(x_t)[steps].view(-1, *[1] * (x_t.ndim - 1))
        if self.prediction == "v_prediction":
            return signal.sqrt() * out + (1 - signal).sqrt() * x_t
        return (x_t - signal.sqrt() * out) / (1 - signal).sqrt()

    def parameters(self) -> Iterable[torch.Tensor]:
        return self.unet.parameters()


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Denoiser:
    """Read the UNet and the noise schedule of a checkpoint.

    Args:
        path: a diffusers pipeline folder, or a single file in the original layout. Of a file, ``NAME.json`` beside
            ``NAME.safetensors`` may say what its tensors do not: ``{"unet": {"num_heads": N, "image_size": N},
            "prediction_type": "epsilon"}`` (image_size in latents).
        size: width and height of pictures in pixels (None: what the model was trained on).

    Raises:
        DenoiserError: nothing there, a pickle, truncated, incomplete, or of another family; diffusers is missing.
    """
    path = Path(path)
    lib = _diffusers()
    if not path.exists():
        raise DenoiserError(f"{path} does not exist: give a checkpoint; {_KNOWN}.")
    unet, signal, prediction, side = (_folder if path.is_dir() else _file)(path, lib, dtype)
    if prediction not in PREDICTIONS:
        raise DenoiserError(f"{path} predicts {prediction!r}, which is not known: {', '.join(PREDICTIONS)} are.")
    channels = unet.config.in_channels
    if channels != unet.config.out_channels:
        raise DenoiserError(
            f"{path} is a model for inpainting or editing ({channels} channels in, {unet.config.out_channels} out): "
            "give the plain text-to-image checkpoint."
        )
    if size is not None:
        least = PIXELS * 2 ** (len(unet.config.block_out_channels) - 1)
        if size < least or size % least:
            raise DenoiserError(f"Pictures of this model are a multiple of {least} pixels wide; got {size}.")
        side = size // PIXELS
    unet = unet.eval().requires_grad_(False).to(device)
    return Denoiser(unet, signal.float().to(device), (channels, side, side), prediction)


def _diffusers() -> Any:
    try:
        import diffusers
        from diffusers.utils import logging
    except ImportError as error:
        raise DenoiserError("Reading a diffusion model needs diffusers: pip install 'saferegion[discover]'.") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return diffusers


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


Read = tuple[Any, torch.Tensor, str, int]
"""UNet, alphas_cumprod, kind of prediction, side of a latent."""


# -- a diffusers folder ------------------------------------------------------------------------------------------------


def _folder(path: Path, lib: Any, dtype: torch.dtype) -> Read:
    if not (path / "unet" / "config.json").is_file():
        other = "a transformer" if (path / "transformer").is_dir() else "no UNet"
        raise DenoiserError(f"{path} is a folder with {other}: give a whole checkpoint; {_KNOWN}.")
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        raise DenoiserError(f"{path} lacks scheduler/scheduler_config.json, the noise schedule: get the folder again.")
    try:
        config = json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))
        unusual = [k for k in ("addition_embed_type", "class_embed_type", "num_class_embeds") if config.get(k)]
        if unusual:
            raise DenoiserError(f"{path} is a model of another family ('{unusual[0]}' in its UNet): {_KNOWN}.")
        unet = lib.UNet2DConditionModel.from_pretrained(
            path / "unet", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
        scheduler = lib.DDIMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    except DenoiserError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise DenoiserError(f"{path} cannot be read ({_first_line(error)}): get the folder again.") from error
    empty = [name for name, p in unet.named_parameters() if p.is_meta]
    if empty:
        raise DenoiserError(f"{path} lacks the tensor '{empty[0]}' of its UNet: get the folder again.")
    signal = scheduler.alphas_cumprod.clamp_min(2**-24)  # nought where the schedule ends in pure noise
    return unet, signal, str(scheduler.config.prediction_type), int(unet.config.sample_size)


# -- a single file -----------------------------------------------------------------------------------------------------


def _file(path: Path, lib: Any, dtype: torch.dtype) -> Read:
    if path.suffix.lower() != ".safetensors":
        raise DenoiserError(
            f"{path} is no .safetensors; a pickle can run code when it is read: convert it to .safetensors."
        )
    beside = _sidecar(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = set(file.keys())
            tensors = {k: file.get_tensor(k) for k in keys if k.startswith(_UNET)}
            signal = file.get_tensor("alphas_cumprod") if "alphas_cumprod" in keys else None
    except SafetensorError as error:
        raise DenoiserError(
            f"{path} is not a whole .safetensors file ({_first_line(error)}): download or write it again."
        ) from error
    if not tensors:
        raise DenoiserError(f"{path} holds no UNet of Stable Diffusion: give the whole checkpoint; {_KNOWN}.")
    config = unet_config({k.removeprefix(_UNET): tuple(t.shape) for k, t in tensors.items()}, beside, path)
    prediction = beside.get("prediction_type") or _prediction(tensors, keys, config)
    config["sample_size"] = _side(beside, config, str(prediction), path)
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = lib.UNet2DConditionModel(**config)
    try:
        state = convert_ldm_unet_checkpoint(tensors, config=unet.config)
        unet.load_state_dict({k: t.to(dtype) for k, t in state.items()}, strict=True, assign=True)
    except (RuntimeError, KeyError) as error:
        raise DenoiserError(
            f"The UNet of {path} is incomplete or unusual ({_first_line(error)}): give another checkpoint; {_KNOWN}."
        ) from error
    if signal is None or signal.ndim != 1 or not bool(((signal > 0) & (signal < 1)).all()):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, _STEPS, dtype=torch.float64).square()
        signal = (1 - betas).cumprod(0)
    return unet, signal, str(prediction), int(config["sample_size"])


def unet_config(shapes: Shapes, beside: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What diffusers' UNet is built from, read from the tensors' shapes in the original layout (names without prefix).

    Raises:
        DenoiserError: not the UNet of Stable Diffusion 1 or 2.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise DenoiserError(f"{path} lacks the tensor '{_UNET}{name}': it is incomplete, or of another family.")
        return shapes[name]

    if any(k.startswith("label_emb.") for k in shapes):
        raise DenoiserError(f"{path} takes more than a prompt's tokens, as SDXL and unCLIP do: {_KNOWN}.")
    levels: list[list[tuple[int, bool]]] = [[]]
    last = max((int(k.split(".")[1]) for k in shapes if k.startswith("input_blocks.")), default=0)
    for i in range(1, last + 1):
        block = f"input_blocks.{i}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        else:
            attends = any(k.startswith(f"{block}1.transformer_blocks.0.") for k in shapes)
            levels[-1].append((shape(f"{block}0.out_layers.3.weight")[0], attends))
    if any(len(set(level)) != 1 or len(level) != len(levels[0]) for level in levels) or any(
        ".transformer_blocks.1." in k for k in shapes
    ):
        raise DenoiserError(f"The UNet of {path} has unequal levels, which is not known; {_KNOWN}.")
    widths = [level[0][0] for level in levels]
    attended = [level[0][1] for level in levels]
    where = "middle_block.1."
    linear = len(shape(f"{where}proj_in.weight")) == 2
    said = beside.get("unet", {})
    heads = said.get("num_heads") if isinstance(said, Mapping) else None
    count: int | list[int] = [w // _HEAD_WIDTH for w in widths] if linear else _HEADS
    if heads is not None:
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or any(w % heads for w in widths):
            raise DenoiserError(
                f"{path.with_suffix('.json')} says {heads!r} heads, which do not divide {widths}: mend it."
            )
        count = heads
    return {
        "in_channels": shape("input_blocks.0.0.weight")[1],
        "out_channels": shape("out.2.weight")[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        "cross_attention_dim": shape(f"{where}transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": count,
        "use_linear_projection": linear,
    }


def _prediction(tensors: Mapping[str, torch.Tensor], keys: Iterable[str], config: Mapping[str, Any]) -> str:
    """As hosts tell it: by a mark in the file, or, in Stable Diffusion 2, by how far one bias is spread."""
    if "v_pred" in keys:
        return "v_prediction"
    bias = tensors.get(f"{_UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if config["cross_attention_dim"] == _SD2_WIDTH and bias is not None and float(bias.float().std()) > 0.09:
        return "v_prediction"
    return "epsilon"


def _side(beside: Mapping[str, Any], config: Mapping[str, Any], prediction: str, path: Path) -> int:
    said = beside.get("unet", {})
    side = said.get("image_size") if isinstance(said, Mapping) else None
    if side is None:
        return 96 if config["cross_attention_dim"] == _SD2_WIDTH and prediction == "v_prediction" else 64
    least = 2 ** (len(config["block_out_channels"]) - 1)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1 or side % least:
        raise DenoiserError(f"{path.with_suffix('.json')} says image_size {side!r}; give a multiple of {least}.")
    return side


def _sidecar(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DenoiserError(f"{beside} is not JSON ({_first_line(error)}): mend it or remove it.") from error
    return data if isinstance(data, dict) else {}
