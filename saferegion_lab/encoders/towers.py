"""One text model with its tokenizer: prompts in, rows of embeddings out, as the hosts compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .errors import EncoderError

ROWS_AT_ONCE = 64
"""Most token rows of a CLIP model in one forward pass."""

LONGEST = 2048
"""Most tokens of a model without a length of its own (T5) that attend to each other; a longer prompt is split."""

ATTENDED = 2**23
"""Most pairs of tokens (rows x tokens x tokens) that attend to each other in one forward pass."""

Ids = list[int]


class Encoded(NamedTuple):
    """``tokens`` [B, T, D], ``mask`` bool [B, T]; ``pooled`` [B, D] and ``projected`` [B, P] of CLIP models."""

    tokens: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor | None = None
    projected: torch.Tensor | None = None


class _Tokens:
    """What a tokenizer puts around a text, and the text's own ids in windows of a fixed length."""

    def __init__(self, tokenizer: Any, vocabulary: int, begins: bool) -> None:
        empty = list(tokenizer("")["input_ids"])
        if len(empty) != 1 + begins:
            around = "a begin and an end token" if begins else "an end token and nothing else"
            raise EncoderError(
                f"The tokenizer gives {len(empty)} tokens for an empty prompt, and this encoder takes {around}: "
                "give the tokenizer directory that belongs to the encoder."
            )
        if len(tokenizer) > vocabulary:
            raise EncoderError(
                f"The tokenizer knows {len(tokenizer)} tokens and the encoder {vocabulary}: give the tokenizer "
                "directory that belongs to the encoder."
            )
        self.tokenizer = tokenizer
        self.prefix: Ids = empty[:-1]
        self.suffix: Ids = empty[-1:]

    def windows(self, prompt: str, length: int) -> list[Ids]:
        """Ids of a prompt in windows of at most ``length``, each with its own begin and end token; at least one."""
        text = prompt.encode("utf-8", "replace").decode("utf-8")
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        room = length - len(self.prefix) - len(self.suffix)
        starts = range(0, max(1, len(ids)), room)
        return [self.prefix + ids[i : i + room] + self.suffix for i in starts]

    def strings(self, window: Ids) -> list[str]:
        """One readable string per id."""
        names = self.tokenizer.convert_ids_to_tokens(window)
        special = set(self.prefix + self.suffix)
        return [name if i in special else self._text(i, name) for i, name in zip(window, names, strict=True)]

    def _text(self, token: int, name: str) -> str:
        return str(self.tokenizer.decode([token])).replace("▁", " ").strip() or name


