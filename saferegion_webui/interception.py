"""Where the guard stands: behind the host's cache of conditionings, in front of everything that uses them.

The host's class method is wrapped once a process and never again; Reload UI runs the script a second time, but this
module stays. What the cache holds is never changed, so nothing leaks from one request into another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

Handler = Callable[..., Any]
"""``(p, conditionings, required_prompts, steps, extra_network_data, hires_steps)`` -> conditionings."""

_MARK = "_safe_region_handler"


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
        found = original(self, *first, *args, **kwargs)
        return getattr(processing, _MARK)(self, found, required_prompts, steps, extra_network_data, hires_steps)

    setattr(processing, _MARK, staticmethod(handler))
    processing.get_conds_with_caching = get_conds_with_caching  # type: ignore[attr-defined]
