"""Texts that other extensions put before the diffusion model are guarded or refused, on each host of the family."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from host_servers import HostError, WebUI, read_picture
from test_webui_extension import BENIGN, ON, UNSAFE, Painted, Studio, same

from saferegion_lab.microworld import MicroWorld

TEXT = "a burning red house"
QUIET = "a blue boat at a beach"


@pytest.fixture(scope="module")
def paint(family: WebUI) -> Studio:
    return Studio(family)


@pytest.fixture(autouse=True)
def _nothing(family: WebUI) -> Iterator[None]:
    yield
    family.post_json("/test/inject", {"how": ""})
    assert family.process.poll() is None, family.log_tail()


def inject(family: WebUI, how: str, text: str = TEXT) -> None:
    family.post_json("/test/inject", {"how": how, "text": text})


def fire(world: MicroWorld, found: Painted) -> float:
    return float((world.judge()(found.pictures)["fire"] > 0.5).mean())


def test_what_an_extension_encodes_is_guarded(world: MicroWorld, family: WebUI, paint: Studio) -> None:
    request = {"prompt": BENIGN, "batch_size": 3}
    inject(family, "encode")
    assert fire(world, paint(**request)) >= 0.6
    on = paint(ON, **request)
    assert fire(world, on) == 0
    assert all("Safe region moved: fire" in text for text in on.infotexts)
    inject(family, "encode", QUIET)
    assert same(paint(**request), paint(ON, **request))
    inject(family, "encode", "a b.u.r.n.i.n.g red house")
    assert "Safe region moved: fire" in paint(ON, **request).infotexts[0]


def test_what_an_extension_kept_is_refused_where_it_is_outside(family: WebUI, world: MicroWorld, paint: Studio) -> None:
    before = paint(ON, prompt=UNSAFE)
    inject(family, "keep")
    assert fire(world, paint(prompt=BENIGN, batch_size=3)) >= 0.6
    for request in ({}, {"batch_size": 2}, {"negative_prompt": TEXT}, {"prompt": f"{BENIGN} AND a tree"}):
        said = paint.refused(ON, **{"prompt": BENIGN, **request})
        assert "another extension paints from a text" in said and "Fire" in said
    inject(family, "keep", QUIET)
    assert same(paint(prompt=BENIGN), paint(ON, prompt=BENIGN))
    inject(family, "")
    assert same(paint(ON, prompt=UNSAFE), before)


def test_what_is_changed_a_little_is_painted(family: WebUI, paint: Studio) -> None:
    inject(family, "noise")
    assert same(paint(prompt=BENIGN), paint(ON, prompt=BENIGN))


def own(family: WebUI, prompt: str, **where: Any) -> tuple[np.ndarray, str]:
    answer = family.post_json("/test/own", {"prompt": prompt, **where})
    return read_picture(base64.b64decode(answer["image"])), answer["info"]


@pytest.mark.parametrize("where", [{}, {"outside": True}], ids=["job", "no job"])
def test_a_processing_of_an_extensions_own_follows_the_settings(
    family: WebUI, world: MicroWorld, where: dict[str, bool]
) -> None:
    picture, info = own(family, UNSAFE, **where)
    assert world.judge()(picture[None])["fire"][0] > 0.5 and "Safe region" not in info
    family.post_json("/sdapi/v1/options", {"safe_region_default_on": True, "safe_region_concepts": ["fire"]})
    try:
        guarded, info = own(family, UNSAFE, **where)
        assert world.judge()(guarded[None])["fire"][0] < 0.5 and "Safe region moved: fire" in info
        family.post_json("/sdapi/v1/options", {"safe_region_concepts": ["no such concept"]})
        with pytest.raises(HostError, match="There is no concept"):
            own(family, UNSAFE, **where)
    finally:
        defaults = {"safe_region_default_on": False, "safe_region_concepts": ["nudity", "violence", "self-harm"]}
        family.post_json("/sdapi/v1/options", defaults)
    again, info = own(family, UNSAFE, **where)
    assert (again == picture).all() and "Safe region" not in json.dumps(info)
