"""Text encoders and diffusion networks of every family that ComfyUI can build, without their weights.

The classes are ComfyUI's own: tokenizers that put begin, end and padding tokens around a text and templates into which
it goes, encoders that join, mask, cut and zero what their transformers give. Only the innermost parts are replaced:
words are numbered by their hash, a transformer is a bag of words in which the words before (or around) a token show,
and a diffusion network records what it is called with.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.clip_model
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models as supported
import torch
from comfy import sd1_clip
from comfy.ldm.audio.embedders import NumberConditioner
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux, hidream, sd3_clip
from torch import Tensor, nn

THEME = ("burning", "blazing", "flaming")
HIDDEN = 32
THEMED, HEARD = 4.0, 0.4
"""How much of a theme word's embedding is the theme, and of a token what was read before it: with less of the one or
more of the other a word drowns behind a hundred others, and no long prompt could be told from another."""
_ROWS = 30011
_BEGIN_END: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys(("clip_l", "clip_g", "clip_h"), (49406, 49407)),
    **dict.fromkeys(("t5xxl", "t5base", "umt5xxl", "umt5base", "mt5xl", "byt5_small"), (None, 1)),
    "pile_t5xl": (None, 2),
    "chinese_roberta": (101, 102),
    "gemma2_2b": (2, None),
    "llama": (128000, None),
    "qwen25_3b": (None, None),
    "qwen25_7b": (None, None),
    "lyrics": (261, None),
    "mistral3_24b": (1, None),
    "ministral3_3b": (1, None),
}
_SPECIAL = {
    "t5": {"</s>": 1},
    "roberta": {"[SEP]": 102},
    "llama": {
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eot_id|>": 128009,
        "user": 882,
        "\n\n": 271,
    },
    "qwen": {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|endoftext|>": 151643, "user": 872, "\n": 198},
}


class Words:
    """A tokenizer: every word is one token, numbered by its hash."""

    def __init__(self, key: str) -> None:
        self.begin, self.end = _BEGIN_END.get(key, (None, None))
        self.special = next((s for name, s in _SPECIAL.items() if name in key), {})

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        words = re.findall(r"<\|\w+\|>|</s>|\[SEP\]|\n+|\w+|[^\w\s]", text)
        around = [[t] if t is not None and add_special_tokens else [] for t in (self.begin, self.end)]
        return {"input_ids": around[0] + [self._id(w) for w in words] + around[1]}

    def _id(self, word: str) -> int:
        if word in self.special:
            return self.special[word]
        word = word.lower()
        return 400 + THEME.index(word) if word in THEME else 10000 + zlib.crc32(word.encode()) % 20000

    def get_vocab(self) -> dict[str, int]:
        return {}

    def serialize_model(self) -> None:
        return None


def _table() -> Tensor:
    table = torch.randn(_ROWS, HIDDEN, generator=torch.Generator().manual_seed(0))
    theme = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    rows = slice(400, 400 + len(THEME))
    table[rows] = table[rows] / 2 + THEMED * theme
    return table


_TABLE = _table()


class _Embeddings(nn.Module):
    """Rows of the table; one channel more says whether a token is a word."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(_TABLE, requires_grad=False)

    def forward(self, ids: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
        word = (ids >= 300) & (ids < 49406)
        return torch.cat([self.weight[ids % _ROWS], word.unsqueeze(-1)], -1).to(out_dtype)


class Bag(nn.Module):
    """A transformer of any kind: tokens [B, T, width], and pooled outputs where CLIP has them."""

    def __init__(self, width: int, layers: int, causal: bool, pools: bool) -> None:
        super().__init__()
        self.num_layers, self.causal, self.pools = layers, causal, pools
        self.embeddings = _Embeddings()
        generator = torch.Generator().manual_seed(width + causal)
        self.register_buffer("out", torch.linalg.qr(torch.randn(width, HIDDEN, generator=generator))[0].T * 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(
        self,
        ids: None,
        mask: Tensor | None = None,
        *,
        embeds: Tensor,
        num_tokens: list[int],
        intermediate_output: Any = None,
        **_: Any,
    ) -> tuple[Tensor | None, ...]:
        x, word = embeds[..., :-1], embeds[..., -1:]
        if mask is not None:
            word = word * mask.unsqueeze(-1)
        if self.causal:
            seen = (x * word).cumsum(1) / word.cumsum(1).clamp_min(1).sqrt()
        else:
            seen = (x * word).sum(1, keepdim=True) / word.sum(1, keepdim=True).clamp_min(1).sqrt()
        place = torch.sin(torch.arange(x.shape[1]).unsqueeze(1) * torch.arange(1, HIDDEN + 1) / 9)
        tokens = 3 * torch.tanh((x + HEARD * seen + place) / 3) @ self.out
        middle = tokens.roll(1, -1)
        wanted = range(self.num_layers + 1) if intermediate_output == "all" else intermediate_output
        if not isinstance(wanted, int | None):
            middle = torch.stack([tokens.roll(i, -1) for i in wanted], 1)
        if not self.pools:
            return tokens, middle
        pooled = tokens[torch.arange(len(tokens)), [n - 1 for n in num_tokens]]
        return tokens, middle, pooled.flip(-1), pooled


def _bag(model: type, config: dict[str, Any], size: Callable[[int], int]) -> Bag:
    clip = model is comfy.clip_model.CLIPTextModel
    width = config.get("hidden_size") or config.get("d_model")
    if width:
        layers = config["num_hidden_layers"] if "num_hidden_layers" in config else config["num_layers"]
        return Bag(size(width), layers, clip, clip)
    whole = model({}, torch.float32, torch.device("meta"), comfy.ops.disable_weight_init)  # its sizes, without weights
    width = whole.get_input_embeddings().weight.shape[1]
    return Bag(size(width), 4 if size(width) < width else whole.num_layers, True, False)


@contextmanager
def _without_weights(size: Callable[[int], int]) -> Iterator[None]:
    tokenizer, model = sd1_clip.SDTokenizer.__init__, sd1_clip.SDClipModel.__init__

    def words(self: Any, path: Any = None, *args: Any, **options: Any) -> None:
        key = options.get("embedding_key", "clip_l")
        options |= {"tokenizer_class": type("Of", (), {"from_pretrained": staticmethod(lambda *a, **k: Words(key))})}
        options["tokenizer_args"] = {}
        tokenizer(self, "", *args, **options)

    def bag(self: Any, *args: Any, model_class: type = comfy.clip_model.CLIPTextModel, **options: Any) -> None:
        taps = options.get("layer")
        many = len(taps) if isinstance(taps, list) else 1  # side by side in the end, so each is the narrower

        def narrower(width: int) -> int:
            return size(width) // many // 8 * 8 if many > 1 and size(width) < width else size(width)

        model(self, *args, model_class=lambda config, *_: _bag(model_class, config, narrower), **options)

    sd1_clip.SDTokenizer.__init__, sd1_clip.SDClipModel.__init__ = words, bag
    mistral = getattr(flux, "load_mistral_tokenizer", None)  # reads a file that comes with the weights
    flux.load_mistral_tokenizer = lambda *_: {}
    try:
        yield
    finally:
        sd1_clip.SDTokenizer.__init__, sd1_clip.SDClipModel.__init__ = tokenizer, model
        flux.load_mistral_tokenizer = mistral


def target(model: type) -> ClipTarget | None:
    """The tokenizer and text encoder that belong to a class of comfy.supported_models; None: it reads no text."""
    if model is supported.SD3:
        return ClipTarget(sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip())
    if model is supported.HiDream:
        return ClipTarget(hidream.HiDreamTokenizer, hidream.hidream_clip())
    if model.__name__ == "ACEStep15":  # newer hosts have it; its encoder is found by its weights
        ace = importlib.import_module("comfy.text_encoders.ace15")
        return ClipTarget(ace.ACE15Tokenizer, ace.te(lm_model="none"))
    if model.__name__ == "Flux2":
        return ClipTarget(flux.Flux2Tokenizer, flux.flux2_te())
    if model.__name__.startswith("CogVideoX"):  # as the loader of text encoders builds it
        cog = importlib.import_module("comfy.text_encoders.cogvideo")
        return ClipTarget(cog.CogVideoXTokenizer, cog.cogvideo_te())
    return model(_config(model)).clip_target(state_dict={})


def text_encoder(found: ClipTarget, narrow: int) -> comfy.sd.CLIP:
    """A CLIP of this kind; widths above a thousand are divided by ``narrow``; then 4 layers do."""
    with _without_weights(lambda width: width // narrow if width > 1024 else width):
        return comfy.sd.CLIP(found, model_options={"dtype": torch.float32})


class Recorder(nn.Module):
    """A diffusion network that keeps every tensor it is called with for the positive prompt, and predicts zero."""

    dtype = torch.float32
    patch_size = 2
    ofs_proj_dim = None

    def __init__(self, channels: int, in_channels: int) -> None:
        super().__init__()
        self.channels, self.in_channels = channels, in_channels
        self.seen: list[dict[str, Tensor]] = []
        self.patch_embedding = nn.Conv1d(in_channels, 1, 1)
        self.img_in = nn.Module()
        self.img_in.proj = nn.Conv1d(in_channels + 1, 1, 1)

    def preprocess_text_embeds(self, text: Tensor, *_: Any, **__: Any) -> Tensor:
        return text

    def forward(self, x: Tensor, t: Tensor, transformer_options: dict[str, Any], **given: Any) -> Tensor:
        rows = transformer_options["cond_or_uncond"]
        if 0 in rows:
            each = len(x) // len(rows)
            mine = slice(rows.index(0) * each, (rows.index(0) + 1) * each)
            named = {f"{k}.{i}": v for k, v in given.items() for i, v in enumerate(v if isinstance(v, list) else [v])}
            self.seen.append({k: v[mine].clone() for k, v in named.items() if isinstance(v, Tensor)})
        return torch.zeros_like(x[:, : self.channels])


def _config(model: type) -> dict[str, Any]:
    channels = model.latent_format.latent_channels
    own = {"in_channels": channels, "out_channels": channels, "disable_unet_model_creation": True}
    own |= {"hidden_size": 3072, "timestep_features_type": "learned"}  # what Flux 2 and Stable Audio 3 ask for
    return {**own, "dtype": torch.float32, **model.unet_config}


def network(model: type) -> tuple[comfy.model_patcher.ModelPatcher, Recorder, Tensor]:
    """A model of this class around a recorder, and an empty latent for it."""
    config = model(_config(model))
    latent = config.latent_format
    recorder = Recorder(latent.latent_channels, config.unet_config.get("in_dim") or config.unet_config["in_channels"])
    weights = {"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)}
    for name in ("start", "total"):
        seconds = NumberConditioner(768, 0, 512).state_dict()
        weights |= {f"conditioner.conditioners.seconds_{name}.{k}": torch.zeros_like(v) for k, v in seconds.items()}
    comfy.model_base.BaseModel.diffusion_model = recorder  # some look at it before it is there
    try:
        made = config.get_model(weights, "", device=None)
    finally:
        del comfy.model_base.BaseModel.diffusion_model
    made.diffusion_model = recorder
    cpu = torch.device("cpu")
    size = {1: (64,), 2: (16, 16), 3: (2, 16, 16)}[latent.latent_dimensions]
    patcher = comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)
    return patcher, recorder, torch.zeros(1, latent.latent_channels, *size)
