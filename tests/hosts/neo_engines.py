"""Every engine of Forge Neo, of its own class with a small text encoder of its own kind, and no diffusion model.

usage: neo_engines.py [ENGINE…]    (run by Neo's interpreter in its checkout; prints JSON: by engine, what was seen)
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CHECKOUT = Path.cwd()
sys.path[:0] = [str(CHECKOUT), str(Path(__file__).resolve().parents[2])]
ASKED = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu", "--force-fp32", "--fp32-text-enc", "--skip-torch-cuda-test"]

from modules_forge.initialization import initialize_forge  # noqa: E402

initialize_forge()
from modules import initialize, shared, shared_init  # noqa: E402

initialize.imports()
shared_init.initialize()

import backend.diffusion_engine.anima as anima  # noqa: E402
import backend.nn.llm.llama as llama  # noqa: E402
import torch  # noqa: E402
from backend import memory_management  # noqa: E402
from backend.diffusion_engine import chroma, flux, flux2, lumina, qwen, sd15, sdxl, wan, zimage  # noqa: E402
from backend.nn.clip import IntegratedCLIP  # noqa: E402
from backend.nn.t5 import IntegratedT5  # noqa: E402
from backend.nn.unet import Timestep  # noqa: E402
from backend.operations import ForgeOperations  # noqa: E402
from backend.text_processing import (  # noqa: E402
    anima_engine,
    classic_engine,
    gemma_engine,
    klein_engine,
    qwen3_engine,
    qwen_engine,
    t5_engine,
    umt5_engine,
)  # fmt: skip
from backend.utils import read_arbitrary_config  # noqa: E402
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel  # noqa: E402

import saferegion_webui  # noqa: E402, F401
from saferegion import Concept, compile  # noqa: E402
from saferegion.guard.selection import Choice, Guard, Selection  # noqa: E402
from saferegion_webui import schedules  # noqa: E402
from saferegion_webui.encoder import HostEncoder  # noqa: E402
from saferegion_webui.host import encoded  # noqa: E402
from saferegion_webui.layout import parts_of, tokens_of  # noqa: E402

HUB = CHECKOUT / "backend" / "huggingface"
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
UNSAFE, BENIGN = "a burning red house in a meadow", "a red house in a meadow"
COLOURS, NOUNS, PLACES = ("red", "blue", "green"), ("house", "boat", "tree", "car"), ("meadow", "city")


def language_model(name: str, layers: int = 3, width: int = 64) -> Any:
    """``name`` of Neo's classes with small widths and random weights."""
    stock = getattr(llama, f"{name}Config", None) or getattr(llama, f"{name}_Config")
    fields = {"head_dim": 32, **SMALL, "hidden_size": width, "num_hidden_layers": layers}
    small = type(stock.__name__, (stock,), {k: v for k, v in fields.items() if k == "head_dim"})
    key = stock.__name__
    known = {f.name for f in dataclasses.fields(stock)}
    setattr(llama, key, lambda: small(**{k: v for k, v in fields.items() if k in known}))
    try:
        return filled(lambda: getattr(llama, name)({}))
    finally:
        setattr(llama, key, stock)


def t5(family: str, part: str = "text_encoder") -> Any:
    config = read_arbitrary_config(str(HUB / family / part))
    config.update(d_model=64, d_ff=96, d_kv=32, num_heads=2, num_layers=3)
    return filled(lambda: IntegratedT5(config))


def clip(family: str, part: str = "text_encoder", **more: Any) -> Any:
    """Neo's engine of CLIP, as its classes of checkpoints call it."""
    stock = CLIPTextConfig.from_pretrained(str(HUB / family / part))
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    stock.update({**small, "projection_dim": 64})
    model = filled(lambda: IntegratedCLIP(CLIPTextModel, stock, add_text_projection=True))
    return classic_engine.ClassicTextProcessingEngine(
        text_encoder=model, tokenizer=tokenizer(family, part.replace("text_encoder", "tokenizer")), **more
    )


def filled(make: Callable[[], torch.nn.Module]) -> Any:
    """A module with random weights. Neo's own layers wait for a file of weights; only its norm is needed here."""
    torch.manual_seed(3)
    stock, torch.nn.RMSNorm = torch.nn.RMSNorm, ForgeOperations.RMSNorm
    try:
        model = make()
    finally:
        torch.nn.RMSNorm = stock
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        spread = 1.0 if "embed" in name or "shared" in name else 0.1
        weight.fill_(1.0) if weight.ndim == 1 and name.endswith("weight") else weight.normal_(0, spread)
    return model.eval()


def tokenizer(family: str, part: str = "tokenizer") -> Any:
    return AutoTokenizer.from_pretrained(str(HUB / family / part))


def of(cls: type, **engines: Any) -> Any:
    """An engine of Neo's own class around its text encoder; it has no diffusion model."""
    found = object.__new__(cls)
    unet = SimpleNamespace(model=SimpleNamespace(predictor=SimpleNamespace(set_parameters=lambda **_: None)))
    found.forge_objects = SimpleNamespace(clip=SimpleNamespace(patcher=None, cond_stage_model=None), unet=unet)
    found.ref_latents, found.ini_latent = [], None
    found.is_sd1 = found.is_sdxl = False
    found.extra_generation_params, found.comments = {}, []
    found.__dict__.update(engines)
    return found


