"""What the webui that runs this offers, asked by what it has and never by its name or version.

The one place that knows where AUTOMATIC1111's webui, Forge, Forge Neo and their like differ. What a host lacks that
the guard cannot do without is named, and refused.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from saferegion.guard.words import words_of

from .interception import unguarded
from .refusal import SafeRegionRefused

ENGINE = "text_processing_engine"
"""Forge: what the attributes of a checkpoint that encode text start with."""
CLASSIC = "backend.text_processing.classic_engine"
"""Forge: the module that keeps what CLIP's encoder notes for the parameters."""


def _optional(module: str, name: str | None = None) -> Any:
    """A module of the host, or something in it; None where this host has none."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return found if name is None else getattr(found, name, None)


def kind_of(checkpoint: Any) -> tuple[str, str]:
    """(kind of layout, family for people) of the host's loaded checkpoint, from what it offers."""

    def says(name: str) -> bool:
        return bool(getattr(checkpoint, name, False))

    if says("is_sd3"):
        return "sd3", "sd3"
    if hasattr(checkpoint, f"{ENGINE}_t5"):
        return "rows", "flux" if hasattr(checkpoint, f"{ENGINE}_l") else "t5"
    if says("is_sdxl"):
        return "clip", "sdxl"
    if says("is_sd2"):
        return "clip", "sd2"
    if _engines(checkpoint) and not any(hasattr(e, "tokenize_line") and _chunked(e) for e in _engines(checkpoint)):
        return "rows", "llm"
    return "clip", "sd1"


def _engines(checkpoint: Any) -> list[Any]:
    return [v for k, v in vars(checkpoint).items() if k.startswith(ENGINE) and v is not None]


def _chunked(engine: Any) -> bool:
    """Whether an engine gives chunks of as many rows each, as CLIP's do."""
    return hasattr(engine, "chunk_length")


# -- encoding ------------------------------------------------------------------------------------------------------


def encoded(checkpoint: Any, prompts: Sequence[str], like: Any = None, literally: bool = True) -> Any:
    """The host's conditioning of ``prompts``, as it would make it for a picture.

    Args:
        like: prompts of the host whose sizes and sign count. literally: names of embeddings are words.

    Raises:
        SafeRegionRefused: the host cannot encode texts.
    """
    from modules import devices, prompt_parser, shared

    if not hasattr(checkpoint, "get_learned_conditioning"):
        raise SafeRegionRefused(
            "Safe Region: this webui has loaded no checkpoint with get_learned_conditioning, so no prompt can be "
            "guarded; choose a checkpoint."
        )
    texts = prompt_parser.SdConditioning(prompts, copy_from=prompts if like is None else like)
    if hasattr(checkpoint, "set_clip_skip"):
        checkpoint.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
    with (
        unguarded(),
        torch.no_grad(),
        devices.autocast(),
        _notes_kept(checkpoint),
        _without_embeddings(checkpoint, literally),
    ):
        return checkpoint.get_learned_conditioning(texts)


