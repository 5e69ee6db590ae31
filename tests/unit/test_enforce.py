"""A policy at work: what becomes of prompts, what closes a host, what is counted and written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saferegion import Choice, Library, Selection
from saferegion.core.errors import AuditError
from saferegion.guard import audit
from saferegion.guard.audit import verify_log
from saferegion.guard.enforce import CLOSED, Enforcement, PolicyRefused, Request, Verdict
from saferegion.guard.policy_file import read_policy
from saferegion.guard.selection import Guard
from saferegion_lab.microworld import DATA, MicroWorld, load

FIRE, STORM, BENIGN = "a house on fire", "lightning over a house", "a blue boat on a beach"


@pytest.fixture(scope="module")
def world() -> MicroWorld:
    return load()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library((DATA,), tmp_path_factory.mktemp("cache"))


def enforcement(folder: Path, library: Library, concepts: str, more: str = "") -> Enforcement:
    path = folder / "policy.yaml"
    path.write_text(
        f"policy: 1\nminors: false\ncontact: ask room 12\nconcepts: {concepts}\nlog: {{file: audit.jsonl{more}}}\n"
    )
    return Enforcement(read_policy(path, library))


def guard(e: Enforcement, world: MicroWorld, library: Library, users: Selection | None = None) -> Guard:
    return e.selection(users).guard(world.encode, library)


def verdict(e: Enforcement, g: Guard, world: MicroWorld, prompt: str) -> Verdict:
    return e.judge([g.apply(world.encode([prompt]))[1]])


def test_each_action_does_what_it_says(tmp_path: Path, world: MicroWorld, library: Library) -> None:
    e = enforcement(tmp_path, library, "{fire: refuse, lightning: log}")
    g = guard(e, world, library)
    assert verdict(e, g, world, BENIGN) == Verdict()
    stormy = world.encode([STORM])
    kept, report = g.apply(stormy)
    assert kept is stormy and e.judge([report]).action == "log"
    e.require(e.judge([report]))
    with pytest.raises(PolicyRefused) as refused:
        e.require(verdict(e, g, world, FIRE))
    answer = refused.value.to_dict()
    assert answer["status"] == 403 and answer["code"] == "safe_region_policy" and answer["concepts"] == ["fire"]
    assert str(refused.value).endswith("ask room 12") and "fire" in str(refused.value).lower()
    (tmp_path / "again").mkdir()
    again = enforcement(tmp_path / "again", library, "{fire: guard}")
    g = guard(again, world, library)
    moved, report = g.apply(world.encode([FIRE]))
    assert again.judge([report]).action == "guard" and report.moved


def test_a_refused_concept_is_refused_although_the_user_erases_it_first(
    tmp_path: Path, world: MicroWorld, library: Library
) -> None:
    e = enforcement(tmp_path, library, "{fire: refuse}")
    for mode in ("erase", "steer"):
        g = guard(e, world, library, Selection((Choice("fire", 1.0, mode),)))
        assert verdict(e, g, world, FIRE).action == "refuse", mode


def test_a_changed_file_closes_until_the_next_start(tmp_path: Path, world: MicroWorld, library: Library) -> None:
    e = enforcement(tmp_path, library, "[fire]")
    e.check()
    path = tmp_path / "policy.yaml"
    text = path.read_text()
    path.write_text(text + "# changed\n")
    with pytest.raises(PolicyRefused, match=r"policy\.yaml was changed"):
        e.check()
    path.write_text(text)
    with pytest.raises(PolicyRefused, match="started it again"):
        e.selection()
    assert not e.status()["open"] and "saferegion_open 0" in e.metrics()


def test_every_request_has_its_line_and_its_count(tmp_path: Path, world: MicroWorld, library: Library) -> None:
    e = enforcement(tmp_path, library, "{fire: refuse, lightning: log}")
    g = guard(e, world, library)
    for i, prompt in enumerate((BENIGN, FIRE, STORM, STORM)):
        e.record(Request(str(i), "test", (prompt,), "an encoder"), verdict(e, g, world, prompt))
    e.record(Request("4", "test", ("x",)), Verdict(), ValueError("broken"))
    path = tmp_path / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert [line["action"] for line in lines] == ["none", "refuse", "log", "log", CLOSED]
    assert lines[1]["concepts"]["fire"] > 0 and lines[4]["error"] == "broken"
    assert lines[2]["prompt"] == lines[3]["prompt"] != lines[0]["prompt"] and "text" not in lines[0]
    assert all(line["policy"] == e.policy.digest and len(line["model"]) in (0, 16) for line in lines)
    assert e.status()["requests"] == {"none": 1, "refuse": 1, "log": 2, CLOSED: 1}
    assert 'saferegion_concept_found_total{concept="lightning"} 2' in e.metrics()
    assert verify_log(path).lines == 6


def test_prompts_are_written_out_where_the_policy_says_so(tmp_path: Path, library: Library) -> None:
    e = enforcement(tmp_path, library, "[fire]", ", prompts: true")
    e.record(Request("1", "test", (FIRE,)), Verdict())
    assert json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])["text"] == FIRE


@pytest.mark.parametrize("when_full", ["close", "go-on"])
def test_a_full_disk_closes_or_goes_on_as_the_policy_says(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch, when_full: str
) -> None:
    e = enforcement(tmp_path, library, "[fire]", f", when_full: {when_full}")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", full)
        if when_full == "close":
            with pytest.raises(PolicyRefused, match="cannot write its log"):
                e.record(Request("1", "test"), Verdict())
        else:
            e.record(Request("1", "test"), Verdict())
    e.record(Request("2", "test"), Verdict())
    assert verify_log(tmp_path / "audit.jsonl").lines == 2


def test_a_log_that_cannot_be_opened_lets_no_host_start(tmp_path: Path, library: Library) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditError, match="cannot be written"):
        enforcement(tmp_path, library, "[fire]")


def test_any_error_is_a_refusal_with_whom_to_ask(tmp_path: Path, library: Library) -> None:
    e = enforcement(tmp_path, library, "[fire]")
    for error in (ValueError("broken"), AuditError("The log is gone."), e.refused("No.")):
        refusal = e.refusal(error)
        assert isinstance(refusal, PolicyRefused) and str(refusal).endswith("ask room 12")
