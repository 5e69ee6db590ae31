"""Run by ComfyUI's interpreter: how far its own networks are from reference numbers on the same checkpoint.

usage: parity_comfyui.py BASE_DIRECTORY CHECKPOINT REFERENCE.npz    (in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

base, checkpoint, reference = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import parity  # noqa: E402
import torch  # noqa: E402

plugin = Path(base) / "custom_nodes" / "microworld_sizes" / "__init__.py"
spec = importlib.util.spec_from_file_location("microworld_sizes", plugin)
spec.loader.exec_module(importlib.util.module_from_spec(spec))


@torch.inference_mode()
def main() -> None:
    prompts, wanted = parity.read(reference)
    patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint)

    tokens = torch.cat([clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts])

    comfy.model_management.load_model_gpu(patcher)
    sigma = patcher.model.model_sampling.sigma(wanted["t"].float())
    wide = sigma[:, None, None, None]
    noisy = wanted["x"] * (1 + wide**2).sqrt()
    clean = patcher.model.apply_model(noisy, sigma, c_crossattn=wanted["tokens"])
    eps = (noisy - clean) / wide

    pictures = vae.decode(patcher.model.process_latent_out(wanted["latents"])) * 255
    parity.report(wanted, tokens=tokens, eps=eps, pictures=pictures)


main()