@contextmanager
def _notes_kept(checkpoint: Any) -> Iterator[None]:
    """What encoding writes into the parameters and comments of a picture is undone."""
    known: list[tuple[Any, str, Any]] = []
    hijack = _optional("modules.sd_hijack", "model_hijack")
    for owner, name in (
        *((owner, name) for owner in (hijack, checkpoint) for name in ("extra_generation_params", "comments")),
        (sys.modules.get(CLASSIC), "last_extra_generation_params"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, dict | list):
            known.append((owner, name, value.copy()))
    try:
        yield
    finally:
        for owner, name, value in known:
            setattr(owner, name, value)


@contextmanager
def _without_embeddings(checkpoint: Any, hidden: bool) -> Iterator[None]:
    """Textual inversions cannot be named meanwhile, where ``hidden``."""
    hijack = _optional("modules.sd_hijack", "model_hijack")
    stores = [getattr(hijack, "embedding_db", None), *(getattr(e, "embeddings", None) for e in _engines(checkpoint))]
    known = [(s, s.ids_lookup) for s in stores if hidden and s is not None and hasattr(s, "ids_lookup")]
    for store, _ in known:
        store.ids_lookup = {}
    try:
        yield
    finally:
        for store, lookup in known:
            store.ids_lookup = lookup


@contextmanager
def without_extra_networks(extra_network_data: Mapping[str, Any] | None) -> Iterator[None]:
    """The bare checkpoint meanwhile: LoRA and their like are switched off, and afterwards on again as
    ``extra_network_data`` says (None: they stay off)."""
    from modules import extra_networks, processing, shared

    checkpoint = shared.sd_model
    objects = getattr(checkpoint, "forge_objects", None)
    stand_in = processing.StableDiffusionProcessingTxt2Img()
    stand_in.all_prompts = []
    added = shared.opts.data.get("sd_lora")
    if objects is not None:
        checkpoint.forge_objects = objects.shallow_copy()
    try:
        if added is not None:
            shared.opts.data["sd_lora"] = "None"
        try:
            extra_networks.activate(stand_in, {})
        finally:
            if added is not None:
                shared.opts.data["sd_lora"] = added
        if objects is not None:
            checkpoint.forge_objects = checkpoint.forge_objects_after_applying_lora.shallow_copy()
        yield
    finally:
        if extra_network_data is not None:
            extra_networks.activate(stand_in, extra_network_data)
        if objects is not None:
            checkpoint.forge_objects = objects


def networks_of(p: Any, data: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The extra networks ``data`` of the processing ``p``; None: it is painted without any."""
    return None if getattr(p, "disable_extra_networks", False) else data


# -- painting ------------------------------------------------------------------------------------------------------


def diffusion_model(checkpoint: Any) -> torch.nn.Module | None:
    """What paints; None where the host does not tell."""
    unet = getattr(getattr(checkpoint, "forge_objects", None), "unet", None)
    found = getattr(getattr(unet, "model", None) or getattr(checkpoint, "model", None), "diffusion_model", None)
    return found if isinstance(found, torch.nn.Module) else None


def empty_rows(checkpoint: Any) -> torch.Tensor | None:
    """``[T, D]`` of an empty prompt, with which AUTOMATIC1111's webui fills shorter prompts up; None: it has none."""
    found = getattr(checkpoint, "cond_stage_model_empty_prompt", None)
    return found.reshape(-1, found.shape[-1]) if isinstance(found, torch.Tensor) else None


def samplers() -> tuple[type, type]:
    """The host's classes of samplers and of what asks the diffusion model in each of their steps.

    Raises:
        RuntimeError: it has none, so what they read could not be looked at.
    """
    sampler = _optional("modules.sd_samplers_common", "Sampler")
    denoiser = _optional("modules.sd_samplers_cfg_denoiser", "CFGDenoiser")
    if not hasattr(sampler, "launch_sampling") or not hasattr(denoiser, "forward"):
        raise RuntimeError(
            "Safe Region cannot start: this webui has no sd_samplers_common.Sampler.launch_sampling and "
            "sd_samplers_cfg_denoiser.CFGDenoiser.forward, where what is painted from is looked at."
        )
    return sampler, denoiser


# -- which encoder it is -------------------------------------------------------------------------------------------


def file_of(checkpoint: Any) -> tuple[Any, ...]:
    """What names the file of a checkpoint, and, of Forge, the files of its text encoders."""
    info = getattr(checkpoint, "sd_checkpoint_info", None)
    loading = getattr(_optional("modules.sd_models", "model_data"), "forge_loading_parameters", None)
    return (*(getattr(info, name, None) for name in ("filename", "sha256", "shorthash")), str(loading))


def encoder_settings() -> tuple[Any, ...]:
    """Settings of the host that change what its text encoder gives."""
    from modules import shared

    names = (
        "CLIP_stop_at_last_layers", "sdxl_clip_l_skip", "sd3_enable_t5", "use_old_emphasis_implementation",
        "neta_template_positive", "neta_template_negative",
    )  # fmt: skip
    return tuple(getattr(shared.opts, name, None) for name in names)


def embedding_table(checkpoint: Any) -> torch.Tensor | None:
    """The text encoder's first table, in which hosts load new weights in place."""
    objects = getattr(checkpoint, "forge_objects", None)
    clip = getattr(getattr(objects, "clip", None), "cond_stage_model", None)
    for root in (clip, getattr(checkpoint, "cond_stage_model", None), getattr(checkpoint, "conditioner", None)):
        if isinstance(root, torch.nn.Module):
            for name, parameter in root.named_parameters():
                if any(part in name for part in ("token_embedding", "embed_tokens")) or name.endswith("shared.weight"):
                    return parameter
    return None


def task() -> str:
    """What the host calls the job that runs now, as whoever asked for it may have named it; empty where it does not."""
    return str(_optional("modules.progress", "current_task") or "")


# -- words ---------------------------------------------------------------------------------------------------------


def _engine(checkpoint: Any) -> tuple[Any, Any] | None:
    """What turns texts into tokens, and its tokenizer; None where the host does not tell."""
    stage = getattr(checkpoint, "cond_stage_model", None) or getattr(checkpoint, "conditioner", None)
    names = (f"{ENGINE}_t5",) if kind_of(checkpoint)[0] == "rows" else ()
    named = [getattr(checkpoint, n, None) for n in (*names, ENGINE, f"{ENGINE}_l")]
    parts = [e for e in getattr(stage, "embedders", [stage]) if hasattr(e, "tokenize_line")] if stage else []
    engines = [*named, getattr(stage, "model_lg", None), *_engines(checkpoint), *parts]
    engine = next((e for e in engines if e is not None), None)
    if engine is None or not hasattr(engine, "tokenize_line"):
        return None
    tokenizer = next((t for n in ("tokenizer", "t5_tokenizer") if (t := getattr(engine, n, None)) is not None), None)
    if tokenizer is None:
        tokenizer = _optional("open_clip.tokenizer", "_tokenizer")
    return None if tokenizer is None else (engine, tokenizer)


def vocabulary(checkpoint: Any) -> tuple[str, ...]:
    """Whole words that the encoder's tokenizer knows, the most common first; empty where the host does not tell."""
    found = _engine(checkpoint)
    tokenizer = None if found is None else found[1]
    known = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else getattr(tokenizer, "encoder", {})
    return tuple(words_of(sorted(known, key=known.__getitem__)))


def token_strings(checkpoint: Any, prompt: str) -> list[str] | None:
    """One string per row of the prompt's conditioning, empty for padding; None where the host does not tell."""
    known = _engine(checkpoint)
    if known is None:
        return None
    engine, tokenizer = known
    lined = engine.tokenize_line(prompt)
    chunks = lined[0] if isinstance(lined, tuple) else lined
    special = {getattr(engine, name, None) for name in ("id_start", "id_end", "id_pad")}
    found: list[str] = []
    for chunk in chunks:
        tokens = getattr(chunk, "tokens", None)
        if tokens is None:
            tokens = getattr(chunk, "t5_tokens", None)
        if tokens is None:
            return None
        named = dict.fromkeys(range(len(tokens)), "")
        for fix in getattr(chunk, "fixes", []):
            named[fix.offset + 1] = getattr(fix.embedding, "name", "")
        ended = False
        for i, token in enumerate(tokens):
            if i and not ended and token == getattr(engine, "id_end", None):
                ended, text = True, "<end>"
            elif token in special:
                text = "<begin>" if i == 0 and getattr(engine, "id_start", None) == token else ""
            else:
                text = named[i] or str(tokenizer.decode([token])).strip()
            found.append(text)
    return found
