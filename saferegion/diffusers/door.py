"""What stands in front of a guarded pipeline's ``encode_prompt``, and what it tells of the prompts that passed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.errors import ConditioningError, SafeRegionError
from ..core.fingerprint import Fingerprint
from ..guard.library import Library
from ..guard.naming import NOTHING, Names, names_in
from ..guard.normalise import Normaliser
from ..guard.second_look import finds_more, normaliser, undisguised, without_disguise
from ..guard.selection import Guard, GuardReport, Selection
from ..learn.recipes import Concept
from ..learn.settings import Progress
from .encoder import TEXTS, PipelineEncoder, has_encoder, key_of, options_of, state_of, vocabulary_of
from .parts import Layout
from .table import Signature

STATES = 16
"""Most states of text encoder and options that are remembered."""
Texts = tuple[str, ...]
"""What one prompt says: ``prompt``, ``prompt_2`` and so on."""


@dataclass(frozen=True)
class DoorSettings:
    """How a pipeline is guarded.

    Attributes:
        negative: look at negative prompts too; they are left alone otherwise, as they say what not to paint.
        library: where concepts and compiled directions are found. progress: called while concepts are compiled.
    """

    negative: bool = False
    library: Library | None = None
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of one prompt: row ``row`` of ``report``. ``texts``: what it says; nothing of embeddings."""

    texts: Texts
    report: GuardReport
    row: int

    @property
    def moved(self) -> bool:
        return any(r.moved_prompts()[self.row] for r in self.report.reports)

    @property
    def opened(self) -> frozenset[str]:
        """Concepts that it was outside of."""
        return self.report.opened(self.row)

    @property
    def unresolved(self) -> tuple[str, ...]:
        return tuple(concept for row, concept in self.report.unresolved if row == self.row)

    def require_resolved(self) -> None:
        """Raise UnresolvedError where a concept stayed open."""
        for report in self.report.reports:
            if any(row == self.row for row, _ in report.unresolved):
                report.require_resolved()

    def text(self) -> str:
        """Some words for people."""
        said = f"{self.texts[0]!r}: " if self.texts else "prompt_embeds: "
        if not self.moved:
            return f"{said}inside, untouched"
        parts = [f"was outside of {', '.join(sorted(self.opened)) or 'nothing'}, moved inside"]
        return said + "; ".join([*parts, *([self.report.found_after] if self.report.undone else [])])


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A guard for one state of the text encoder."""

    encoder: PipelineEncoder | None
    layout: Layout
    guard: Guard
    fingerprint: Fingerprint


@dataclass
class _Call:
    """What the pipeline was called with, and whether its prompt passed the door."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    passed: bool = False


