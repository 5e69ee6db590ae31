"""Where the guard stands: behind the host's cache of conditionings, in front of everything that uses them; behind what
extensions encode themselves; and in front of every pass of the diffusion model.

The host's methods are wrapped once a process and never again; Reload UI runs the script a second time, but this
module stays. What the cache holds is never changed, so nothing leaks from one request into another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol

import torch

from saferegion.guard.watch import Watch, away_of

Handler = Callable[..., Any]
"""``(p, conditionings, required_prompts, steps, extra_network_data, hires_steps)`` -> conditionings."""

_MARK, _HOOK = "_safe_region_handler", "_safe_region_hook"
_thread = threading.local()


class Painting(Protocol):
    """What the wrapped methods ask."""

    def watch(self) -> Watch | None:
        """Of the generation that runs now; None: nothing is guarded."""

    def sampling(self, p: Any) -> Watch | None:
        """The same, of the processing ``p`` that is sampled now."""

    def encoded(self, checkpoint: Any, prompts: Any, conds: Any) -> Any:
        """What an extension encoded, guarded."""


@contextmanager
def unguarded() -> Iterator[None]:
    """What is encoded meanwhile is the host's own or ours, and stays as it is: it is guarded later."""
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1


def install(processing: type, handler: Handler) -> None:
    """Send what ``processing.get_conds_with_caching`` returns through ``handler``, whose exceptions propagate.

    Called again, it only exchanges the handler.

    Raises:
        RuntimeError: the host has no such method.
    """
    if _MARK in vars(processing):
        setattr(processing, _MARK, staticmethod(handler))
        return
    original = getattr(processing, "get_conds_with_caching", None)
    if original is None:
        raise RuntimeError(
            f"Safe Region cannot start: this webui's {processing.__name__} has no get_conds_with_caching."
        )

    @wraps(original)
    def get_conds_with_caching(
        self: Any,
        function: Any,
        required_prompts: Any,
        steps: Any,
        caches: Any,
        extra_network_data: Any,
        hires_steps: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        first = (function, required_prompts, steps, caches, extra_network_data, hires_steps)
        with unguarded():
            found = original(self, *first, *args, **kwargs)
        return getattr(processing, _MARK)(self, found, required_prompts, steps, extra_network_data, hires_steps)

    setattr(processing, _MARK, staticmethod(handler))
    processing.get_conds_with_caching = get_conds_with_caching  # type: ignore[attr-defined]


def install_sampling(sampler: type, denoiser: type, painting: Painting) -> None:
    """Have ``painting`` know what is sampled and which rows of a step push towards their text.

    Args:
        sampler, denoiser: classes of the host, with ``launch_sampling`` and ``forward``.
    """
    for cls in (sampler, denoiser):
        if _MARK in vars(cls):
            setattr(cls, _MARK, painting)
            continue
        setattr(cls, _MARK, painting)
        wrap = _sampling if cls is sampler else _stepping
        name = "launch_sampling" if cls is sampler else "forward"
        setattr(cls, name, wrap(cls, getattr(cls, name)))


def _sampling(cls: type, original: Any) -> Any:
    @wraps(original)
    def launch_sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = getattr(cls, _MARK).sampling(getattr(self, "p", None))
        found = original(self, *args, **kwargs)
        if watch is not None:
            watch.finish()
        return found

    return launch_sampling


def _stepping(cls: type, original: Any) -> Any:
    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = getattr(cls, _MARK).watch()
        if watch is None:
            return original(self, *args, **kwargs)
        cond = kwargs.get("cond", args[3] if len(args) > 3 else None)
        batch = getattr(cond, "batch", None)
        if batch is not None:
            uncond = kwargs.get("uncond", args[2] if len(args) > 2 else None)
            watch.step(sum(len(parts) for parts in batch), 0 if uncond is None else len(uncond))
        try:
            return original(self, *args, **kwargs)
        finally:
            watch.step_ends()

    return forward


def install_model(checkpoint: Any, model: torch.nn.Module, painting: Painting) -> None:
    """Look at every pass of ``model``, and guard what extensions encode with ``checkpoint``; once for each."""
    hook = getattr(model, _HOOK, None)
    if hook is None or hook.id not in model._forward_pre_hooks:  # others may have taken it away

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watch = getattr(module, _MARK).watch()
            context = kwargs.get("context", args[2] if len(args) > 2 else None)
            if watch is not None and isinstance(context, torch.Tensor):
                vector = kwargs.get("y")
                away = away_of(kwargs.get("transformer_options"), len(context))
                watch.check(context, vector if isinstance(vector, torch.Tensor) else None, away)

        object.__setattr__(model, _HOOK, model.register_forward_pre_hook(before, with_kwargs=True))
    object.__setattr__(model, _MARK, painting)
    if _MARK not in vars(checkpoint):
        original = checkpoint.get_learned_conditioning

        @wraps(original)
        def get_learned_conditioning(prompts: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(prompts, *args, **kwargs)
            if getattr(_thread, "depth", 0):
                return found
            with unguarded():
                return vars(checkpoint)[_MARK].encoded(checkpoint, prompts, found)

        object.__setattr__(checkpoint, "get_learned_conditioning", get_learned_conditioning)
    object.__setattr__(checkpoint, _MARK, painting)