def engines() -> dict[str, Any]:
    def text(kind: Any, model: Any, family: str, part: str = "tokenizer", **more: Any) -> Any:
        return kind(text_encoder=model, tokenizer=tokenizer(family, part), **more)

    gemma, klein = "neta-art/Neta-Lumina", "black-forest-labs/FLUX.2-klein-4B"
    sd, xl, refiner, dev = (
        "runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0",
        "stabilityai/stable-diffusion-xl-refiner-1.0", "black-forest-labs/FLUX.1-dev",
    )  # fmt: skip
    large = {
        "embedding_key": "clip_g", "text_projection": True, "minimal_clip_skip": 2, "clip_skip": 2,
        "return_pooled": True, "final_layer_norm": False,
    }  # fmt: skip
    small = {"minimal_clip_skip": 2, "clip_skip": 2, "final_layer_norm": False}
    return {
        "Stable Diffusion 1": lambda: of(sd15.StableDiffusion, text_processing_engine=clip(sd), is_sd1=True),
        "SDXL": lambda: of(sdxl.StableDiffusionXL, text_processing_engine_l=clip(xl, **small),
            text_processing_engine_g=clip(xl, "text_encoder_2", **large), embedder=Timestep(256), is_sdxl=True),
        "SDXL refiner": lambda: of(sdxl.StableDiffusionXLRefiner, embedder=Timestep(256), is_sdxl=True,
            text_processing_engine_g=clip(refiner, **large)),
        "Flux": lambda: of(flux.Flux, text_processing_engine_l=clip(dev, return_pooled=True),
            use_distilled_cfg_scale=True,
            text_processing_engine_t5=text(
                t5_engine.T5TextProcessingEngine, t5(dev, "text_encoder_2"), dev, "tokenizer_2")),
        "Z-Image": lambda: of(zimage.ZImage, text_processing_engine_gemma=text(
            qwen3_engine.Qwen3TextProcessingEngine, language_model("Qwen3_4B"), "Tongyi-MAI/Z-Image-Turbo")),
        "Klein": lambda: of(flux2.Flux2, text_processing_engine_gemma=text(
            klein_engine.KleinTextProcessingEngine, language_model("Qwen3_4B", 28), klein)),
        "Qwen-Image": lambda: of(qwen.QwenImage, text_processing_engine_qwen=text(
            qwen_engine.QwenTextProcessingEngine, language_model("Qwen25_7BVLI"), "Qwen/Qwen-Image")),
        "Lumina": lambda: of(lumina.Lumina2, text_processing_engine_gemma=text(
            gemma_engine.GemmaTextProcessingEngine, language_model("Gemma2_2B"), gemma)),
        "Anima": lambda: of(anima.Anima, text_processing_engine_anima=anima_engine.AnimaTextProcessingEngine(
            text_encoder=language_model("Qwen3_06B", width=1024), qwen_tokenizer=tokenizer("circlestone-labs/Anima"),
            t5_tokenizer=tokenizer("circlestone-labs/Anima", "tokenizer_2"))),
        "Wan": lambda: of(wan.Wan, text_processing_engine_t5=text(
            umt5_engine.UMT5TextProcessingEngine, t5("Wan-AI/Wan2.1-T2V-14B"), "Wan-AI/Wan2.1-T2V-14B")),
        "Chroma": lambda: of(chroma.Chroma, text_processing_engine_t5=text(
            t5_engine.T5TextProcessingEngine, t5("Chroma"), "black-forest-labs/FLUX.1-dev", part="tokenizer_2",
            min_length=1, min_padding=0)),
    }  # fmt: skip


def judged(checkpoint: Any) -> dict[str, Any]:
    """What the guard of a small concept does on an engine."""
    encoder = HostEncoder(checkpoint)
    things = [f"{c} {n} in a {p}" for c in COLOURS for n in NOUNS for p in PLACES]
    fire = Concept.from_pairs("fire", [(f"a burning {thing}", f"a {thing}") for thing in things])
    forms = ("a {}, quiet", "we see a {}", "one {} and a tree")
    neutral = [f"a {c} {n} at a beach" for c in COLOURS for n in NOUNS] + [f.format(t) for f in forms for t in things]
    guard = Guard.of(Selection((Choice("fire"),)), [compile(fire, encoder, neutral)])
    raw = [parts_of(encoded(checkpoint, [text]))[0] for text in (UNSAFE, BENIGN)]  # some take no two of other lengths
    looks = schedules.apply(guard, encoder.layout, raw, {})
    moved, kept = (looks[id(cond)][0] for cond in raw)
    template = len(encoder.layout.begin)
    other = tokens_of(parts_of(encoded(checkpoint, [BENIGN.replace("house", "boat")]))[0])
    changed = (other != tokens_of(raw[1])).any(-1).nonzero() if other.shape == tokens_of(raw[1]).shape else []
    named = next(iter(encoder.words(BENIGN).values()), [])
    before, after = tokens_of(raw[0]), tokens_of(moved.cond)
    return {
        "family": encoder.family, "rows": len(before), "template rows": template, "moved": moved.moved,
        "benign kept": kept.cond is raw[1], "template kept": bool(torch.equal(before[:template], after[:template])),
        "shape kept": after.shape == before.shape, "words": len(named) > 0,
        "first row that another noun changes": named[int(changed[0])] if len(changed) and named else None,
    }  # fmt: skip


def main() -> None:
    memory_management.load_model_gpu = lambda *_: None
    shared.opts.data["emphasis"] = "Original"
    done = {}
    wanted = ASKED or list(engines())
    for name, make in engines().items():
        if name not in wanted:
            continue
        try:
            done[name] = judged(make())
        except Exception as error:
            traceback.print_exc()
            done[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(name, done[name], file=sys.stderr, flush=True)
    print(json.dumps(done))


os.environ.setdefault("OMP_NUM_THREADS", "1")
with torch.inference_mode():
    main()
