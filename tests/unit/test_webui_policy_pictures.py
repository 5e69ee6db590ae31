"""Pictures among the values of other scripts, which a policy may refuse: found in every form, and nowhere else."""

from __future__ import annotations

import base64
import io
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import webui_fakes  # noqa: F401  (puts the extension's folder on the path)
from PIL import Image

from saferegion_webui.policy_pictures import holds_picture, script_with_picture


def written(form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(data, form)
    return data.getvalue()


TEXT = base64.b64encode(written()).decode()
PICTURE = Image.new("RGB", (4, 4))


class Mode(Enum):
    BALANCED = "Balanced"


def unit(**values: Any) -> SimpleNamespace:
    """As ControlNet has them."""
    return SimpleNamespace(**{"enabled": True, "module": "none", "model": "None", "mode": Mode.BALANCED, **values})


@pytest.mark.parametrize(
    "value",
    [
        PICTURE,
        np.zeros((4, 4, 3), np.uint8),
        torch.zeros(1, 3, 4, 4),
        [(PICTURE, "a caption")],
        {"image": np.zeros((4, 4, 3)), "mask": None},
        unit(image=PICTURE),
        {"enabled": True, "module": "none", "model": "None", "image": TEXT},
        {"enabled": False, "image": TEXT},
        [[[{"a": (PICTURE,)}]]],
        *(base64.b64encode(written(form)).decode() for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")),
        f"data:image/png;base64,{TEXT}",
        f"\n {TEXT[:76]}\n{TEXT[76:]}",
        base64.b64encode(bytes(range(7, 255)) * 4).decode(),
        written("JPEG"),
        bytearray(written()),
        io.BytesIO(written()),
        "https://example.org/a?b",
        "/srv/pictures/a fire.JPG",
        [[[[[[[[["deep"]]]]]]]]],
    ],
)
def test_a_picture_is_found(value: Any) -> None:
    assert holds_picture(value)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1.5, "", "a red house in a meadow", "a red house in a meadow, " * 60, "None", "project",
        b"a prompt\n", ["fire"], {"enabled": True, "ad_model": "face_yolov8n.pt", "ad_prompt": "a person"},
        unit(image=None), unit(enabled=False, image=PICTURE), "control_v11p_sd15_canny [d14c016b]", "e" * 300,
        {"enabled": False, "module": "none", "model": "None", "image": TEXT}, Mode.BALANCED,
        '{"7": {"gender": "woman"}}', SimpleNamespace(name="x", values=[1, 2]),
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_one(value: Any) -> None:
    assert not holds_picture(value)


def test_the_script_that_has_it_is_named_and_the_own_one_left_out() -> None:
    def script(title: str, first: int, last: int) -> Any:
        return SimpleNamespace(title=lambda: title, args_from=first, args_to=last)

    runner = SimpleNamespace(
        alwayson_scripts=[script("Safe Region", 1, 2), script("ControlNet", 2, 4)],
        selectable_scripts=[script("Loopback", 4, 5)],
    )
    p = SimpleNamespace(scripts=runner, script_args=[0, "https://own", None, unit(image=None), 1])
    assert script_with_picture(p, "Safe Region") is None
    p.script_args = [0, "x", None, unit(image=PICTURE), 1]
    assert script_with_picture(p, "Safe Region") == "ControlNet"
    p.script_args = [0, "x", None, None, PICTURE]
    assert script_with_picture(p, "Safe Region") == "Loopback"
    assert script_with_picture(SimpleNamespace(script_args=(0, PICTURE), scripts=None), "Safe Region") == "a script"
    assert script_with_picture(SimpleNamespace(), "Safe Region") is None
