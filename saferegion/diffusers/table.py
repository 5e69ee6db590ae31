"""Which pipeline classes of diffusers are guarded: what each takes of text, what its ``encode_prompt`` gives, and why
others are refused. Signatures are compared when a pipeline is guarded, so that a class that changed is refused by name.

``pipelines.json`` beside this file is written by ``python -m saferegion_lab.pipelines`` from an installed diffusers.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import SafeRegionError

TABLE = Path(__file__).with_name("pipelines.json")
TOKENS = "tokens"
_TEXT = re.compile(r"prompt|text|lyric|caption|phrase|embeds|mask|negative")
_NO_TEXT = re.compile(r"num_\w+_per_prompt|text_encoder_(out_layers|index)|prompt_upsampling\w*|\w*clip_skip|.*image.*")


@dataclass(frozen=True)
class Slot:
    """One thing that ``encode_prompt`` returns.

    Attributes:
        kind: ``tokens`` [B, T, D] (or a list of [T, D]), ``layers`` [L, B, T, D], ``pooled`` [B, D], ``mask`` [B, T],
            or ``other``, which holds no text.
        space: the space of tokens that it is, or masks.
        negative: whether it is of the negative prompt.
    """

    kind: str
    space: str = TOKENS
    negative: bool = False


SLOTS: Mapping[str, Slot] = {
    "prompt_embeds": Slot("tokens"),
    "prompt_embeds_qwen": Slot("tokens"),
    "masked_prompt_embeds": Slot("tokens"),
    "text_encoder_hidden_states": Slot("tokens"),
    "text_hiddens": Slot("tokens"),
    "prompt_embeds_2": Slot("tokens", "second"),
    "prompt_embeds_t5": Slot("tokens", "t5"),
    "prompt_embeds_llama3": Slot("layers", "llama3"),
    "pooled_prompt_embeds": Slot("pooled"),
    "prompt_embeds_pooled": Slot("pooled"),
    "prompt_embeds_clip": Slot("pooled"),
    "prompt_attention_mask": Slot("mask"),
    "prompt_embeds_mask": Slot("mask"),
    "attention_mask": Slot("mask"),
    "prompt_embeds_mask_2": Slot("mask", "second"),
    "text_ids": Slot("other"),
    "repeated_cu_seqlens": Slot("other"),
    "image_pad_mask": Slot("other"),
}
"""What diffusers calls what it returns; with ``negative_`` or ``uncond_`` before it, that of the negative prompt."""


def slot_of(name: str) -> Slot | None:
    """The slot of a returned name; None of one that is not known."""
    plain = re.sub(r"negative_|uncond_", "", name)
    found = SLOTS.get(plain)
    return found if found is None or plain == name else Slot(found.kind, found.space, True)


@dataclass(frozen=True)
class Signature:
    """What a class takes and gives of text.

    Attributes:
        takes: of ``encode_prompt``. calls: of ``__call__``. gives: names of what ``encode_prompt`` returns.
    """

    takes: tuple[str, ...]
    calls: tuple[str, ...]
    gives: tuple[str, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(s for n in self.gives if (s := slot_of(n)) is not None)

    @classmethod
    def of(cls, pipeline: type) -> Signature:
        """Read from a class as it is installed. Raises ValueError: its source cannot be read, or returns no names."""
        encode: Any = getattr(pipeline, "encode_prompt")  # noqa: B009 (any class is asked)
        return cls(text_parameters(encode), text_parameters(pipeline.__call__), returned(encode))


def text_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters that carry text, sorted."""
    names = inspect.signature(function).parameters
    return tuple(sorted(n for n in names if _TEXT.search(n) and not _NO_TEXT.fullmatch(n)))


def returned(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a function returns, as its last return statement says. Raises ValueError."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError("its source cannot be read") from error
    found = [n.value for n in _of_itself(tree.body[0]) if isinstance(n, ast.Return) and n.value is not None]
    if not found:
        raise ValueError("it returns nothing")
    each = {tuple(map(_name, v.elts if isinstance(v, ast.Tuple) else (v,))) for v in found}
    roles = {tuple(map(slot_of, names)) for names in each}
    if len(roles) != 1:
        raise ValueError("it returns now this and now that")
    return min(each)


def _of_itself(tree: ast.AST) -> list[ast.AST]:
    """Nodes of a function, without those of functions inside it."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += [node, *_of_itself(node)]
    return found


def _name(value: ast.expr) -> str:
    """The name in ``x``, ``x if y else None`` and ``x.to(device)``."""
    if isinstance(value, ast.IfExp):
        return _name(value.body)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to":
        return _name(value.func.value)
    return value.id if isinstance(value, ast.Name) else ast.unparse(value)


@dataclass(frozen=True)
class Entry:
    """A class of the table; ``refused``: why it is not guarded, empty where it is. ``signature``: None where it was
    not installed whole when the table was written."""

    name: str
    signature: Signature | None
    refused: str = ""


@cache
def entries() -> Mapping[str, Entry]:
    """The table, by the name of the class."""
    found = {}
    for name, row in json.loads(TABLE.read_text(encoding="utf-8"))["classes"].items():
        gives = row.get("gives")
        signature = None if gives is None else Signature(tuple(row["takes"]), tuple(row["calls"]), tuple(gives))
        found[name] = Entry(name, signature, row.get("refused", ""))
    return found


def written_for() -> str:
    """The version of diffusers that the table was written from."""
    return str(json.loads(TABLE.read_text(encoding="utf-8"))["diffusers"])


def signature_of(pipeline: type) -> Signature:
    """The signature of a guarded class, or of a subclass that encodes and paints as one does.

    Raises:
        SafeRegionError: the class is unknown, refused, or not what it was when the table was written.
    """
    own = next((c for c in pipeline.__mro__ if c.__name__ in entries() and c.__module__.startswith("diffusers.")), None)
    if own is None:
        raise SafeRegionError(
            f"{pipeline.__name__} is no pipeline that Safe Region knows (its table is of diffusers {written_for()}), "
            "so it cannot be guarded: use a pipeline of diffusers itself."
        )
    entry = entries()[own.__name__]
    if entry.refused:
        raise SafeRegionError(f"{own.__name__} cannot be guarded: {entry.refused}.")
    assert entry.signature is not None
    for method in ("encode_prompt", "__call__"):
        if getattr(pipeline, method, None) is not getattr(own, method, None):
            raise SafeRegionError(
                f"{pipeline.__name__} changes {method} of {own.__name__}, so it cannot be guarded: use {own.__name__}."
            )
    try:
        seen = Signature.of(own)
    except (ValueError, AttributeError) as error:
        raise SafeRegionError(f"{own.__name__} cannot be guarded: of its encode_prompt, {error}.") from error
    for what, before, now in (
        ("its encode_prompt takes", entry.signature.takes, seen.takes),
        ("its encode_prompt returns", entry.signature.gives, seen.gives),
        ("it is called with", entry.signature.calls, seen.calls),
    ):
        if before != now:
            raise SafeRegionError(
                f"{own.__name__} is not what it is in diffusers {written_for()} ({what} {_said(now, before)}), so it "
                "cannot be guarded: install that version."
            )
    return entry.signature


def _said(now: Sequence[str], before: Sequence[str]) -> str:
    more, less = [n for n in now if n not in before], [n for n in before if n not in now]
    parts = [f"also {', '.join(more)}"] * bool(more) + [f"no {', '.join(less)}"] * bool(less)
    return " and ".join(parts) or f"{', '.join(now)} in another order"
