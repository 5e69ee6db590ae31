"""Run by ComfyUI's interpreter: its real text encoders, with small random weights, behind the pack.

usage: comfyui_encoders.py BASE_DIRECTORY write FOLDER RECIPE    batches against prompts one by one; saves five of them
       comfyui_encoders.py BASE_DIRECTORY use FOLDER NAME...    direction files, made elsewhere, in the guard
(in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui_pack import N, arguments, module  # isort: skip  (ComfyUI starts here)

import comfy.sd
import comfy.supported_models as supported
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux, genmo, hydit, omnigen2, pixart_t5, sd3_clip
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5TokenizerFast

action, folder, *rest = arguments
FOLDER = Path(folder)
encoding, guards, families = module("nodes.encoder"), module("nodes.wrap"), module("nodes.family")
module("saferegion.guard.library").Library.guarding = lambda own, *a: (own.directions(a[0], a[1], None, *a[2:]), [])
TEXT_ENCODERS = Path(sd3_clip.__file__).parent

THEME = ("burning", "blazing", "flaming")
LONG = ("a small red house, one two three four, " * 20).strip()
PROMPTS = (
    "a red house by the sea",
    "",
    "a (very:1.4) large cat with [brackets], (((more))) and a \\ slash",
    "two engineers talk in a bright kitchen",
    LONG,
)
WEIGHTED = ("a blazing (burning:1.4) house", "a quiet house and a blue boat in a harbour, number 7")
SMALL, BIG, WIDE_T5, ROWS = 64, 128, 4096, 600


def clip_sizes(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "projection_dim": width,
    }


def t5_sizes(width: int, rows: int | None = None) -> dict[str, Any]:
    return {"d_model": width, "d_kv": 16, "num_heads": 2, "d_ff": 96, "num_layers": 2} | (
        {} if rows is None else {"vocab_size": rows}
    )


@dataclass(frozen=True)
class Kind:
    """One text encoder: ComfyUI's classes and the sizes of its parts."""

    target: Callable[[], ClipTarget]
    sizes: dict[str, dict[str, Any]]
    data: Callable[[], dict[str, Any]] = dict
    guarded: bool = True
    weights: bool = True  # ComfyUI's Omnigen2 gives NaN for weighted words


L, G, H = ("clip_l_model_config", clip_sizes(SMALL)), ("clip_g_model_config", clip_sizes(BIG)), clip_sizes(BIG)
LLM = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def spiece() -> dict[str, Any]:
    model = (TEXT_ENCODERS / "t5_pile_tokenizer" / "tokenizer.model").read_bytes()
    return {"mt5xl.spiece_model": torch.ByteTensor(list(model))}


def of(model: type) -> Callable[[], ClipTarget]:
    return lambda: model({"in_channels": 4}).clip_target(state_dict={})


KINDS = {
    "sd1": Kind(of(supported.SD15), dict([L])),
    "sd2": Kind(of(supported.SD20), {"clip_h_model_config": H}),
    "sdxl": Kind(of(supported.SDXL), dict([L, G])),
    "refiner": Kind(of(supported.SDXLRefiner), dict([G])),
    "sd3": Kind(
        lambda: ClipTarget(sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip()),
        {**dict([L, G]), "t5xxl_model_config": t5_sizes(WIDE_T5, ROWS)},
        guarded=False,
    ),
    "sd3 without T5": Kind(lambda: ClipTarget(sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=False)), dict([L, G])),
    "flux": Kind(
        lambda: ClipTarget(flux.FluxTokenizer, flux.flux_clip()), {**dict([L]), "t5xxl_model_config": t5_sizes(SMALL)}
    ),
    "pixart": Kind(
        lambda: ClipTarget(pixart_t5.PixArtTokenizer, pixart_t5.pixart_te()), {"t5xxl_model_config": t5_sizes(SMALL)}
    ),
    "mochi": Kind(
        lambda: ClipTarget(genmo.MochiT5Tokenizer, genmo.mochi_te()), {"t5xxl_model_config": t5_sizes(SMALL)}
    ),
    "omnigen2": Kind(
        lambda: ClipTarget(omnigen2.Omnigen2Tokenizer, omnigen2.te()),
        {"qwen25_3b_model_config": {**LLM, "intermediate_size": 96}},
        weights=False,
    ),
    "hunyuandit": Kind(
        lambda: ClipTarget(hydit.HyditTokenizer, hydit.HyditModel),
        {
            "hydit_clip_model_config": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 96,
            },
            "mt5xl_model_config": t5_sizes(SMALL, 51000),
        },
        spiece,
    ),
}
SAVED = ("sd1", "sd2", "sdxl", "sd3", "flux")


