"""The operator's policy: what its file may say, what is refused and where, and how it joins with what users choose."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from saferegion import Choice, Selection
from saferegion.core.errors import PolicyError, SafeRegionError
from saferegion.guard.library import Library
from saferegion.guard.policy import GUARD, LOG, REFUSE, Policy, effective, policy_path
from saferegion.guard.policy_file import EXAMPLE, read_policy
from saferegion.learn.recipes import Concept
from saferegion_lab.cli import app
from saferegion_lab.microworld import DATA

SMALL = "policy: 1\nconcepts: {nudity: }\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes) -> Policy:
    return read_policy(written(folder, text))


def test_the_example_is_right_and_says_what_it_says(tmp_path: Path) -> None:
    policy = read(tmp_path, EXAMPLE)
    assert [(r.name, r.action) for r in policy.rules] == [
        ("nudity", GUARD), ("sexual-acts", REFUSE), ("violence", GUARD), ("gore", GUARD),
    ]  # fmt: skip
    assert policy.rules[2].preset == "strict" and policy.inputs.init_images and not policy.inputs.image_prompts
    assert policy.log.file == tmp_path / "safe-region-audit.jsonl" and policy.minors and not policy.warnings


@pytest.mark.parametrize(
    "text",
    [
        SMALL.replace("\n", "\r\n"), b"\xef\xbb\xbf" + SMALL.encode(), "policy: 1\nconcepts: [nudity]\n",
        "policy: 1\nconcepts: {nudity: guard}\n", "policy: 1\nconcepts:\n  nudity: {strength: 1, preset: normal}\n",
    ],
)  # fmt: skip
def test_line_ends_marks_and_short_forms_change_nothing(tmp_path: Path, text: str | bytes) -> None:
    assert read(tmp_path, text).rules == read(tmp_path, SMALL).rules


BAD = {
    "unknown": (SMALL + "concept: {}\n", "line 3", "concepts"),
    "unknown inside": ("policy: 1\nconcepts:\n  nudity:\n    strenght: 2\n", "line 4", "strength"),
    "gone": ("policy: 1\nconcepts:\n  violence:\n  nudty:\n", "line 4", "did you mean 'nudity'"),
    "gone altogether": ("policy: 1\nconcepts:\n  zzz:\n", "line 3", "there are"),
    "twice": ("policy: 1\nconcepts:\n  nudity:\n  gore:\n  nudity:\n", "line 5", "given twice"),
    "twice in a list": ("policy: 1\nconcepts:\n- nudity\n- nudity\n", "line 4", "given twice"),
    "twice at the top": ("policy: 1\ncontact: a\ncontact: b\n", "line 3", "given twice"),
    "alias": ("policy: 1\na: &a [x, x]\nb: [*a, *a]\n", "line 3", "aliases"),
    "bomb": ("a: &a [x,x]\n" + "".join(f"a{i}: &b{i} [*a,*a]\n" for i in range(40)), "line 2", "aliases"),
    "no version": ("concepts: [nudity]\n", "", "policy: 1"),
    "other version": ("policy: 2\nconcepts: [nudity]\n", "line 1", "must be 1"),
    "nothing": ("policy: 1\n", "", "keeps nothing out"),
    "no concepts": ("policy: 1\nconcepts: {}\n", "", "keeps nothing out"),
    "action": ("policy: 1\nconcepts:\n  nudity: {action: allow}\n", "line 3", "log, guard, refuse"),
    "strength": ("policy: 1\nconcepts:\n  nudity: {strength: 0}\n", "line 3", "0.1 to 10"),
    "infinite": ("policy: 1\nconcepts:\n  nudity: {strength: .inf}\n", "line 3", "0.1 to 10"),
    "preset": ("policy: 1\nconcepts:\n  nudity: {preset: mild}\n", "line 3", "gentle, normal, strict"),
    "axis": ("policy: 1\nconcepts: [age]\n", "line 2", "balance"),
    "hash": (SMALL + "inputs: {loras: [abc]}\n", "line 3", "SHA-256"),
    "route": (SMALL + "routes: {allowed: [sdapi]}\n", "line 3", "begin with /"),
    "log": (SMALL + "log: {file: ''}\n", "line 3", "path of a file"),
    "balance": (SMALL + "balance: [age]\n", "line 3", "balance"),
    "contact": (SMALL + "contact: [a]\n", "line 3", "a text"),
    "tag": ("policy: !!python/object/apply:os.system [id]\n", "line 1", "not valid YAML"),
    "no mapping": ("- policy\n", "", "mapping"),
    "latin": (SMALL.encode() + "contact: café\n".encode("latin-1"), "", "UTF-8"),
    "empty": ("", "", "mapping"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_policies_are_refused_with_a_line_and_what_is_right(tmp_path: Path, name: str) -> None:
    text, line, says = BAD[name]
    with pytest.raises(PolicyError) as refused:
        read(tmp_path, text)
    assert line in str(refused.value) and says in str(refused.value), str(refused.value)


def test_a_folder_a_pipe_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none.yaml"):
        with pytest.raises(PolicyError, match="cannot be read"):
            read_policy(path)


def test_a_file_that_everybody_can_write_is_warned_of(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    path.chmod(0o666)
    assert "every user" in read_policy(path).warnings[0]


def test_a_changed_concept_file_is_noticed_even_with_its_time_set_back(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_bytes((DATA / "fire.yaml").read_bytes().replace(b"name: fire", b"name: mine"))
    policy = read_policy(written(tmp_path, "policy: 1\nconcepts: [my/mine]\n"), Library((tmp_path,)))
    assert not any(p.changed() for p in policy.pinned)
    status = own.stat()
    own.write_bytes(own.read_bytes()[::-1])
    os.utime(own, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [p.path for p in policy.pinned if p.changed()] == [own]


def test_flag_and_environment_may_name_one_file_and_not_two(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    (tmp_path / "link").symlink_to(path)
    assert policy_path(None, {}) is None
    assert policy_path(path, {}) == policy_path(tmp_path / "link", {"SAFE_REGION_POLICY": str(path)}) == path
    with pytest.raises(PolicyError, match="two policies"):
        policy_path(path, {"SAFE_REGION_POLICY": str(tmp_path / "other")})
    with pytest.raises(PolicyError, match="empty"):
        policy_path(None, {"SAFE_REGION_POLICY": ""})


POLICY = """\
policy: 1
concepts:
  nudity: {strength: 1.5}
  violence: {preset: strict, action: refuse}
  gore: log
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return read(tmp_path, POLICY)


