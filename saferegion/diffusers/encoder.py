"""The text encoder of a pipeline, asked through the pipeline's own ``encode_prompt``: prompts -> conditioning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..core.conditioning import Conditioning
from ..core.errors import ConditioningError, SafeRegionError
from ..core.fingerprint import PROBES, Fingerprint
from ..guard.words import words_of
from ..learn.settings import CompileSettings
from .parts import Layout
from .table import Signature

BATCH = 32
VALUES = 2**26
"""Most numbers in the embeddings of one batch: a quarter of a gigabyte."""

TEXTS = re.compile(r"prompts?(_\d)?")
"""Names of the parameters that hold the texts of the positive prompt."""
_EACH = re.compile(r"num_\w+_per_prompt")
_NOT_OPTIONS = re.compile(r"(negative_)?prompts?(_\d)?|.*embeds.*|.*mask.*|num_\w+_per_prompt|device|dtype|batch_size")
_GUIDED = "do_classifier_free_guidance"


class PipelineEncoder:
    """Encodes prompts as the pipeline does for a picture, one row each.

    Args:
        pipe: a pipeline of diffusers.
        encode: its own ``encode_prompt``, bound to it.
        options: what it was called with beside texts, embeddings and their number.
    """

    def __init__(
        self, pipe: Any, encode: Callable[..., Any], signature: Signature, options: Mapping[str, Any] | None = None
    ) -> None:
        self._encode, self._options = encode, dict(options or {})
        self._parameters = inspect.signature(encode).parameters
        self.family = type(pipe).__name__
        device = getattr(pipe, "_execution_device", None)
        if "device" in self._parameters and device is not None:
            self._options.setdefault("device", device)
        try:
            alone = [self.raw([p]) for p in PROBES]
        except SafeRegionError:
            raise
        except Exception as error:
            raise ConditioningError(
                f"The text encoder of {self.family} cannot be asked ({type(error).__name__}: {error}), so it cannot be "
                "guarded: load the whole pipeline, or guard it before its text encoder is taken away."
            ) from error
        self.layout = Layout.of(pipe, signature, alone)
        together = self(list(PROBES))
        self.batch = max(1, min(BATCH, VALUES // max(1, together.tokens[0].numel())))
        self._fingerprint = Fingerprint.from_conditioning(together)

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def settings(self) -> CompileSettings:
        return CompileSettings(batch_size=self.batch, family=self.family)

    def __call__(self, prompts: list[str]) -> Conditioning:
        return self.layout.conditioning(self.raw(prompts))

    def raw(self, prompts: Sequence[str]) -> Any:
        """What ``encode_prompt`` returns for positive prompts alone."""
        with torch.no_grad():
            return self._encode(**self.arguments(prompts))

    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What ``encode_prompt`` is called with for positive prompts alone."""
        given: dict[str, Any] = {k: v for k, v in self._options.items() if k in self._parameters}
        name = next(n for n in self._parameters if TEXTS.fullmatch(n))
        given[name] = list(prompts)
        for other, parameter in self._parameters.items():
            if TEXTS.fullmatch(other) and other != name and parameter.default is inspect.Parameter.empty:
                given[other] = None
        for other in self._parameters:
            if _EACH.fullmatch(other):
                given[other] = 1
        if _GUIDED in self._parameters:
            given[_GUIDED] = False
        if "batch_size" in self._parameters:
            given["batch_size"] = len(prompts)
        return given


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what ``encode_prompt`` was called with: what changes embeddings beside the texts."""
    return {k: v for k, v in given.items() if v is not None and k != _GUIDED and not _NOT_OPTIONS.fullmatch(k)}


def usual_options(pipeline: Any) -> dict[str, Any]:
    """Those that a pipeline class encodes with unless it is told otherwise."""
    taken = inspect.signature(pipeline.encode_prompt).parameters
    called = inspect.signature(pipeline.__call__).parameters
    empty = inspect.Parameter.empty
    return options_of(
        {n: p.default for n, p in called.items() if n in taken and p.default is not empty and n != "self"}
    )


def key_of(options: Mapping[str, Any]) -> str:
    """Equal where options are."""
    return repr(sorted((k, repr(v)) for k, v in options.items()))


def state_of(pipe: Any) -> tuple[Any, ...]:
    """Equal as long as the pipeline's text encoders give the same: which they are, their LoRA, their words."""
    found: list[Any] = [getattr(pipe, "num_fused_loras", 0)]
    for name, module in _encoders(pipe):
        adapters = tuple(
            (kind, key, str(value))
            for m in module.modules()
            for kind in ("scaling", "active_adapters", "merged_adapters")
            if isinstance(values := getattr(m, kind, None), dict | list)
            for key, value in (values.items() if isinstance(values, dict) else enumerate(values))
        )
        table = getattr(module, "get_input_embeddings", lambda: None)()
        found.append((name, id(module), len(getattr(table, "weight", ())), hash(adapters)))
    return tuple(found)


def has_encoder(pipe: Any) -> bool:
    """Whether any text encoder is loaded."""
    return next(_encoders(pipe), None) is not None


def vocabulary_of(pipe: Any) -> tuple[str, ...]:
    """Whole words that its tokenizers know, the most common first."""
    found: dict[str, None] = {}
    for name, part in sorted(_components(pipe).items()):
        words = getattr(getattr(part, "tokenizer", part), "get_vocab", None) if name.startswith("tokenizer") else None
        if callable(words):
            known = words()
            found.update(dict.fromkeys(words_of(sorted(known, key=known.__getitem__))))
    return tuple(found)


def _encoders(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, part in sorted(_components(pipe).items()):
        if "text_encoder" in name and isinstance(part, torch.nn.Module):
            yield name, part


def _components(pipe: Any) -> dict[str, Any]:
    found = getattr(pipe, "components", {})
    return found if isinstance(found, dict) else {}
