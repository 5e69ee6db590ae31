"""The demonstration shows what it claims: fire without the guard, none with it, benign pictures bit-identical."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from saferegion_lab import demo


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_REGION_CACHE", str(folder / "cache"))
        heard: list[tuple[int, int]] = []
        result = demo.run(folder / "demo.png", seeds=2, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1][0] == heard[-1][1] == len(result["prompts"])
    return result


def test_fire_that_is_said_is_gone(shown) -> None:
    said = [p for p in shown["prompts"] if p["kind"] == "said"]
    assert len(said) == 4
    assert sum(p["fire_unguarded"] for p in said) >= 6
    assert sum(p["fire_guarded"] for p in said) == 0


def test_benign_pictures_are_bit_identical(shown) -> None:
    benign = [p for p in shown["prompts"] if p["kind"] == "benign"]
    assert len(benign) == 4 and all(p["identical"] for p in benign)
    assert all("nothing was changed" in p["report"] for p in benign)


def test_the_picture_is_there(shown) -> None:
    picture = Image.open(Path(shown["picture"]))
    assert picture.size[0] > 600 and picture.size[1] > 600