class Door:
    """``pipe.safe_region``.

    Attributes:
        selection: what is switched on. settings: as given. looks: what was seen of each prompt of the last call; where
            several pictures were asked of one prompt, each of them.
    """

    def __init__(self, selection: Selection, settings: DoorSettings, signature: Signature) -> None:
        self.selection, self.settings, self.signature = selection, settings, signature
        self.library = Library() if settings.library is None else settings.library
        self.looks: tuple[Look, ...] = ()
        self._fitted: dict[Any, _Fitted] = {}
        self._last: _Fitted | None = None
        self._call: _Call | None = None
        self._names: Names | None = None
        self._normaliser: Normaliser | None = None

    # -- what is told ----------------------------------------------------------------------------------------------

    @property
    def moved(self) -> bool:
        """Whether any prompt of the last call was moved."""
        return any(look.moved for look in self.looks)

    @property
    def reports(self) -> tuple[GuardReport, ...]:
        """Each report of the last call, once."""
        return tuple({id(look.report): look.report for look in self.looks}.values())

    @property
    def minors(self) -> bool:
        """Whether there is a baseline for minors on this text encoder."""
        return self._last is not None and bool(self._last.guard.minors)

    def text(self) -> str:
        """The last call in some lines for people."""
        return "\n".join(dict.fromkeys(look.text() for look in self.looks)) or "No prompt has been looked at yet."

    # -- the guard for a state of the encoder ----------------------------------------------------------------------

    def fit(self, pipe: Any, encode: Any, options: Mapping[str, Any]) -> _Fitted:
        """The guard for the text encoder as it is now. Raises SafeRegionError: it cannot be guarded."""
        if not has_encoder(pipe):
            if self._last is not None:  # taken away since; embeddings made with it still come
                return self._last
            raise ConditioningError(
                f"{type(pipe).__name__} has no text encoder, so concepts cannot be compiled: guard it before its text "
                "encoder is taken away."
            )
        state = state_of(pipe), key_of(options)
        if state not in self._fitted:
            if len(self._fitted) >= STATES:
                self._fitted.clear()
            self._fitted[state] = self._fit(pipe, encode, options)
        self._last = self._fitted[state]
        return self._last

    def _fit(self, pipe: Any, encode: Any, options: Mapping[str, Any]) -> _Fitted:
        encoder = PipelineEncoder(pipe, encode, self.signature, options)
        print_ = encoder.fingerprint()
        near = [f for f in self._fitted.values() if f.fingerprint.matches(print_)]
        if near:
            like = min(near, key=lambda f: f.fingerprint.distance(print_))
            return _Fitted(encoder, encoder.layout, like.guard, print_)
        guard = self.selection.guard(encoder, self.library, self.settings.progress, encoder.settings())
        if guard.windows() != [(0.0, 1.0)]:
            part = next(d.concept for r in guard.regions for d in r.directions if tuple(d.window) != (0.0, 1.0))
            raise SafeRegionError(
                f"'{part}' acts in a part of the sampling alone, and a pipeline of diffusers is guarded before it: use "
                "directions that act in all of it."
            )
        return _Fitted(encoder, encoder.layout, guard, print_)

    # -- calls -----------------------------------------------------------------------------------------------------

    @contextmanager
    def calling(self, arguments: Mapping[str, Any]) -> Iterator[_Call]:
        """While the pipeline paints."""
        before, self._call, self.looks = self._call, _Call(arguments), ()
        try:
            yield self._call
        finally:
            self._call = before

    def encoded(self, pipe: Any, encode: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``encode_prompt`` gives for these arguments, guarded.

        Raises:
            SafeRegionError: it cannot be guarded, or a concept stayed open.
        """
        if self._call is None:
            self.looks = ()
        given = dict(inspect.signature(encode).bind(*args, **kwargs).arguments)
        if given.get("image") is not None:
            raise SafeRegionError(
                f"{type(pipe).__name__} reads a picture together with the prompt, which cannot be guarded: leave the "
                "picture away, or take the guard off."
            )
        found = encode(*args, **kwargs)
        fitted = self.fit(pipe, encode, options_of(given))
        if self._call is not None:
            self._call.passed = True
        own = "negative_prompt" not in self.signature.takes and self._is_negative(given)
        if not own or self.settings.negative:
            found = self._guarded(fitted, found, _texts(given, ""), lambda texts: _with(encode, given, texts))
        if self.settings.negative and "negative_prompt" in self.signature.takes:
            found = self._guarded(_turned(fitted), found, _texts(given, "negative_"), None)
        return found

    def _is_negative(self, given: Mapping[str, Any]) -> bool:
        """Whether a pipeline that encodes one prompt at a time now encodes its negative one."""
        called = {} if self._call is None else self._call.arguments
        told = called.get("negative_prompt_embeds")
        if told is not None and given.get("prompt_embeds") is told:
            return called.get("prompt_embeds") is not told
        negative = _list(called.get("negative_prompt"))
        return bool(negative) and _list(given.get("prompt")) == negative and _list(called.get("prompt")) != negative

    def _guarded(self, fitted: _Fitted, found: Any, texts: Sequence[Texts], again: Any) -> Any:
        parts, pooled = fitted.layout.parts(found), fitted.layout.pooled(found)
        if pooled is None and not any(bool(p.mask.any()) for p in parts):
            return found
        count = len(parts[0].rows) if parts else len(pooled[1]) if pooled else 0
        each = count // len(texts) if texts and count % len(texts) == 0 else 0
        rows = [texts[i // each] for i in range(count)] if each else [tuple(t for p in texts for t in p)] * count
        new, looks = self._applied(fitted, found, rows)
        if again is not None and (plain := self._plain(texts)):
            new, looks = self._second(fitted, (new, looks), texts, plain, again)
        for look in looks:
            look.require_resolved()
        self.looks += tuple(looks)
        return new

    def _applied(self, fitted: _Fitted, found: Any, rows: Sequence[Texts]) -> tuple[Any, list[Look]]:
        """Every prompt guarded, those that name the same concepts at once."""
        before = fitted.layout.conditioning(found)
        groups: dict[frozenset[str], list[int]] = {}
        for i, texts in enumerate(rows):
            groups.setdefault(self._named(texts), []).append(i)
        looks: dict[int, Look] = {}
        for names, which in groups.items():
            alone = len(groups) == 1
            c = before if alone else before[torch.tensor(which, device=before.tokens.device)]
            after, report = fitted.guard.naming(names).apply(c)
            for at, i in enumerate(which):
                looks[i] = Look(rows[i], report, at)
            if after is not c:
                if not alone:
                    index = torch.tensor(which, device=before.tokens.device)
                    tokens = before.tokens.index_copy(0, index, after.tokens)
                    pooled = before.pooled
                    if pooled is not None and after.pooled is not None:
                        pooled = pooled.index_copy(0, index, after.pooled)
                    after = before.replace(tokens, pooled)
                moved = [i for i in which if looks[i].moved]
                found = fitted.layout.put(found, before, after, moved) if moved else found
        return found, [looks[i] for i in range(len(rows))]

    def _second(
        self,
        fitted: _Fitted,
        first: tuple[Any, list[Look]],
        texts: Sequence[Texts],
        plain: Mapping[int, tuple[Texts, tuple[str, ...]]],
        again: Any,
    ) -> tuple[Any, list[Look]]:
        """Prompts in disguise, looked at as a reader understands them: what is outside so is painted so."""
        found, looks = first
        each = len(looks) // len(texts)
        bare = [plain[i][0] if i in plain else t for i, t in enumerate(texts)]
        other, others = self._applied(fitted, again(bare), [t for t in bare for _ in range(each)])
        taken = [
            i
            for i in range(len(looks))
            if i // each in plain and finds_more(looks[i].report, others[i].report, looks[i].row, others[i].row)
        ]
        if not taken:
            return first
        mixed = fitted.layout.mixed(found, other, taken)
        if mixed is None:  # as long as the longest of a batch: encoded once more, with those texts alone
            chosen = {i // each for i in taken}
            bare = [plain[i][0] if i in chosen else t for i, t in enumerate(texts)]
            mixed, others = self._applied(fitted, again(bare), [t for t in bare for _ in range(each)])
            looks = others
        for i in taken:
            looks[i] = Look(others[i].texts, without_disguise(others[i].report, plain[i // each][1]), others[i].row)
        return mixed, looks

    def _plain(self, texts: Sequence[Texts]) -> dict[int, tuple[Texts, tuple[str, ...]]]:
        """By place, prompts in disguise: what they say without it, and what was undone."""
        found = {}
        for i, each in enumerate(texts):
            bare = [undisguised(self._normalise(), t) for t in each]
            if any(b is not None for b in bare):
                said = tuple(t if b is None else b.text for t, b in zip(each, bare, strict=True))
                found[i] = said, tuple(dict.fromkeys(u for b in bare if b is not None for u in b.undone))
        return found

    def _named(self, texts: Texts) -> frozenset[str]:
        if self._names is None:
            self._names = names_in(self.selection, self.library)
        return NOTHING.union(*(self._names(t) for t in texts)) if texts else NOTHING

    def _normalise(self) -> Normaliser:
        if self._normaliser is None:
            self._normaliser = normaliser(self.vocabulary, own_concepts(self.selection, self.library))
        return self._normaliser

    vocabulary: tuple[str, ...] = ()
    """Words of the pipeline's tokenizers."""

    def listen(self, pipe: Any) -> None:
        """Learn the words of the pipeline's tokenizers."""
        self.vocabulary, self._normaliser = vocabulary_of(pipe), None


def own_concepts(selection: Selection, library: Library) -> tuple[Concept, ...]:
    """Recipes of the user's own that are switched on."""
    found = []
    for choice in selection.choices:
        concept = choice.concept
        if isinstance(concept, str):
            try:
                concept = library.find(concept)
            except SafeRegionError:
                continue
        if isinstance(concept, Concept) and not library.is_bundled(concept):
            found.append(concept)
    return tuple(found)


def _turned(fitted: _Fitted) -> _Fitted:
    """The same for negative prompts."""
    slots = tuple(type(s)(s.kind, s.space, not s.negative) for s in fitted.layout.slots)
    layout = Layout(slots, fitted.layout.clip_width, fitted.layout.begin, fitted.layout.left_out)
    return _Fitted(fitted.encoder, layout, fitted.guard, fitted.fingerprint)


def _list(value: Any) -> list[str]:
    return (
        [value]
        if isinstance(value, str)
        else [v for v in value if isinstance(v, str)]
        if isinstance(value, Iterable) and not isinstance(value, torch.Tensor)
        else []
    )


def _columns(given: Mapping[str, Any], prefix: str) -> dict[str, list[str]]:
    """The texts of a call, by parameter; of parameters that are empty, none."""
    return {
        name: texts
        for name, value in given.items()
        if name.startswith(prefix) and TEXTS.fullmatch(name.removeprefix(prefix)) and (texts := _list(value))
    }


def _texts(given: Mapping[str, Any], prefix: str) -> list[Texts]:
    """What each prompt of a call says; nothing where it came as embeddings."""
    embeds = [k for k, v in given.items() if v is not None and k.startswith(f"{prefix}prompt_embeds")]
    columns = {} if embeds else _columns(given, prefix)
    if not columns:
        return []
    count = max(map(len, columns.values()))
    filled = [c * count if len(c) == 1 else c for c in columns.values()]
    if any(len(c) != count for c in filled):
        return [tuple(t for c in filled for t in c)]
    return [tuple(row) for row in zip(*filled, strict=True)]


def _with(encode: Any, given: Mapping[str, Any], texts: Sequence[Texts]) -> Any:
    """The same call with other texts."""
    names = list(_columns(given, ""))
    new = {name: [t[i] for t in texts] for i, name in enumerate(names)}
    call = {**given, **new}
    extra = call.pop("kwargs", {})
    return encode(**call, **extra)
