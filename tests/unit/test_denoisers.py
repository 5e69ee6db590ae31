"""Diffusion models from disk: a single file and a diffusers folder give the noise of the model they hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saferegion import Conditioning, SafeRegionError
from saferegion_lab import microworld
from saferegion_lab.microworld.model import TOKENIZER, MicroWorld

diffusers = pytest.importorskip("diffusers")

from saferegion_lab import denoisers  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world() -> MicroWorld:
    return microworld.load()


@pytest.fixture(scope="module")
def exported(world: MicroWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.export(tmp_path_factory.mktemp("export") / "tiny.safetensors")


def schedule(prediction: str = "epsilon") -> object:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a small random Stable Diffusion pipeline with diffusers' own classes."""

    def write(prediction: str) -> Path:
        from transformers import CLIPTextConfig, CLIPTextModel

        path = tmp_path / prediction
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
            attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        text = CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=32,
            bos_token_id=49406, eos_token_id=49407,
        )  # fmt: skip
        unet.save_pretrained(path / "unet")
        CLIPTextModel(text).save_pretrained(path / "text_encoder")
        schedule(prediction).save_pretrained(path / "scheduler")  # type: ignore[attr-defined]
        shutil.copytree(TOKENIZER, path / "tokenizer")
        (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
        return path

    return write


def test_a_single_file_gives_the_noise_of_its_model_and_gradients_of_the_text_alone(
    world: MicroWorld, exported: Path
) -> None:
    denoiser = denoisers.load(exported)
    assert denoiser.latent_shape == world.latent_shape and denoiser.prediction == "epsilon"
    assert torch.allclose(denoiser.alphas_cumprod, world.alphas_cumprod, atol=1e-6)
    c, x = world.encode(["a burning house", "a boat at a beach"]), world.noise([1, 2])
    for t in (0, 500, 999, torch.tensor([10, 900])):
        assert torch.allclose(denoiser.predict(x, t, c), world.predict(x, t, c), atol=1e-4)
    one = world.encode(["a red house"])
    assert torch.allclose(denoiser.predict(x, 500, one), world.predict(x, 500, one), atol=1e-4)
    tokens = c.tokens.clone().requires_grad_()
    denoiser.predict(x, 500, c.replace(tokens, None)).square().sum().backward()
    assert tokens.grad is not None and tokens.grad.norm() > 0
    assert all(p.grad is None and not p.requires_grad for p in denoiser.parameters())


def test_half_precision_takes_and_gives_what_it_is_given(world: MicroWorld, exported: Path) -> None:
    denoiser = denoisers.load(exported, dtype=torch.bfloat16)
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
    c, x = world.encode(["a boat"]), world.noise([1])
    eps = denoiser.predict(x, 500, c)
    assert eps.dtype == torch.float32 and (eps - world.predict(x, 500, c)).abs().mean() < 0.05


@pytest.mark.parametrize("prediction", denoisers.PREDICTIONS)
def test_a_folder_gives_noise_whatever_its_network_predicts(folder: Callable[[str], Path], prediction: str) -> None:
    """Against what diffusers' own scheduler makes of the network's output."""
    path = folder(prediction)
    denoiser = denoisers.load(path)
    assert denoiser.latent_shape == (4, 8, 8) and denoiser.prediction == prediction
    torch.manual_seed(1)
    x, tokens, t = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32), 600
    unet = diffusers.UNet2DConditionModel.from_pretrained(path / "unet")
    scheduler = schedule(prediction)
    scheduler.set_timesteps(1000)  # type: ignore[attr-defined]
    with torch.no_grad():
        step = scheduler.step(unet(x, t, tokens).sample, t, x)  # type: ignore[attr-defined]
        eps = denoiser.predict(x, t, Conditioning(tokens))
    signal = denoiser.alphas_cumprod[t]
    clean = (x - (1 - signal).sqrt() * eps) / signal.sqrt()
    assert torch.allclose(clean, step.pred_original_sample, atol=1e-3)


def test_pictures_may_be_of_another_size(exported: Path) -> None:
    assert denoisers.load(exported, size=128).latent_shape == (4, 16, 16)
    with pytest.raises(SafeRegionError, match="multiple of"):
        denoisers.load(exported, size=100)


def test_sizes_of_the_real_models_are_read_from_their_tensors() -> None:
    """Stable Diffusion 2 attends in heads 64 wide and projects with matrices, 1 has eight heads and convolutions."""
    shapes: dict[str, tuple[int, ...]] = {"input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3)}
    number = 1
    for level, width in enumerate((320, 640, 1280, 1280)):
        for _ in range(2):
            shapes[f"input_blocks.{number}.0.out_layers.3.weight"] = (width, width, 3, 3)
            if level < 3:
                shapes[f"input_blocks.{number}.1.transformer_blocks.0.attn2.to_k.weight"] = (width, 1024)
            number += 1
        if level < 3:
            shapes[f"input_blocks.{number}.0.op.weight"] = (width, width, 3, 3)
            number += 1
    shapes["middle_block.1.proj_in.weight"] = (1280, 1280)
    shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"] = (1280, 1024)
    config = denoisers.unet_config(shapes, {}, Path("sd2.safetensors"))
    assert config["attention_head_dim"] == [5, 10, 20, 20] and config["use_linear_projection"]
    assert config["block_out_channels"] == (320, 640, 1280, 1280) and config["layers_per_block"] == 2
    assert config["down_block_types"] == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert config["up_block_types"] == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    shapes["middle_block.1.proj_in.weight"] = (1280, 1280, 1, 1)
    assert denoisers.unet_config(shapes, {}, Path("sd1.safetensors"))["attention_head_dim"] == 8
    shapes["label_emb.0.0.weight"] = (1280, 2816)
    with pytest.raises(SafeRegionError, match="SDXL"):
        denoisers.unet_config(shapes, {}, Path("xl.safetensors"))


def refused(path: Path) -> str:
    with pytest.raises(SafeRegionError) as caught:
        denoisers.load(path)
    text = str(caught.value)
    assert "\n" not in text and path.name in text
    return text


def test_what_cannot_be_read_is_refused_in_one_sentence(
    exported: Path, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere.safetensors")
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"PK")
    assert "pickle" in refused(pickle)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(exported.read_bytes()[:5000])
    assert "whole" in refused(cut)
    tensors = load_file(exported)
    for name, keys in {
        "text": [k for k in tensors if not k.startswith("model.")],
        "hole": [k for k in tensors if k != "model.diffusion_model.out.2.bias"],
    }.items():
        save_file({k: tensors[k] for k in keys}, tmp_path / f"{name}.safetensors")
        shutil.copyfile(exported.with_suffix(".json"), tmp_path / f"{name}.json")
    assert "no UNet" in refused(tmp_path / "text.safetensors")
    assert "incomplete" in refused(tmp_path / "hole.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no UNet" in refused(tmp_path / "empty")
    path = folder("epsilon")
    shutil.rmtree(path / "scheduler")
    assert "noise schedule" in refused(path)
    path = folder("v_prediction")
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert "cannot be read" in refused(path)


def test_a_model_for_inpainting_is_refused(exported: Path, tmp_path: Path) -> None:
    tensors, first = load_file(exported), "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = torch.cat([tensors[first], tensors[first][:, :1]], 1)
    save_file(tensors, tmp_path / "inpaint.safetensors")
    shutil.copyfile(exported.with_suffix(".json"), tmp_path / "inpaint.json")
    assert "inpainting" in refused(tmp_path / "inpaint.safetensors")
