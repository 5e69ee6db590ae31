"""Makes a small SDXL checkpoint with random weights, and what the webui needs to load it.

usage: webui_sdxl_files.py DATA_DIRECTORY TOKENIZER    (run by the webui's interpreter in its checkout)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, "repositories/generative-models")
for name, value in (("taming.modules.losses.lpips", "LPIPS"), ("sgm.data", "StableDataModuleFromConfig")):
    module = ModuleType(name)
    setattr(module, value, None)
    sys.modules[name] = module

import open_clip  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sgm.util import instantiate_from_config  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

WIDTH, LAYERS, ARCH = 64, 3, "tiny-sdxl"
EXTENSION = "import open_clip\n\nopen_clip.add_model_config({folder!r})\n"


def main(data: Path, tokenizer: Path) -> None:
    torch.manual_seed(3)
    small, arch, weights = data / "clip-l", data / "open-clip", data / "clip-l-weights"
    for folder in (small, weights):
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    arch.mkdir()
    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = CLIPTextConfig(**size, vocab_size=49408)
    config.save_pretrained(small)
    CLIPTextModel(config).save_pretrained(weights)
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": LAYERS}
    seen = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    body = {"embed_dim": WIDTH, "vision_cfg": seen, "text_cfg": text}
    (arch / f"{ARCH}.json").write_text(json.dumps(body), encoding="utf-8")
    open_clip.add_model_config(str(arch))
    script = data / "extensions" / "tiny-sdxl" / "scripts" / "tiny_sdxl.py"
    script.parent.mkdir(parents=True)
    script.write_text(EXTENSION.format(folder=str(arch)), encoding="utf-8")

    whole = OmegaConf.load("repositories/generative-models/configs/inference/sd_xl_base.yaml")
    params = whole.model.params
    unet = params.network_config.params
    unet.update(model_channels=32, channel_mult=[1, 2], num_res_blocks=1, attention_resolutions=[2])
    unet.update(num_head_channels=32, transformer_depth=[1, 1], context_dim=2 * WIDTH, adm_in_channels=WIDTH + 6 * 256)
    unet.update(spatial_transformer_attn_type="softmax", use_checkpoint=False)
    towers = params.conditioner_config.params.emb_models
    towers[0].params = {"version": str(weights), "layer": "hidden", "layer_idx": LAYERS - 1, "device": "cpu"}
    towers[1].params.update(arch=ARCH, version=None)
    params.first_stage_config.params.ddconfig.update(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1, attn_type="vanilla")
    checkpoint = instantiate_from_config(whole.model)
    with torch.no_grad():
        for name, weight in checkpoint.named_parameters():
            if name.endswith("weight") and weight.abs().max() == 0:
                weight.normal_(0, 0.02)
    values = {k: v.contiguous().clone() for k, v in checkpoint.state_dict().items() if v is not None}
    target = data / "models" / "Stable-diffusion" / "sdxl.safetensors"
    target.parent.mkdir(parents=True)
    save_file(values, target)
    towers[0].params.version = str(small)
    OmegaConf.save(whole, target.with_suffix(".yaml"))
    shutil.rmtree(weights)


main(Path(sys.argv[1]), Path(sys.argv[2]))
