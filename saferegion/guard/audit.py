"""The audit log: JSON lines, each chained to the one before by a keyed hash, so that a line that somebody changed, put
in or took out shows.

Beside ``NAME.jsonl`` stand ``NAME.key`` (the key of the chain and of the hashes of prompts; whoever can read it can
forge the log, so only its owner can) and ``NAME.head`` (how many lines there are, so that lines cut off the end show).
Full files become ``NAME.000001.jsonl`` and so on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import AuditError
from .policy import LogSettings

NOTHING = "0" * 64
"""What the first line is chained to."""
BACKWARDS = 300.0
"""Seconds that a clock may be set back before the log takes it for broken."""
LONGEST_PROMPT = 4000
_HEAD = 80


class AuditLog:
    """An open log, of one process.

    Raises:
        AuditError: it cannot be opened or written, another process has it, or the clock is wrong.
    """

    def __init__(self, settings: LogSettings, now: Callable[[], float] = time.time) -> None:
        if settings.file is None:
            raise AuditError("The audit log has no file.")
        self.settings, self.file, self._now = settings, settings.file, now
        self._lock = threading.Lock()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._key = _key(self.file, make=True)
            self._head = os.open(_beside(self.file, "head"), os.O_RDWR | os.O_CREAT, 0o600)
            _lock_file(self._head, self.file)
            self._open()
        except OSError as error:
            raise _unwritable(self.file, error) from None

    def _open(self) -> None:
        self._fd = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._number, self._last, self._time, self._dropped = 0, NOTHING, 0.0, 0
        torn = self._cut_torn()
        line = _last_line(self._fd, self._size)
        if line is None and (older := rotated(self.file)):
            line = older[-1].read_bytes().splitlines()[-1]
        if line is not None:
            try:
                entry = json.loads(line)
                self._number, self._last = int(entry["n"]), str(entry["hash"])
                self._time, self._dropped = float(entry["t"]), int(entry.get("dropped", 0))
            except (ValueError, KeyError, TypeError):
                raise AuditError(
                    f"The last line of the audit log {self.file} is broken: look at it with 'saferegion policy "
                    "verify-log', and move the file away."
                ) from None
        if torn:
            self._append({"event": "repaired", "bytes": torn})

    def _cut_torn(self) -> int:
        """Take a line that a fallen machine left half-written off the end; how many bytes it had."""
        tail = os.pread(self._fd, 2**20, max(0, self._size - 2**20))
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(self._fd, self._size - torn)
            self._size -= torn
        return torn

    def hashed(self, prompt: str) -> str:
        """A salted hash of a prompt: equal for equal prompts of one log, of no use without its key."""
        return hmac.new(self._key, b"prompt\0" + prompt.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line. Raises AuditError; then nothing of it stands in the log."""
        with self._lock:
            try:
                if self._size >= self.settings.megabytes * 2**20:
                    self._rotate()
                self._append(entry)
            except OSError as error:
                raise _unwritable(self.file, error) from None

    def _append(self, entry: Mapping[str, Any]) -> None:
        now = self._now()
        if now < self._time - BACKWARDS:
            raise AuditError(
                f"The clock of this machine was set back by {self._time - now:.0f} s, so the audit log cannot go on: "
                "set the clock right."
            )
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"n": self._number + 1, "t": round(now, 3), "time": stamp, **entry, "prev": self._last}
        line["hash"] = chained(self._key, line)
        data = _encoded(line) + b"\n"
        if os.fstat(self._fd).st_size != self._size:
            raise AuditError(f"The audit log {self.file} was changed while it was open; restart when that is cleared.")
        if not os.fstat(self._fd).st_nlink:
            raise AuditError(f"The audit log {self.file} was deleted while it was open; restart when that is cleared.")
        written = 0
        try:
            written = os.write(self._fd, data)
        finally:
            if written != len(data):
                os.ftruncate(self._fd, self._size)
        if written != len(data):
            raise OSError(28, "No space left on device")
        self._size += len(data)
        self._number, self._last, self._time = line["n"], str(line["hash"]), now
        os.pwrite(self._head, f"{self._number} {self._last}".ljust(_HEAD).encode(), 0)

    def _rotate(self) -> None:
        older = rotated(self.file)
        number = int(older[-1].suffixes[-2][1:]) + 1 if older else 1
        os.close(self._fd)
        os.rename(self.file, self.file.with_name(f"{self.file.stem}.{number:06d}{self.file.suffix}"))
        for path in rotated(self.file)[: -self.settings.kept]:
            last = json.loads(path.read_bytes().splitlines()[-1])
            self._dropped = max(self._dropped, int(last["n"]))
            path.unlink()
        self._fd = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = 0
        self._append({"event": "rotated", "dropped": self._dropped})

    def close(self) -> None:
        with self._lock:
            for fd in (self._fd, self._head):
                os.close(fd)


