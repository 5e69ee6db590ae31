"""Heat maps as ComfyUI's IMAGE, with the words of the prompt over their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..saferegion.core.conditioning import Conditioning
from ..saferegion.guard.minors import BESIDE
from ..saferegion.guard.selection import GuardReport
from ..saferegion.view.heat_map import heat_map

MOST_ROWS = 2048
"""Rows of a space up to which it is drawn; beyond (every layer of a language model) the report says it in words."""


def heat_maps(report: GuardReport, strings: Mapping[str, list[str]], title: str) -> torch.Tensor:
    """A map a region and space that is told by words, one below the other: float32 ``[1, H, W, 3]`` in 0..1. Of the
    minors baseline only what was open is shown."""
    drawn = []
    for part in report.reports:
        shown = [f.concept for f in part.findings if f.open or not f.concept.endswith(BESIDE)]
        rows = {space: far.shape[1] for space, far in part.before.held().items()}
        known = [space for space, count in rows.items() if count <= MOST_ROWS]
        for space in known or ([] if rows else [None]):  # None: told by the prompt as a whole alone
            names = None if space is None else strings.get(space)
            head = title if not drawn else space or ""
            drawn.append(heat_map(part, names, space=space, title=head, concepts=shown))
    if not drawn:
        return torch.ones(1, 1, 1, 3)
    width = max(d.shape[1] for d in drawn)
    whole = np.concatenate([np.pad(d, ((0, 0), (0, width - d.shape[1]), (0, 0)), constant_values=255) for d in drawn])
    return torch.from_numpy(whole.astype(np.float32) / 255).unsqueeze(0)


def token_strings(tokenizer: Any, tokens: Mapping[str, Any], c: Conditioning) -> dict[str, list[str]]:
    """For each space of token rows, one string a row (padding is empty); not for spaces whose tokens are not known."""
    rows = {key: _strings(tokenizer, key, value) for key, value in tokens.items()}
    found = {}
    for space in c.spaces or ():
        length = len(range(c.tokens.shape[1])[space.rows])
        exact = [s for s in rows.values() if len(s) == length]
        longer = [s for s in rows.values() if len(s) > length]  # a template was cut off at the front
        if exact or longer:
            found[space.name] = (exact or [s[-length:] for s in longer])[0]
    return found


def _strings(tokenizer: Any, key: str, rows: Any) -> list[str]:
    inner = next((t for n in (key, f"clip_{key}") if (t := getattr(tokenizer, n, None)) is not None), None)
    names = getattr(inner, "inv_vocab", {})
    end, pad = getattr(inner, "end_token", None), getattr(inner, "pad_token", None)
    found = []
    for row in rows if isinstance(rows, list) else ():
        ended = False
        for token, *_ in row:
            if ended and token in (end, pad):
                found.append("")
                continue
            ended = ended or token == end
            name = names.get(token, "embedding") if isinstance(token, int) else "embedding"
            found.append(str(name).replace("</w>", "").replace("▁", "").replace("Ġ", "").strip() or str(name))
    return found
