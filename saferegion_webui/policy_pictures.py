"""Pictures that a request gives to scripts to paint from: those of ControlNet, IP-Adapter and their like.

They are looked for in what every script of the host but this one is asked, whatever the script is: a picture, an array,
a file of one, or one as text. What a script reads elsewhere is not seen.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

UNIT = ("enabled", "module", "model")
"""What one unit of ControlNet has; one that is switched off paints nothing."""
DEEPEST = 6
LONGEST_TEXT = 512
"""Characters without a space from which base64 is taken for a picture, whatever it begins with."""
_BEGINS = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"\x00\x00\x01\x00", b"8BPS", b"qoif",
    b"\xff\x0a", b"\x00\x00\x00\x0cJXL", b"\x76\x2f\x31\x01",
)  # fmt: skip
_BOXED = re.compile(rb"^....ftyp(?:avi|hei|mif|hev)", re.DOTALL)
_NAMED = re.compile(
    r"(?:https?://\S+|data:image/.*|[^\n]*\.(?:png|jpe?g|jfif|gif|bmp|webp|tiff?|avif|hei[cf]|jxl|ico|tga|exr))\s*",
    re.DOTALL | re.IGNORECASE,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_SHORTEST = 24


def script_with_picture(p: Any, own: str) -> str | None:
    """The title of a script that the request of ``p`` gives a picture to; None: none has one. ``own``: the title of
    the script whose values hold none."""
    values = list(getattr(p, "script_args", None) or ())
    runner = getattr(p, "scripts", None)
    known = [s for name in ("alwayson_scripts", "selectable_scripts") for s in getattr(runner, name, None) or ()]
    named: dict[int, str] = {}
    for script in known:
        first, last = getattr(script, "args_from", None), getattr(script, "args_to", None)
        if isinstance(first, int) and isinstance(last, int):
            named.update(dict.fromkeys(range(first, last), str(script.title())))
    for i, value in enumerate(values):
        title = named.get(i, "a script")
        if title != own and holds_picture(value):
            return title
    return None


def holds_picture(value: Any, depth: int = 0) -> bool:
    """Whether there is a picture in ``value``; in what lies deeper than :data:`DEEPEST` there may be one."""
    if value is None or isinstance(value, bool | int | float | complex | Enum | type) or _off(value):
        return False
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _file(bytes(value[:64]))
    drawn = hasattr(value, "__array_interface__") or (hasattr(value, "shape") and hasattr(value, "dtype"))
    if drawn or depth > DEEPEST or callable(getattr(value, "read", None)):  # an array, a picture of Pillow, a file
        return True
    inner = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        inner = getattr(value, "__dict__", {}).values()
    return any(holds_picture(v, depth + 1) for v in inner)


def _off(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(name in value for name in UNIT) and value["enabled"] is False
    return all(hasattr(value, name) for name in UNIT) and value.enabled is False


def _file(begin: bytes) -> bool:
    return begin.startswith(_BEGINS) or bool(_BOXED.match(begin))


def _text(text: str) -> bool:
    if _NAMED.fullmatch(text):
        return True
    if len(text) < _SHORTEST or not _BASE64.fullmatch(text):
        return False
    if len(text) >= LONGEST_TEXT and not re.search(r"\s", text.strip()):
        return True
    plain = "".join(text[:128].split()).translate(str.maketrans("-_", "+/"))
    try:
        return _file(base64.b64decode(plain[: len(plain) // 4 * 4]))
    except (binascii.Error, ValueError):
        return False
