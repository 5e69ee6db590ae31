"""Two of the three places where a guard sits in ComfyUI: in a conditioning, and before the sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from comfy import model_management

from ..saferegion.core.errors import ConditioningError, SafeRegionError
from ..saferegion.core.fingerprint import Fingerprint
from ..saferegion.guard.selection import NO_MINORS, Guard, GuardReport, Selection
from .backstop import captured, hooks_of, readers, refuse_kept, texts_in, watching
from .encoder import TextEncoder
from .family import Family
from .files import library
from .keys import CONTROLNET, GLIGEN, MASK, POOLED, POSE, PREFIX, REFERENCE
from .progress import Progress

KEY = "safe_region"
NEGATIVE = "negative"

Tell = Callable[[str], None]
"""Takes the report of what was guarded, as text."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A guard and the text encoder it belongs to."""

    guard: Guard
    family: Family
    encoder: Fingerprint


def fit(selection: Selection, encoder: TextEncoder) -> Fitted:
    """Directions of all that is switched on for this encoder: read from the cache, compiled where missing.

    Where the encoder's device has no room for the sums as well, they are made on the CPU.
    """
    try:
        guard = _guard(selection, encoder)
    except torch.cuda.OutOfMemoryError:
        if encoder.fits_on.type == "cpu":
            raise
        encoder.fits_on = torch.device("cpu")
        model_management.soft_empty_cache()
        guard = _guard(selection, encoder)
    return Fitted(guard, encoder.family, encoder.fingerprint())


def _guard(selection: Selection, encoder: TextEncoder) -> Guard:
    return selection.guard(encoder, library(), Progress(), encoder.settings())


# -- a conditioning --------------------------------------------------------------------------------------------------


def guard_entry(
    fitted: Fitted, guard: Guard, tokens: Any, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], list[GuardReport]]:
    """One ``[tensor, options]`` pair of a CONDITIONING, every text in it; new objects, nothing is changed in place.

    Raises:
        ConditioningError: some text in it cannot be guarded.
        UnresolvedError: some of it stayed outside.
    """
    family = fitted.family
    options = dict(options)
    tokens, pooled, changed, report = family.guard(guard, tokens, options.get(POOLED), options)
    reports = [report]
    if pooled is not None:
        options[POOLED] = pooled
    options.update(changed)
    if options.get(CONTROLNET[0]) is not None:
        second, second_pooled, _, report = family.guard(guard, *(options.get(k) for k in CONTROLNET), {})
        options[CONTROLNET[0]] = second
        if second_pooled is not None:
            options[CONTROLNET[1]] = second_pooled
        reports.append(report)
    if options.get(GLIGEN) is not None:
        kind, model, boxes = options[GLIGEN]
        guarded = []
        for vector, *place in boxes:
            inside, report = family.vector(guard, vector)
            guarded.append((inside, *place))
            reports.append(report)
        options[GLIGEN] = (kind, model, guarded)
    for key in (REFERENCE, POSE):
        if options.get(key) is None:
            continue
        texts = []
        for text in options[key] if key == REFERENCE else [options[key]]:
            inside, _, _, report = family.guard(guard, text, None, {})
            texts.append(inside)
            reports.append(report)
        options[key] = texts if key == REFERENCE else texts[0]
    return tokens, options, [r for r in reports if r is not None]


def guard_windows(
    fitted: Fitted, tokens: Any, options: Mapping[str, Any]
) -> list[tuple[Any, dict[str, Any], list[GuardReport]]]:
    """As :func:`guard_entry`; where directions act in a part of the sampling only, one entry for every part."""
    windows = fitted.guard.windows()
    if len(windows) == 1:
        return [guard_entry(fitted, fitted.guard, tokens, options)]
    found = []
    for start, end in windows:
        begins, ends = max(start, options.get("start_percent", 0.0)), min(end, options.get("end_percent", 1.0))
        if begins < ends:
            part = fitted.guard.at((start + end) / 2)
            found.append(guard_entry(fitted, part, tokens, {**options, "start_percent": begins, "end_percent": ends}))
    return found


def guard_conditioning(fitted: Fitted, conditioning: Any) -> tuple[list[list[Any]], list[GuardReport]]:
    """A whole CONDITIONING.

    Raises:
        ConditioningError: it is empty or broken, or cannot be guarded.
        UnresolvedError: some of it stayed outside.
    """
    if not isinstance(conditioning, Sequence) or not conditioning:
        raise ConditioningError("The conditioning is empty; connect the output of a text encode node.")
    guarded, reports = [], []
    for entry in conditioning:
        if not isinstance(entry, Sequence) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            raise ConditioningError(
                "The conditioning is not made of [tensor, options] pairs; connect the output of a text encode node."
            )
        refuse_kept(fitted.family, fitted.guard, [entry[1]])
        for tokens, options, told in guard_windows(fitted, entry[0], entry[1]):
            guarded.append([tokens, options])
            reports += told
    return guarded, reports


