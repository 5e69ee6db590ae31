"""ComfyUI's page in a browser: the example workflows open, Run paints, pictures and reports appear on the nodes, help
pages open, and labels speak the user's language."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from comfyui_page import PROJECT, Desk, Graph, NoBrowser, chromium, desk, example, fitted
from host_servers import ComfyUI, read_picture
from PIL import Image

from saferegion.guard.minors import NO_MINORS
from saferegion_lab.microworld import MicroWorld

GUARDS = {
    "one_node": "SafeRegionGuardCLIP",
    "own_concept": "SafeRegionGuardModel",
    "audit": "SafeRegionGuardConditioning",
}
PACK = "safe-region"


def missing() -> str:
    try:
        chromium()
    except NoBrowser as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "none")


@pytest.fixture(scope="module")
def opened(comfyui: ComfyUI) -> Iterator[Desk]:
    with desk(comfyui.port) as found:
        yield found


@pytest.fixture
def page(opened: Desk) -> Iterator[Desk]:
    yield opened
    opened.close_dialogs()


@pytest.fixture
def in_language(page: Desk) -> Iterator[Any]:
    """Sets the language of the page for one test."""
    before = page.page.evaluate("() => app.extensionManager.setting.get('Comfy.Locale')")

    def change(language: str) -> None:
        if not page.speaks(language):
            pytest.skip(f"This page offers no language '{language}'.")

    yield change
    page.speaks(before)


def asking(graph: Graph, prompt: str) -> Graph:
    """The workflow with another prompt: the host runs again what it has not run before."""
    for node in graph["nodes"]:
        if node["type"] == "PrimitiveNode" or node.get("title", "").startswith("Prompt"):
            node["widgets_values"] = [prompt]
    return graph


@pytest.mark.parametrize("name", GUARDS)
def test_an_example_opens_and_run_paints_a_guarded_picture(
    page: Desk, comfyui: ComfyUI, world: MicroWorld, name: str
) -> None:
    page.load(fitted(name))
    assert page.missing() == []
    page.run()
    painted = read_picture(comfyui.get(page.picture("SaveImage")))
    assert painted.shape == (64, 64, 3) and painted.std() > 5
    assert float(world.judge()(np.array(painted[None]))["fire"][0]) < 0.5
    (report,) = (t for t in page.texts_on(GUARDS[name]) if "told by" in t)
    assert report.lower().startswith("fire: +") and "-> -" in report


@pytest.mark.parametrize("vue", [False, True])
def test_rows_are_added_switched_weighed_and_taken_out(page: Desk, vue: bool) -> None:
    """In both renderers; what the page sends is the plain text that API users write."""
    page.setting("Comfy.VueNodes.Enabled", vue)
    try:
        page.load(fitted("one_node"))
        page.page.evaluate(
            """() => {
                const node = LiteGraph.createNode('SafeRegionGuard')
                app.graph.clear()
                app.graph.add(node)
                node.pos = [100, 100]
                node.widgets.find(w => w.name == 'concepts').value = 'fire.yaml: 1'
            }"""
        )
        page.show_all()
        rows = page.page.locator(".safe-region-rows").last
        rows.get_by_role("button", name="concept").last.click()
        assert rows.get_by_role("combobox").count() == 2
        rows.get_by_label("concept 2").select_option("lightning.yaml")
        rows.get_by_label("strength 2").fill("0.5")
        rows.get_by_label("strength 2").press("Tab")
        rows.get_by_label("on 1").uncheck()
        written = "() => app.graph._nodes[0].serialize().widgets_values"
        assert page.page.evaluate(written) == ["# fire.yaml: 1\nlightning.yaml: 0.5", "normal", False]
        rows.get_by_label("remove 1").click()
        assert page.page.evaluate(written)[0] == "lightning.yaml: 0.5"
        page.page.evaluate("() => app.loadGraphData(app.graph.serialize())")
        page.page.wait_for_timeout(500)
        assert page.page.evaluate(written) == ["lightning.yaml: 0.5", "normal", False]
    finally:
        page.setting("Comfy.VueNodes.Enabled", False)


def test_the_example_that_discovers_opens(page: Desk) -> None:
    page.load(fitted("discover"))
    assert page.missing() == []


def test_the_heat_map_appears_in_the_node_and_the_report_beside_it(page: Desk, comfyui: ComfyUI) -> None:
    page.load(asking(fitted("audit"), "a red fire truck next to a burning green house in a city"))
    page.run()
    heat = read_picture(comfyui.get(page.picture("SafeRegionInspect"))).astype(int)
    assert (heat[..., 0] - heat[..., 1]).max() > 100  # a word outside is red
    assert (heat[..., 2] - heat[..., 0]).max() > 60  # words inside are blue
    assert any(re.search(r"told by [^)]*burning", text) for text in page.texts_on("SafeRegionInspect"))
    assert any("told by" in text for text in page.texts_on("PreviewAny"))
    left, top, right, bottom = page.place("SafeRegionInspect")
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    seen = np.asarray(Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")).astype(int)
    assert ((seen > 240).all(2).mean() > 0.1) and ((seen[..., 0] - seen[..., 1]) > 60).any()  # it is drawn there


def test_the_line_below_guard_clip_tells_of_all_prompts_of_this_run_and_of_no_other(page: Desk) -> None:
    graph = fitted("one_node")
    (guard,) = (n for n in graph["nodes"] if n["type"] == "SafeRegionGuardCLIP")
    (negative,) = (n for n in graph["nodes"] if n.get("title", "").startswith("Negative"))
    (link,) = (x for x in graph["links"] if x[0] == negative["inputs"][0]["link"])
    (loader,) = (n for n in graph["nodes"] if n["id"] == link[1])
    loader["outputs"][link[2]]["links"].remove(link[0])
    guard["outputs"][0]["links"].append(link[0])
    link[1:3] = guard["id"], 0
    page.load(asking(graph, "a yellow car in flames in a city"))
    page.run()
    (both,) = page.texts_on("SafeRegionGuardCLIP")
    assert "Fire: +" in both and "inside the safe region; nothing was changed" in both
    page.load(asking(graph, "a red fire truck in a city"))
    page.run()
    (text,) = page.texts_on("SafeRegionGuardCLIP")
    assert text.startswith("inside the safe region; nothing was changed") and NO_MINORS in text


def test_what_goes_wrong_is_said_on_the_page(page: Desk) -> None:
    graph = fitted("own_concept")
    for node in graph["nodes"]:
        if node["type"] == "SafeRegionConceptFromWords":
            node["widgets_values"][1] = " "
    page.load(graph)
    with pytest.raises(RuntimeError, match="^'fire': give at least one word or phrase to avoid"):
        page.run()
    assert "give at least one word or phrase to avoid" in page.error()


def test_the_template_browser_offers_the_examples_with_their_pictures(page: Desk) -> None:
    page.page.get_by_role("button", name="Templates").click()
    content = page.page.get_by_test_id("template-workflows-content")
    page.page.get_by_role("dialog").get_by_text(PACK, exact=True).first.click()
    for name in (*GUARDS, "discover"):
        page.page.wait_for_function(
            "name => document.querySelector(`[data-testid=template-workflow-${name}] img`)?.naturalWidth > 400",
            arg=name,
        )
    content.get_by_test_id("template-workflow-own_concept").click()
    content.wait_for(state="hidden")
    kinds = sorted(node["type"] for node in example("own_concept")["nodes"])
    page.page.wait_for_function(
        "kinds => JSON.stringify(app.graph._nodes.map(n => n.type).sort()) == JSON.stringify(kinds)", arg=kinds
    )
    assert page.missing() == []
    asked = page.page.get_by_text(re.compile("Missing Models|is missing"))  # a dialog, or a line in a corner
    asked.first.wait_for()
    assert "v1-5-pruned-emaonly-fp16.safetensors" in page.page.inner_text("body")


def help_page(page: Desk, node: str) -> Any:
    """Clicks on a node and on the sign for its help."""
    left, top, right, _ = page.place(node)
    page.page.mouse.click((left + right) / 2, top + 12)
    page.page.get_by_test_id("info-button").click()
    found = page.page.locator(".node-help-content")
    found.wait_for()
    return found


def test_the_help_page_of_a_node_opens(page: Desk) -> None:
    page.load(fitted("audit"))
    found = help_page(page, "SafeRegionInspect")
    found.get_by_role("heading", name="Limits").wait_for()
    assert "a word (token) of the prompt" in found.inner_text()
    assert found.get_by_role("table").count() == 2


@dataclass(frozen=True)
class Spoken:
    """What the page says in a language: titles of three nodes, labels, the beginning of a tip, and of a help page."""

    titles: tuple[str, str, str]
    labels: frozenset[str]
    tip: str
    heading: str
    help: str


SPOKEN = {
    "de": Spoken(
        ("CLIP schützen", "Modell schützen", "Konzept aus Wörtern"),
        frozenset({"Vermeiden", "Stattdessen", "Sätze", "Bereich", "Stärke"}),
        "Was eingeschaltet ist", "Grenzen", "im letzten Augenblick",
    ),
    "fr": Spoken(
        ("Protéger le CLIP", "Protéger le modèle", "Concept à partir de mots"),
        frozenset({"éviter", "à la place", "phrases", "zone", "force"}),
        "Ce qui est activé", "Limites", "au dernier moment",
    ),
}  # fmt: skip
"""Both are tried; a page that offers one of them not is named in the summary."""


@pytest.mark.parametrize("language", SPOKEN)
def test_labels_tips_and_help_speak_the_users_language(page: Desk, in_language: Any, language: str) -> None:
    spoken = SPOKEN[language]
    in_language(language)
    page.page.wait_for_function(
        "title => LiteGraph.registered_node_types['SafeRegionGuardCLIP'].title == title", arg=spoken.titles[0]
    )
    page.load(fitted("own_concept"))
    titles = page.page.evaluate("() => Object.fromEntries(app.graph._nodes.map(n => [n.type, n.title]))")
    assert titles["SafeRegionGuardModel"] == spoken.titles[1]
    assert titles["SafeRegionConceptFromWords"] == spoken.titles[2]
    labels = page.page.evaluate(
        """() => {
            const node = app.graph._nodes.find(n => n.type == 'SafeRegionConceptFromWords')
            return [...node.widgets.map(w => w.label), ...node.inputs.map(i => i.localized_name)]
        }"""
    )
    assert spoken.labels <= set(labels)
    assert page.tip("SafeRegionGuardModel", "region").startswith(spoken.tip)
    found = help_page(page, "SafeRegionGuardModel")
    found.get_by_role("heading", name=spoken.heading).wait_for()
    assert spoken.help in found.inner_text()


def flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    else:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}")


@pytest.mark.parametrize("language", sorted(p.name for p in (PROJECT / "locales").iterdir()))
def test_the_page_reads_every_message_as_it_is_meant(page: Desk, in_language: Any, language: str) -> None:
    """The page's own translation reads braces and other signs in a message as syntax."""
    in_language(language)
    meant: dict[str, str] = {}
    for name, root in (("nodeDefs", "nodeDefs"), ("main", "")):
        found = json.loads((PROJECT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))
        meant |= {key.strip("."): text for key, text in flat(found, root)}
    plain = [re.sub(r"\{'([^']*)'\}", r"\1", text) for text in meant.values()]
    assert page.says(language, list(meant)) == plain
