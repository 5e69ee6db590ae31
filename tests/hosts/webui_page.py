"""The webui's page in a headless Chromium: opens it, sets the script's controls, generates, reads what is shown."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from host_servers import WebUI

BROWSER = "SAFE_REGION_CHROMIUM"
ACCORDION = "script_txt2img_safe_region"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def browser_path() -> str | None:
    """Where Chromium is, if anywhere."""
    return os.environ.get(BROWSER) or shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One tab of the browser, with the webui in it."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def control(self, name: str, inner: str = "") -> Any:
        return self.page.locator(f"#{ACCORDION}_{name} {inner}".strip())

    def show(self, tab: str) -> None:
        self.page.locator("#tabs > .tab-nav > button", has_text=tab).first.click()

    def tick(self, name: str = "enabled") -> None:
        """Opens an accordion and ticks its box."""
        box = self.page.locator(f"#{ACCORDION}_{name}-visible-checkbox")
        if not box.is_checked():
            box.check()
        label = self.page.locator(f"#{ACCORDION}_{name} > .label-wrap")
        self.page.wait_for_timeout(500)
        if "open" not in str(label.get_attribute("class")).split():
            label.locator("span").first.click()
            self.page.wait_for_timeout(500)

    def unfold(self, *names: str) -> None:
        """Opens folds of the accordion."""
        for name in ("advanced", *names):
            label = self.control(name, "> .label-wrap")
            if "open" not in str(label.first.get_attribute("class")).split():
                label.first.click()
                self.page.wait_for_timeout(500)

    def headline(self, name: str = "enabled") -> str:
        """What the box of an accordion says."""
        return str(self.page.locator(f"#{ACCORDION}_{name} > .label-wrap > span").first.inner_text()).strip()

    def choose(self, *concepts: str, control: str = "concepts") -> None:
        """Exactly these concepts, or those of another list."""
        remove = self.control(control, ".token-remove:not(.remove-all)")
        while remove.count():
            remove.first.click()
        for concept in concepts:
            self.control(control, "input").fill(concept)
            self.page.locator(f"#{ACCORDION}_{control} ul.options li", has_text=concept).first.click()
        self.page.keyboard.press("Escape")

    def shares(self) -> list[tuple[str, float]]:
        """What the sliders of balance say."""
        shown = [self.control(f"share_{i}") for i in range(16)]
        return [
            (str(s.first.locator("label span, span").first.inner_text()).strip(),
             float(s.locator("input[type=number]").first.input_value()))
            for s in shown if s.count() and s.first.is_visible()
        ]  # fmt: skip

    def until(self, said: Callable[[], bool]) -> None:
        """Waits for what the page is to show; a busy machine takes its time."""
        for _ in range(240):
            if said():
                return
            self.page.wait_for_timeout(250)
        raise AssertionError("the page does not show what it should")

    def write(self, name: str, text: str) -> None:
        self.control(name, "textarea, input[type=text]").first.fill(text)

    def number(self, name: str, value: float) -> None:
        field = self.control(name, "input[type=number]").first
        field.fill(str(value))
        field.press("Enter")

    def check(self, name: str, on: bool = True) -> None:
        self.control(name, "input[type=checkbox]").first.set_checked(on)

    def pick(self, name: str, value: str) -> None:
        self.control(name, f"input[value={value}]").first.check()

    def values(self) -> dict[str, Any]:
        """What every control says now."""
        texts = {
            n: self.control(n, "textarea, input[type=text]").first.input_value()
            for n in ("avoid", "instead", "sentences")
        }
        return {
            "enabled": self.page.locator(f"#{ACCORDION}_enabled-visible-checkbox").is_checked(),
            "concepts": [t.strip() for t in self.control("concepts", ".token > span").all_inner_texts()],
            "strength": float(self.control("strength", "input[type=number]").first.input_value()),
            "each": [float(f.input_value()) for f in self.page.locator(f"#{ACCORDION}_each input[type=number]").all()],
            "mode": self.control("mode", "input:checked").first.get_attribute("value"),
            "preset": self.control("preset", "input:checked").first.get_attribute("value"),
            **texts,
            "guard_negative": self.control("guard_negative", "input[type=checkbox]").first.is_checked(),
            "heat_map": self.control("heat_map", "input[type=checkbox]").first.is_checked(),
        }

    def prompt(self, text: str, negative: str = "") -> None:
        self.page.locator("#txt2img_prompt textarea").first.fill(text)
        self.page.locator("#txt2img_neg_prompt textarea").first.fill(negative)

    def sizes(self, width: int = 64, height: int = 64, steps: int = 15) -> None:
        for name, value in (("width", width), ("height", height), ("steps", steps)):
            field = self.page.locator(f"#txt2img_{name} input[type=number]").first
            field.fill(str(value))
            field.press("Enter")

    def generate(self) -> str:
        """Presses Generate; the text under the picture."""
        self.page.locator("#html_log_txt2img.prose").evaluate("e => e.innerHTML = ''")
        self.page.locator("#txt2img_generate").click()
        log = self.page.locator("#html_log_txt2img.prose .performance, #html_log_txt2img.prose .error")
        log.first.wait_for(timeout=300_000)
        return str(self.page.locator("#html_log_txt2img.prose").inner_text())

    def pictures(self) -> int:
        return int(self.page.locator("#txt2img_gallery .thumbnail-item").count())

    def paste_from(self, picture: Path) -> None:
        """PNG Info of a saved picture, sent to txt2img."""
        self.show("PNG Info")
        self.page.locator("#pnginfo_image input[type=file]").set_input_files(str(picture))
        self.page.locator("#tab_pnginfo", has_text="Safe region").first.wait_for(timeout=90_000)
        self.page.locator("#txt2img_tab:visible").first.click()
        self.page.locator("#txt2img_generate").wait_for()
        self.page.wait_for_timeout(1500)


def _own_file(server: WebUI, route: Any) -> None:
    """Scripts and styles of the checkout: gradio serves none from below a folder with a dot, such as ~/.cache."""
    name = urllib.parse.unquote(route.request.url.split("/file=", 1)[1].split("?")[0])
    path = server.host.root / name
    if path.suffix in (".js", ".mjs", ".css") and path.is_file():
        route.fulfill(path=str(path))
    else:
        route.continue_()


def _load(page: Any, address: str) -> None:
    """Opens the webui; where its scripts missed that the page is there, opens it again."""
    from playwright.sync_api import TimeoutError as Missing

    for patience in (40_000, 40_000, 90_000):
        page.goto(address, wait_until="domcontentloaded")
        try:
            page.locator(f"#{ACCORDION}_enabled-visible-checkbox").wait_for(state="attached", timeout=patience)
            return
        except Missing:
            continue
    raise AssertionError("the webui's page shows no accordion of Safe Region")


@contextmanager
def opened(server: WebUI, width: int = 1360, height: int = 1200) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(90_000)
            page.route("**/file=**", lambda route: _own_file(server, route))
            page.route("https://**", lambda route: route.abort())
            _load(page, f"http://127.0.0.1:{server.port}/")
            yield Page(page)
        finally:
            browser.close()