@dataclass(frozen=True)
class Verified:
    """What stands in a log that nobody has changed.

    ``lines``: whole ones. ``first``: number of the first; older ones were rotated away. ``torn``: bytes of a last line
    that was never finished.
    """

    lines: int
    first: int
    torn: int


def verify_log(file: Path) -> Verified:
    """Check a log with all its rotated files.

    Raises:
        AuditError: says the first line that was changed, put in or taken out, or what is missing.
    """
    if not file.name or file.is_dir():
        raise AuditError(f"{file} is a folder: give the file of the log.")
    key = _key(file, make=False)
    number, last, first, dropped, torn = 0, NOTHING, 1, 0, 0
    each = [*rotated(file), file]
    for path in each:
        for i, (line, whole) in enumerate(_lines(path), 1):
            if not whole:
                if path is not file:
                    raise AuditError(f"{path.name} line {i} is cut off.")
                torn = len(line)
                continue
            entry = _checked(key, line, path.name, i)
            if number == 0 and entry["n"] > 1:
                first, number, last = entry["n"], entry["n"] - 1, str(entry["prev"])
            if entry["n"] != number + 1 or entry["prev"] != last:
                raise AuditError(
                    f"{path.name} line {i}: it is number {entry['n']} and does not follow number {number}: lines were "
                    "taken out, put in or moved."
                )
            number, last = entry["n"], str(entry["hash"])
            dropped = max(dropped, int(entry.get("dropped", 0)))
    if number and first != dropped + 1:
        raise AuditError(f"Lines {dropped + 1} to {first - 1} are missing at the beginning: a file was taken away.")
    _check_head(file, number, last)
    return Verified(number - first + 1 if number else 0, first, torn)


def _checked(key: bytes, line: bytes, name: str, i: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if _encoded(entry) != line or not isinstance(entry["n"], int):
            raise ValueError
        good = hmac.compare_digest(chained(key, entry), str(entry["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        good, entry = False, {}
    if not good:
        raise AuditError(f"{name} line {i} was changed: it does not have the hash that it was written with.")
    return dict(entry)


def _check_head(file: Path, number: int, last: str) -> None:
    """The head is written after a line, so a killed process leaves it one behind at most."""
    try:
        text = _beside(file, "head").read_text(encoding="ascii").split()
        told, chain = (int(text[0]), text[1]) if text else (0, NOTHING)
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        raise AuditError(f"{_beside(file, 'head').name} is missing or broken, so the end cannot be checked.") from None
    if number < told or (number == told and chain != last):
        raise AuditError(f"The end was cut off: there were {told} lines, and there are {number}.")
    if number > told + 1:
        raise AuditError(f"There are {number} lines, and {told} were written: lines were put in at the end.")


def chained(key: bytes, line: Mapping[str, Any]) -> str:
    """The hash of a line, which covers the one before."""
    return hmac.new(key, _encoded({k: v for k, v in line.items() if k != "hash"}), hashlib.sha256).hexdigest()


def rotated(file: Path) -> list[Path]:
    """Older files of a log, the oldest first."""
    return sorted(file.parent.glob(f"{file.stem}.[0-9][0-9][0-9][0-9][0-9][0-9]{file.suffix}"))


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode()


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Every line, and whether it is whole. Raises AuditError."""
    try:
        with open(path, "rb") as file:
            for line in file:
                yield line.removesuffix(b"\n"), line.endswith(b"\n")
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror or error}.") from None


def _last_line(fd: int, size: int) -> bytes | None:
    tail = os.pread(fd, 2**20, max(0, size - 2**20)).rstrip(b"\n")
    return tail[tail.rfind(b"\n") + 1 :] if tail else None


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.stem}.{ending}")


def _key(file: Path, make: bool) -> bytes:
    path = _beside(file, "key")
    if make and not path.exists():
        if file.is_file() and file.stat().st_size:
            raise AuditError(f"{path} is missing, without which the audit log {file} cannot go on: move the log away.")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_hex(32).encode())
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise AuditError(f"{path} cannot be read ({error}), without which the log cannot be checked.") from None
    if len(key) < 32:
        raise AuditError(f"{path} holds no key.")
    return key


def _lock_file(fd: int, file: Path) -> None:
    try:
        import fcntl
    except ImportError:  # another system: one process writes a log there as well, but nothing holds it to that
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise AuditError(f"The audit log {file} is in use by another process: give each host its own.") from None


def _unwritable(file: Path, error: OSError) -> AuditError:
    return AuditError(f"The audit log {file} cannot be written: {error.strerror or error}.")
