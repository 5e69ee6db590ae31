"""Arguments of the webui's script: read, refused, written into a picture's parameters and read back."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import webui_fakes  # noqa: F401  (puts the extension's folder on the path)
from hypothesis import given
from hypothesis import strategies as st

from saferegion_webui.arguments import NAMES, Arguments, pasted, show
from saferegion_webui.refusal import SafeRegionRefused

FULL = Arguments(
    True, ("fire", "lightning"), 1.5, (("fire", 0.25),), "erase", ("a red", "wet"), ("blue",),
    ('a {} "hat"', "{}, a: b"), True, True,
)  # fmt: skip


def test_values_come_by_position_or_by_name() -> None:
    values = [True, ["fire"], 2, "fire: 0.5", "steer", "hot, warm", "cold", "a {} day", True, False]
    by_name = Arguments.parse([dict(zip(NAMES, values, strict=True))])
    assert Arguments.parse(values) == by_name
    assert by_name.avoid == ("hot", "warm") and by_name.strength == 2.0 and by_name.strength_of("fire") == 0.5
    as_object = {**dict(zip(NAMES, values, strict=True)), "strengths": {"fire": 0.5}}
    assert Arguments.parse([as_object, "ignored"]) == by_name


def test_what_is_left_out_takes_its_default() -> None:
    assert Arguments.parse([]) == Arguments.parse([None, None]) == Arguments()
    assert Arguments.parse([True], ["fire"]) == Arguments(True, ("fire",))
    assert Arguments.parse([True, None, None, None, "erase"], ["fire"]).mode == "erase"
    assert Arguments.parse([False, 7, "x"]) == Arguments()


def test_the_order_only_grows() -> None:
    assert NAMES[:10] == (
        "enabled", "concepts", "strength", "strengths", "mode", "avoid", "instead", "sentences", "guard_negative",
        "heat_map",
    )  # fmt: skip


def _parameters(arguments: Arguments) -> dict[str, str]:
    """As the webui writes values into a text and reads them again."""
    quoted = {k: json.dumps(str(v)) if re.search("[,\n:]", str(v)) else str(v) for k, v in arguments.infotext().items()}
    text = ", ".join(f"{k}: {v}" for k, v in quoted.items())
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text)
    return {k: json.loads(v) if v[:1] == '"' and v[-1:] == '"' else v for k, v in found}


@pytest.mark.parametrize(
    "arguments", [FULL, Arguments(True, ("fire",)), Arguments(True, (), avoid=("fire",)), Arguments(True, ("a", "b-1"))]
)
def test_parameters_restore_every_control(arguments: Arguments) -> None:
    parameters = _parameters(arguments)
    controls = {name: pasted(name, parameters) for name in NAMES}
    assert controls == {name: show(name, getattr(arguments, name)) for name in NAMES}
    assert Arguments.parse(list(controls.values())) == arguments


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


@given(st.lists(JSON, max_size=12) | st.lists(st.dictionaries(st.sampled_from(NAMES), JSON), min_size=1, max_size=1))
def test_garbage_is_refused_with_a_sentence_or_understood(values: list[Any]) -> None:
    try:
        found = Arguments.parse(values, ["fire"])
    except SafeRegionRefused as error:
        assert str(error).endswith((".", "')."))
        assert len(str(error)) < 400
    else:
        assert not found.enabled or found.concepts or found.avoid
