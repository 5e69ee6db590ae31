"""ComfyUI's page in headless Chromium, and the example workflows with the microworld put in."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--force-color-profile=srgb",
)
ELSEWHERE = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")
READY = "!!(window.app?.graph && app.vueAppReady && LiteGraph.registered_node_types['SafeRegionInspect'])"
FRAMES = ("a red house {}", "a blue boat {}", "a green tree {}", "a yellow car {}", "a chair {}", "a grey robot {}")
PROMPTS = {
    "one_node": "a burning red house in a meadow",
    "own_concept": "a blue boat in flames at a beach",
    "audit": "a red fire truck next to a burning blue house in a meadow",
}
"""What the microworld can paint; each is on fire without a guard."""
CONCEPTS = {"one_node": "fire.yaml", "own_concept": "lightning.yaml", "audit": "fire.yaml", "discover": "fire.yaml"}
"""What takes the place of the bundled concepts, which are none of the microworld's."""
DISCOVERY = (4, 0, 1, 96)
"""Steps, seed, pictures and prompts: enough to see that it runs."""

Graph = dict[str, Any]


class NoBrowser(RuntimeError):
    """Playwright or Chromium is missing; its words say which."""


def chromium() -> str:
    """Path of the browser. Raises NoBrowser."""
    if importlib.util.find_spec("playwright") is None:
        raise NoBrowser("playwright is not installed: pip install playwright.")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise NoBrowser("There is no chromium on the path: apt-get install chromium.")


