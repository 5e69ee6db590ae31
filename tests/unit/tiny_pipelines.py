"""Pipelines of diffusers with tiny random weights, whatever the class: text encoders by what ``__init__`` asks for."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from fakes import ADJECTIVES, KNOWN, NOUNS, PLACES
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from saferegion.core.fingerprint import PROBES
from saferegion_lab.microworld.model import TOKENIZER

WIDTH = 32
_LETTERS = "a and in the number stove on by sea red n u d e i r g b . , : 1 2 3 4 5 6 7 8 9 0"
_TEXTS = (*KNOWN, *ADJECTIVES, *NOUNS, *PLACES, *PROBES, _LETTERS)
WORDS = sorted({w for text in _TEXTS for w in re.findall(r"\w+|\S", text.lower())})
"""Words that the tiny tokenizer knows."""


@cache
def clip_words() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(TOKENIZER))


@cache
def words(chat: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, which puts an end token behind them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "</s>", "<unk>"]
    table = {w: i for i, w in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if not chat:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" if chat else None
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
        chat_template=template,
        padding_side="right",
    )


def clip(project: bool = False, seed: int = 0, width: int = WIDTH) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=width, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return shaken((CLIPTextModelWithProjection if project else CLIPTextModel)(config))


def t5(kind: str = "T5") -> Any:
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(words()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return shaken(getattr(transformers, f"{kind}EncoderModel")(config))


def qwen3(layers: int = 3) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(4)
    config = Qwen3Config(
        vocab_size=len(words(True)), hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
    )  # fmt: skip
    return shaken(Qwen3ForCausalLM(config))


def qwen25() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(5)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": len(words(True)), "max_position_embeddings": 2048,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "depth": 1, "hidden_size": WIDTH, "intermediate_size": 37, "num_heads": 2, "out_hidden_size": WIDTH,
        },
    )  # fmt: skip
    return shaken(Qwen2_5_VLForConditionalGeneration(config))


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(6)
    config = Gemma2Config(
        vocab_size=len(words()), hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return shaken(Gemma2Model(config))


def shaken(model: Any) -> Any:
    """With weights larger than those of a fresh start, so that words matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.eval().requires_grad_(False)


TEXT_ENCODERS = {
    "CLIPTextModel": lambda: clip(),
    "CLIPTextModelWithProjection": lambda: clip(True, 1),
    "T5EncoderModel": lambda: t5(),
    "UMT5EncoderModel": lambda: t5("UMT5"),
    "Qwen2_5_VLForConditionalGeneration": qwen25,
    "Qwen3ForCausalLM": qwen3,
    "PreTrainedModel": qwen3,
    "Gemma2PreTrainedModel": gemma2,
}
TOKENIZERS = {
    "CLIPTokenizer": clip_words,
    "T5Tokenizer": words,
    "T5TokenizerFast": words,
    "GemmaTokenizer": words,
    "Qwen2Tokenizer": lambda: words(True),
}
CHATS = ("Qwen3ForCausalLM", "PreTrainedModel", "Qwen2_5_VLForConditionalGeneration")


def kinds_of(cls: Any) -> dict[str, str]:
    """Text encoders and tokenizers that a class asks for: parameter -> name of the type."""
    found = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if "text_encoder" in name or "token" in name or name == "processor":
            text = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", str(parameter.annotation))
            found[name] = text.split(" | ")[0].split(".")[-1]
    return found


def can_be_built(cls: Any) -> bool:
    """Whether its text encoders are of kinds that this module makes."""
    kinds = kinds_of(cls)
    known = {**TEXT_ENCODERS, **TOKENIZERS, "AutoTokenizer": None}
    return bool(kinds) and all(k in known for k in kinds.values())


@cache
def text_encoder(kind: str, second: bool = False) -> Any:
    return clip(True, 2) if second and kind == "CLIPTextModelWithProjection" else TEXT_ENCODERS[kind]()


def build(cls: Any, **parts: Any) -> Any:
    """A pipeline of ``cls`` with tiny text encoders; what is not given is None."""
    kinds = kinds_of(cls)
    chats = any(k in CHATS for k in kinds.values())
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in parts:
            given[name] = parts[name]
        elif name in kinds:
            kind = kinds[name]
            both = [k for k in kinds.values() if k == kind]
            if kind in TEXT_ENCODERS:
                deep = cls.__name__.startswith("Flux2") and kind.startswith("Qwen3")  # it reads layers 9, 18 and 27
                given[name] = qwen3(28) if deep else text_encoder(kind, len(both) > 1 and name == "text_encoder_2")
            else:
                given[name] = words(chats) if kind == "AutoTokenizer" else TOKENIZERS[kind]()
        elif name not in ("self", "kwargs", "args") and parameter.default is inspect.Parameter.empty:
            given[name] = _filler(name)
    pipe = cls(**given)
    if hasattr(pipe, "prompt_template_encode"):  # of Qwen: as many tokens as the tiny tokenizer has in front
        before = pipe.prompt_template_encode.split("{}")[0]
        pipe.prompt_template_encode_start_idx = len(words(True)(before).input_ids)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _filler(name: str) -> Any:
    """What a pipeline reads sizes of while it is made."""
    import diffusers

    if name == "scheduler":
        return diffusers.DDIMScheduler()
    return None


def whole(name: str) -> tuple[Any, dict[str, Any]]:
    """One pipeline of a family that paints latents, and how it is called."""
    import diffusers as d

    torch.manual_seed(0)
    latent = {"output_type": "latent", "num_inference_steps": 2}
    small = {"height": 64, "width": 64, **latent}
    if name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        big = name == "StableDiffusionXLPipeline"
        more = {} if not big else {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 1),
            "projection_class_embeddings_input_dim": WIDTH + 48,
        }  # fmt: skip
        unet = d.UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH * (1 + big), **more,
        )  # fmt: skip
        rest = {} if big else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        vae = d.AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
        pipe = build(
            getattr(d, name), unet=unet, scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False), vae=vae, **rest
        )
        return pipe, {**latent, "height": 8, "width": 8}
    if name == "StableDiffusion3Pipeline":
        net = d.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=WIDTH, joint_attention_dim=4 * WIDTH, pooled_projection_dim=2 * WIDTH,
            out_channels=4,
        )  # fmt: skip
        encoder = t5_wide(4 * WIDTH)
        return build(d.StableDiffusion3Pipeline, transformer=net, scheduler=_flow(), text_encoder_3=encoder), small
    if name == "FluxPipeline":
        net = d.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
        return build(d.FluxPipeline, transformer=net, scheduler=_flow()), small
    if name == "PixArtSigmaPipeline":
        net = d.PixArtTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=WIDTH, in_channels=4, cross_attention_dim=24, out_channels=8,
        )  # fmt: skip
        how = {**small, "use_resolution_binning": False, "max_sequence_length": 48}
        return build(
            d.PixArtSigmaPipeline, transformer=net, scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False)
        ), how
    if name == "WanPipeline":
        net = d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
        )  # fmt: skip
        scheduler = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
        how = {**small, "num_frames": 5, "max_sequence_length": 48}
        return build(d.WanPipeline, transformer=net, scheduler=scheduler), how
    if name == "QwenImagePipeline":
        net = d.QwenImageTransformer2DModel(
            patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
        )  # fmt: skip
        return build(d.QwenImagePipeline, transformer=net, scheduler=_flow()), {**small, "true_cfg_scale": 2.0}
    net = d.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return build(d.ZImagePipeline, transformer=net, scheduler=_flow()), small


def t5_wide(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(3)
    config = T5Config(vocab_size=len(words()), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return shaken(T5EncoderModel(config))


def _flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()
