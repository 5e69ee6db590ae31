"""The text encoder that the host has loaded, as the library's ``encode``."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from saferegion.core.conditioning import Conditioning
from saferegion.core.fingerprint import PROBES, Fingerprint
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import normaliser
from saferegion.guard.words import words_of
from saferegion.learn.recipes import Concept

from .layout import CHUNK, Layout, tokens_of, vector_of
from .refusal import SafeRegionRefused

_SYNTAX = re.compile(r"[\\()\[\]]")


def kind_of(checkpoint: Any) -> tuple[str, str]:
    """(kind of layout, family for people) of the host's loaded checkpoint, from what it offers."""

    def says(name: str) -> bool:
        return bool(getattr(checkpoint, name, False))

    if says("is_sd3"):
        return "sd3", "sd3"
    if hasattr(checkpoint, "text_processing_engine_t5"):
        return "t5", "flux" if hasattr(checkpoint, "text_processing_engine_l") else "t5"
    if says("is_sdxl"):
        return "clip", "sdxl"
    return "clip", "sd2" if says("is_sd2") else "sd1"


class HostEncoder:
    """Encodes prompts as the host does for a picture: its tokenizer, clip skip and low-memory hooks.

    Prompts are taken literally: brackets carry no weight and names of embeddings are words. Extra networks are
    the caller's matter.
    """

    def __init__(self, checkpoint: Any) -> None:
        self.kind, self.family = kind_of(checkpoint)
        self._checkpoint = weakref.ref(checkpoint)
        self.layout = Layout(self.kind)
        tokens, vectors, lengths = self._batch(list(PROBES))
        self.layout = Layout.of(tokens, vectors, self.kind)
        self._fingerprint = Fingerprint.from_conditioning(self.layout.conditioning(tokens, vectors, lengths=lengths))
        self._vocabulary = vocabulary(checkpoint)
        self._normalisers: dict[tuple[Concept, ...], Normaliser] = {}

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def __call__(self, prompts: list[str]) -> Conditioning:
        tokens, vectors, lengths = self._batch(prompts)
        return self.layout.conditioning(tokens, vectors, self._fingerprint, lengths)

    def encode_as_typed(self, prompt: str) -> Conditioning:
        """One prompt with the webui's syntax: weights, BREAK, embeddings."""
        conds = self._conds([prompt], literally=False)
        return self.layout.conditioning(tokens_of(conds), vector_of(conds))

    def normaliser(self, own: tuple[Concept, ...]) -> Normaliser:
        """What undoes disguises: it knows the words of this encoder, of the recipes and of ``own`` concepts."""
        if own not in self._normalisers:
            self._normalisers = {own: normaliser(self._vocabulary, own)}
        return self._normalisers[own]

    def like(self, cond: Any, plain: str, prompt: str, prompts: Any) -> Any:
        """The host's conditioning of ``plain``, with the webui's syntax, in the form of ``cond``, which is that of
        ``prompt``: as many chunks, and sizes of the picture as ``prompts`` say."""
        rows = len(tokens_of(cond))
        together = [plain, prompt] if self.kind != "t5" and rows > CHUNK else [plain]  # what is shorter is filled up
        conds = self._conds(together, literally=False, like=prompts)
        vectors = vector_of(conds)
        pooled = vectors[0, : self.layout.pooled] if vectors is not None and self.layout.pooled else None
        return self.layout.with_values(cond, tokens_of(conds)[0], pooled)

    def words(self, prompt: str) -> dict[str, list[str]]:
        """What the rows of the prompt's conditioning are called, by space; empty where the host does not tell."""
        checkpoint = self._checkpoint()
        strings = None if checkpoint is None else token_strings(checkpoint, prompt)
        return {} if strings is None else {self.layout.worded: strings}

    def _batch(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None, list[int] | None]:
        """Tokens ``[B, T, D]``, vectors ``[B, V]``, and rows of each prompt where they differ.

        Hosts give a T5 prompt as many rows as it needs, and so can take one at a time only.
        """
        if self.kind != "t5":
            conds = self._conds(prompts)
            return tokens_of(conds), vector_of(conds), None
        each = [self._conds([prompt]) for prompt in prompts]
        rows = [tokens_of(conds)[0] for conds in each]
        vectors = None if vector_of(each[0]) is None else torch.cat([conds["vector"][:1] for conds in each])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), vectors, [len(row) for row in rows]

    def _conds(self, prompts: Sequence[str], literally: bool = True, like: Any = None) -> Any:
        from modules import devices, prompt_parser, sd_hijack, shared

        checkpoint = self._checkpoint()
        if checkpoint is None:
            raise SafeRegionRefused("Safe Region: the checkpoint was unloaded meanwhile; generate again.")
        if literally and shared.opts.emphasis != "None":
            prompts = [re.sub(r"\bBREAK\b", "break", _SYNTAX.sub(r"\\\g<0>", p)) for p in prompts]
        texts = prompt_parser.SdConditioning(prompts, copy_from=prompts if like is None else like)
        hijack = sd_hijack.model_hijack
        forge = sys.modules.get("backend.text_processing.classic_engine")
        forge_notes = dict(getattr(forge, "last_extra_generation_params", {}))
        notes = dict(getattr(hijack, "extra_generation_params", {}))
        comments = list(getattr(hijack, "comments", []))
        if hasattr(checkpoint, "set_clip_skip"):
            checkpoint.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
        try:
            words = _without_embeddings(checkpoint, hijack) if literally else nullcontext()
            with torch.no_grad(), devices.autocast(), words:
                return checkpoint.get_learned_conditioning(texts)
        finally:
            if hasattr(hijack, "extra_generation_params"):
                hijack.extra_generation_params = notes
            if hasattr(hijack, "comments"):
                hijack.comments = comments
            if forge is not None:
                forge.last_extra_generation_params = forge_notes  # type: ignore[attr-defined]