def randomise(model: nn.Module) -> None:
    """Weights of a size at which every part of the network matters."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in sorted(model.named_parameters()):
        if not weight.is_floating_point() or weight.ndim == 0:
            continue
        value = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1:
            value = 0.1 * value + (1 if name.endswith("weight") else 0)
        elif "embed" not in name and "shared" not in name:
            value *= 0.5 * weight.shape[1] ** -0.5
        weight.data.copy_(value)


def alike(table: Tensor, row: int) -> None:
    """Words of one theme share most of their embedding."""
    theme = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(2))
    table[row] = table[row] / 2 + 2.5 * theme.to(table)


def build(name: str) -> comfy.sd.CLIP:
    kind = KINDS[name]
    options = {"dtype": torch.float32, **{k: dict(v) for k, v in kind.sizes.items()}}
    clip = comfy.sd.CLIP(kind.target(), tokenizer_data=kind.data(), model_options=options)
    randomise(clip.cond_stage_model)
    if name == "sd3":
        words = sd1_clip.SDTokenizer(
            str(FOLDER / "t5_tokenizer"),
            pad_with_end=False,
            embedding_size=WIDE_T5,
            embedding_key="t5xxl",
            tokenizer_class=T5TokenizerFast,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99999999,
            min_length=77,
        )
        clip.tokenizer.t5xxl = words
    for word in THEME:
        empty, alone = clip.tokenize(""), clip.tokenize(word)
        for key, rows in alone.items():
            inner = encoding._inner(clip.cond_stage_model, key)
            new = [t for t, _ in rows[0] if t not in {t for t, _ in empty[key][0]}]
            if inner is not None:
                alike(inner.transformer.get_input_embeddings().weight.data, new[0])
    # The border between the channels of CLIP and T5 rows lies where these small encoders have it.
    families.SD3_CLIP_WIDTH = SMALL + BIG
    return clip


# -- batches against prompts one by one ------------------------------------------------------------------------------


def tensors(output: Any) -> dict[str, Tensor]:
    tokens, pooled, extras = output
    found = {"cross_attn": tokens, "pooled_output": pooled, **extras}
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def apart(encoder: Any, clip: Any) -> float:
    """Largest distance between a batch and the same prompts through ComfyUI's own encode."""
    largest = 0.0
    for prompt, batched in zip(PROMPTS, encoder._outputs(PROMPTS), strict=True):
        alone = clip.encode_from_tokens(encoder._tokens(prompt), return_pooled=True, return_dict=True)
        alone = tensors((alone.pop("cond"), alone.pop("pooled_output"), alone))
        both = tensors(batched)
        if {k: v.shape for k, v in alone.items()} != {k: v.shape for k, v in both.items()}:
            raise SystemExit(f"A batch gives other tensors than a prompt alone: {alone.keys()}, {both.keys()}.")
        largest = max(largest, *(float((v.double() - both[k].double()).abs().max()) for k, v in alone.items()))
    return largest


def movable(encoder: Any) -> dict[str, list[int]]:
    """Tokens that may move, by space and prompt."""
    c = encoder(list(PROMPTS))
    return {s.name: c.mask[:, s.rows].sum(1).tolist() for s in c.spaces}


def literal(encoder: Any) -> bool:
    """Whether brackets in the prompts of a recipe are text and no weights."""
    return all(t[1] == 1.0 for rows in encoder._tokens(PROMPTS[2]).values() for row in rows for t in row)


def guard(clip: Any, region: Any, weights: bool = True) -> dict[str, Any]:
    """Distances outside the border of a weighted unsafe prompt, before and after; whether a benign one is the same."""
    (by_clip,) = N["SafeRegionGuardCLIP"]().guard(clip, region)
    fitted = guards.fit(region, encoding.TextEncoder.of(clip))

    def encode(text: str) -> list[Any]:
        return [N["CLIPTextEncode"]().encode(c, text)[0][0] for c in (clip, by_clip)]

    def far(tokens: Tensor, options: dict[str, Any]) -> float:
        c = fitted.family.conditioning(tokens, options.get("pooled_output"), options)
        return max(float(r.score(c).max()) for r in fitted.guard.regions)

    unsafe, benign = (encode(text if weights else re.sub(r"[():.\d]", "", text)) for text in WEIGHTED)
    plain, guarded = (tensors((tokens, options.get("pooled_output"), options)) for tokens, options in benign)
    return {
        "far": [round(far(*c), 4) for c in unsafe],
        "benign": plain.keys() == guarded.keys() and all(torch.equal(v, guarded[k]) for k, v in plain.items()),
    }


# -- files for other programs ----------------------------------------------------------------------------------------


