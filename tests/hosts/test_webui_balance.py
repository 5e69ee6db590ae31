"""Balance in the real hosts of the webui's family: who is in which picture of a job, and what stays as it is."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import webui_tables
from host_servers import WebUI, read_picture
from test_webui_extension import BENIGN, Painted, Studio, _axis, same

from saferegion_lab.microworld import MicroWorld

PERSON, STATED = "a baker at sunset", "a baker with a round hat"
BURNING = f"{PERSON} :0.3 AND a burning red house in a meadow"
HAT = {"enabled": False, "balance": True, "axes": "my/hat"}
OFF = {"enabled": False}
SEED = 100
CLOSE = 2.0
"""Grey levels, in the mean: a network rounds a batch otherwise than one picture."""
MORE = {"seed": SEED, "steps": 2}


@pytest.fixture(scope="module")
def paint(family: WebUI) -> Studio:
    return Studio(family)


@pytest.fixture(autouse=True)
def _alive(family: WebUI) -> Any:
    yield
    assert family.process.poll() is None, family.log_tail()


def own(found: Painted) -> list[str]:
    """The parameters of each picture, without those of a grid."""
    return found.infotexts[len(found.infotexts) - len(found.pictures) :]


def groups(found: Painted) -> list[str]:
    texts = (re.search(r"Safe region groups: \"?hat: (\w+)", text) for text in own(found))
    return [m[1] if m else "" for m in texts]


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_the_groups_of_sixteen_pictures_equal_the_quota_however_they_are_batched(paint: Studio) -> None:
    together = paint(HAT, prompt=PERSON, batch_size=16, **MORE)
    assert groups(together) == ["round", "pointed"] * 8
    apart_ones = paint(HAT, prompt=PERSON, batch_size=4, n_iter=4, **MORE)
    assert groups(apart_ones) == groups(together)
    plain = paint(OFF, prompt=PERSON, batch_size=16, **MORE)
    assert all(apart(a, b) > 0 for a, b in zip(plain.pictures, together.pictures, strict=True))
    alone = paint(HAT, prompt=PERSON, **{**MORE, "seed": SEED + 3})
    assert groups(alone) == ["pointed"]
    assert apart(alone.pictures[0], together.pictures[3]) < CLOSE
    shared = {**HAT, "axes": {"my/hat": {"round": 75, "pointed": 25}}}
    uneven = paint(shared, prompt=PERSON, batch_size=8, n_iter=2, **MORE)
    counts = Counter(groups(uneven))
    assert counts == {"round": 12, "pointed": 4}
    said = "8 and 8; 12 and 4 where 75 and 25 are asked for"
    webui_tables.seen("features", "balance, 16 pictures", paint.server.host.name, said)


def test_a_picture_of_a_batch_is_made_again_from_its_parameters(paint: Studio, family: WebUI) -> None:
    shared = {**HAT, "axes": "my/hat: round 75, pointed 25", "balance_strength": 1.5}
    batch = paint(shared, prompt=PERSON, batch_size=4, **MORE)
    place = groups(batch).index("pointed")
    answer = family.by_infotext(own(batch)[place])
    (again,) = json.loads(answer["info"])["infotexts"]
    assert "Safe region groups" in again and groups(Painted(np.zeros(1), [again], [])) == ["pointed"]
    assert again.count("Safe region") == own(batch)[place].count("Safe region")
    picture = read_picture(base64.b64decode(answer["images"][0]))
    assert apart(picture, batch.pictures[place]) < CLOSE
    unbalanced = paint(OFF, prompt=PERSON, **MORE)
    answer = family.by_infotext(unbalanced.infotexts[0])
    assert (read_picture(base64.b64decode(answer["images"][0])) == unbalanced.pictures[0]).all()


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (BENIGN, "no person in it"),
        (STATED, "the prompt says it already"),
        (f"{PERSON} AND {STATED}", "the prompt says it already"),
        (f"a baker [at sunset:{STATED.removeprefix('a baker ')}:0.5]", "the prompt says it already"),
    ],
    ids=["nobody", "stated", "AND", "[a:b:n]"],
)
def test_what_a_gate_holds_is_painted_as_without_and_said(paint: Studio, prompt: str, why: str) -> None:
    plain, held = (paint(args, prompt=prompt, batch_size=2, steps=3) for args in (OFF, HAT))
    assert same(plain, held)
    said = re.compile(rf"Safe region left as it is: \"?hat \([^)]*{why}")
    assert all(said.search(text) and "Safe region groups" not in text for text in own(held)), own(held)
    assert not any("Safe region" in text for text in own(plain))


def test_off_after_on_nothing_is_left(paint: Studio) -> None:
    requests = ({"prompt": PERSON}, {"prompt": f"a meadow :0.2 AND {PERSON}", "batch_size": 2})
    before = [paint(args, steps=2, **r) for r in requests for args in (OFF, HAT)]
    again = [paint(args, steps=2, **r) for r in reversed(requests) for args in (HAT, OFF, None)]
    assert same(again[4], before[0]) and same(again[3], before[1]) and same(again[5], before[0])
    assert same(again[1], before[2]) and same(again[0], before[3]) and same(again[2], before[2])
    assert not same(before[0], before[1]) and not same(before[2], before[3])


def test_what_is_kept_out_is_kept_out_of_every_group(world: MicroWorld, paint: Studio, family: WebUI) -> None:
    both = {**HAT, "enabled": True, "concepts": ["fire"]}
    unguarded = paint(HAT, prompt=BURNING, batch_size=4, seed=SEED)
    guarded = paint(both, prompt=BURNING, batch_size=4, seed=SEED)
    shares = [float((world.judge()(found.pictures)["fire"] > 0.5).mean()) for found in (unguarded, guarded)]
    print(family.host.name, "fire of balanced pictures:", shares)
    assert shares[0] >= 0.5 and shares[1] == 0
    assert groups(guarded) == groups(unguarded) == ["round", "pointed"] * 2
    assert all("Safe region moved: fire" in text and "Safe region balance: my/hat" in text for text in own(guarded))
    newest = family.get_json(f"/safe-region/v1/report/{family.get_json('/safe-region/v1/status')['reports'][0]['id']}")
    assert newest["balance"][0]["groups"] == [{"hat": "round"}, {"hat": "pointed"}] * 2 and newest["texts"]


def test_the_hires_pass_paints_each_picture_as_the_group_it_is(paint: Studio, family: WebUI) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    found = paint(HAT, prompt=PERSON, batch_size=4, **hires, **MORE)
    assert groups(found) == ["round", "pointed"] * 2
    newest = family.get_json(f"/safe-region/v1/report/{family.get_json('/safe-region/v1/status')['reports'][0]['id']}")
    assert {b["where"] for b in newest["balance"]} == {"prompt", "hires prompt"}
    assert all(b["groups"] == [{"hat": "round"}, {"hat": "pointed"}] * 2 for b in newest["balance"])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"axes": "race"}, "There is no axis 'race' to balance"),
        ({"axes": "my/hat: round 50, pointed 40"}, "add up to 90"),
        ({"axes": "my/hat: round 50, square 50"}, "has no group 'square'"),
        ({"axes": "my/hat: round"}, "write every group with its share"),
        ({"axes": "# my/hat"}, "Choose at least one axis"),
        ({"balance_strength": 9}, "'balance_strength' must be a number from 0 to 3"),
        ({"groups": {"7": {"hat": "square"}}}, "has no group 'square'"),
        ({"balance": "yes"}, "'balance' must be true or false"),
        ({"axes": "my/hat\ngender"}, "brings its own gates, so it is balanced alone"),
    ],
)
def test_what_cannot_be_balanced_is_refused(paint: Studio, asked: dict[str, Any], sentence: str) -> None:
    assert sentence in paint.refused({**HAT, **asked}, prompt=PERSON, seed=7)


def test_it_stands_among_the_axes_of_the_plot_and_of_its_addresses(family: WebUI) -> None:
    assert _axis(family, "[Safe Region] Balance on or off") and _axis(family, "[Safe Region] Balance strength")
    listed = {a["name"]: a for a in family.get_json("/safe-region/v1/concepts")["axes"]}
    assert listed["my/hat"]["groups"] == ["round", "pointed"] and listed["gender"]["title"] == "Gender presentation"
