"""What the host's API is asked of this script: read before the host reads it, and refused with a sentence and 422.

The host takes a list only, ignores what is too much or misnamed, and ends in an error of its own where it is given an
object or null. Whoever asks for a guard and is misunderstood must not get an unguarded picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from .arguments import NAMES
from .refusal import SafeRegionRefused

Check = Callable[[Sequence[Any]], Any]
"""Reads the script's values; raises SafeRegionRefused."""
_MARK = "_safe_region_check"


def values_of(entry: Any) -> list[Any]:
    """The script's values of an entry of ``alwayson_scripts``: ``{"args": [...]}``, ``{"args": {...}}`` or ``{}``.

    Raises:
        SafeRegionRefused: it is none of these.
    """
    if not isinstance(entry, Mapping) or set(entry) - {"args"}:
        raise SafeRegionRefused(
            "Safe Region: what belongs to this script in 'alwayson_scripts' must be an object with one entry 'args'; "
            f"got {str(sorted(map(str, entry)) if isinstance(entry, Mapping) else repr(entry))[:80]}."
        )
    if "args" not in entry:
        return []
    args = entry["args"]
    if args is None or isinstance(args, Mapping):
        return [args]
    if not isinstance(args, list | tuple):
        raise SafeRegionRefused(
            f"Safe Region: 'args' must be a list ({', '.join(NAMES)}), or an object with these names; got "
            f"{repr(args)[:80]}."
        )
    return list(args)


def install(api: type, title: str, check: Check) -> None:
    """Have what ``api`` (the host's class) is asked of the script ``title`` read by ``check`` first.

    Called again, it only exchanges ``check``. A host that fills in scripts' values elsewhere keeps its own manners;
    what it hands to the script is checked there.
    """
    if _MARK in vars(api):
        setattr(api, _MARK, staticmethod(check))
        return
    original = getattr(api, "init_script_args", None)
    if original is None:
        return

    @wraps(original)
    def init_script_args(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        asked = getattr(request, "alwayson_scripts", None)
        if isinstance(asked, Mapping):
            request.alwayson_scripts = {name: _read(api, title, name, entry) for name, entry in asked.items()}
        return original(self, request, *args, **kwargs)

    setattr(api, _MARK, staticmethod(check))
    api.init_script_args = init_script_args  # type: ignore[attr-defined]


def _read(api: type, title: str, name: Any, entry: Any) -> Any:
    from fastapi import HTTPException

    if str(name).lower() != title.lower():
        return entry
    try:
        values = values_of(entry)
        getattr(api, _MARK)(values)
    except SafeRegionRefused as refused:
        raise HTTPException(status_code=refused.status_code, detail=refused.detail) from None
    return {"args": values}