def t5_tokenizer(path: Path) -> None:
    """A T5 tokenizer of a few words: for ComfyUI's own, rows of 4096 numbers take half a gigabyte."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({w.strip(",") for text in (*PROMPTS, *WEIGHTED, " ".join(THEME)) for w in text.lower().split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *(("▁" + w, -2.0) for w in words if w.isalpha())]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(str(path))


def save_model(stage: nn.Module, name: str, path: Path, config: dict[str, Any]) -> None:
    """One inner encoder as a transformers directory."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {k: v.contiguous() for k, v in getattr(stage, name).transformer.state_dict().items()}
    if not config.get("projects", True):
        state = {k: v for k, v in state.items() if not k.startswith("text_projection")}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def clip_config(sizes: dict[str, Any], act: str, projects: bool) -> dict[str, Any]:
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1, "vocab_size": 49408}
    known = {"model_type": "clip_text_model", "hidden_act": act, "max_position_embeddings": 77, "projects": projects}
    return {**ids, **known, **sizes}


def t5_config(sizes: dict[str, Any]) -> dict[str, Any]:
    known = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": 32128, "is_encoder_decoder": False}
    return {**known, "pad_token_id": 0, "eos_token_id": 1, "layer_norm_epsilon": 1e-6, **sizes}


def save(name: str, clip: Any) -> None:
    """The weights as other programs know them: a checkpoint, or the directory of a pipeline."""
    stage, sizes = clip.cond_stage_model, KINDS[name].sizes
    checkpoint = {"sd1": supported.SD15, "sd2": supported.SD20, "sdxl": supported.SDXL}.get(name)
    if checkpoint is not None:
        state = checkpoint({"in_channels": 4}).process_clip_state_dict_for_saving(stage.state_dict())
        state = {k: v.contiguous() for k, v in state.items()}
        save_file({**state, "model.diffusion_model.out.2.weight": torch.zeros(4)}, FOLDER / f"{name}.safetensors")
        return
    path = FOLDER / name
    save_model(stage, "clip_l", path / "text_encoder", clip_config(clip_sizes(SMALL), "quick_gelu", False))
    words = Path(sd1_clip.__file__).parent / "sd1_tokenizer"
    shutil.copytree(words, path / "tokenizer")
    last, words_of_t5 = "_2", TEXT_ENCODERS / "t5_tokenizer"
    if name == "sd3":
        save_model(stage, "clip_g", path / "text_encoder_2", clip_config(clip_sizes(BIG), "gelu", True))
        shutil.copytree(words, path / "tokenizer_2")
        last, words_of_t5 = "_3", FOLDER / "t5_tokenizer"
    save_model(stage, "t5xxl", path / f"text_encoder{last}", t5_config(sizes["t5xxl_model_config"]))
    shutil.copytree(words_of_t5, path / f"tokenizer{last}")
    known = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[name]
    (path / "model_index.json").write_text(json.dumps({"_class_name": known}), encoding="utf-8")


def reference(name: str, encoder: Any) -> dict[str, Any]:
    """What the encoder gives for the prompts that have no brackets, each alone, for others to compare with."""
    prompts = [p for p in PROMPTS if "(" not in p]
    kept: dict[str, Tensor] = {}
    for i, prompt in enumerate(prompts):
        c = encoder([prompt])
        for space in c.spaces:
            kept[f"{i}.{space.name}"] = c.tokens[:, space.rows, space.channels].contiguous()
            kept[f"{i}.{space.name}.mask"] = c.mask[:, space.rows].contiguous()
        if c.pooled is not None:
            kept[f"{i}.pooled"] = c.pooled.contiguous()
    save_file(kept, FOLDER / f"{name}-reference.safetensors")
    return {"prompts": prompts, "fingerprint": str(encoder.fingerprint())}


@torch.inference_mode()
def write(recipe: str) -> dict[str, Any]:
    t5_tokenizer(FOLDER / "t5_tokenizer")
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        clip = build(name)
        encoder = encoding.TextEncoder.of(clip)
        family = encoder.family
        found[name] = {
            "apart": apart(encoder, clip),
            "movable": movable(encoder),
            "pooled": family.pooled,
            "begin": {space: len(rows) for space, rows in family.begin.items()},
            "literal": literal(encoder),
        }
        if kind.guarded:
            found[name]["guard"] = guard(clip, N["SafeRegion"]().choose(recipe, 1.0, "project")[0], kind.weights)
        if name in SAVED:
            save(name, clip)
            found[name]["reference"] = reference(name, encoder)
    return found


@torch.inference_mode()
def use(*names: str) -> dict[str, Any]:
    """Direction files of the user's folder, called as the encoders are, in the guard."""
    return {
        name: guard(build(name), N["SafeRegionLoadDirections"]().load(f"{name}.safetensors", 1.0, "project")[0])
        for name in names
    }


print(json.dumps(write(*rest) if action == "write" else use(*rest)))
