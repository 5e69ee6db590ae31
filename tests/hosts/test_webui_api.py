"""What the script is asked over the API of each host of the family: understood, or refused with a sentence and 422."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
import urllib.error
from typing import Any

import pytest
from host_servers import HostError, WebUI, read_picture
from PIL import Image
from test_webui_extension import BENIGN, SMALL, UNSAFE

import saferegion as sr
from saferegion_webui.arguments import NAMES, Arguments, pasted

HARD = ("it's hot, really: now", "Straße \N{SNOWMAN}", "100%2C", "火", 'say "hot"', "a 'b' (c) [d]")
"""Names that files may have."""


def asked(family: WebUI, entry: Any, **request: Any) -> Any:
    body = {**SMALL, "steps": 2, "prompt": UNSAFE, **request, "alwayson_scripts": {"Safe Region": entry}}
    return family.post_json("/sdapi/v1/txt2img", body)


def refused(family: WebUI, entry: Any) -> str:
    with pytest.raises(HostError) as caught:
        asked(family, entry)
    text = str(caught.value).split("\n", maxsplit=1)[0]
    assert "answered 422" in text and "Safe Region" in text, text
    return text


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"args": [None]}, "'enabled' is null"),
        ({"args": None}, "'enabled' is null"),
        ({"args": {"enabled": None, "concepts": ["fire"]}}, "'enabled' is null"),
        ({"args": {"concepts": ["fire"]}}, "must say 'enabled'"),
        ({"args": {"enabled": True, "concept": ["fire"]}}, "there is no argument 'concept'"),
        ({"args": True}, "'args' must be a list"),
        ({"args": "true"}, "'args' must be a list"),
        ({"args": [True] * 30}, "arguments at most"),
        ({"args": ["true"]}, "'enabled' must be true or false"),
        ({"args": [1]}, "'enabled' must be true or false"),
        ({"args": [True, ["fire"], 1, "", {"a": 1}]}, "'mode' must be one of"),
        ({"args": [True, ["fire"], 1, None, None, None, None, None, None, None, "harder"]}, "'preset' must be one of"),
        ({"args": [True, ["fire"], 1, None, None, "a\x00b"]}, "without control characters"),
        ({"arg": [True]}, "one entry 'args'"),
        (None, "one entry 'args'"),
        ([True], "one entry 'args'"),
    ],
)
def test_what_may_be_a_mistake_is_refused(family: WebUI, entry: Any, sentence: str) -> None:
    assert sentence in refused(family, entry)


def test_an_object_a_partial_list_and_nulls_are_understood(family: WebUI) -> None:
    whole = {"enabled": True, "concepts": ["fire"]}
    pictures = []
    for args in (
        whole,
        [whole],
        [True, ["fire"]],
        [True, "fire"],
        [True, ["fire"], *[None] * 9],
        {**whole, "mode": None},
    ):
        answer = asked(family, {"args": args})
        assert "Safe region moved: fire" in json.loads(answer["info"])["infotexts"][0]
        pictures.append(read_picture(base64.b64decode(answer["images"][0])))
    assert all((p == pictures[0]).all() for p in pictures)
    for entry in ({}, {"args": []}, {"args": [False]}):
        assert "Safe region" not in json.loads(asked(family, entry)["info"])["infotexts"][0]


def test_defaults_are_shown(family: WebUI) -> None:
    assert "safe region" in family.get_json("/sdapi/v1/scripts")["txt2img"]
    for script in (s for s in family.get_json("/sdapi/v1/script-info") if s["name"] == "safe region"):
        shown = [arg["value"] for arg in script["args"]]
        assert len(shown) == len(NAMES)
        understood = Arguments.parse([True, *shown[1:]], ["fire"])
        assert shown[0] is False and understood == Arguments(True, tuple(shown[1]))


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_parameters_hold_any_name(family: WebUI, kind: str) -> None:
    folder = family.folder / "models" / "safe_region"
    asked(family, {"args": [True, ["fire"]]})
    (made,) = family.directions.glob("fire-*.safetensors")
    fire = sr.load_directions(made)
    family.post_json("/sdapi/v1/options", {"samples_format": kind})
    try:
        for name in HARD:
            dataclasses.replace(fire, concept=name).save(folder / f"{name}.safetensors")
        wanted = {
            "enabled": True, "concepts": [f"my/{n}" for n in HARD], "strength": 0.75, "preset": "strict",
            "strengths": {f"my/{n}": 0.5 + i / 10 for i, n in enumerate(HARD)}, "avoid": ['"red"', "a, b", "ü: x"],
            "instead": ["blue"], "sentences": ['a "{}", so: yes', "{}\N{SNOWMAN}"],
        }  # fmt: skip
        answer = asked(family, {"args": wanted}, prompt=BENIGN)
        data = base64.b64decode(answer["images"][0])
        assert Image.open(io.BytesIO(data)).format == {"png": "PNG", "jpg": "JPEG"}[kind]
        read = family.post_json("/sdapi/v1/png-info", {"image": f"data:image/{kind};base64,{answer['images'][0]}"})
        parameters = read.get("parameters") or {}
        controls = [pasted(name, parameters) for name in NAMES]
        assert Arguments.parse(controls) == Arguments.parse([wanted])
        again = family.by_infotext(read["info"])
        assert json.loads(again["info"])["infotexts"] == json.loads(answer["info"])["infotexts"]
    finally:
        family.post_json("/sdapi/v1/options", {"samples_format": "png"})
        for name in HARD:
            (folder / f"{name}.safetensors").unlink(missing_ok=True)


def test_its_own_addresses_are_documented_and_read_only(family: WebUI) -> None:
    paths = family.get_json("/openapi.json")["paths"]
    ours = {path: list(methods) for path, methods in paths.items() if path.startswith("/safe-region/")}
    wanted = ("concepts", "status", "report/{number}")
    assert ours == {f"/safe-region/v1/{name}": ["get"] for name in wanted}
    assert all(paths[path]["get"]["description"] for path in ours)
    listed = {c["name"]: c for c in family.get_json("/safe-region/v1/concepts")["concepts"]}
    assert listed["my/fire"]["own"] and listed["nudity"]["title"] == "Nudity" and listed["nudity"]["usable"]
    asked(family, {"args": [True, ["fire"]]}, force_task_id="task(mine)")
    status = family.get_json("/safe-region/v1/status")
    assert "fire" in status["ready"] and status["on_by_default"] is False and status["preparing"] is None
    newest = family.get_json(f"/safe-region/v1/report/{status['reports'][0]['id']}")
    assert newest["texts"][0]["concepts"][0]["found"] and "burning" not in json.dumps(newest)
    assert family.get_json("/safe-region/v1/report/task(mine)")["id"] == newest["id"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        family.get("/safe-region/v1/report/none")


GOOD: dict[str, list[Any]] = {
    "enabled": [True, True, True, False],
    "concepts": ["fire", ["fire"], ["fire", "lightning"], ["my/fire"]],
    "strength": [None, 0, 0.5, 1, 2.5],
    "strengths": [None, "", {}, {"fire": 0.5}, "fire: 2"],
    "mode": [None, "project", "steer", "erase"],
    "avoid": [None, "", "snow, in the snow"],
    "instead": [None, ""],
    "sentences": [None, "", "a {} house"],
    "guard_negative": [None, True, False],
    "heat_map": [None, False],
    "preset": [None, "gentle", "normal", "strict"],
    "balance": [None, False, True],
    "axes": ["my/hat", ["my/hat"], {"my/hat": None}, {"my/hat": {"round": 60, "pointed": 40}}],
    "balance_strength": [None, 0.5, 1],
    "groups": [None, "", {}, {"7": {"hat": "round"}}],
}
"""By argument, values that are understood."""
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e9, "", "fire", "no such thing", ["fire"], ["fire", None], {}, {"fire": 1},
    {"fire": "x"}, "fire: 1", "project", "strict", [[]], "a {} b", "x" * 5000, "a\x00b", "\N{SNOWMAN}", [True], "steer",
]  # fmt: skip
RANDOM = 320


def drawn(draw: random.Random) -> tuple[Any, bool | None]:
    """An entry for ``alwayson_scripts``, and whether it asks for anything; None: that cannot be told."""
    if draw.random() < 0.05:
        return draw.choice(STRANGE), None
    strange = draw.choice([0.0, 0.0, 0.2])
    values = {n: draw.choice(STRANGE if draw.random() < strange else GOOD[n]) for n in NAMES}
    if draw.random() < 0.5:
        args: Any = list(values.values())[: draw.randrange(1, len(NAMES) + 1)]
        given = dict(zip(NAMES, args, strict=False))
    else:
        args = given = {n: values[n] for n in ("enabled", *draw.sample(NAMES, draw.randrange(1, 6)))}
    return {"args": args}, given["enabled"] is True or given.get("balance") is True


def test_many_random_requests_end_in_a_picture_or_a_sentence(family: WebUI) -> None:
    """Nothing else is answered, what is asked for is done, and nothing of it is left for whoever comes next."""

    def pictures() -> list[Any]:
        plain = family.post_json("/sdapi/v1/txt2img", {**SMALL, "steps": 2, "prompt": UNSAFE})
        return [plain["images"], asked(family, {"args": [True, ["fire"]]})["images"]]

    before = pictures()
    draw = random.Random(5)
    counts = {"guarded": 0, "unguarded": 0, "refused": 0}
    for turn in range(RANDOM):
        entry, on = drawn(draw)
        try:
            answer = asked(family, entry, steps=1, prompt=f"{BENIGN}, number {turn % 40}")
        except HostError as error:
            head = str(error).split("\n", maxsplit=1)[0]
            assert "answered 422" in head and "Safe Region" in head, (entry, head)
            counts["refused"] += 1
        else:
            said = "Safe region" in json.loads(answer["info"])["infotexts"][0]
            assert said == bool(on), entry
            counts["guarded" if said else "unguarded"] += 1
    print(family.host.name, counts)
    assert min(counts.values()) > RANDOM / 16
    assert pictures() == before
