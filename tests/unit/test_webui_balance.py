"""Balance in the webui's script without a webui: who is in which picture, what stays, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import webui_fakes as webui
from test_balance import RECIPE, PeopleEncoder
from webui_fakes import FIRE, conds, equal

from saferegion_webui import balance_panel, generation
from saferegion_webui.arguments import GROUPS, LEFT

PERSON, STATED, NOBODY = "a photo of a nurse", "a photo of a tall nurse", "a photo of a boat"
ASKED = {"enabled": False, "balance": True, "axes": "my/height"}


class Host:
    def __init__(self, shared: Any, processing: type) -> None:
        self.shared, self.processing = shared, processing

    def run(
        self, prompts: list[str], *, batch: int = 0, first: int = 100, args: Any = None, **values: Any
    ) -> list[Any]:
        """The processing after each of its batches: its conditionings are those of that batch."""
        batch = batch or len(prompts)
        seeds = list(range(first, first + len(prompts)))
        p = self.processing(prompts[:batch], all_prompts=prompts, all_seeds=seeds, batch_size=batch, **values)
        p.comments = {}
        generation.configure(p, [args or ASKED], [])
        found = []
        for n in range(0, len(prompts), batch):
            p.iteration, p.prompts = n // batch, prompts[n : n + batch]
            p.negative_prompts = [""] * len(p.prompts)
            p.setup_conds()
            found.append((conds(p), list(p.extra_generation_params.get(GROUPS, [])), p))
        return found


@pytest.fixture(scope="session")
def kept_balance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept-balance")


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept_balance: Path) -> Any:
    models = tmp_path / "models"
    guarded = webui.guarded(monkeypatch, models, kept_balance)
    (models / "safe_region" / "balance").mkdir()
    (models / "safe_region" / "balance" / "axis-height.yaml").write_text(RECIPE, encoding="utf-8")

    def make(family: str = "sd1") -> Host:
        shared, processing = guarded(family)
        shared.sd_model.clip = PeopleEncoder()
        return Host(shared, processing)

    return make


def names(texts: list[Any]) -> list[str]:
    return ["" if t is None else t.removeprefix("height: ") for t in texts]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_batch_is_shared_out_and_off_it_is_as_it_was(hosts: Any, family: str) -> None:
    host = hosts(family)
    ((plain, none, p),) = host.run([PERSON] * 8, args={"enabled": False})
    assert not none and not p.extra_generation_params
    ((moved, told, p),) = host.run([PERSON] * 8)
    assert names(told) == ["tall", "short"] * 4
    assert all(moved[i] is moved[i % 2] for i in range(8)) and not equal(moved[0], moved[1])
    assert not any(equal(a, plain[0]) for a in moved[:2])
    if family == "sdxl":
        assert not torch.equal(moved[0]["vector"], moved[1]["vector"])
        assert torch.equal(moved[0]["vector"][24:], plain[0]["vector"][24:])
    assert p.extra_generation_params["Safe region balance"] == "my/height"
    assert any("Height: tall 4 (pictures 1, 3, 5, 7)" in text for text in p.comments), p.comments
    ((again, _, _),) = host.run([PERSON] * 8, args={"enabled": False})
    assert all(equal(a, b) for a, b in zip(plain, again, strict=True))


def test_batches_of_one_job_are_shared_out_together(hosts: Any) -> None:
    host = hosts()
    args = {**ASKED, "axes": "my/height: tall 75, short 25"}
    ((_, whole, _),) = host.run([PERSON] * 12, args=args)
    parts = host.run([PERSON] * 12, batch=3, args=args)
    assert names([t for _, told, _ in parts for t in told]) == names(whole)
    assert names(whole).count("tall") == 9


def test_a_picture_is_the_same_group_alone_in_its_variation_and_from_its_parameters(hosts: Any) -> None:
    host = hosts()
    ((rows, told, _),) = host.run([PERSON] * 6)
    ((alone, one, _),) = host.run([PERSON], first=103)
    assert names(one) == names(told)[3:4] and equal(alone[0], rows[3])
    ((_, varied, _),) = host.run([PERSON] * 4, subseed_strength=0.3, all_subseeds=[5, 6, 7, 8])
    assert names(varied) == ["short", "tall", "short", "tall"]
    ((_, recorded, _),) = host.run([PERSON], first=103, args={**ASKED, "groups": {"103": {"height": "tall"}}})
    assert names(recorded) == ["tall"]


@pytest.mark.parametrize(("text", "why"), [(STATED, "the prompt says it already"), (NOBODY, "no person in it")])
def test_what_a_gate_holds_keeps_its_objects(hosts: Any, text: str, why: str) -> None:
    host = hosts()
    ((plain, _, p),) = host.run([text] * 2, args={"enabled": False})
    ((held, none, q),) = host.run([text] * 2)
    assert all(a is b for a, b in zip(plain, held, strict=True)) and not none and p.uc is q.uc
    assert why in q.extra_generation_params[LEFT][0] and any(why in text for text in q.comments)


def test_prompts_of_one_batch_are_shared_out_each(hosts: Any) -> None:
    ((rows, told, p),) = hosts().run([PERSON, NOBODY, PERSON, "a drawing of a pilot", PERSON, "a drawing of a pilot"])
    assert names(told) == ["tall", "", "tall", "short", "tall", "short"] or names(told).count("") == 1
    for text in (PERSON, "a drawing of a pilot"):
        mine = [n for n, t in zip(names(told), p.all_prompts, strict=True) if t == text]
        assert abs(mine.count("tall") - mine.count("short")) <= 1


def test_parts_say_it_for_each_other_and_the_rest_is_balanced(hosts: Any) -> None:
    host = hosts()
    ((rows, told, _),) = host.run([f"{NOBODY} AND {PERSON} :0.8"] * 2)
    assert names(told) == ["tall", "short"]
    boat, one, again, other = rows
    assert boat is again and not equal(one, other)
    for prompt in (f"{PERSON} AND {STATED}", f"{PERSON} AND {STATED} :-1", "a photo of a [nurse:short nurse:0.5]"):
        ((rows, told, _),) = host.run([prompt] * 2)
        ((plain, _, _),) = host.run([prompt] * 2, args={"enabled": False})
        assert not told and all(a is b for a, b in zip(rows, plain, strict=True)), prompt
    ((rows, told, _),) = host.run(["a photo of a [nurse:quiet nurse:0.5]"] * 2)
    assert names(told) == ["tall", "short"] and len({id(c) for c in rows}) == 4


def test_the_guard_comes_after_balance_and_both_are_reported(hosts: Any) -> None:
    host = hosts()
    text = "a photo of a nurse by a burning house"
    args = {"enabled": True, "concepts": [FIRE], **{k: v for k, v in ASKED.items() if k != "enabled"}}
    ((rows, told, p),) = host.run([text] * 4, args=args)
    only = {"enabled": True, "concepts": [FIRE]}
    ((guarded, _, _),) = host.run([text] * 4, args=only)
    assert names(told) == ["tall", "short"] * 2 and not equal(rows[0], guarded[0])
    assert all(FIRE.removeprefix("my/") in t for t in p.extra_generation_params["Safe region moved"])
    told_of = p.safe_region.to_dict()
    assert told_of["balance"][0]["groups"] == [{"height": "tall"}, {"height": "short"}] * 2
    assert told_of["texts"] and "nurse" not in str(told_of)


def test_a_detailer_paints_the_group_of_its_picture(hosts: Any) -> None:
    host = hosts()
    ((_, told, p),) = host.run([PERSON] * 4, args={**ASKED, "axes": "my/height: tall 75, short 25"})
    place = names(told).index("short")
    inner = host.processing([PERSON], all_prompts=[PERSON], all_seeds=[100 + place], batch_size=1)
    inner.setup_conds()
    assert names(inner.extra_generation_params[GROUPS]) == ["short"]


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ("race", "There is no axis 'race' to balance"),
        ("my/height: tall 50, short 40", "add up to 90"),
        ("my/height: tall 50, blue 50", "has no group 'blue'"),
    ],
)
def test_what_is_wrong_ends_the_generation(hosts: Any, axes: str, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        hosts().run([PERSON], args={**ASKED, "axes": axes})


def test_the_fold_keeps_shares_as_text_and_says_what_does_not_add_up(hosts: Any) -> None:
    hosts()
    assert balance_panel.rows("my/height") == [("my/height", "tall", 50.0), ("my/height", "short", 50.0)]
    text = balance_panel.text_of(["my/height"], "my/height", [75.0, 25.0])
    assert text == "my/height: tall 75, short 25" and balance_panel.shares_of(text)["my/height"]["tall"] == 75
    assert balance_panel.text_of(["my/height", "gender"], text) == f"{text}\ngender"
    assert balance_panel.text_of(["my/height"], text, [50.0, 50.0]) == "my/height"
    assert "together 90" in balance_panel.explained("my/height: tall 50, short 40")
    assert balance_panel.headline("gender\nage") == "Safe Region: balance gender presentation, age"
    assert "nothing chosen" in balance_panel.headline("") and balance_panel.text_of([], text) == ""
