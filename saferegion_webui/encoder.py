"""The text encoder that the host has loaded, as the library's ``encode``."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from saferegion.core.conditioning import Conditioning
from saferegion.core.fingerprint import PROBES, Fingerprint
from saferegion.guard.normalise import Normaliser
from saferegion.guard.second_look import normaliser
from saferegion.learn.recipes import Concept

from .host import embedding_table, encoded, encoder_settings, file_of, kind_of, token_strings, vocabulary
from .layout import CHUNK, Layout, batch_of, tokens_of, vector_of
from .refusal import SafeRegionRefused

_SYNTAX = re.compile(r"[\\()\[\]]")


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
        self.layout = Layout.of(tokens, vectors, self.kind, lengths)
        self._fingerprint = Fingerprint.from_conditioning(self.layout.conditioning(tokens, vectors, lengths=lengths))
        self._vocabulary = vocabulary(checkpoint)
        self._more = 0 if lengths is None else _more_rows(checkpoint, lengths)
        self._normalisers: dict[tuple[Concept, ...], Normaliser] = {}

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def __call__(self, prompts: list[str]) -> Conditioning:
        tokens, vectors, lengths = self._batch(prompts)
        return self.layout.conditioning(tokens, vectors, self._fingerprint, lengths)

    def encode_as_typed(self, prompt: str) -> Conditioning:
        """One prompt with the webui's syntax: weights, BREAK, embeddings."""
        conds = self._conds([prompt], literally=False)
        return self.layout.conditioning(batch_of(conds), vector_of(conds))

    def normaliser(self, own: tuple[Concept, ...]) -> Normaliser:
        """What undoes disguises: it knows the words of this encoder, of the recipes and of ``own`` concepts."""
        if own not in self._normalisers:
            self._normalisers = {own: normaliser(self._vocabulary, own)}
        return self._normalisers[own]

    def like(self, cond: Any, plain: str, prompt: str, prompts: Any) -> Any:
        """The host's conditioning of ``plain``, with the webui's syntax, in the form of ``cond``, which is that of
        ``prompt``: as many chunks, and sizes of the picture as ``prompts`` say."""
        rows = len(tokens_of(cond))
        together = [plain, prompt] if self.kind != "rows" and rows > CHUNK else [plain]  # what is shorter is filled up
        conds = self._conds(together, literally=False, like=prompts)
        vectors = vector_of(conds)
        pooled = vectors[0, : self.layout.pooled] if vectors is not None and self.layout.pooled else None
        return self.layout.with_values(cond, batch_of(conds)[0], pooled)

    def words(self, prompt: str) -> dict[str, list[str]]:
        """What the rows of the prompt's conditioning are called, by space; empty where the host does not tell."""
        checkpoint = self._checkpoint()
        strings = None if checkpoint is None else token_strings(checkpoint, prompt)
        return {} if strings is None else {self.layout.worded: [""] * self._more + strings[max(0, -self._more) :]}

    def _batch(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None, list[int] | None]:
        """Tokens ``[B, T, D]``, vectors ``[B, V]``, and rows of each prompt where they differ.

        Hosts give a prompt of T5 or a language model as many rows as it needs, and so can take one at a time only.
        """
        if self.kind != "rows":
            conds = self._conds(prompts)
            return batch_of(conds), vector_of(conds), None
        each = [self._conds([prompt]) for prompt in prompts]
        rows = [batch_of(conds)[0] for conds in each]
        vectors = None if vector_of(each[0]) is None else torch.cat([conds["vector"][:1] for conds in each])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), vectors, [len(row) for row in rows]

    def _conds(self, prompts: Sequence[str], literally: bool = True, like: Any = None) -> Any:
        from modules import shared

        checkpoint = self._checkpoint()
        if checkpoint is None:
            raise SafeRegionRefused("Safe Region: the checkpoint was unloaded meanwhile; generate again.")
        if literally and shared.opts.emphasis != "None":
            prompts = [re.sub(r"\bBREAK\b", "break", _SYNTAX.sub(r"\\\g<0>", p)) for p in prompts]
        return encoded(checkpoint, prompts, like, literally)


class Loaded:
    """Says whether the text encoder is still the one it was, without encoding anything.

    Hosts swap checkpoints without an event and reuse one object for all of an architecture, so the checkpoint's file,
    the settings that change the encoder, and the write counter of its embedding table are compared.
    """

    def __init__(self, checkpoint: Any) -> None:
        self._checkpoint = weakref.ref(checkpoint)
        self._file = file_of(checkpoint)
        self._settings = encoder_settings()
        table = embedding_table(checkpoint)
        self._table = None if table is None else weakref.ref(table)
        self._writes = _writes(table)

    def same(self, checkpoint: Any) -> bool:
        if (
            self._checkpoint() is not checkpoint
            or file_of(checkpoint) != self._file
            or encoder_settings() != self._settings
        ):
            return False
        if self._table is None:
            return True
        table = self._table()
        return table is not None and _writes(table) == self._writes


def _more_rows(checkpoint: Any, lengths: Sequence[int]) -> int:
    """Rows in front of every prompt for which its text has no token: of a template that the host puts before it. Below
    0: tokens of a template whose rows the host takes away again.

    ``lengths``: rows of each of ``PROBES``. Where they are filled up, nothing is in front.
    """
    named = [token_strings(checkpoint, prompt) for prompt in PROBES]
    more = {rows - len(strings) for strings, rows in zip(named, lengths, strict=True) if strings is not None}
    return more.pop() if len(more) == 1 else 0


def _writes(table: torch.Tensor | None) -> int | None:
    try:
        return None if table is None else table._version
    except RuntimeError:  # a tensor of inference mode counts no writes
        return None
