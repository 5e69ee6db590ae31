"""Makes the pictures of the script in docs/, webui.png and webui-….png, in the real webui.

usage: pytest -n 0 -m hosts tests/hosts/screenshots_webui.py
"""

from __future__ import annotations

from pathlib import Path

import webui_page
from host_servers import WebUI

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_of_the_script(webui: WebUI) -> None:
    with webui_page.opened(webui, width=1280, height=720) as page:
        _painted(page)
        page.page.locator("#txt2img_gallery .thumbnail-item").nth(1).click()
        page.page.wait_for_timeout(1500)
        page.page.evaluate("document.activeElement.blur()")
        page.page.mouse.move(5, 5)
        page.page.screenshot(path=str(DOCS / "webui.png"), full_page=True)
        page.page.locator(f"#{webui_page.ACCORDION}_enabled").screenshot(path=str(DOCS / "webui-panel.png"))


def test_the_picture_of_a_phone(webui: WebUI) -> None:
    with webui_page.opened(webui, width=390, height=844) as page:
        _painted(page)
        accordion = page.page.locator(f"#{webui_page.ACCORDION}_enabled")
        accordion.scroll_into_view_if_needed()
        box = accordion.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390, "wider than the phone"
        accordion.screenshot(path=str(DOCS / "webui-phone.png"))


def test_the_picture_of_balance(webui: WebUI) -> None:
    with webui_page.opened(webui, width=1280, height=900) as page:
        page.prompt("a baker at sunset")
        page.sizes(steps=20)
        page.tick("balance")
        page.choose("my/hat", control="balance_axes")
        page.page.wait_for_timeout(2000)
        batch = page.page.locator("#txt2img_batch_size input[type=number]").first
        batch.fill("8")
        batch.press("Enter")
        assert "Hat: " in page.generate()
        page.page.evaluate("document.activeElement.blur()")
        page.page.mouse.move(5, 5)
        page.page.wait_for_timeout(1500)
        page.page.locator(f"#{webui_page.ACCORDION}_balance").screenshot(path=str(DOCS / "webui-balance.png"))


def _painted(page: webui_page.Page) -> None:
    page.prompt("a burning red house in a meadow, and a blue boat")
    page.sizes(steps=20)
    page.tick()
    page.choose("fire", "lightning")
    page.check("heat_map")
    page.unfold("each")
    assert "Safe Region" in page.generate()
