"""What catches text that other packs have captured: a UNet's own cross-attention, while it samples.

Packs that paint several prompts into regions (Attention Couple and its kin) keep conditionings in the closures of
attention patches, where nothing that guards conditionings sees them. All of them go through ``to_k`` and ``to_v`` of
the cross-attentions in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..saferegion.core.errors import ConditioningError
from ..saferegion.guard.selection import Guard
from .family import Family

CROSS_ATTENTION, READS = "attn2", ("to_k", "to_v")
WEIGHTS = "weight"
"""What the host calls hooks that change weights alone, as LoRA does."""
DEEPEST = 3
"""Lists in lists that are looked through."""
SAME = 1e-2
"""Relative distance up to which a row is the negative prompt's: models compute in half precision."""


def captured(options: Mapping[str, Any]) -> bool:
    """Whether some pack changes what cross-attentions are given."""
    given = options.get("transformer_options", {})
    replaced = given.get("patches_replace", {})
    return bool(given.get("patches", {}).get("attn2_patch")) or bool(replaced.get(CROSS_ATTENTION))


def hooks_of(entries: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Hooks that conditionings carry and that change more than weights: texts can be kept in them."""
    groups = [entry.get("hooks") for entry in entries]
    hooks = [hook for group in groups for hook in getattr(group, "hooks", ())]
    return [h for h in hooks if getattr(getattr(h, "hook_type", None), "value", None) != WEIGHTS]


def texts_in(value: Any, width: int, depth: int = 0) -> Iterator[torch.Tensor]:
    """Conditionings ``[B, T, width]`` that an object keeps."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 3 and value.shape[2] == width and value.is_floating_point():
            yield value
    elif depth < DEEPEST:
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        for each in inner if depth else vars(value).values():
            yield from texts_in(each, width, depth + 1)


def refuse_kept(family: Family, guard: Guard, entries: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConditioningError where a hook of some conditioning keeps a text that is outside, or that nobody finds."""
    for hook in hooks_of(entries):
        texts = list(texts_in(hook, family.width))
        if texts and all(family.guard(guard, text, None, {}, own=True)[0] is text for text in texts):
            continue
        raise ConditioningError(
            f"This conditioning carries a hook of another pack ({type(hook).__name__}) with a text of its own, which "
            "cannot be guarded here: put Guard CLIP before the node that makes it."
        )


def readers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of cross-attentions that read texts; none where a network has no such attentions."""
    return [
        layer
        for name, part in network.named_modules()
        if name.rpartition(".")[2] == CROSS_ATTENTION
        for read in READS
        if isinstance(layer := getattr(part, read, None), torch.nn.Module)
    ]


@contextmanager
def watching(network: torch.nn.Module, family: Family, guard: Guard, free: Sequence[torch.Tensor]) -> Iterator[None]:
    """While it lasts, texts that reach a cross-attention of ``network`` are projected into the region.

    Args:
        free: conditionings ``[B, T, D]`` that are not guarded, such as the negative prompt.
    """

    def hook(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = given[0] if given else None
        if not isinstance(x, torch.Tensor) or x.ndim != 3 or x.shape[2] != family.width:
            return None
        return (inside(x, family, guard, free), *given[1:])

    hooks = [layer.register_forward_pre_hook(hook) for layer in readers(network)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def inside(x: torch.Tensor, family: Family, guard: Guard, free: Sequence[torch.Tensor]) -> torch.Tensor:
    """``x`` [B, T, D] with every prompt but those of ``free`` inside; the same bits where nothing moves."""
    mask = family.movable(x)
    found = x
    for region in guard.regions:
        found = region.project(found, mask)
    for text in free:
        rows = text.to(x)
        length = min(rows.shape[1], x.shape[1])
        for row in rows[:, :length]:
            apart = (x[:, :length] - row).float().norm(dim=(1, 2))
            same = apart <= SAME * row.float().norm()
            found = torch.where(same.view(-1, 1, 1), x, found)
    return found
