"""The folder of a run: who works on what, and what is done. Every line is written once, whole, with its checksum.

``shards/NNNN.jsonl`` belongs to one process and is only added to. A unit is claimed by a lock on one byte of
``claims``, which the system takes back from a process that dies, so that another may take the unit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from saferegion.core.writing import write_whole

from .settings import EvaluationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "saferegion-evaluation/1"
_COMPILING = 0
"""Byte of ``claims`` that is held while concepts are compiled; the units' follow."""


class Store:
    """One process's view of a run's folder.

    Args:
        folder: of the run; made where it is not there.
        plain: what the run paints and judges (:meth:`Run.plain`).
        rank: of this process.

    Raises:
        EvaluationError: it is of another run, or another process of this rank works in it.
    """

    def __init__(self, folder: Path, plain: Mapping[str, Any], rank: int = 0) -> None:
        if fcntl is None:
            raise EvaluationError("evaluate needs locks on files as Linux and macOS have them: use WSL on Windows.")
        self.folder, self.rank = folder, rank
        self.shards = folder / "shards"
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise EvaluationError(f"{folder} is a file: give a folder for the run.") from error
        self._mine = self._open(self.shards / f"{rank:04d}.lock")
        if not self._lock(self._mine, 0):
            raise EvaluationError(f"Another run works in {folder}: wait for it, or give another folder.")
        self._begin(plain)
        self._claims = self._open(folder / "claims")
        self._shard = self._open(self.shards / f"{rank:04d}.jsonl")
        self._mend()
        self._read: dict[Path, int] = {}
        self.done: set[str] = set()
        self.refresh()

    def _begin(self, plain: Mapping[str, Any]) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            write_whole(path, (json.dumps({"format": FORMAT, "run": plain}, indent=1) + "\n").encode())
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            before = kept["run"] if kept["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError):
            before = None
        if not isinstance(before, dict):
            raise EvaluationError(f"{path} is of something else: give another folder.")
        changed = [k for k in (*plain, *before) if plain.get(k) != before.get(k)]
        if changed:
            raise EvaluationError(
                f"{self.folder} holds a run with other settings ({', '.join(dict.fromkeys(changed))}): go on with "
                "those, or give another folder."
            )

    @staticmethod
    def _open(path: Path) -> IO[bytes]:
        return open(path, "a+b", buffering=0)

    @staticmethod
    def _lock(file: IO[bytes], at: int, wait: bool = False) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, at)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise EvaluationError(
                f"{file.name} cannot be locked ({error.strerror}): use a disk that has locks."
            ) from error
        return True

    def claim(self, number: int) -> bool:
        """Whether unit ``number`` is this process's now; it is nobody's where another has it or it is done."""
        return self._lock(self._claims, 1 + number)

    def release(self, number: int) -> None:
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, 1 + number)

    def compiling(self) -> None:
        """Wait until no other process compiles concepts; to be ended with :meth:`compiled`."""
        self._lock(self._claims, _COMPILING, wait=True)

    def compiled(self) -> None:
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _COMPILING)

    def _mend(self) -> None:
        """Take away a line that a killed process left half."""
        size = os.fstat(self._shard.fileno()).st_size
        self._shard.seek(0)
        data = self._shard.read(size)
        if data and not data.endswith(b"\n"):
            self._shard.truncate(data.rfind(b"\n") + 1)

    def add(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Write down a unit. Raises EvaluationError where the disk is full or gone; nothing is half-written then."""
        body = json.dumps({"unit": unit, "rows": rows}, ensure_ascii=False, allow_nan=False)
        line = f"{_sum(body)} {body}\n".encode()
        size = os.fstat(self._shard.fileno()).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[self._shard.write(view) :]
            os.fsync(self._shard.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left half is taken away when the run goes on
                self._shard.truncate(size)
            raise EvaluationError(
                f"{self.folder} cannot be written to ({error.strerror}): make room and start the same command again, "
                "nothing that was done is lost."
            ) from error

    def refresh(self) -> None:
        """Read what any process has added since."""
        for path in sorted(self.shards.glob("*.jsonl")):
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.splitlines():
                entry = _entry(line)
                if entry is not None:
                    self.done.add(entry["unit"])
            self._read[path] = start + len(whole)

    def close(self) -> None:
        for file in (self._shard, self._claims, self._mine):
            file.close()


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line; None of one that is damaged: its unit is done once more."""
    try:
        check, _, body = line.decode("utf-8").partition(" ")
        found = json.loads(body) if check == _sum(body) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_done(folder: Path) -> dict[str, dict[str, Any]]:
    """What is done in a folder, without working in it."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "shards").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            entry = _entry(line)
            if entry is not None:
                found.setdefault(entry["unit"], entry)
    return found
