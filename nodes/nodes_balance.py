"""Balance: one prompt, many pictures, each painted as one group of people by the shares that were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import saferegion as sr
from ..saferegion.core.errors import BalanceError, ConditioningError
from . import files
from .keys import POOLED
from .nodes_guard import CLIP_TIP, ID
from .nodes_region import CATEGORY
from .progress import Progress, show_below

MOST = 2**64
DEFAULT = "gender"


class BalancePeople:
    DESCRIPTION = (
        "Shares groups of people out over the pictures of a prompt about one person of whom nothing else is said. What "
        "a prompt says stays; prompts without a person, with names, an era or a nation come out bit-identical. Put it "
        "behind the text encode node, before any guard."
    )
    CATEGORY = CATEGORY
    FUNCTION = "balance"
    RETURN_TYPES = ("CONDITIONING", "STRING", "STRING")
    RETURN_NAMES = ("conditioning", "report", "groups")
    OUTPUT_TOOLTIPS = (
        "A row for each picture of the latent; the very same conditioning where nothing is balanced.",
        "Which group each picture is, or why the prompt was left as it is.",
        "The groups of each picture as JSON.",
    )
    SEARCH_ALIASES = ["fairness", "diversity", "bias", "gender", "safe region"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING", {"tooltip": "Of one prompt, from a text encode node."}),
                "clip": ("CLIP", {"tooltip": CLIP_TIP}),
                "latent": ("LATENT", {"tooltip": "The batch that is painted: it says how many pictures there are."}),
                "axes": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": DEFAULT,
                        "tooltip": "What to share out, one axis a line: 'gender', or with your own shares 'gender: "
                        "woman 50, man 50'. A # before a line switches it off.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": MOST - 1,
                        "control_after_generate": True,
                        "tooltip": "The sampler's seed: connect both to one number. It alone decides who is in which "
                        "picture.",
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 3.0,
                        "step": 0.05,
                        "tooltip": "How far a picture is moved to its group; 1 as measured for this text encoder.",
                    },
                ),
            },
            "optional": {
                "text": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "The prompt's text: words see more than the embedding does, so fewer prompts are "
                        "changed that should not be.",
                    },
                )
            },
            "hidden": ID,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, axes: Any = None) -> bool | str:
        if not isinstance(axes, str):  # comes through a link
            return True
        from ..saferegion.guard.balance_files import find_axis, wanted_of

        try:
            for wanted in wanted_of(axes):
                find_axis(files.library(), wanted.axis)
        except sr.SafeRegionError as error:
            return str(error)
        return True

    def balance(
        self,
        conditioning: Any,
        clip: Any,
        latent: Any,
        axes: str,
        seed: int,
        strength: float,
        text: str | None = None,
        unique_id: Any = None,
    ) -> tuple[Any, str, str]:
        from ..saferegion.guard.balance_files import balance_of, wanted_of
        from .encoder import TextEncoder

        encoder = TextEncoder.of(clip)
        made = balance_of(files.library(), wanted_of(axes), encoder, Progress(), encoder.settings(), strength)
        if not isinstance(conditioning, Sequence) or not conditioning:
            raise ConditioningError("The conditioning is empty; connect the output of a text encode node.")
        found, reports = [], []
        for tokens, options in conditioning:
            entry, report = balanced(encoder.family, made, numbers(latent, seed), (tokens, options), text)
            found.append(entry)
            reports.append(report)
        told = [r for r in reports if r is not None]
        lines = list(dict.fromkeys(r.text() for r in told)) or ["There is no text in it, so nothing is balanced."]
        show_below(unique_id, "\n".join(lines))
        groups = next((r.to_dict()["groups"] for r in told if r.balanced), [])
        same = all(a is b[0] for (a, _), b in zip(found, conditioning, strict=True))
        return (conditioning if same else found), "\n".join(lines), json.dumps(groups, ensure_ascii=False)


def numbers(latent: Mapping[str, Any], seed: int) -> list[int]:
    """Of each picture of a latent: the seed plus its place in the batch it comes from."""
    count = len(latent["samples"])
    places = latent.get("batch_index") or range(count)
    return [(seed + place) % MOST for place in list(places)[:count]]


def balanced(
    family: Any, made: Any, each: Sequence[int], entry: tuple[torch.Tensor, Mapping[str, Any]], text: str | None
) -> tuple[list[Any], Any]:
    """A ``[tensor, options]`` pair with a row for each picture, and what was done; itself where nothing was.

    Raises:
        BalanceError: it has several rows already.
    """
    tokens, options = entry
    if len(tokens) != 1:
        raise BalanceError(
            f"This conditioning has {len(tokens)} rows already; put Balance right behind the text encode node."
        )
    rows = {k: _rows(v, len(each)) if k in (POOLED, *family.keys) else v for k, v in options.items()}
    moved, pooled, changed, report = family.change(
        lambda c: made.apply(c, each, text), _rows(tokens, len(each)), rows.get(POOLED), rows
    )
    if report is None or not report.balanced:
        return [tokens, options], report
    rows.update(changed)
    return [moved, {**rows, **({POOLED: pooled} if pooled is not None else {})}], report


def _rows(value: Any, count: int) -> Any:
    if not isinstance(value, torch.Tensor) or value.shape[0] != 1:
        return value
    return value.repeat(count, *[1] * (value.ndim - 1))
