"""Where a guard sits behind the text encoder: around the whole of it, and around each of its inner encoders."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from comfy import sd1_clip

from ..saferegion.core.conditioning import Conditioning
from ..saferegion.core.errors import SafeRegionError, UnresolvedError
from ..saferegion.guard import second_look
from ..saferegion.guard.naming import names_in
from ..saferegion.guard.selection import GuardReport, Selection
from .disguise import Plain, Texts, listening, normaliser_of
from .encoder import STATES, Encode, InnerEncoder, TextEncoder, Tokens, output, tokenizing, unguarded, within, working
from .files import library
from .progress import this_run
from .wrap import Fitted, Tell, fit, guard_model, told

WATCHED = "safe_region_guard"
"""What an inner encoder carries its guard as, while a guarded CLIP is loaded."""
SHOWN = 4
"""Last prompts of which a guarded CLIP shows what was done: one positive and one negative at least."""


@dataclass(frozen=True, eq=False)
class Look:
    """The report of a text, and the tokens and conditioning that it is of."""

    report: GuardReport
    tokens: Tokens
    conditioning: Conditioning


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
        with within():
            result = self._inner(tokens, *args, **kwargs)
        return self._inside(result, tokens, *args, **kwargs)

    def _inside(self, result: Any, tokens: Tokens, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
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
        with within():
            again = self._inner(plain.tokens, *args, **kwargs)
        second, report = self._guarded(again, names)
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
        embedded, pooled, changed, report = fitted.family.guard(guard, embedded, pooled, extras, own=True)
        return (embedded, pooled, *([{**extras, **changed}, *result[3:]] if len(result) > 2 else [])), report


class InnerGuard(ClipGuard):
    """Stands in for ``encode_token_weights`` of one inner encoder, for nodes that ask it past the whole one.

    While the whole encoder works nothing happens here: what it gives is guarded as a whole. Asked alone, an encoder is
    one of its own: directions are found or compiled for what it gives.
    """

    def __init__(self, whole: ClipGuard, clip: Any, name: str, key: str) -> None:
        self.selection, self.tell, self.texts = whole.selection, whole.tell, whole.texts
        self._whole, self._name, self._key = whole, name, key
        inner, watched = getattr(clip.cond_stage_model, name), _watched(getattr(clip.cond_stage_model, name))
        self.place = f"{name}.{WATCHED if watched else 'encode_token_weights'}"
        own = MethodType(type(inner).encode_token_weights, inner)
        self.safe_region_unguarded = own if watched else unguarded(inner.encode_token_weights)
        before = clip.patcher.object_patches.get(self.place)
        self._before = before if isinstance(before, InnerGuard) else None
        self._rows = own if watched else clip.patcher.get_model_object(self.place)
        self._inner = lambda tokens, *args, **kwargs: self._encoded(tokens[key], *args, **kwargs)
        self._stage = clip.cond_stage_model
        self._fitted: dict[Any, Fitted] = {}
        self._said = whole._said
        self._run: str | None = None
        self._alone = InnerEncoder(whole.encoder(), name, key, self.safe_region_unguarded)

    def encoder(self) -> TextEncoder:
        return self._alone

    def fitted(self) -> Fitted:
        alone = type(self._stage).encode_token_weights is sd1_clip.SD1ClipModel.encode_token_weights
        with within():
            return self._whole.fitted() if alone else super().fitted()  # an only one gives what the whole one gives

    def __call__(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        return self._rows(rows, *args, **kwargs) if working() else self.guarded(rows, *args, **kwargs)

    def guarded(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        """What the encoder gives for rows, inside the region of this guard and of those that came before it."""
        return self._inside(self._encoded(rows, *args, **kwargs), {self._key: rows}, *args, **kwargs)

    def _encoded(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            return self._before.guarded(rows, *args, **kwargs)
        with within():
            return self._rows(rows, *args, **kwargs)


def _watched(inner: torch.nn.Module) -> bool:
    """Whether an inner encoder asks the guard that it carries as :data:`WATCHED` by itself.

    Most are of one class of the host, which is taught to once. So nothing stands in the place of the encoder's own
    method, which other packs put theirs into while they encode (smZNodes) or in a clone of the CLIP (Prompt Control).
    """
    base = sd1_clip.ClipTokenWeightEncoder
    if not hasattr(base, WATCHED):
        plain = base.encode_token_weights

        def encode_token_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
            guard = getattr(self, WATCHED)
            return plain(self, *args, **kwargs) if guard is None or working() else guard(*args, **kwargs)

        setattr(base, WATCHED, None)
        encode_token_weights.safe_region_watches = True  # type: ignore[attr-defined]
        base.encode_token_weights = encode_token_weights
    return hasattr(type(inner).encode_token_weights, "safe_region_watches")


def inner_guards(whole: ClipGuard, clip: Any) -> list[tuple[str, InnerGuard]]:
    """Guards of the inner encoders that nodes can ask by themselves, by the name of what they stand in for."""
    stage, found = clip.cond_stage_model, []
    for key in unguarded_tokens(clip):
        for name in (key, f"clip_{key}", f"{key}_small"):
            inner = getattr(stage, name, None)
            if isinstance(inner, torch.nn.Module) and callable(getattr(inner, "encode_token_weights", None)):
                guard = InnerGuard(whole, clip, name, key)
                found.append((guard.place, guard))
                break
    return found


def unguarded_tokens(clip: Any) -> Sequence[str]:
    """Names of the rows that the tokenizer gives."""
    return list(tokenizing(clip)(""))


def _unprojected(stage: torch.nn.Module) -> bool:
    """Whether an encoder that projects its pooled output by default has been told not to."""
    return any(
        getattr(m, "options_default", (None, None, False))[2] and not m.return_projected_pooled
        for m in stage.children()
        if hasattr(m, "return_projected_pooled")
    )


def guard_clip(clip: Any, selection: Selection, tell: Tell) -> Any:
    """A CLIP whose every output is guarded; the one given stays as it is."""
    return _guard_clip(clip, selection, tell)[0]


def _guard_clip(clip: Any, selection: Selection, tell: Tell) -> tuple[Any, ClipGuard]:
    TextEncoder.of(clip)
    guarded = clip.clone()
    guard = ClipGuard(selection, guarded, tell)
    guard.fitted()
    for name, inner in inner_guards(guard, guarded):
        guarded.patcher.add_object_patch(name, inner)
    guarded.patcher.add_object_patch("encode_token_weights", guard)
    guarded.tokenizer = listening(guarded.tokenizer, guard.texts)
    return guarded, guard


def guard_both(
    model: Any, clip: Any, selection: Selection, negative: bool, tell: Tell, tell_model: Tell
) -> tuple[Any, Any, Fitted]:
    """MODEL (None: none) and CLIP guarded for the same region, and the guard."""
    guarded, guard = _guard_clip(clip, selection, tell)
    fitted = guard.fitted()
    return None if model is None else guard_model(model, fitted, negative, tell_model), guarded, fitted


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
