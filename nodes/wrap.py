"""The three places where a guard sits in ComfyUI: behind the text encoder, in a conditioning, before the sampling."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from comfy import model_management

from ..saferegion.core.conditioning import Conditioning
from ..saferegion.core.errors import ConditioningError, SafeRegionError, UnresolvedError
from ..saferegion.core.fingerprint import Fingerprint
from ..saferegion.guard import second_look
from ..saferegion.guard.naming import names_in
from ..saferegion.guard.selection import NO_MINORS, Guard, GuardReport, Selection
from .disguise import Plain, Texts, listening, normaliser_of
from .encoder import STATES, Encode, TextEncoder, Tokens, output, tokenizing, unguarded
from .family import Family
from .files import library
from .progress import Progress, this_run

KEY = "safe_region"
NEGATIVE = "negative"
POOLED = "pooled_output"
CONTROLNET = ("cross_attn_controlnet", "pooled_output_controlnet")
GLIGEN = "gligen"
REFERENCE = "reference_latents_text_embeds"

SHOWN = 4
"""Last prompts of which a guarded CLIP shows what was done: one positive and one negative at least."""

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
    if options.get(REFERENCE) is not None:
        texts = []
        for text in options[REFERENCE]:
            inside, _, _, report = family.guard(guard, text, None, {})
            texts.append(inside)
            reports.append(report)
        options[REFERENCE] = texts
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
        for tokens, options, told in guard_windows(fitted, entry[0], entry[1]):
            guarded.append([tokens, options])
            reports += told
    return guarded, reports


@dataclass(frozen=True, eq=False)
class Look:
    """The report of a text, and the tokens and conditioning that it is of."""

    report: GuardReport
    tokens: Tokens
    conditioning: Conditioning


# -- behind the text encoder -----------------------------------------------------------------------------------------


class ClipGuard:
    """Stands in for ``encode_token_weights`` of a text encoder, in one CLIP object and its clones.

    Loaders of LoRA, Set Last Layer and scheduled hooks change the encoder after this node; its state is looked at on
    every call, and directions are found or compiled for the encoder as it is then.
    """

    def __init__(self, selection: Selection, clip: Any, tell: Tell) -> None:
        self.selection, self.tell = selection, tell
        self.texts = Texts(clip.tokenizer, selection, library())
        self.safe_region_unguarded: Encode = unguarded(clip.cond_stage_model.encode_token_weights)
        self._inner: Encode = clip.patcher.get_model_object("encode_token_weights")
        self._stage, self._tokenize = clip.cond_stage_model, tokenizing(clip)
        self._fitted: dict[Any, Fitted] = {}
        self._said: deque[str] = deque(maxlen=SHOWN)
        self._run: str | None = None

    def encoder(self) -> TextEncoder:
        return TextEncoder(self._stage, self.safe_region_unguarded, self._tokenize)

    def fitted(self) -> Fitted:
        """The guard for the encoder as it is now."""
        encoder = self.encoder()
        state = encoder.state()
        if state not in self._fitted:
            if len(self._fitted) >= STATES:
                self._fitted.clear()
            fingerprint = encoder.fingerprint()
            near = [f for f in self._fitted.values() if f.encoder.matches(fingerprint)]
            like = min(near, key=lambda f: f.encoder.distance(fingerprint), default=None)
            self._fitted[state] = (
                fit(self.selection, encoder) if like is None else Fitted(like.guard, encoder.family, fingerprint)
            )
        return self._fitted[state]

    def __call__(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        result = self._inner(tokens, *args, **kwargs)
        if _unprojected(self._stage):
            raise SafeRegionError(
                "This node asks for the unprojected pooled output of an encoder whose projected one is guarded; put "
                "Guard Conditioning or Guard Model behind it instead of Guard CLIP."
            )
        plain = self.texts.plain(tokens)
        names = self.texts.named(tokens)
        found, report = (
            self._guarded(result, names) if plain is None else self._twice(result, names, plain, *args, **kwargs)
        )
        if (run := this_run()) != self._run:
            self._said.clear()
            self._run = run
        self._said.append(told([report] if report is not None else []))
        self.tell("\n".join(dict.fromkeys(self._said)))
        return found

    def _twice(
        self, result: Any, names: frozenset[str], plain: Plain, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], GuardReport | None]:
        """As :meth:`_guarded`, of a prompt in disguise and of its plain text: what is painted must be inside."""
        refused: UnresolvedError | None = None
        first: tuple[tuple[Any, ...], GuardReport | None] = (), None
        try:
            first = self._guarded(result, names)
        except UnresolvedError as error:
            refused = error
        names = self.texts.named(plain.tokens)
        second, report = self._guarded(self._inner(plain.tokens, *args, **kwargs), names)
        if report is not None and second_look.finds_more(first[1] or GuardReport(()), report):
            return second, second_look.without_disguise(report, plain.undone)
        if refused is not None:
            raise refused
        return first

    def _guarded(self, result: Any, names: frozenset[str]) -> tuple[tuple[Any, ...], GuardReport | None]:
        """What the encoder gave, guarded, and the report of it. ``names``: concepts that its texts name."""
        embedded, pooled, extras = output(result)
        fitted = self.fitted()
        guard = fitted.guard.naming(names)
        embedded, pooled, changed, report = fitted.family.guard(guard, embedded, pooled, extras)
        return (embedded, pooled, *([{**extras, **changed}, *result[3:]] if len(result) > 2 else [])), report


def _unprojected(stage: torch.nn.Module) -> bool:
    """Whether an encoder that projects its pooled output by default has been told not to."""
    return any(
        getattr(m, "options_default", (None, None, False))[2] and not m.return_projected_pooled
        for m in stage.children()
        if hasattr(m, "return_projected_pooled")
    )


def guard_clip(clip: Any, selection: Selection, tell: Tell) -> Any:
    """A CLIP whose every output is guarded; the one given stays as it is."""
    guarded = clip.clone()
    TextEncoder.of(guarded)
    guard = ClipGuard(selection, guarded, tell)
    guard.fitted()
    guarded.patcher.add_object_patch("encode_token_weights", guard)
    guarded.tokenizer = listening(guarded.tokenizer, guard.texts)
    return guarded


def look(fitted: Fitted, selection: Selection, encoder: TextEncoder, clip: Any, text: str) -> Look:
    """What Guard CLIP would do with a text, as :class:`Look`; unresolved texts are no error here."""
    names = names_in(selection, library())
    tokens = clip.tokenize(text)
    c = fitted.family.conditioning(*encoder.encode(tokens))
    first = Look(fitted.guard.naming(names(text)).apply(c)[1], tokens, c)
    found = second_look.undisguised(normaliser_of(clip.tokenizer, selection), text)
    if found is None:
        return first
    tokens = clip.tokenize(found.text)
    c = fitted.family.conditioning(*encoder.encode(tokens))
    report = fitted.guard.naming(names(found.text)).apply(c)[1]
    if not second_look.finds_more(first.report, report):
        return first
    return Look(second_look.without_disguise(report, found.undone), tokens, c)


# -- before the sampling ---------------------------------------------------------------------------------------------


class SamplingGuard:
    """Wraps the preparation of a sampling: conditionings are guarded once, on the device that samples."""

    def __init__(self, fitted: Fitted, negative: bool, tell: Tell) -> None:
        self.fitted, self.negative, self.tell = fitted, negative, tell

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

    def guarded(self, conds: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """New lists of new entries. All lists go to one device: entries on different ones are not batched."""
        reports: list[GuardReport] = []
        found: dict[str, Any] = {}
        for name, entries in conds.items():
            found[name] = []
            for given in entries or ():
                entry = {k: _moved(v, device) if _is_text(k) else v for k, v in given.items()}
                if name == NEGATIVE and not self.negative:
                    found[name].append(entry)
                    continue
                options = {k: v for k, v in entry.items() if k != "cross_attn"}
                for tokens, guarded, told_of in guard_windows(self.fitted, entry.get("cross_attn"), options):
                    found[name].append({**guarded, "cross_attn": tokens})
                    reports += told_of
        self.tell(told(reports))
        return found


def _is_text(key: str) -> bool:
    return key in ("cross_attn", POOLED, *CONTROLNET) or key.startswith(("conditioning_", "attention_mask"))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def guard_model(model: Any, fitted: Fitted, negative: bool, tell: Tell) -> Any:
    """A MODEL whose every sampling is guarded; the one given stays as it is.

    Raises:
        SafeRegionError: a host that is too old to be guarded here.
    """
    guarded = model.clone()
    kinds = comfy.patcher_extension.WrappersMP
    guard = SamplingGuard(fitted, negative, tell)
    if hasattr(kinds, "PREPARE_SAMPLING"):
        guarded.add_wrapper_with_key(kinds.PREPARE_SAMPLING, KEY, guard)
    elif hasattr(kinds, "OUTER_SAMPLE"):
        guarded.add_wrapper_with_key(kinds.OUTER_SAMPLE, KEY, guard.outer)
    else:
        raise SafeRegionError("Guard Model needs ComfyUI 0.3.10 or newer; update it, or use Guard Conditioning.")
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