class ClipTower:
    """A CLIP text model. A prompt is as many chunks as it needs (77 tokens: begin, 75 of the prompt, end, padding),
    each encoded apart and put one after another, as ComfyUI and the webui do.

    Args:
        model: transformers' CLIPTextModel or CLIPTextModelWithProjection, on its device.
        tokenizer: the tokenizer that belongs to it.
        pad: id after the end token (None: the end token itself).
        penultimate: take the last but one layer without the final norm; else the last with it.
    """

    def __init__(self, model: Any, tokenizer: Any, pad: int | None, penultimate: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.core = getattr(model, "text_model", model)
        config = model.config
        self.words = _Tokens(tokenizer, config.vocab_size, begins=True)
        self.length = int(config.max_position_embeddings)
        self.pad = self.words.suffix[0] if pad is None else pad
        self.penultimate = penultimate
        self.width = int(config.hidden_size)
        if penultimate and config.num_hidden_layers < 2:
            raise EncoderError("This encoder has a single layer: it is not an SDXL or SD3 text encoder.")
        if self.length < 3 or not 0 <= self.pad < config.vocab_size:
            raise EncoderError(
                f"A CLIP encoder with {self.length} positions and padding token {self.pad} cannot read a prompt: "
                "check its config.json."
            )

    def chunks(self, prompts: Sequence[str]) -> torch.Tensor:
        """Ids, int64 [B, chunks, 77]; shorter prompts are filled with empty chunks."""
        rows = [self.words.windows(p, self.length) for p in prompts]
        most = max(len(r) for r in rows)
        empty = self.words.prefix + self.words.suffix
        filled = [r + [empty] * (most - len(r)) for r in rows]
        return torch.tensor([[c + [self.pad] * (self.length - len(c)) for c in r] for r in filled])

    def __call__(self, prompts: Sequence[str]) -> Encoded:
        ids = self.chunks(prompts)
        batch, chunks, length = ids.shape
        distinct, back = torch.unique(ids.flatten(0, 1), dim=0, return_inverse=True)
        first = back.view(batch, chunks)[:, 0]
        parts = [self._forward(part) for part in distinct.split(ROWS_AT_ONCE)]
        hidden = torch.cat([h for h, _ in parts])
        pooled = torch.cat([p for _, p in parts])[first.to(hidden.device)]
        tokens = hidden[back.to(hidden.device)].view(batch, chunks * length, -1)
        mask = torch.ones(batch, chunks, length, dtype=torch.bool, device=tokens.device)
        mask[:, :, 0] = False
        project = getattr(self.model, "text_projection", None)
        return Encoded(tokens, mask.flatten(1), pooled, None if project is None else project(pooled))

    def _forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = ids.to(self.model.device)
        out = self.core(input_ids=ids, output_hidden_states=self.penultimate, return_dict=True)
        last = out.last_hidden_state
        end = (ids == self.words.suffix[0]).int().argmax(1)
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        return (out.hidden_states[-2] if self.penultimate else last), pooled

    def strings(self, prompt: str) -> list[str]:
        """One string per token of the prompt's conditioning; padding is empty."""
        found: list[str] = []
        for window in self.words.windows(prompt, self.length):
            found += self.words.strings(window) + [""] * (self.length - len(window))
        return found


class RowTower:
    """A bidirectional encoder: T5 (no begin token) or a BERT-like one ([CLS] and [SEP] around every window).

    Args:
        model: transformers' encoder, on its device.
        tokenizer: the tokenizer that belongs to it.
        begins: whether a begin token stands before the text. If it does, neither it nor the end token may move.
        length: most tokens of one window; a longer prompt is split, nothing is cut off.
        least: rows are padded to this many tokens.
        masked: whether padding is masked in attention. If not (SD3 and Flux), padding is attended, and every prompt is
            encoded at the length it would have alone, and padding may move.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        begins: bool,
        length: int = LONGEST,
        least: int = 1,
        masked: bool = True,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.words = _Tokens(tokenizer, model.config.vocab_size, begins)
        if length < 3:
            raise EncoderError(f"An encoder of {length} positions cannot read a prompt: check its config.json.")
        self.begins, self.length, self.least, self.masked = begins, length, least, masked
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad = 0 if pad is None else int(pad)
        self.width = int(getattr(model.config, "d_model", None) or model.config.hidden_size)

    def __call__(self, prompts: Sequence[str]) -> Encoded:
        windows = [self.words.windows(p, self.length) for p in prompts]
        rows = iter(self._encode([w for of_prompt in windows for w in of_prompt]))
        tokens = [torch.cat([next(rows) for _ in of_prompt]) for of_prompt in windows]
        may = [torch.tensor([m for w in of_prompt for m in self._mask(w)]) for of_prompt in windows]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        return Encoded(padded, torch.nn.utils.rnn.pad_sequence(may, batch_first=True).to(padded.device))

    def _size(self, window: Ids) -> int:
        return max(len(window), self.least)

    def _mask(self, window: Ids) -> list[bool]:
        if not self.masked:  # attended padding carries the sentence, as CLIP's does
            return [True] * self._size(window)
        text = len(window) - 2 if self.begins else len(window)
        return [False] * self.begins + [True] * text + [False] * (self._size(window) - text - self.begins)

    def _encode(self, windows: list[Ids]) -> list[torch.Tensor]:
        """[size, D] per window."""
        rows: dict[int, torch.Tensor] = {}
        for group in self._groups(windows):
            longest = max(self._size(windows[i]) for i in group)
            ids = torch.tensor([windows[i] + [self.pad] * (longest - len(windows[i])) for i in group])
            mask = torch.ones_like(ids)
            if self.masked:
                for row, i in enumerate(group):
                    mask[row, len(windows[i]) :] = 0
            device = self.model.device
            out = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), return_dict=True)
            for row, i in enumerate(group):
                rows[i] = out.last_hidden_state[row, : self._size(windows[i])]
        return [rows[i] for i in range(len(windows))]

    def _groups(self, windows: list[Ids]) -> Iterator[list[int]]:
        """Indices that are encoded together: of like length where padding is masked, of one length where it is not."""
        group: list[int] = []
        for i in sorted(range(len(windows)), key=lambda i: self._size(windows[i])):
            size = self._size(windows[i])
            full = len(group) >= min(ROWS_AT_ONCE, max(1, ATTENDED // size**2))
            if group and (full or (not self.masked and size != self._size(windows[group[0]]))):
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def strings(self, prompt: str) -> list[str]:
        """One string per token of the prompt's conditioning; padding is empty."""
        found: list[str] = []
        for window in self.words.windows(prompt, self.length):
            found += self.words.strings(window) + [""] * (self._size(window) - len(window))
        return found