@contextmanager
def _without_embeddings(checkpoint: Any, hijack: Any) -> Iterator[None]:
    """Textual inversions cannot be named meanwhile."""
    engines = [v for k, v in vars(checkpoint).items() if k.startswith("text_processing_engine")]
    stores = [getattr(hijack, "embedding_db", None), *(getattr(e, "embeddings", None) for e in engines)]
    hidden = [(s, s.ids_lookup) for s in stores if s is not None and hasattr(s, "ids_lookup")]
    for store, _ in hidden:
        store.ids_lookup = {}
    try:
        yield
    finally:
        for store, lookup in hidden:
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


class Loaded:
    """Says whether the text encoder is still the one it was, without encoding anything.

    Hosts swap checkpoints without an event and reuse one object for all of an architecture, so the checkpoint's file,
    the settings that change the encoder, and the write counter of its embedding table are compared.
    """

    def __init__(self, checkpoint: Any) -> None:
        self._checkpoint = weakref.ref(checkpoint)
        self._file = _file_of(checkpoint)
        self._settings = _settings()
        table = _embedding_table(checkpoint)
        self._table = None if table is None else weakref.ref(table)
        self._writes = _writes(table)

    def same(self, checkpoint: Any) -> bool:
        if self._checkpoint() is not checkpoint or _file_of(checkpoint) != self._file or _settings() != self._settings:
            return False
        if self._table is None:
            return True
        table = self._table()
        return table is not None and _writes(table) == self._writes


def _file_of(checkpoint: Any) -> tuple[Any, ...]:
    info = getattr(checkpoint, "sd_checkpoint_info", None)
    return tuple(getattr(info, name, None) for name in ("filename", "sha256", "shorthash"))


def _settings() -> tuple[Any, ...]:
    from modules import shared

    names = ("CLIP_stop_at_last_layers", "sdxl_clip_l_skip", "sd3_enable_t5", "use_old_emphasis_implementation")
    return tuple(getattr(shared.opts, name, None) for name in names)


def _embedding_table(checkpoint: Any) -> torch.Tensor | None:
    objects = getattr(checkpoint, "forge_objects", None)
    clip = getattr(getattr(objects, "clip", None), "cond_stage_model", None)
    for root in (clip, getattr(checkpoint, "cond_stage_model", None), getattr(checkpoint, "conditioner", None)):
        if isinstance(root, torch.nn.Module):
            for name, parameter in root.named_parameters():
                if "token_embedding" in name or name.endswith("shared.weight"):
                    return parameter
    return None


def _writes(table: torch.Tensor | None) -> int | None:
    try:
        return None if table is None else table._version
    except RuntimeError:  # a tensor of inference mode counts no writes
        return None


def _engine(checkpoint: Any) -> tuple[Any, Any] | None:
    """What turns texts into tokens, and its tokenizer; None where the host does not tell."""
    stage = getattr(checkpoint, "cond_stage_model", None) or getattr(checkpoint, "conditioner", None)
    engine = getattr(checkpoint, "text_processing_engine_t5", None) if kind_of(checkpoint)[0] == "t5" else None
    engine = engine or getattr(checkpoint, "text_processing_engine", None)
    engine = engine or getattr(checkpoint, "text_processing_engine_l", None) or getattr(stage, "model_lg", None)
    if engine is None and stage is not None:
        parts = [e for e in getattr(stage, "embedders", [stage]) if hasattr(e, "tokenize_line")]
        engine = parts[0] if parts else None
    if engine is None or not hasattr(engine, "tokenize_line"):
        return None
    tokenizer = getattr(engine, "tokenizer", None)
    if tokenizer is None:
        import open_clip.tokenizer

        tokenizer = open_clip.tokenizer._tokenizer
    return engine, tokenizer


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
    chunks, _ = engine.tokenize_line(prompt)
    special = {getattr(engine, name, None) for name in ("id_start", "id_end", "id_pad")}
    found: list[str] = []
    for chunk in chunks:
        named = dict.fromkeys(range(len(chunk.tokens)), "")
        for fix in getattr(chunk, "fixes", []):
            named[fix.offset + 1] = getattr(fix.embedding, "name", "")
        ended = False
        for i, token in enumerate(chunk.tokens):
            if i and not ended and token == getattr(engine, "id_end", None):
                ended, text = True, "<end>"
            elif token in special:
                text = "<begin>" if i == 0 and getattr(engine, "id_start", None) == token else ""
            else:
                text = named[i] or str(tokenizer.decode([token])).strip()
            found.append(text)
    return found
