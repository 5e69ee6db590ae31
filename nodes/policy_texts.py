"""What text encoders gave, under an operator's policy: whose text a conditioning is, and what its text names.

Every text encoder that the host makes gets a guard of its own, which looks at texts as Guard CLIP does and changes
none but those in disguise: what is painted from is guarded where it is sampled, and negative prompts stay as they are.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import comfy.sd
import torch

from ..saferegion.core.errors import ConditioningError, SafeRegionError
from ..saferegion.guard.enforce import Enforcement
from ..saferegion.guard.naming import NOTHING
from ..saferegion.guard.selection import GuardReport
from .clip_guard import ClipGuard
from .disguise import KEPT, Texts, _key, listening
from .encoder import TextEncoder, within
from .family import Family
from .wrap import Fitted

GUARD = "_safe_region_policy"
RECENT = 512
"""Newest texts that name a concept, whose names count for conditionings that nodes have made of others."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a conditioning comes from. ``text`` is empty where it is not known."""

    fitted: Fitted
    names: frozenset[str] = NOTHING
    text: str = ""
    reports: tuple[GuardReport, ...] = ()


class _Remembered(Texts):
    """Texts that also remember what was asked, for the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked: OrderedDict[Any, str] = OrderedDict()

    def learn(self, text: Any, tokens: Any, tokenize: Callable[[str], Any]) -> None:
        super().learn(text, tokens, tokenize)
        if isinstance(text, str) and isinstance(tokens, Mapping):
            for key, rows in tokens.items():
                if isinstance(rows, list):
                    self._asked[key, _key(rows)] = text
            while len(self._asked) > KEPT:
                self._asked.popitem(last=False)

    def asked(self, tokens: Mapping[str, Any]) -> str:
        found = (self._asked.get((k, _key(rows))) for k, rows in tokens.items() if isinstance(rows, list))
        return next((text for text in found if text is not None), "")


class PolicyGuard(ClipGuard):
    """Stands in for ``encode_token_weights`` of a text encoder itself, below all that nodes put around it."""

    def __init__(self, known: KnownTexts, clip: Any) -> None:
        super().__init__(known.enforcement.selection(), clip, lambda _: None)
        self._known = known
        self.texts: Any = _Remembered(clip.tokenizer, self.selection, None)
        self._inner = self.safe_region_unguarded

    def __call__(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        self._known.enforcement.check()
        with within():
            found = self._inner(tokens, *args, **kwargs)
        if not isinstance(tokens, Mapping):
            return found
        fitted, names, reports = self.fitted(), self.texts.named(tokens), ()
        plain = self.texts.plain(tokens)
        if plain is not None:
            again, report = self._twice(found, names, plain, *args, **kwargs)
            if report is not None and report.moved:
                found, reports = again, (report,)
                names |= self.texts.named(plain.tokens)
        if isinstance(found[0], torch.Tensor):
            self._known.remember(found[0], Source(fitted, names, self.texts.asked(tokens), reports))
        return found


class KnownTexts:
    """All text encoders of this process, and where the conditionings that still exist come from."""

    def __init__(self, enforcement: Enforcement) -> None:
        self.enforcement = enforcement
        self._clips: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sources: dict[int, tuple[weakref.ref[torch.Tensor], Source]] = {}
        self._recent: deque[Source] = deque(maxlen=RECENT)

    def install(self) -> None:
        """Every CLIP object that is made from now on, and its clones."""
        made, cloned = comfy.sd.CLIP.__init__, comfy.sd.CLIP.clone

        @wraps(made)
        def __init__(clip: Any, *args: Any, **kwargs: Any) -> None:
            made(clip, *args, **kwargs)
            if getattr(clip, "cond_stage_model", None) is not None:
                self.add(clip)

        @wraps(cloned)
        def clone(clip: Any, *args: Any, **kwargs: Any) -> Any:
            found = cloned(clip, *args, **kwargs)
            self.add(found)
            return found

        comfy.sd.CLIP.__init__, comfy.sd.CLIP.clone = __init__, clone

    def add(self, clip: Any) -> None:
        stage = getattr(clip, "cond_stage_model", None)
        if stage is None or not hasattr(stage, "encode_token_weights"):
            return
        guard = vars(stage).get(GUARD)
        if guard is None:
            guard = PolicyGuard(self, clip)
            object.__setattr__(stage, GUARD, guard)
            object.__setattr__(stage, "encode_token_weights", guard)
            clip.tokenizer = listening(clip.tokenizer, guard.texts)
        self._clips.add(clip)

    def remember(self, tokens: torch.Tensor, source: Source) -> None:
        key = id(tokens)

        def forget(_: Any) -> None:
            self._sources.pop(key, None)

        self._sources[key] = weakref.ref(tokens, forget), source
        if source.names:
            self._recent.append(source)

    def sources(self, tokens: Any) -> list[Source]:
        """Where a conditioning comes from; one that nodes have made of others, every encoder that it may come from,
        with all that the newest texts named.

        Raises:
            ConditioningError: from no text encoder of this host.
        """
        known = self._sources.get(id(tokens))
        if known is not None and known[0]() is tokens:
            return [known[1]]
        found: list[Source] = []
        for every in (False, True):
            for fitted in () if found else self._fitted(every):
                if fits(fitted.family, tokens):
                    names = NOTHING.union(*(s.names for s in self._recent if s.fitted.guard is fitted.guard))
                    found.append(Source(fitted, names))
        if not found:
            raise ConditioningError(
                "This conditioning was made by no text encoder that this host has loaded, so it cannot be guarded: "
                "encode the prompt with a CLIP loaded here."
            )
        return found

    def _fitted(self, every: bool = False) -> Iterable[Fitted]:
        """Of every state of an encoder that texts went through; with ``every`` also of those that none did."""
        found = {}
        for clip in list(self._clips):
            guard = vars(clip.cond_stage_model)[GUARD]
            if every and not guard._fitted:
                TextEncoder.of(clip)
                guard.fitted()
            found.update({id(f): f for f in list(guard._fitted.values())})
        return list(found.values())


def fits(family: Family, tokens: Any) -> bool:
    """Whether a conditioning can be of an encoder."""
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3 or tokens.shape[2] != family.width:
        return False
    try:
        family._same_encoder(tokens)
    except SafeRegionError:
        return False
    return True
