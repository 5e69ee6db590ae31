"""The text encoder that a CLIP object holds, as it stands now: its weights with LoRA, its layer, its device.

Prompts are encoded by the host's own ``encode_token_weights``, whatever the family. That takes one prompt at a time and
so is twenty times slower than a batch; therefore the rows of all prompts first go through the inner encoders in
batches, and while the host puts each prompt together, the inner encoders answer with those rows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from comfy import model_management

from ..saferegion.core.conditioning import Conditioning
from ..saferegion.core.errors import ConditioningError
from ..saferegion.core.fingerprint import PROBES, Fingerprint
from ..saferegion.learn.settings import CompileSettings
from .family import Family, Output

log = logging.getLogger("saferegion")

BATCH = 64
"""Most prompts that are encoded together; halved where memory runs out."""

VALUES = 2**26
"""Most numbers in the conditionings of one batch: a quarter of a gigabyte. HiDream has 17 million a prompt."""

STATES = 64
"""Most states of one encoder (layer, LoRA, hooks) that are remembered."""

Tokens = Mapping[str, Any]
Encode = Callable[[Tokens], tuple[Any, ...]]


class _Known(NamedTuple):
    family: Family
    fingerprint: Fingerprint
    values: int
    """Numbers in the conditioning of one short prompt."""


_known: WeakKeyDictionary[torch.nn.Module, dict[Any, _Known]] = WeakKeyDictionary()


class TextEncoder:
    """Prompts -> :class:`~saferegion.Conditioning`.

    Attributes:
        fits_on: the device that embeddings are handed on; the encoder's own at first.

    Args:
        stage: the host's ``cond_stage_model``, loaded, with its layer set.
        encode: its unguarded ``encode_token_weights``.
        tokenize: text -> the host's tokens.
    """

    def __init__(self, stage: torch.nn.Module, encode: Encode, tokenize: Callable[[str], Tokens]) -> None:
        self.stage, self._encode, self._tokenize = stage, encode, tokenize
        self.fits_on = next((p.device for p in stage.parameters()), torch.device("cpu"))

    @classmethod
    def of(cls, clip: Any) -> TextEncoder:
        """Load the model of a CLIP object and set its layer, as the host does before it encodes.

        Raises:
            ConditioningError: it is no text encoder.
        """
        stage = getattr(clip, "cond_stage_model", None)
        if not hasattr(stage, "encode_token_weights"):
            raise ConditioningError("The CLIP input holds no text encoder; connect the CLIP of a checkpoint or loader.")
        stage.reset_clip_options()
        if clip.layer_idx is not None:
            stage.set_clip_options({"layer": clip.layer_idx})
        clip.load_model()
        return cls(stage, unguarded(stage.encode_token_weights), tokenizing(clip))

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        """The spaces of its conditionings."""
        return self._probe().family

    def fingerprint(self) -> Fingerprint:
        """Taken once for every state of the encoder (layer, LoRA, hooks), from five short prompts."""
        return self._probe().fingerprint

    @property
    def name(self) -> str:
        """What the host calls the encoder, for people."""
        return type(self.stage).__name__.rstrip("_")

    def state(self) -> Any:
        """Equal as long as the encoder gives the same embeddings."""
        options = tuple(
            (name, tuple(m.layer) if isinstance(m.layer, list) else m.layer, m.layer_idx, m.return_projected_pooled)
            for name, m in self.stage.named_children()
            if hasattr(m, "return_projected_pooled")
        )
        patches = getattr(self.stage, "current_weight_patches_uuid", None)
        return options, patches, _hooks(self.stage), getattr(self._tokenize, "options", None)

    def _probe(self) -> _Known:
        seen = _known.setdefault(self.stage, {})
        state = self.state()
        if state not in seen:
            if len(seen) >= STATES:
                seen.clear()
            outputs = self._outputs(PROBES)
            family = Family.of(outputs, _reads_pooled(self.stage), _masked(self.stage))
            together = family.batch(outputs)
            values = together.tokens[0].numel()
            seen[state] = _Known(family, Fingerprint.from_conditioning(together), values)
        return seen[state]

    # -- encoding --------------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Prompts to encode together, so that their conditionings fit into memory."""
        return max(1, min(BATCH, VALUES // self._probe().values))

    def settings(self) -> CompileSettings:
        """How concepts are compiled for it."""
        return CompileSettings(batch_size=self.batch, family=self.name)

    def __call__(self, prompts: list[str]) -> Conditioning:
        """One row a prompt."""
        family = self.family
        try:
            batch = family.batch(self._outputs(prompts))
        except model_management.OOM_EXCEPTION:
            model_management.soft_empty_cache()
            raise
        if batch.tokens.device == self.fits_on:
            return batch
        moved = (None if t is None else t.to(self.fits_on) for t in (batch.tokens, batch.mask, batch.pooled))
        return Conditioning(*moved, batch.spaces)

    def encode(self, tokens: Tokens) -> Output:
        """Tokens of the host, weights and embeddings included, without any guard."""
        with torch.inference_mode(), within():
            return output(self._encode(tokens))

    def _outputs(self, prompts: Sequence[str]) -> list[Output]:
        tokens = [self._tokens(p) for p in prompts]
        with torch.inference_mode(), within(), _together(self.stage, tokens):
            return [output(self._encode(t)) for t in tokens]

    def _tokens(self, prompt: str) -> Tokens:
        """Brackets are taken literally; an encoder of quoted text (HunyuanImage's) is given the whole prompt."""
        text = prompt.replace("\\", "").replace("(", "\\(").replace(")", "\\)")
        tokens = self._tokenize(text)
        if isinstance(song := tokens.get("lm_metadata"), Mapping):  # ACE-Step 1.5 would write a song of every prompt
            tokens = {**tokens, "lm_metadata": {**song, "generate_audio_codes": False}}
        if getattr(self.stage, "byt5_small", None) is not None and "byt5" not in tokens:
            quoted = self._tokenize('"{}"'.format(text.replace('"', "")))
            tokens = {**tokens, **{k: v for k, v in quoted.items() if k == "byt5"}}
        return tokens


class _Alone(torch.nn.Module):
    """An inner encoder in place of the whole one."""

    def __init__(self, name: str, inner: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


class InnerEncoder(TextEncoder):
    """One inner encoder of ``whole`` as a text encoder of its own: ``encode`` takes the rows called ``key``."""

    def __init__(self, whole: TextEncoder, name: str, key: str, encode: Callable[[Any], Any]) -> None:
        def tokenize(text: str) -> Tokens:
            return {key: whole._tokens(text)[key]}

        super().__init__(_Alone(name, getattr(whole.stage, name)), lambda tokens: encode(tokens[key]), tokenize)
        self._whole, self._named = whole, name

    @property
    def name(self) -> str:
        return f"{self._whole.name} {self._named}"

    def state(self) -> Any:
        return self._whole.state(), super().state()

    def _tokens(self, prompt: str) -> Tokens:
        return self._tokenize(prompt)


_inside = threading.local()


@contextmanager
def within() -> Iterator[None]:
    """While it lasts, the encoder works as a whole, and guards of its inner encoders do nothing."""
    before = working()
    _inside.working = True
    try:
        yield
    finally:
        _inside.working = before


def working() -> bool:
    """Whether the encoder works as a whole now."""
    return bool(getattr(_inside, "working", False))


def output(result: Any) -> Output:
    """What ``encode_token_weights`` returned, always with its dictionary."""
    tokens, pooled = result[:2]
    return tokens, pooled, (result[2] if len(result) > 2 else {})


def tokenizing(clip: Any) -> Callable[[str], Tokens]:
    """What ``clip.tokenize`` does, without holding on to the CLIP object and its weights."""
    with_weights, options = (
        unguarded(clip.tokenizer.tokenize_with_weights),
        dict(getattr(clip, "tokenizer_options", {})),
    )

    def tokenize(text: str) -> Tokens:
        return with_weights(text, **({"tokenizer_options": options} if options else {}))

    tokenize.options = tuple(sorted(options.items()))  # type: ignore[attr-defined]
    return tokenize


def unguarded(encode: Any) -> Any:
    """``encode``, or ``tokenize_with_weights``, without the guards of this pack around it."""
    while hasattr(encode, "safe_region_unguarded"):
        encode = encode.safe_region_unguarded
    return encode


def _reads_pooled(stage: torch.nn.Module) -> bool:
    """Stable Diffusion 1 and 2 read no pooled output; theirs is left alone, as other hosts have none."""
    return getattr(stage, "clip", None) not in ("clip_l", "clip_h")


def _masked(stage: torch.nn.Module) -> bool:
    """Whether a diffusion model leaves out the filling that the encoder masks; LongCat-Image's reads it all."""
    return not any(kind.__name__ == "LongCatImageTEModel" for kind in type(stage).__mro__)


def _hooks(stage: torch.nn.Module) -> Any:
    """The LoRA hooks that are in the weights now, with their strengths."""
    for loaded in model_management.current_loaded_models:
        patcher = loaded.model
        if patcher is not None and patcher.model is stage:
            group = getattr(patcher, "current_hooks", None)
            return None if group is None else tuple((h.hook_ref, h.strength) for h in group.hooks)
    return None


# -- batches -----------------------------------------------------------------------------------------------------------


def _inner(stage: torch.nn.Module, key: str) -> Any:
    """The inner encoder that reads the tokens called ``key``."""
    for name in (key, f"clip_{key}", f"{key}_small"):
        found = getattr(stage, name, None)
        if isinstance(found, torch.nn.Module) and callable(getattr(found, "encode", None)):
            return found
    return None


@contextmanager
def _together(stage: torch.nn.Module, tokens: Sequence[Tokens]) -> Iterator[None]:
    """While it lasts, the inner encoders answer for the rows of ``tokens`` from batches that have gone through."""
    with ExitStack() as stack:
        for key in dict.fromkeys(k for t in tokens for k in t):
            inner = _inner(stage, key)
            if inner is None:
                continue
            rows = {r for t in tokens for row in t.get(key, ()) if (r := _ids(row)) is not None}
            stack.enter_context(_answering(inner, _encoded(inner, rows)))
        yield


def _ids(row: Sequence[tuple[Any, ...]]) -> tuple[int, ...] | None:
    """Ids of a row without weights and embeddings; others are left to the host."""
    if any(not isinstance(t[0], int) or t[1] != 1.0 for t in row):
        return None
    return tuple(t[0] for t in row)


_Rows = dict[tuple[int, ...], tuple[Any, Any, dict[str, Any]]]


def _encoded(inner: Any, rows: set[tuple[int, ...]]) -> _Rows:
    """Each row's embedding, pooled output and extras, from batches of rows of one length."""
    found: _Rows = {}
    lengths: dict[int, list[tuple[int, ...]]] = {}
    for row in sorted(rows):
        lengths.setdefault(len(row), []).append(row)
    for same in lengths.values():
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            embedded, pooled, *rest = inner.encode([list(r) for r in part])
            extras = rest[0] if rest else {}
            for i, row in enumerate(part):
                found[row] = (
                    embedded[i : i + 1],
                    None if pooled is None else pooled[i : i + 1],
                    {k: v[i : i + 1] for k, v in extras.items()},
                )
    return found


@contextmanager
def _answering(inner: Any, known: _Rows) -> Iterator[None]:
    original = inner.encode

    def encode(rows: Sequence[Sequence[Any]]) -> Any:
        ids = [tuple(r) if all(isinstance(t, int) for t in r) else None for r in rows]
        if not ids or any(i not in known for i in ids):
            return original(rows)
        parts = [known[i] for i in ids if i is not None]
        pooled = None if parts[0][1] is None else torch.cat([p for _, p, _ in parts])
        extras = {k: torch.cat([e[k] for _, _, e in parts]) for k in parts[0][2]}
        return (torch.cat([z for z, _, _ in parts]), pooled, *([extras] if extras else []))

    before = inner.__dict__.get("encode")
    inner.encode = encode
    try:
        yield
    finally:
        if before is None:
            del inner.encode
        else:
            inner.encode = before
