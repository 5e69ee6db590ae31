"""What catches text that other packs have captured: a UNet's own cross-attention, while it samples.

Packs that paint several prompts into regions (Attention Couple and its kin) keep conditionings in the closures of
attention patches, where nothing that guards conditionings sees them. All of them go through ``to_k`` and ``to_v`` of
the cross-attentions in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..saferegion.guard.selection import Guard
from .family import Family

CROSS_ATTENTION, READS = "attn2", ("to_k", "to_v")
SAME = 1e-2
"""Relative distance up to which a row is the negative prompt's: models compute in half precision."""


def captured(options: Mapping[str, Any]) -> bool:
    """Whether some pack changes what cross-attentions are given."""
    given = options.get("transformer_options", {})
    replaced = given.get("patches_replace", {})
    return bool(given.get("patches", {}).get("attn2_patch")) or bool(replaced.get(CROSS_ATTENTION))


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

    hooks = [
        layer.register_forward_pre_hook(hook)
        for name, part in network.named_modules()
        if name.rpartition(".")[2] == CROSS_ATTENTION
        for read in READS
        if isinstance(layer := getattr(part, read, None), torch.nn.Module)
    ]
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
