"""The script's page in a real browser: the accordion, a picture with its report, and a picture's parameters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import webui_page
from host_servers import WebUI

import saferegion as sr

UNSAFE = "a burning red house in a meadow"


@pytest.fixture(scope="module")
def page(webui: WebUI) -> Iterator[webui_page.Page]:
    pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright: pip install playwright")
    if webui_page.browser_path() is None:
        pytest.skip(f"no Chromium here: install it, or set {webui_page.BROWSER} to one.")
    with webui_page.opened(webui) as page:
        yield page


@pytest.fixture(autouse=True)
def _seen(page: webui_page.Page, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        page.page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        print("the page as it was:", tmp_path / "page.png")


def newest(webui: WebUI) -> Path:
    return max((webui.folder / "outputs").rglob("*.png"), key=lambda p: p.stat().st_mtime)


def test_a_guarded_picture_and_its_parameters(page: webui_page.Page, webui: WebUI) -> None:
    assert page.values()["enabled"] is False
    page.prompt(UNSAFE)
    page.sizes()
    page.tick()
    page.choose("fire", "lightning")
    page.page.wait_for_timeout(1000)
    assert page.headline() == "Safe Region: keep out fire, lightning"
    assert "Fire" in page.control("about").first.inner_text()
    page.number("strength", 1.5)
    page.pick("preset", "strict")
    page.check("heat_map")
    page.unfold("each", "own")
    page.number("strength_0", 1)
    page.pick("mode", "project")
    page.write("avoid", "boat, in a boat")
    page.write("instead", "tree")
    page.write("sentences", "a red {} at a beach\n{}, a house")
    page.check("guard_negative")
    log = page.generate()
    assert "Safe Region, prompt: " in log and "Fire was kept out (found in: " in log and "burning" in log, log
    assert page.pictures() >= 2  # the picture and its heat map
    wanted = page.values()
    assert wanted["concepts"] == ["my/fire", "my/lightning"] and wanted["strength"] == 1.5
    assert wanted["each"][:2] == [1, 1.5] and wanted["preset"] == "strict"

    picture = newest(webui)
    page.choose("nudity")
    page.number("strength", 0.3)
    page.pick("mode", "erase")
    page.pick("preset", "gentle")
    for name in ("avoid", "instead", "sentences"):
        page.write(name, "")
    page.check("guard_negative", False)
    page.check("heat_map", False)
    page.page.wait_for_timeout(1000)
    assert page.values()["each"][0] == 0.3
    page.paste_from(picture)
    assert page.values() == wanted


def test_balance_has_a_fold_of_its_own(page: webui_page.Page, webui: WebUI) -> None:
    page.show("txt2img")
    page.prompt("a baker at sunset")
    page.sizes(steps=4)
    page.page.locator(f"#{webui_page.ACCORDION}_enabled-visible-checkbox").set_checked(False)
    page.tick("balance")
    page.choose("my/hat", control="balance_axes")
    page.until(lambda: page.headline("balance") == "Safe Region: balance hat")
    page.until(lambda: page.shares() == [("Of 100 pictures: round", 50), ("Of 100 pictures: pointed", 50)])
    about = page.control("balance_about").first
    page.number("share_0", 25)
    page.until(lambda: "together 75, make it 100" in about.inner_text())
    page.number("share_1", 75)
    page.until(lambda: "together" not in about.inner_text())
    batch = page.page.locator("#txt2img_batch_size input[type=number]").first
    batch.fill("4")
    batch.press("Enter")
    log = page.generate()
    assert "Hat: " in log and "pointed 3" in log and "round 1" in log, log
    picture = newest(webui)
    page.choose("gender", control="balance_axes")
    box = page.page.locator(f"#{webui_page.ACCORDION}_balance-visible-checkbox")
    box.set_checked(False)
    page.until(lambda: page.headline("balance") == "Safe Region: balance gender presentation")
    page.paste_from(picture)
    page.until(lambda: box.is_checked() and page.headline("balance") == "Safe Region: balance hat")
    page.until(lambda: [share for _, share in page.shares()] == [25, 75])
    box.set_checked(False)
    batch.fill("1")
    batch.press("Enter")


def test_what_is_refused_is_said_in_place_of_a_picture(page: webui_page.Page) -> None:
    page.show("txt2img")
    page.tick()
    page.choose("fire")
    page.unfold("own")
    page.write("sentences", "no braces")
    log = page.generate()
    assert "must be sentences that hold {}" in log
    page.write("sentences", "")


def test_the_tab_inspects_a_prompt_and_makes_concepts(page: webui_page.Page, webui: WebUI, tmp_path: Path) -> None:
    inner = page.page
    page.show("Safe Region")
    inner.locator("#safe_region_prompt textarea").fill(UNSAFE)
    inner.locator("#safe_region_chosen input").fill("fire")
    inner.locator("#safe_region_chosen ul.options li", has_text="fire").first.click()
    inner.locator("#safe_region_chosen input").blur()  # the open list would lie over the button
    inner.locator("#safe_region_inspect").click()
    inner.locator("#safe_region_heat_map img").wait_for(timeout=240_000)
    assert "burning" in inner.locator("#safe_region_inspected.prose").inner_text()
    inner.locator("#tab_safe_region button", has_text="Concepts").first.click()
    folder = webui.folder / "models" / "safe_region"
    inner.locator("#safe_region_name textarea, #safe_region_name input").first.fill("Snow")
    inner.locator("#safe_region_avoid textarea, #safe_region_avoid input").first.fill("snow, in the snow")
    inner.locator("#safe_region_make").click()
    inner.locator("#safe_region_said.prose", has_text="snow").wait_for(timeout=90_000)
    try:
        assert (folder / "snow.yaml").is_file()
        inner.locator("#safe_region_list", has_text="snow").first.wait_for(timeout=90_000)
        inner.locator("#safe_region_make").click()
        inner.locator("#safe_region_said.prose", has_text="already").wait_for(timeout=90_000)
        inner.locator("#safe_region_which input").fill("snow")
        inner.locator("#safe_region_which ul.options li", has_text="snow").first.click()
        inner.locator("#safe_region_export").click()
        inner.locator("#safe_region_file", has_text="snow.safetensors").wait_for(timeout=90_000)
        (made,) = webui.directions.glob("snow-*.safetensors")
        named = dataclasses.replace(sr.load_directions(made), concept="drift").save(tmp_path / "some.safetensors")
        inner.locator("#safe_region_upload input[type=file]").set_input_files(str(named))
        inner.locator("#safe_region_upload", has_text="some.safetensors").wait_for(timeout=90_000)
        inner.locator("#safe_region_import").click()
        inner.locator("#safe_region_said.prose", has_text="drift").wait_for(timeout=90_000)
        assert sr.load_directions(folder / "drift.safetensors").concept == "drift"
    finally:
        for name in ("snow.yaml", "drift.safetensors"):
            (folder / name).unlink(missing_ok=True)


def test_the_page_is_translated(webui: WebUI) -> None:
    root = Path(__file__).resolve().parents[2]
    known = {}
    for file in (root / "localizations").glob("*.json"):
        known[file.stem] = json.loads(file.read_text(encoding="utf-8"))
    assert set(known) == {"de_DE", "fr_FR", "ja_JP", "zh_CN"}
    config = webui.get("/config").decode()
    for table in known.values():
        missing = [text for text in table if json.dumps(text)[1:-1] not in config]
        assert not missing
