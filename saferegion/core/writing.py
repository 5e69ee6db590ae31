"""Files that are written whole or not at all, and files that are read only where they are files."""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path

from .errors import SafeRegionError

ABANDONED = 3600.0
"""Seconds after which a temporary file is one that a killed run left."""


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all; makes the folder, and takes away what killed runs left in it an
    hour ago; raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    clear_abandoned(path.parent)


def clear_abandoned(folder: Path) -> None:
    """Take away temporary files that are older than an hour; whatever cannot be taken away stays."""
    now = time.time()
    try:
        for left in folder.glob(".*.part"):
            if now - left.lstat().st_mtime > ABANDONED:
                left.unlink()
    except OSError:
        return


def read_whole(path: Path, most: int, refusal: type[SafeRegionError], limit: str = "") -> bytes:
    """The bytes of a regular file, once.

    Args:
        path: where it is.
        most: bytes that it may have.
        refusal: what is raised.
        limit: what is said of a larger file.

    Raises:
        ``refusal``: it cannot be read, is larger, or is no file (a folder, a pipe, a device: nothing waits for it).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device is not even opened
            raise refusal(f"{path.name} cannot be read: it is no regular file.")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refusal(f"{path.name} cannot be read: it is no regular file.")
            data = b"" if status.st_size > most else file.read(most + 1)
            size = max(status.st_size, len(data))
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        if isinstance(error, SafeRegionError):
            raise
        raise refusal(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if size > most:
        raise refusal(f"{path.name} has {size:,} bytes; {limit or f'at most {most:,} are read'}.")
    return data