# -- before the sampling ---------------------------------------------------------------------------------------------


class SamplingGuard:
    """Wraps the preparation of a sampling: conditionings are guarded once, on the device that samples."""

    def __init__(self, fitted: Fitted, negative: bool, tell: Tell) -> None:
        self.fitted, self.negative, self.tell = fitted, negative, tell
        self._free: list[torch.Tensor] = []

    def to(self, *_: Any, **__: Any) -> SamplingGuard:
        """Hosts move wrappers that have this between devices; regions find their device by themselves."""
        return self

    def __call__(self, executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        real_model, conds, models = executor(model, noise_shape, conds, *args, **kwargs)
        return real_model, self.guarded(conds, model.load_device), models

    def outer(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The same for hosts without that hook: around the whole sampling."""
        guider = executor.class_obj
        guider.conds = self.guarded(guider.conds, guider.model_patcher.load_device)
        return executor(*args, **kwargs)

    def sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the steps themselves: what other packs have captured is caught where the network reads it."""
        guider, _, extra = args[:3]
        network, family = guider.inner_model.diffusion_model, self.fitted.family
        alone = [NEGATIVE] if not self.negative else []
        entries = [e for name, own in guider.conds.items() if name not in alone for e in own or ()]
        if not captured(extra["model_options"]) and not hooks_of(entries):
            return executor(*args, **kwargs)
        if not readers(network):
            refuse_kept(family, self.fitted.guard, entries)
        kept = hooks_of(e for name in alone for e in guider.conds.get(name) or ())
        free = [*self._free, *(text for hook in kept for text in texts_in(hook, family.width))]
        with watching(network, family, self.fitted.guard, free):
            return executor(*args, **kwargs)

    def guarded(self, conds: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """New lists of new entries. All lists go to one device: entries on different ones are not batched."""
        reports: list[GuardReport] = []
        found: dict[str, Any] = {}
        self._free = []
        for name, entries in conds.items():
            found[name] = []
            for given in entries or ():
                entry = {k: _moved(v, device) if _is_text(k) else v for k, v in given.items()}
                if name == NEGATIVE and not self.negative:
                    found[name].append(entry)
                    self._free += [t for t in (entry.get("cross_attn"),) if isinstance(t, torch.Tensor)]
                    continue
                options = {k: v for k, v in entry.items() if k != "cross_attn"}
                for tokens, guarded, told_of in guard_windows(self.fitted, entry.get("cross_attn"), options):
                    found[name].append({**guarded, "cross_attn": tokens})
                    reports += told_of
        self.tell(told(reports))
        return found


def _is_text(key: str) -> bool:
    return key in ("cross_attn", POOLED, POSE, *CONTROLNET) or key.startswith((PREFIX, MASK))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def require_model(model: Any) -> None:
    """Raise SafeRegionError where a MODEL input holds none, as that of a checkpoint without one."""
    if not hasattr(model, "model_options"):
        raise SafeRegionError("The MODEL input holds no diffusion model; connect the MODEL of a checkpoint or loader.")


def guard_model(model: Any, fitted: Fitted, negative: bool, tell: Tell) -> Any:
    """A MODEL whose every sampling is guarded; the one given stays as it is.

    Raises:
        SafeRegionError: a host that is too old to be guarded here.
    """
    require_model(model)
    guarded = model.clone()
    kinds = comfy.patcher_extension.WrappersMP
    guard = SamplingGuard(fitted, negative, tell)
    if hasattr(kinds, "PREPARE_SAMPLING"):
        guarded.add_wrapper_with_key(kinds.PREPARE_SAMPLING, KEY, guard)
    elif hasattr(kinds, "OUTER_SAMPLE"):
        guarded.add_wrapper_with_key(kinds.OUTER_SAMPLE, KEY, guard.outer)
    else:
        raise SafeRegionError("Guard Model needs ComfyUI 0.3.10 or newer; update it, or use Guard Conditioning.")
    if hasattr(kinds, "SAMPLER_SAMPLE"):
        guarded.add_wrapper_with_key(kinds.SAMPLER_SAMPLE, KEY, guard.sampling)
    return guarded


def told(reports: Sequence[GuardReport]) -> str:
    """Some lines about several conditionings."""
    reports = [r for r in reports if r.reports]  # nothing acts in some part of the sampling
    if not reports:
        return "no text, so nothing to guard"
    if len(reports) == 1:
        return reports[0].text()
    lines = [(i, r.text()) for i, r in enumerate(reports, 1)]
    if not any(r.moved for r in reports):
        text = f"{len(reports)} conditionings, all inside the safe region; nothing was changed"
        return text if all(r.minors for r in reports) else f"{text}\n{NO_MINORS}"
    return "\n".join(f"conditioning {i}: {text}" for i, text in lines)
