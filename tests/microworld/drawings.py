"""Scenes drawn, labelled and said by worker processes, a chunk at a time; a chunk's number gives its scenes."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections import deque
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferegion_lab.microworld import lexicon
from saferegion_lab.microworld.captions import Wording, caption, pad_long
from saferegion_lab.microworld.model import TOKENIZER, VOCABULARY
from saferegion_lab.microworld.scenes import Scene, sample_scene
from saferegion_lab.microworld.words import unknown_words

from .draw import draw, empty
from .truth import labels

CHUNK = 1000
WORDING = Wording(tags=0.2)
UNSAID = 0.12
"""Share of captions with padding and words that mean nothing."""


def scenes_of(number: int, seed: int) -> list[Scene]:
    """The scenes of one chunk."""
    rng = random.Random(f"scenes {seed} {number}")
    return [sample_scene(rng) for _ in range(CHUNK)]


def draw_chunk(number: int, seed: int, masked: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Pictures uint8 [n, 64, 64, 3]; where they differ from their empty place, bool [n, 64, 64], if asked for; labels
    int8 [n, heads]."""
    rng = random.Random(f"drawings {seed} {number}")
    scenes = scenes_of(number, seed)
    pictures, masks = [], []
    for scene in scenes:
        state = rng.getstate()
        pictures.append(draw(scene, rng))
        if masked:
            after = rng.getstate()
            rng.setstate(state)
            masks.append(np.abs(pictures[-1].astype(int) - draw(empty(scene), rng)).max(-1) > 12)
            rng.setstate(after)
    return np.stack(pictures), np.stack(masks) if masked else None, labels(scenes)


class Speaker:
    """Says scenes in token ids that count the known tokens alone; the last number stands for every other token."""

    def __init__(self, known: list[int]) -> None:
        from transformers import CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER))
        self.lookup = np.full(VOCABULARY, len(known), dtype=np.int16)
        self.lookup[np.array(known, dtype=np.int64)] = np.arange(len(known))
        self.unknown = unknown_words(self.tokenizer, known)

    def ids(self, texts: list[str]) -> np.ndarray:
        """int16 [n, 77]"""
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77).input_ids
        return self.lookup[np.array(found)]

    def chunk(self, number: int, seed: int, turn: int) -> np.ndarray:
        """Each scene of the chunk said anew: int16 [n, 77]."""
        rng = random.Random(f"captions {seed} {number} {turn}")
        texts = []
        for scene in scenes_of(number, seed):
            text = caption(scene, rng, WORDING)
            if rng.random() < UNSAID:
                text = pad_long(text, rng, self.unknown, rng.choice((len(text.split()) + 2, 20, 40, 60)))
            texts.append(text)
        return self.ids(texts)


def known_ids(tokenizer: Any, seed: int, count: int = 20000) -> list[int]:
    """Ids of all tokens that captions use, in order; every other id shares one row."""
    rng = random.Random(f"known {seed}")
    texts = [caption(sample_scene(rng), rng, WORDING) for _ in range(count)]
    texts += _phrases([value for name, value in vars(lexicon).items() if name.isupper()])
    return sorted({i for ids in tokenizer(texts).input_ids for i in ids})


def _phrases(value: Any) -> list[str]:
    """Every string inside tables of tables."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, lexicon.Words):
        value = [value.before, value.after, value.noun, value.single]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [phrase for part in parts for phrase in _phrases(part)]


_speaker: Speaker | None = None


def _begin(known: list[int]) -> None:
    global _speaker
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _speaker = Speaker(known)


def _say(number: int, seed: int, turn: int) -> tuple[int, np.ndarray]:
    assert _speaker is not None
    return number, _speaker.chunk(number, seed, turn)


@dataclass
class Drawings:
    """All drawings of a training: `count` of them, drawn in the background from the start."""

    count: int
    masked: int
    seed: int
    workers: int
    known: list[int]

    def __post_init__(self) -> None:
        self.chunks = -(-self.count // CHUNK)
        self.pool = multiprocessing.get_context("spawn").Pool(self.workers, _begin, (self.known,))
        self._drawn: list[AsyncResult[Any]] = [
            self.pool.apply_async(draw_chunk, (number, self.seed, number * CHUNK < self.masked))
            for number in range(self.chunks)
        ]
        self._said: deque[AsyncResult[Any]] = deque()
        self._turn = 0

    def pictures(self, count: int, device: torch.device) -> Tensor:
        """The first drawings, uint8 [count, 3, 64, 64]."""
        return self._first(0, count, device).permute(0, 3, 1, 2).contiguous()

    def last(self, count: int) -> Tensor:
        """Some of the last drawings, uint8 [count, 3, 64, 64]."""
        return torch.from_numpy(self._drawn[-1].get()[0][-count:]).permute(0, 3, 1, 2).contiguous()

    def masks(self, count: int, device: torch.device) -> Tensor:
        """Where the first drawings differ from their empty place: bool [count, 1, 64, 64]."""
        return self._first(1, count, device)[:, None]

    def labels(self, count: int, device: torch.device) -> Tensor:
        """int64 [count, heads]"""
        return self._first(2, count, device).long()

    def _first(self, part: int, count: int, device: torch.device) -> Tensor:
        needed = self._drawn[: -(-count // CHUNK)]
        return torch.cat([torch.from_numpy(one.get()[part]).to(device) for one in needed])[:count]

    def bank(self) -> Tensor:
        """One caption for every drawing: int16 [chunks * CHUNK, 77]."""
        said = self.pool.starmap(_say, [(number, self.seed, 0) for number in range(self.chunks)], chunksize=1)
        return torch.from_numpy(np.concatenate([ids for _, ids in said]))

    def refresh(self, bank: Tensor) -> None:
        """Puts a chunk of captions said anew into the bank, if one is ready, and asks the workers for more."""
        while len(self._said) < 2 * self.workers:
            self._turn += 1
            turn, number = divmod(self._turn, self.chunks)
            self._said.append(self.pool.apply_async(_say, (number, self.seed, turn + 1)))
        if self._said[0].ready():
            number, ids = self._said.popleft().get()
            bank[number * CHUNK : (number + 1) * CHUNK].copy_(torch.from_numpy(ids))

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()
