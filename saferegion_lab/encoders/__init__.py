"""Text encoders read from disk, with the conventions of ComfyUI and the webui.

Used by the command line only: inside a host, the host's own encoder is used. Needs transformers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import pad

from saferegion.core.conditioning import Conditioning, Space
from saferegion.core.fingerprint import Fingerprint

from . import checkpoint, directory
from .errors import EncoderError
from .towers import ClipTower, RowTower

__all__ = ["Encoder", "EncoderError", "load"]

SD3_WIDTH = 4096
SD3_T5_ROWS = 77
FLUX_T5_ROWS = 256
"""Fewest T5 rows in ComfyUI."""

OPENCLIP_PAD = 0
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
) -> Encoder:
    """Read a text encoder.

    Args:
        path: a transformers directory (CLIP, T5, UMT5, mT5, or a BERT-like encoder), a diffusers pipeline directory
            (SD1, SD2, SDXL, SD3, Flux, or one T5), or a Stable Diffusion checkpoint ``.safetensors`` (SD1, SD2, SDXL),
            of which only the text encoder is read. A checkpoint's attention heads are 64 wide unless ``NAME.json``
            beside ``NAME.safetensors`` gives ``num_attention_heads``.
        device: where it runs.
        dtype: of weights and embeddings.
        tokenizer: tokenizer directory; for a checkpoint the default is the CLIP tokenizer in this package. In a
            pipeline it stands for every CLIP tokenizer.

    Raises:
        EncoderError: nothing there, not a text encoder, incomplete, a pickle, or of a family that is not known.
    """
    path = Path(path)
    words = None if tokenizer is None else Path(tokenizer)
    if not path.exists():
        raise EncoderError(f"{path} does not exist: give a text encoder's directory or checkpoint.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(f"The device '{device}' cannot be used here: give another, such as cpu.") from error
    if path.is_file():
        return _checkpoint(path, device, dtype, words)
    if (path / "model_index.json").is_file() or (path / "text_encoder" / "config.json").is_file():
        return _pipeline(path, device, dtype, words)
    name = path.resolve().name
    found = directory.kind(path)
    if found == "clip":
        return _Single(name, "clip", directory.read_clip(path, words, device, dtype, pad="tokenizer"))
    if found == "t5":
        return _Single(name, "t5", directory.read_t5(path, words, device, dtype))
    return _Single(name, "bert", directory.read_bert(path, words, device, dtype))


class Encoder(ABC):
    """A text encoder: call it with prompts.

    Prompts are taken literally: no weights in brackets, no embeddings by name. A row of the conditioning does not
    depend on the prompts it is encoded with, except that a shorter prompt is filled up (with empty chunks in CLIP, with
    zeros that may not move in T5 and BERT-like encoders).

    Attributes:
        name: what it was read from.
        family: ``sd1``, ``sd2``, ``sdxl``, ``sd3``, ``flux``, ``clip``, ``t5`` or ``bert``.
    """

    def __init__(self, name: str, family: str) -> None:
        self.name, self.family = name, family
        self._fingerprint: Fingerprint | None = None

    def __repr__(self) -> str:
        return f"Encoder(name={self.name!r}, family={self.family!r})"

    def __call__(self, prompts: list[str]) -> Conditioning:
        """Encode ``prompts``; the fingerprint goes along once it has been taken.

        Raises:
            EncoderError: no prompt, or something that is not text.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise EncoderError("An encoder takes a list of one or more prompts, each a str.")
        with torch.no_grad():
            return self._encode(prompts)

    def fingerprint(self) -> Fingerprint:
        """Taken once, from five short prompts."""
        if self._fingerprint is None:
            self._fingerprint = Fingerprint.of(self)
        return self._fingerprint

    @abstractmethod
    def token_strings(self, prompt: str) -> list[str]:
        """One string per token of ``self([prompt])``; empty for padding."""

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Conditioning: ...


class _Single(Encoder):
    """SD1, SD2, and encoders on their own: tokens only."""

    def __init__(self, name: str, family: str, tower: ClipTower | RowTower) -> None:
        super().__init__(name, family)
        self.tower = tower

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        out = self.tower(prompts)
        return Conditioning(out.tokens, out.mask, encoder=self._fingerprint)

    def token_strings(self, prompt: str) -> list[str]:
        return self.tower.strings(prompt)


class _Sdxl(Encoder):
    """CLIP-L and OpenCLIP bigG side by side; pooled is bigG's projection."""

    def __init__(self, name: str, small: ClipTower, big: ClipTower) -> None:
        super().__init__(name, "sdxl")
        self.small, self.big = small, big

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        a, b = self.small(prompts), self.big(prompts)
        return Conditioning(torch.cat([a.tokens, b.tokens], -1), a.mask, b.projected, encoder=self._fingerprint)

    def token_strings(self, prompt: str) -> list[str]:
        return self.small.strings(prompt)


