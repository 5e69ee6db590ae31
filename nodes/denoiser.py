"""The diffusion model that a MODEL object holds, as discovery asks it: noise, differentiable in the text."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import comfy.ldm.modules.attention
import torch
from comfy import model_base, model_management

from ..saferegion.core.conditioning import Conditioning
from ..saferegion.core.errors import SafeRegionError

PIXELS = 8
HEADROOM = 4
"""Memory of a differentiated pass, as a multiple of one that only samples."""

_KINDS = ("EPS", "V_PREDICTION")


class HostDenoiser:
    """A loaded model with LoRA and patches as the host samples it; make it and call it outside inference mode.

    Attributes:
        latent_shape: (channels, height, width) of what is painted.
        alphas_cumprod: share of signal power at each trained step, float32, on the device that samples.

    Raises:
        SafeRegionError: not a text-to-image model with a noise schedule in steps (Stable Diffusion 1, 2 and XL are).
    """

    def __init__(self, model: Any, clip: Any, width: int, height: int, batch_size: int) -> None:
        base = model.model
        kinds = [getattr(model_base.ModelType, kind) for kind in _KINDS]
        channels = getattr(base.latent_format, "latent_channels", 4)
        if base.model_type not in kinds or getattr(base.latent_format, "latent_dimensions", 2) != 2:
            raise SafeRegionError(
                f"{type(base).__name__} has no noise schedule in steps, which discovery needs: connect a model of "
                "Stable Diffusion 1, 2 or XL."
            )
        if base.concat_keys:
            raise SafeRegionError(
                f"{type(base).__name__} also takes a picture (inpainting, editing): connect a text-to-image model."
            )
        self.latent_shape = (channels, height // PIXELS, width // PIXELS)
        self.model, self.base, self.device = model, base, model.load_device
        self.width, self.height = width, height
        shape = [2 * batch_size, *self.latent_shape]
        needed = HEADROOM * base.memory_required(shape)
        model_management.load_models_gpu([model, clip.patcher], memory_required=needed)
        thaw(base)
        sigmas = base.model_sampling.sigmas
        self.sigmas = sigmas.detach().float().clone().to(self.device)
        self.alphas_cumprod = 1 / (1 + self.sigmas.square())

    def parameters(self) -> Iterable[torch.Tensor]:
        return self.base.diffusion_model.parameters()  # type: ignore[no-any-return]

    def predict(self, x_t: torch.Tensor, t: torch.Tensor | int, conditioning: Conditioning) -> torch.Tensor:
        """The noise in ``x_t`` [B, C, H, W] at steps ``t`` (int or [B]); raises where the user pressed Interrupt."""
        model_management.throw_exception_if_processing_interrupted()
        x = x_t.to(self.device)
        steps = torch.as_tensor(t, device=self.device).expand(len(x))
        sigma = self.sigmas[steps]
        wide = sigma.view(-1, *[1] * (x.ndim - 1))
        noised = x.float() * (1 + wide.square()).sqrt()  # the host's latents are signal + sigma * noise
        clean = self.base.apply_model(
            noised, sigma, transformer_options=self._options(sigma), **self._text(conditioning, noised)
        )
        return ((noised - clean) / wide).to(x_t)

    def _text(self, c: Conditioning, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model makes of a prompt: tokens, and the pooled output with the picture's size in SDXL."""
        tokens = c.tokens.to(self.device)
        pooled = c.pooled
        if pooled is None and self.base.adm_channels:
            raise SafeRegionError(
                f"{type(self.base).__name__} reads a pooled output, which the connected CLIP does not give: connect "
                "the CLIP of the same checkpoint."
            )
        conds = self.base.extra_conds(
            cross_attn=tokens,
            pooled_output=None if pooled is None else pooled.to(self.device),
            noise=x,
            device=self.device,
            width=self.width,
            height=self.height,
            prompt_type="positive",
        )
        return {name: cond.process_cond(batch_size=len(x), area=None).cond for name, cond in conds.items()}

    def _options(self, sigma: torch.Tensor) -> dict[str, Any]:
        given = self.model.model_options.get("transformer_options", {})
        options = {**given, "cond_or_uncond": [0], "uuids": [uuid.uuid4()], "sigmas": sigma}
        if model_management.sage_attention_enabled() or model_management.flash_attention_enabled():
            options["optimized_attention_override"] = _differentiable
        return options


def _differentiable(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """PyTorch's own attention: the one the host runs with has no backward."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def thaw(module: torch.nn.Module) -> None:
    """Replace weights that were made in inference mode, which autograd cannot use, by equal ones; one at a time."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and _frozen(p):
                part._parameters[name] = torch.nn.Parameter(p.detach().clone(), requires_grad=False)
        for name, b in part._buffers.items():
            if b is not None and _frozen(b):
                part._buffers[name] = b.detach().clone()


def _frozen(tensor: torch.Tensor) -> bool:
    try:
        return tensor.is_inference() or tensor._version < 0
    except RuntimeError:  # moved since: no inference tensor by name, and none that counts its versions either
        return True
