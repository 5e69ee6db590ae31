"""The audit log: whatever is changed shows, whatever is killed leaves whole lines, and a full disk closes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saferegion.core.errors import AuditError
from saferegion.guard import audit
from saferegion.guard.audit import AuditLog, Verified, rotated, verify_log
from saferegion.guard.policy import LogSettings

WRITER = """
import sys
from pathlib import Path
from saferegion.guard.audit import AuditLog
from saferegion.guard.policy import LogSettings
log = AuditLog(LogSettings(Path(sys.argv[1])))
print("open", flush=True)
while True:
    log.write({"request": "r", "concepts": {"nudity": 1.5}, "text": "x" * 200})
"""

MANY = """
import os, random, signal, sys, time
from pathlib import Path
from saferegion.guard.audit import AuditLog, verify_log
from saferegion.guard.policy import LogSettings
path, rng = Path(sys.argv[1]), random.Random(sys.argv[2])
for _ in range(10):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        log = AuditLog(LogSettings(path))
        os.write(write, b"o")
        while True:
            log.write({"request": "r", "concepts": {"nudity": 1.5}, "text": "x" * rng.randrange(3000)})
    os.read(read, 1)
    time.sleep(rng.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for fd in (read, write):
        os.close(fd)
    print(verify_log(path).lines)
    log = AuditLog(LogSettings(path))
    log.write({"event": "one more"})
    log.close()
"""


def filled(folder: Path, count: int) -> Path:
    log = AuditLog(LogSettings(folder / "audit.jsonl"))
    for i in range(count):
        log.write({"request": str(i), "prompt": log.hashed(f"prompt {i}"), "concepts": {"fire": 1.25}})
    log.close()
    return folder / "audit.jsonl"


def test_lines_are_json_in_order_and_say_no_word_of_a_prompt(tmp_path: Path) -> None:
    path = filled(tmp_path, 20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, 21)) and "prompt 3" not in path.read_text()
    assert len({line["prompt"] for line in lines}) == 20
    assert verify_log(path) == Verified(20, 1, 0)
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("audit.jsonl", "audit.key", "audit.head"))


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for _ in range(3):
        path = filled(tmp_path, 5)
    assert verify_log(path).lines == 15


def test_a_process_killed_at_any_moment_leaves_whole_lines_that_verify(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    rng = random.Random(18)
    known = 0
    for _ in range(5):  # starting is dear: ten kills of the writer's children each
        writer = subprocess.Popen([sys.executable, "-c", MANY, str(path), str(rng.random())], stdout=subprocess.PIPE)
        out = writer.communicate(timeout=120)[0].decode().split()
        assert writer.returncode == 0 and len(out) == 10
        found = verify_log(path)
        assert found.lines >= known + 10
        known = found.lines


def test_tampering_anywhere_is_found(tmp_path: Path) -> None:
    path = filled(tmp_path, 60)
    whole, rng = path.read_bytes(), random.Random(18)
    lines = whole.splitlines(keepends=True)
    changes = []
    for kind in range(50):
        i = rng.randrange(len(lines))
        if kind % 5 == 0:
            changed = lines[:i] + lines[i + 1 :]
        elif kind % 5 == 1:
            changed = [*lines[:i], lines[i], *lines[i:]]
        elif kind % 5 == 2:
            j = (i + 1 + rng.randrange(len(lines) - 1)) % len(lines)
            changed = [*lines]
            changed[i], changed[j] = changed[j], changed[i]
        else:
            data = bytearray(whole)
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
            changed = [bytes(data)]
        changes.append(b"".join(changed))
    found = 0
    for data in changes:
        path.write_bytes(data)
        with pytest.raises(AuditError):
            verify_log(path)
        found += 1
    assert found == 50
    path.write_bytes(whole)
    assert verify_log(path).lines == 60


def test_a_line_changed_with_its_plain_hash_made_anew_is_found(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    lines = path.read_bytes().splitlines()
    entry = json.loads(lines[1])
    entry["concepts"] = {}
    entry["hash"] = audit.chained(b"another key" * 4, entry)
    lines[1] = json.dumps(entry, separators=(",", ":")).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(AuditError, match="line 2 was changed"):
        verify_log(path)


def test_a_cut_off_end_is_found_and_an_unfinished_last_line_is_told(tmp_path: Path) -> None:
    path = filled(tmp_path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    with pytest.raises(AuditError, match="end was cut off"):
        verify_log(path)
    path.write_bytes(whole + b'{"n":6')
    assert verify_log(path) == Verified(5, 1, 6)
    assert AuditLog(LogSettings(path)) and verify_log(path) == Verified(6, 1, 0)


def test_full_files_rotate_and_a_file_taken_away_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(LogSettings(path, megabytes=1, kept=3))
    for i in range(12_000):
        log.write({"request": str(i), "text": "x" * 400})
    log.close()
    assert len(rotated(path)) == 3
    found = verify_log(path)
    assert found.first > 1 and found.lines + found.first - 1 > 12_000
    for gone in (rotated(path)[0], rotated(path)[1]):
        kept = gone.read_bytes()
        gone.unlink()
        with pytest.raises(AuditError, match="missing|taken out"):
            verify_log(path)
        gone.write_bytes(kept)
    assert verify_log(path) == found


def test_two_processes_do_not_write_one_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
        with pytest.raises(AuditError, match="in use by another process"):
            AuditLog(LogSettings(path))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()


def test_a_full_disk_writes_nothing_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(LogSettings(path))
    log.write({"request": "1"})
    real = audit.os.write

    def full(fd: int, data: bytes) -> int:
        return real(fd, data[:20])

    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", full)
        with pytest.raises(AuditError, match="No space left"):
            log.write({"request": "2"})
    log.write({"request": "3"})
    assert verify_log(path).lines == 2


def test_a_log_changed_or_deleted_while_open_and_a_clock_set_back_are_refused(tmp_path: Path) -> None:
    for how, says in (("changed", "was changed"), ("deleted", "was deleted")):
        path = tmp_path / how / "audit.jsonl"
        log = AuditLog(LogSettings(path))
        log.write({"request": "1"})
        if how == "changed":
            with path.open("ab") as file:
                file.write(b"x\n")
        else:
            path.unlink()
        with pytest.raises(AuditError, match=says):
            log.write({"request": "2"})
    path = filled(tmp_path / "clock", 2)
    with pytest.raises(AuditError, match="clock"):
        AuditLog(LogSettings(path), lambda: time.time() - 3600).write({"request": "3"})


def test_without_its_key_a_log_neither_goes_on_nor_verifies(tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    shutil.move(tmp_path / "audit.key", tmp_path / "elsewhere")
    for use in (lambda: verify_log(path), lambda: AuditLog(LogSettings(path))):
        with pytest.raises(AuditError, match="audit.key"):
            use()


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_folder_is_no_log(name: str) -> None:
    with pytest.raises(AuditError, match="is a folder: give the file of the log"):
        verify_log(Path(name))