class _Sd3(Encoder):
    """Rows of both CLIP models, side by side and zero-padded, then rows of T5: spaces ``clip`` and ``t5``."""

    def __init__(self, name: str, small: ClipTower, big: ClipTower, t5: RowTower | None, width: int) -> None:
        super().__init__(name, "sd3")
        self.small, self.big, self.t5 = small, big, t5
        self.clip_width = small.width + big.width
        self.width = max(width, self.clip_width)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        a, b = self.small(prompts), self.big(prompts)
        rows = pad(torch.cat([a.tokens, b.tokens], -1), (0, self.width - self.clip_width))
        mask = a.mask
        split = rows.shape[1]
        spaces = [Space("clip", slice(0, split), slice(0, self.clip_width))]
        if self.t5 is not None:
            c = self.t5(prompts)
            rows = torch.cat([rows, pad(c.tokens, (0, self.width - self.t5.width)).to(rows)], 1)
            mask = torch.cat([mask, c.mask], 1)
            spaces.append(Space("t5", slice(split, None), slice(0, self.t5.width)))
        assert a.pooled is not None and b.projected is not None
        pooled = torch.cat([a.pooled, b.projected], -1)
        return Conditioning(rows, mask, pooled, tuple(spaces), self._fingerprint)

    def token_strings(self, prompt: str) -> list[str]:
        return self.small.strings(prompt) + ([] if self.t5 is None else self.t5.strings(prompt))


class _Flux(Encoder):
    """T5 rows; pooled is CLIP-L's."""

    def __init__(self, name: str, small: ClipTower, t5: RowTower) -> None:
        super().__init__(name, "flux")
        self.small, self.t5 = small, t5

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        c = self.t5(prompts)
        return Conditioning(c.tokens, c.mask, self.small(prompts).pooled, encoder=self._fingerprint)

    def token_strings(self, prompt: str) -> list[str]:
        return self.t5.strings(prompt)


def _checkpoint(path: Path, device: str | torch.device, dtype: torch.dtype, tokenizer: Path | None) -> Encoder:
    if path.suffix.lower() in _PICKLES:
        raise EncoderError(f"{path} is a pickle, which can run code when it is read: convert it to .safetensors.")
    if path.suffix.lower() != ".safetensors":
        raise EncoderError(f"{path} is no .safetensors: give a checkpoint in that format, or a directory.")
    family, models = checkpoint.read(path, device, dtype)
    words = directory.read_tokenizer(tokenizer or directory.BUNDLED_TOKENIZER)
    if family == "sdxl":
        small, big = models
        return _Sdxl(path.stem, ClipTower(small, words, None, True), ClipTower(big, words, OPENCLIP_PAD, True))
    return _Single(path.stem, family, ClipTower(models[0], words, OPENCLIP_PAD if family == "sd2" else None, False))


def _pipeline(path: Path, device: str | torch.device, dtype: torch.dtype, tokenizer: Path | None) -> Encoder:
    name = path.resolve().name
    folders = [path / f"text_encoder{end}" for end in ("", "_2", "_3", "_4")]
    words = [path / f"tokenizer{end}" for end in ("", "_2", "_3")]
    there = [(f / "config.json").is_file() for f in folders]
    count = there.index(False) if False in there else len(there)
    kinds = tuple(directory.kind(f) for f in folders[:count])
    family = _pipeline_family(path, kinds if not any(there[count:]) else ())

    def clip(i: int, **options: object) -> ClipTower:
        own = tokenizer or (words[i] if words[i].is_dir() else None)
        return directory.read_clip(folders[i], own, device, dtype, **options)  # type: ignore[arg-type]

    def t5(i: int, least: int = 1, masked: bool = True) -> RowTower:
        own = tokenizer if count == 1 and tokenizer else words[i]
        return directory.read_t5(folders[i], own, device, dtype, least, masked)

    if family == "t5":
        return _Single(name, "t5", t5(0))
    if family == "flux":
        return _Flux(name, clip(0), t5(1, FLUX_T5_ROWS, masked=False))
    if family == "sdxl":
        return _Sdxl(name, clip(0, penultimate=True), clip(1, pad=OPENCLIP_PAD, penultimate=True, project=True))
    if family == "sd3":
        third = t5(2, SD3_T5_ROWS, masked=False) if count == 3 else None
        small = clip(0, penultimate=True)
        big = clip(1, pad=OPENCLIP_PAD, penultimate=True, project=True)
        return _Sd3(name, small, big, third, SD3_WIDTH if third is None else third.width)
    return _Single(name, family, clip(0, pad=OPENCLIP_PAD if family == "sd2" else "end"))


def _pipeline_family(path: Path, kinds: tuple[str, ...]) -> str:
    """Family of a pipeline from its class, where model_index.json names one, and the kinds of its text encoders."""
    index = _json(path / "model_index.json")
    cls = str(index.get("_class_name", ""))
    known = not cls or any(word in cls for word in ("StableDiffusion", "LatentConsistency", "Flux"))
    if kinds == ("t5",):
        return "t5"
    if known and kinds == ("clip",):
        return (
            "sd1"
            if _json(path / "text_encoder" / "config.json").get("hidden_act", "quick_gelu") == "quick_gelu"
            else "sd2"
        )
    if known and kinds == ("clip", "t5"):
        return "flux"
    if known and kinds == ("clip", "clip", "t5"):
        return "sd3"
    if known and kinds == ("clip", "clip"):
        return "sd3" if "StableDiffusion3" in cls or (path / "transformer").is_dir() else "sdxl"
    held = " + ".join(kinds) or "other text encoders"
    raise EncoderError(
        f"{path} is {cls or 'a pipeline'} with {held}, which is not known; known are SD1, SD2, SDXL, SD3, Flux, and "
        "pipelines with one T5."
    )


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{path} is not JSON: get it again.") from error
    return data if isinstance(data, dict) else {}
