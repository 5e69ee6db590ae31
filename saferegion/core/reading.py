"""What a panel of detectors says of one conditioning, as reports tell it: concept by concept, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .detector import Panel, Seen
from .report import Reading, column_name

Tensor = torch.Tensor


def reading(panel: Panel, seen: Seen, far: Tensor, place: Sequence[int]) -> Reading:
    """The reading of ``seen``; nothing but ``far`` is computed before it is asked for.

    Args:
        far: ``[B, K]``, distances of the detectors, in the order in which they are told. place: that order.
    """
    return Reading(far, lambda: _columns(panel, seen, place), lambda: _held(panel, seen, place))


def _columns(panel: Panel, seen: Seen, place: Sequence[int]) -> list[list[tuple[str, Tensor]]]:
    found = panel.columns(panel.scores(seen)).detach().cpu()
    return [[(column_name(r), found[:, i]) for i, r in panel.names(k)] for k in place]


def _held(panel: Panel, seen: Seen, place: Sequence[int]) -> dict[str, Tensor]:
    """By space, distance of each token over the borders of its terms ``[B, T, K]``; NaN where it is not asked."""
    found = {}
    for space, (x, places) in seen.items():
        forms = panel.forms[space]
        each, _ = forms.held(x, places)
        if not each.shape[-1]:
            continue
        each = each.detach().cpu()
        out = torch.full((*each.shape[:2], len(place)), math.nan)
        for f in range(each.shape[-1]):
            k = panel.detector_of(forms.owner[f])
            if k < len(place):
                out[:, :, k] = torch.fmax(out[:, :, k], each[:, :, f] - panel.terms_border(forms.owner[f]))
        if places is not None:
            out = out.masked_fill(~places.mask.cpu().unsqueeze(-1), math.nan)
        found[space] = out[..., list(place)]
    return found