def seen(selection: Selection) -> dict[tuple[str, str], tuple[float, str | None]]:
    return {(c.name, c.mode): (c.strength, c.preset) for c in selection.choices}


ALONE = {
    ("nudity", "project"): (1.5, "normal"),
    ("violence", "project"): (1.0, "strict"),
    ("gore", "project"): (0.0, "normal"),
}


@pytest.mark.parametrize(
    "users",
    [
        None, Selection(), Selection((Choice("nudity", 0.0),)), Selection((Choice("nudity", 0.2),), "gentle"),
        Selection((Choice("gore", 0.0), Choice("violence", 0.1)), "gentle"),
    ],
)  # fmt: skip
def test_users_take_nothing_away(policy: Policy, users: Selection | None) -> None:
    assert seen(effective(policy, users)) == ALONE


def test_users_add(policy: Policy) -> None:
    users = Selection(
        (Choice("nudity", 3), Choice("weapons", 0.5), Choice("gore", 1), Choice("violence", 0.05, "steer")), "strict"
    )
    assert seen(effective(policy, users)) == {
        **ALONE,
        ("nudity", "project"): (3, "strict"),
        ("gore", "project"): (1, "strict"),
        ("weapons", "project"): (0.5, None),
        ("violence", "steer"): (0.05, None),
    }
    assert effective(policy, users).preset == "strict"


def test_an_own_concept_cannot_take_the_place_of_one_of_the_policy(policy: Policy) -> None:
    own = Concept.from_words("nudity", ["a blue boat"])
    with pytest.raises(SafeRegionError, match="another name"):
        effective(policy, Selection((Choice(own),)))


def test_routes_that_train_and_install_are_closed_unless_the_policy_opens_them(tmp_path: Path) -> None:
    usual = read(tmp_path, SMALL).routes
    assert usual.allow("/sdapi/v1/txt2img") and usual.allow("/prompt")
    for path in ("/sdapi/v1/train/embedding", "//sdapi/v1/train/x", "/sdapi/./v1/train/x", "/customnode/install"):
        assert not usual.allow(path)
    assert read(tmp_path, SMALL + "routes: {refused: []}\n").routes.allow("/sdapi/v1/train/embedding")
    only = read(tmp_path, SMALL + "routes: {allowed: [/sdapi/v1/txt2img]}\n").routes
    assert only.allow("/sdapi/v1/txt2img/") and not only.allow("/sdapi/v1/img2img")


def test_init_check_and_explain(tmp_path: Path) -> None:
    run = CliRunner()
    path = tmp_path / "policy.yaml"
    assert run.invoke(app, ["policy", "init", str(path)]).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(run.invoke(app, ["policy", "init", str(path)]).exception, PolicyError)
    checked = json.loads(run.invoke(app, ["policy", "check", str(path), "--json"]).output)
    assert checked["rules"][1] == {"concept": "sexual-acts", "action": "refuse", "strength": 1.0, "preset": "normal"}
    data = {"policy": 1, "minors": False, "concepts": {"fire": "refuse", "lightning": "log"}}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    prompts = ["a house on fire", "a house on f1re", "lightning over a house", "a blue boat on a beach"]
    told = run.invoke(app, ["policy", "explain", *prompts, "-p", str(path), "-e", "microworld", "--json"])
    assert [r["action"] for r in json.loads(told.stdout)] == [REFUSE, REFUSE, LOG, "none"]
