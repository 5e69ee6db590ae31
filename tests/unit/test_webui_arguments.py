"""Arguments of the webui's script: read, refused, written into a picture's parameters and read back."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import webui_fakes  # noqa: F401  (puts the extension's folder on the path)
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from saferegion_webui import requests
from saferegion_webui.arguments import GROUPS, NAMES, Arguments, pasted, show
from saferegion_webui.refusal import SafeRegionRefused
from saferegion_webui.requests import values_of

FULL = Arguments(
    True,
    ("fire", "lightning"),
    1.5,
    (("fire", 0.25),),
    "erase",
    ("a red", "wet"),
    ("blue",),
    ('a {} "hat"', "{}, a: b"),
    True,
    True,
    "strict",
)
HARD = (
    ' my/it\'s "hot", really: now',
    "my/100%2C",
    'my/"quoted"',
    "my/Straße \N{SNOWMAN}",
    "my/\\ back",
    "my/火",
    "my/a:b",
)
"""Names that files may have."""  # fmt: skip


def test_values_come_by_position_or_by_name() -> None:
    values = [True, ["fire"], 2, "fire: 0.5", "steer", "hot, warm", "cold", "a {} day", True, False, "gentle"]
    values += [True, "gender", 0.5, ""]
    by_name = Arguments.parse([dict(zip(NAMES, values, strict=True))])
    assert Arguments.parse(values) == by_name
    assert by_name.avoid == ("hot", "warm") and by_name.strength == 2.0 and by_name.strength_of("fire") == 0.5
    as_object = {**dict(zip(NAMES, values, strict=True)), "strengths": {"fire": 0.5}}
    assert Arguments.parse([as_object, "ignored"]) == by_name


def test_what_is_left_out_takes_its_default() -> None:
    assert Arguments.parse([]) == Arguments()
    assert Arguments.parse([], ["fire"], default_on=True) == Arguments(True, ("fire",))
    assert Arguments.parse([True], ["fire"]) == Arguments(True, ("fire",))
    assert Arguments.parse([True, None, None, None, "erase"], ["fire"]).mode == "erase"
    assert Arguments.parse([False, 7, "x"]) == Arguments()


@pytest.mark.parametrize("values", [[None], [None, ["fire"]], [{"enabled": None}], [{"enabled": None, "strength": 2}]])
def test_null_is_the_default_and_never_off_in_silence(values: list[Any]) -> None:
    assert Arguments.parse(values, ["fire"], default_on=True).concepts == ("fire",)
    assert Arguments.parse(values, ["fire"], {"enabled": True}).enabled
    with pytest.raises(SafeRegionRefused, match="'enabled' is null.*say true or false"):
        Arguments.parse(values, ["fire"])


def test_the_order_only_grows() -> None:
    assert NAMES[:11] == (
        "enabled", "concepts", "strength", "strengths", "mode", "avoid", "instead", "sentences", "guard_negative",
        "heat_map", "preset",
    )  # fmt: skip
    assert NAMES[11:15] == ("balance", "axes", "balance_strength", "groups")


SHARED = Arguments(balance=True, axes="gender: woman 75, man 25\nage", balance_strength=0.5)


def test_balance_is_asked_for_with_and_without_concepts() -> None:
    as_objects = {"gender": {"woman": 75, "man": 25}, "age": None}
    for axes in (SHARED.axes, SHARED.axes.split("\n"), as_objects, f"# skin-tone\n{SHARED.axes}"):
        asked = {"enabled": False, "balance": True, "axes": axes, "balance_strength": 0.5}
        assert Arguments.parse([asked]) == SHARED
    both = Arguments.parse([{"enabled": True, "balance": True}], ["fire"])
    assert both.concepts == ("fire",) and both.axes == "gender"
    groups = {"7": {"gender": "man"}}
    for written in (groups, json.dumps(groups)):
        asked = {"enabled": False, "balance": True, "groups": written}
        assert Arguments.parse([asked]).groups == ((7, (("gender", "man"),)),)
    assert Arguments.parse([{"enabled": False, "axes": "nonsense:", "groups": 7}]) == Arguments()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"balance": 1}, "'balance' must be true or false"),
        ({"axes": ""}, "Choose at least one axis"),
        ({"axes": "gender: woman"}, "write every group with its share"),
        ({"axes": {"gender": 7}}, "an object of axes and their shares"),
        ({"axes": "gender\ngender: woman 1"}, "chosen twice"),
        ({"balance_strength": 9}, "'balance_strength' must be a number from 0 to 3"),
        ({"groups": "[1]"}, "groups by seed"),
        ({"groups": {"x": {}}}, "groups by seed"),
        ({"groups": {"1": "man"}}, "groups by seed"),
    ],
)
def test_balance_that_cannot_be_understood_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SafeRegionRefused, match=sentence):
        Arguments.parse([{"enabled": False, "balance": True, **asked}])


def test_parameters_restore_balance_and_the_group_of_their_picture() -> None:
    both = Arguments(True, ("fire",), balance=True, axes="my/hat: round 60%, pointed 40%")
    for arguments in (SHARED, both):
        parameters = _parameters(arguments)
        read = Arguments.parse([pasted(name, parameters) for name in NAMES])
        assert read == arguments and ("Safe region" in parameters) == arguments.enabled
    painted = {**_parameters(SHARED), "Seed": "12", GROUPS: "gender: woman, age: old"}
    wanted = (("gender", "woman"), ("age", "old"))
    assert Arguments.parse([pasted(name, painted) for name in NAMES]).groups == ((12, wanted),)
    varied = {**painted, "Variation seed": "90", "Variation seed strength": "0.2"}
    assert Arguments.parse([pasted(name, varied) for name in NAMES]).groups == ((90, wanted),)


def _parameters(arguments: Arguments) -> dict[str, str]:
    """As the webui writes values into a text and reads them again."""
    quoted = {k: json.dumps(str(v)) if re.search("[,\n:]", str(v)) else str(v) for k, v in arguments.infotext().items()}
    text = ", ".join(f"{k}: {v}" for k, v in quoted.items())
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text)
    return {k: json.loads(v) if v[:1] == '"' and v[-1:] == '"' else v for k, v in found}


@pytest.mark.parametrize(
    "arguments",
    [
        FULL,
        Arguments(True, ("fire",)),
        Arguments(True, (), avoid=("fire",)),
        Arguments(True, ("a", "b-1")),
        Arguments(True, tuple(name.strip() for name in HARD)),
        Arguments(True, ("a",), strengths=(("a", 2.0),), avoid=('"a"', "b, c", "%25"), sentences=('"{}"', "{}%2C")),
        Arguments(True, (HARD[2], HARD[3]), strengths=((HARD[2], 0.5), (HARD[3], 1.5)), preset="gentle"),
    ],
)
def test_parameters_restore_every_control(arguments: Arguments) -> None:
    parameters = _parameters(arguments)
    controls = {name: pasted(name, parameters) for name in NAMES}
    assert controls == {name: show(name, getattr(arguments, name)) for name in NAMES}
    assert Arguments.parse(list(controls.values())) == arguments


def test_parameters_of_version_three_are_read() -> None:
    written = (
        'Safe region: "nudity, my/fire", Safe region strengths: "nudity: 1.5, my/fire: 0.5", Safe region avoid: "a, b"'
    )
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', written)
    parameters = {k: json.loads(v) if v[:1] == '"' else v for k, v in found}
    read = Arguments.parse([pasted(name, parameters) for name in NAMES])
    assert read.concepts == ("nudity", "my/fire") and read.avoid == ("a", "b") and read.strength_of("nudity") == 1.5


def test_what_no_parameters_can_hold_is_refused() -> None:
    for text in ("a\x00b", "\ud800", "a\x1bb"):
        with pytest.raises(SafeRegionRefused, match="without control characters"):
            Arguments.parse([{"enabled": True, "concepts": ["fire"], "avoid": text}])


def test_parameters_of_other_pictures_say_nothing() -> None:
    assert all(pasted(name, {"Steps": "20"}) is None for name in NAMES)
    assert Arguments().infotext() == {}


def test_axes_take_the_place_of_values_and_add_strengths() -> None:
    values = [True, ["fire", "frost"], 1, "fire: 2"]
    found = Arguments.parse(values, (), {"strength": 0.5, "strengths": (("frost", 0.1),), "mode": "erase"})
    assert found.strength == 0.5 and found.mode == "erase" and found.strengths == (("fire", 2.0), ("frost", 0.1))
    assert Arguments.parse(values, (), {"enabled": False}) == Arguments()
    assert Arguments.parse([False, ["fire"]], (), {"enabled": True}).concepts == ("fire",)
    for wrong in ({"strength": 1e9}, {"mode": "harder"}, {"strengths": (("water", 1.0),)}):
        with pytest.raises(SafeRegionRefused):
            Arguments.parse(values, (), wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON, max_size=16) | st.lists(st.dictionaries(st.sampled_from(NAMES), JSON), min_size=1, max_size=1))
def test_garbage_is_refused_with_a_sentence_or_understood(values: list[Any]) -> None:
    try:
        found = Arguments.parse(values, ["fire"])
    except SafeRegionRefused as error:
        assert str(error).endswith((".", "')."))
        assert len(str(error)) < 400
    else:
        assert not found.enabled or found.concepts or found.avoid
        assert not found.balance or found.axes


@given(JSON)
def test_what_a_request_holds_is_refused_with_a_sentence_or_understood(entry: Any) -> None:
    for asked in (entry, {"args": entry}):
        try:
            values = values_of(asked)
        except SafeRegionRefused as error:
            assert str(error).endswith(".") and len(str(error)) < 400
        else:
            assert isinstance(values, list)


def test_a_request_is_read_before_the_host_reads_it() -> None:
    class Api:
        def init_script_args(self, request: Any, defaults: list[Any]) -> Any:
            return [request.alwayson_scripts[name]["args"] for name in request.alwayson_scripts]

    def check(values: Any) -> None:
        Arguments.parse(values, ["fire"])

    requests.install(Api, "Safe Region", lambda values: None)
    requests.install(Api, "Safe Region", check)

    def asked(entry: Any) -> Any:
        request = SimpleNamespace(alwayson_scripts={"other": {"args": 3}, "safe region": entry})
        return Api().init_script_args(request, [])

    assert asked({"args": {"enabled": True}}) == [3, [{"enabled": True}]]
    assert asked({"args": [True, ["fire"]]}) == [3, [True, ["fire"]]] and asked({}) == [3, []]
    for wrong in (None, [], {"arg": [True]}, {"args": True}, {"args": None}, {"args": [None]}, {"args": [1] * 40}):
        with pytest.raises(HTTPException) as caught:
            asked(wrong)
        assert caught.value.status_code == 422 and caught.value.detail.startswith("Safe Region")
