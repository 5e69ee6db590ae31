"""Makes docs/webui.png, the picture of the script in the README, in the real webui.

usage: pytest tests/hosts/screenshots_webui.py
"""

from __future__ import annotations

from pathlib import Path

import webui_page
from host_servers import WebUI

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_of_the_script(webui: WebUI) -> None:
    with webui_page.opened(webui, width=1240, height=1000) as page:
        page.prompt("a burning red house in a meadow, and a blue boat")
        page.sizes(steps=20)
        page.tick()
        page.choose("fire", "lightning")
        page.unfold("own")
        page.write("avoid", "rain, in the rain")
        page.check("heat_map")
        assert "Safe Region" in page.generate()
        page.page.locator("#txt2img_gallery .thumbnail-item").nth(1).click()
        page.page.wait_for_timeout(1500)
        page.page.evaluate("document.activeElement.blur()")
        page.page.mouse.move(5, 5)
        page.page.screenshot(path=str(DOCS / "webui.png"), full_page=True)