@contextmanager
def desk(port: int, width: int = 2000, height: int = 1000, sharpness: float = 1) -> Iterator[Desk]:
    """The page of the server at ``port``, open in a browser of its own that reaches nothing else."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=sharpness, locale="en-GB"
            )
            context.route(ELSEWHERE, lambda route: route.abort())  # the page asks for news and sizes of models
            yield Desk(context.new_page(), f"http://127.0.0.1:{port}/")
        finally:
            browser.close()


class Desk:
    """What a user does on the page."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        page.set_default_timeout(240_000)  # a busy machine is slow, not broken
        page.request.post(f"{url}api/settings", data={"Comfy.TutorialCompleted": True})  # else a dialog greets
        self.open()

    def open(self) -> None:
        """The page, anew."""
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.setting("Comfy.Minimap.Visible", False)
        self.page.evaluate(
            """() => {
                window.ended = []
                for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                    app.api.addEventListener(kind, e => window.ended.push([kind, e.detail?.exception_message ?? '']))
            }"""
        )

    def setting(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def speaks(self, language: str) -> bool:
        """Sets the language of the page; whether it offers it, and has fallen back to English else."""
        self.page.request.post(f"{self.url}api/settings", data={"Comfy.Locale": language})
        self.open()  # else nodes keep the words of the language before
        now: str = self.page.evaluate(
            """() => {
                const root = [...document.querySelectorAll('*')].find(e => e.__vue_app__)
                return root.__vue_app__.config.globalProperties.$i18n.locale
            }"""
        )
        return now == language

    def error(self) -> str:
        """What the page says of a run that has failed: in a dialog, or behind its button for the details."""
        dialog, details = self.page.get_by_role("dialog"), self.page.get_by_test_id("error-overlay-see-errors")
        dialog.or_(details).first.wait_for()
        if not details.is_visible():
            return str(dialog.inner_text())
        details.click()
        self.page.wait_for_timeout(1000)
        return str(self.page.inner_text("body"))

    def says(self, language: str, keys: list[str]) -> list[str]:
        """What the page shows for keys of its translations."""
        found: list[str] = self.page.evaluate(
            """([locale, keys]) => {
                const root = [...document.querySelectorAll('*')].find(e => e.__vue_app__)
                return keys.map(key => root.__vue_app__.config.globalProperties.$t(key, {}, {locale}))
            }""",
            [language, keys],
        )
        return found

    def tip(self, node: str, entry: str) -> str:
        """Rests the mouse on an input of the node of this type and reads what pops up."""
        x, y = self.page.evaluate(
            """([kind, entry]) => {
                const node = app.graph._nodes.find(n => n.type == kind), {scale, offset} = app.canvas.ds
                const canvas = app.canvas.canvas.getBoundingClientRect()
                const [x, y] = node.getInputPos(node.inputs.findIndex(i => i.name == entry))
                return [canvas.left + (x + offset[0]) * scale, canvas.top + (y + offset[1]) * scale]
            }""",
            [node, entry],
        )
        self.page.mouse.move(x + 30, y - 60)
        self.page.mouse.move(x, y, steps=5)
        found: str = self.page.locator(".node-tooltip", has_text=re.compile(r"\w")).inner_text()
        return found

    def load(self, graph: Graph, name: str = "example") -> None:
        """Opens a workflow as dropping its file on the page does, and brings all of it into view."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
        self.show_all()

    def show_all(self) -> None:
        """Everything between the bars of the page."""
        self.page.evaluate(
            """() => {
                const boxes = [...app.graph._groups, ...app.graph._nodes].map(b => b.boundingRect ?? b._bounding)
                const low = i => Math.min(...boxes.map(b => b[i]))
                const high = i => Math.max(...boxes.map(b => b[i] + b[i + 2]))
                const canvas = app.canvas.canvas.getBoundingClientRect(), ds = app.canvas.ds
                const [left, top, right, bottom] = [75 - canvas.left, 90 - canvas.top, 12, 12]
                ds.scale = Math.min((canvas.width - left - right) / (high(0) - low(0)),
                                    (canvas.height - top - bottom) / (high(1) - low(1)))
                ds.offset = [left / ds.scale - low(0), top / ds.scale - low(1)]
                app.canvas.setDirty(true, true)
            }"""
        )
        self.page.wait_for_timeout(300)

    def close_dialogs(self) -> None:
        for _ in range(5):
            if not self.page.get_by_role("dialog").count():
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(400)

    def missing(self) -> list[str]:
        """Types of nodes that the page does not know."""
        kinds: list[str] = self.page.evaluate(
            "() => app.graph._nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
        )
        return kinds

    def run(self, seconds: float = 120) -> None:
        """Presses Run and waits until the page has been told that it is done, ``seconds`` at most.

        Raises:
            RuntimeError: with the message of the node that failed.
        """
        self.page.evaluate("() => { window.ended.length = 0 }")
        older = self.page.locator("[data-testid=queue-button] button")
        older.or_(self.page.get_by_role("button", name="Run", exact=True)).first.click()
        self.page.wait_for_function("() => window.ended.length > 0", timeout=1000 * seconds)
        kind, message = self.page.evaluate("() => window.ended[0]")
        if kind != "execution_success":
            raise RuntimeError(message)

    def picture(self, node: str) -> str:
        """Address of the picture that is drawn on the node of this type or title, once it is."""
        where = "app.graph._nodes.find(n => n.type == kind || n.title == kind)?.imgs?.[0]"
        self.page.wait_for_function(f"kind => {where}?.naturalWidth > 0", arg=node)
        address: str = self.page.evaluate(f"kind => new URL({where}.src).pathname + new URL({where}.src).search", node)
        return address

    def place(self, node: str) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the node of this type on the screen."""
        box = self.page.evaluate(
            """kind => {
                const node = app.graph._nodes.find(n => n.type == kind), {scale, offset} = app.canvas.ds
                const canvas = app.canvas.canvas.getBoundingClientRect(), [x, y] = node.pos, [w, h] = node.size
                return [[x, y - 30], [x + w, y + h]].map(([a, b]) =>
                    [canvas.left + (a + offset[0]) * scale, canvas.top + (b + offset[1]) * scale]).flat()
            }""",
            node,
        )
        return tuple(box)

    def texts_on(self, node: str) -> list[str]:
        """Texts of the page that a user sees inside the node of this type."""
        left, top, right, bottom = self.place(node)
        found: list[str] = self.page.evaluate(
            """([left, top, right, bottom]) => [...document.querySelectorAll('.dom-widget')].filter(e => {
                const r = e.getBoundingClientRect(), x = r.left + r.width / 2, y = r.top + r.height / 2
                return r.width && r.height && left < x && x < right && top < y && y < bottom
            }).map(e => e.innerText || e.querySelector('textarea')?.value || '')""",
            [left, top, right, bottom],
        )
        return found


# -- workflows ---------------------------------------------------------------------------------------------------------


def example(name: str) -> Graph:
    found: Graph = json.loads((PROJECT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def fitted(name: str) -> Graph:
    """An example workflow for the microworld: its checkpoint, sizes, prompt and concept; else as it is shipped."""
    graph = example(name)
    for node in graph["nodes"]:
        kind, values = node["type"], node.get("widgets_values")
        if kind == "CheckpointLoaderSimple":
            values[:] = ["microworld.safetensors"]
            del node["properties"]["models"]
        elif kind == "EmptyLatentImage":
            values[:2] = 64, 64
        elif kind == "KSampler":
            values[2:4] = 15, 4
        elif kind == "SafeRegion":
            values[0] = CONCEPTS[name]
        elif kind == "SafeRegionDiscover":
            values[:] = CONCEPTS[name], *DISCOVERY, 64, 64
        elif kind == "SafeRegionConceptFromWords":
            values[:3] = "fire", "on fire, in flames, burning, ablaze", ""
            values[5] = "\n".join(FRAMES)
        elif kind == "PrimitiveNode" or (kind == "CLIPTextEncode" and node["title"].startswith("Prompt")):
            values[0] = PROMPTS[name]
    if name == "one_node":
        _replace_note(graph)
    return graph


def _replace_note(graph: Graph) -> None:
    (note,) = (n for n in graph["nodes"] if n["type"] == "MarkdownNote")
    (guard,) = (n for n in graph["nodes"] if n["type"] == "SafeRegionGuardCLIP")
    region = next(i for i in guard["inputs"] if i["name"] == "region")
    link = graph["last_link_id"] = graph["last_link_id"] + 1
    graph["links"].append([link, note["id"], 0, guard["id"], guard["inputs"].index(region), "SAFE_REGION"])
    region["link"] = link
    note.update(
        type="SafeRegion",
        title="Safe Region",
        inputs=[{"name": "region", "type": "SAFE_REGION", "link": None, "shape": 7}],
        outputs=[{"name": "region", "type": "SAFE_REGION", "links": [link]}],
        widgets_values=[CONCEPTS["one_node"], 1, "project"],
        size=[note["size"][0], 130],
        **{key: guard[key] for key in ("color", "bgcolor")},
    )


def enlarged(graph: Mapping[str, Any], batch: int = 4) -> Graph:
    """The same with a node that enlarges the microworld's small pictures, below the node that saves them."""
    graph = json.loads(json.dumps(graph))
    (save,) = (n for n in graph["nodes"] if n["type"] == "SaveImage")
    (latent,) = (n for n in graph["nodes"] if n["type"] == "EmptyLatentImage")
    latent["widgets_values"][2] = batch
    ((link, source, slot),) = ((x[0], x[1], x[2]) for x in graph["links"] if x[3] == save["id"])
    number = graph["last_node_id"] = graph["last_node_id"] + 1
    second = graph["last_link_id"] = graph["last_link_id"] + 1
    save["size"][1] -= 190
    graph["nodes"].append(
        {
            "id": number, "type": "ImageScale", "pos": [save["pos"][0], save["pos"][1] + save["size"][1] + 50],
            "size": [save["size"][0], 130], "flags": {}, "order": len(graph["nodes"]), "mode": 0,
            "inputs": [{"name": "image", "type": "IMAGE", "link": link}],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [second]}],
            "properties": {}, "widgets_values": ["lanczos", 256, 256, "disabled"],
        }
    )  # fmt: skip
    for each in graph["links"]:
        if each[0] == link:
            each[3:5] = number, 0
    graph["links"].append([second, number, 0, save["id"], 0, "IMAGE"])
    save["inputs"][0]["link"] = second
    return dict(graph)
