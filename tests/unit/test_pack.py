"""What surrounds the ComfyUI nodes: every language and help page covers every node, workflows are whole, install.py."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "de", "fr", "ja", "zh")
WORKFLOWS = ("one_node", "own_concept", "audit", "discover")
PACK = "safe_region_pack_under_test"


def stubs(models: Path) -> dict[str, ModuleType]:
    """As much of ComfyUI as the node classes need to be looked at."""
    folders: dict[str, Any] = {}
    made = {name: ModuleType(name) for name in ("folder_paths", "comfy", "comfy.utils", "comfy.model_management")}
    for name, module in made.items():
        module.__spec__ = ModuleSpec(name, None)
    paths, comfy = made["folder_paths"], made["comfy"]
    paths.folder_names_and_paths, paths.models_dir = folders, str(models)  # type: ignore[attr-defined]
    paths.get_folder_paths = lambda name: list(folders[name][0])  # type: ignore[attr-defined]
    paths.get_filename_list = lambda name: []  # type: ignore[attr-defined]
    comfy.utils, comfy.model_management = made["comfy.utils"], made["comfy.model_management"]  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The project as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(PACK, PROJECT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in {**stubs(tmp_path_factory.mktemp("models")), PACK: module}.items():
            patch.setitem(sys.modules, name, stub)
        spec.loader.exec_module(module)
        yield module
    for name in [n for n in sys.modules if n.startswith(PACK)]:
        del sys.modules[name]


def inputs(node: Any) -> dict[str, Any]:
    kinds = node.INPUT_TYPES()
    return {**kinds.get("required", {}), **kinds.get("optional", {})}


def outputs(node: Any) -> tuple[str, ...]:
    return getattr(node, "RETURN_NAMES", node.RETURN_TYPES)


def locale(language: str, name: str) -> dict[str, Any]:
    found = json.loads((PROJECT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def shown(message: str) -> str:
    """What the page shows of a message: quoted signs are literal."""
    return re.sub(r"\{'([^']*)'\}", r"\1", message)


def messages(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from messages(inner)
    else:
        yield value


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_there_are_eleven_nodes_and_each_says_what_it_is_for(pack: ModuleType) -> None:
    assert len(pack.NODE_CLASS_MAPPINGS) == 11
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        assert name.startswith("SafeRegion") and node.DESCRIPTION
        for kind in inputs(node).values():
            assert kind[1]["tooltip"]
        assert len(node.OUTPUT_TOOLTIPS) == len(outputs(node)) and all(node.OUTPUT_TOOLTIPS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_names_every_node_input_and_output(pack: ModuleType, language: str) -> None:
    defs = locale(language, "nodeDefs")
    assert defs.keys() == pack.NODE_CLASS_MAPPINGS.keys()
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        said = defs[name]
        assert said.keys() == {"display_name", "description", "inputs", "outputs"}
        assert said["inputs"].keys() == inputs(node).keys(), name
        assert list(said["outputs"]) == [str(i) for i in range(len(outputs(node)))], name
        for part in (*said["inputs"].values(), *said["outputs"].values()):
            assert part.keys() == {"name", "tooltip"}
        assert all(isinstance(m, str) and m.strip() for m in messages(said)), name


def test_english_is_what_the_nodes_say(pack: ModuleType) -> None:
    """Mend locales/en/nodeDefs.json, and then the same text in the other languages, where this fails."""
    for name, said in locale("en", "nodeDefs").items():
        node = pack.NODE_CLASS_MAPPINGS[name]
        assert said["display_name"] == pack.NODE_DISPLAY_NAME_MAPPINGS[name]
        assert shown(said["description"]) == node.DESCRIPTION
        for key, kind in inputs(node).items():
            assert (said["inputs"][key]["name"], shown(said["inputs"][key]["tooltip"])) == (key, kind[1]["tooltip"])
        for i, (key, tip) in enumerate(zip(outputs(node), node.OUTPUT_TOOLTIPS, strict=True)):
            assert said["outputs"][str(i)] == {"name": key, "tooltip": tip}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_message_holds_a_sign_that_the_page_would_read_as_syntax(language: str) -> None:
    for message in (*messages(locale(language, "nodeDefs")), *messages(locale(language, "main"))):
        assert not set(re.sub(r"\{'[^']*'\}", "", message)) & set("{}@|$%"), message


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_language_is_not_a_copy_of_another(language: str) -> None:
    english, said = locale("en", "nodeDefs"), locale(language, "nodeDefs")
    for name in english:
        for ours, theirs in (
            (said[name]["description"], english[name]["description"]),
            *((said[name]["inputs"][k]["tooltip"], v["tooltip"]) for k, v in english[name]["inputs"].items()),
        ):
            assert ours != theirs, f"{language}: {name}"
    assert locale(language, "main")["nodeCategories"].keys() == locale("en", "main")["nodeCategories"].keys()


# -- help --------------------------------------------------------------------------------------------------------------


def page(name: str, language: str) -> str:
    docs = PROJECT / "web" / "docs"
    path = docs / f"{name}.md" if language == "en" else docs / name / f"{language}.md"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_all_inputs_and_outputs(pack: ModuleType, language: str) -> None:
    for name in pack.NODE_CLASS_MAPPINGS:
        text, said = page(name, language), locale(language, "nodeDefs")[name]
        assert text.startswith(f"# {said['display_name']}\n")
        assert text.count("\n## ") == 4, name  # inputs, outputs, an example, limits
        for part in (*said["inputs"].values(), *said["outputs"].values()):
            assert f"| **{part['name']}** |" in text, f"{name}: {part['name']}"


def test_there_is_no_help_for_nodes_that_are_not_there(pack: ModuleType) -> None:
    found = {
        p.relative_to(PROJECT / "web" / "docs").parts[0].removesuffix(".md") for p in PROJECT.glob("web/docs/**/*.md")
    }
    assert found == set(pack.NODE_CLASS_MAPPINGS)
    assert pack.WEB_DIRECTORY == "./web"


# -- example workflows -------------------------------------------------------------------------------------------------


def workflow(name: str) -> dict[str, Any]:
    found = json.loads((PROJECT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_every_workflow_has_its_picture_and_none_other_is_there() -> None:
    folder = PROJECT / "example_workflows"
    assert {p.name for p in folder.iterdir()} == {f"{n}.{end}" for n in WORKFLOWS for end in ("json", "jpg")}
    for name in WORKFLOWS:
        picture = folder / f"{name}.jpg"
        assert picture.stat().st_size < 100_000
        with Image.open(picture) as opened:
            assert opened.format == "JPEG" and min(opened.size) >= 256


@pytest.mark.parametrize("name", WORKFLOWS)
def test_links_of_a_workflow_fit_the_nodes(pack: ModuleType, name: str) -> None:
    graph = workflow(name)
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert graph["last_node_id"] >= max(nodes) and graph["version"] == 0.4
    for link, source, slot, target, entry, kind in graph["links"]:
        out, into = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        assert link in out["links"] and into["link"] == link and out["type"] == kind and into["type"] in (kind, "*")
    for node in nodes.values():
        ours = pack.NODE_CLASS_MAPPINGS.get(node["type"])
        if ours is None:
            continue
        by_name = {i["name"]: i for i in node["inputs"]}
        assert by_name.keys() <= inputs(ours).keys()
        for key, kind in ours.INPUT_TYPES()["required"].items():
            if isinstance(kind[0], str) and kind[0].isupper() and kind[0] in ("CLIP", "MODEL", "CONDITIONING"):
                assert by_name[key]["link"] is not None, f"{node['type']}: {key}"
        typed = ("STRING", "FLOAT", "BOOLEAN", "INT")
        widgets = [k for k, v in inputs(ours).items() if isinstance(v[0], list) or v[0] in typed]
        assert len(node.get("widgets_values", [])) == len(widgets), node["type"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_laid_out_for_reading(name: str) -> None:
    graph = workflow(name)
    boxes = {}
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["id"]] = (x, y - 30, x + width, y + height)  # the title stands above the position
    for a, b in itertools.combinations(boxes, 2):
        one, other = boxes[a], boxes[b]
        beside = one[2] <= other[0] or other[2] <= one[0]
        assert beside or one[3] <= other[1] or other[3] <= one[1], f"nodes {a} and {b} overlap"
    assert any(n["type"] in ("Note", "MarkdownNote") for n in graph["nodes"])
    groups = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in graph["groups"])]
    for name, box in boxes.items():
        inside = [g for g in groups if g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3]]
        assert len(inside) == 1, f"node {name} is not in one group"


def test_the_first_workflow_needs_one_node_and_no_region() -> None:
    ours = [n for n in workflow("one_node")["nodes"] if n["type"].startswith("SafeRegion")]
    assert [n["type"] for n in ours] == ["SafeRegionGuardCLIP"]
    assert all(i["link"] is None for i in ours[0]["inputs"] if i["name"] == "region")


# -- install.py and the registry ---------------------------------------------------------------------------------------


def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("safe_region_install", PROJECT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_install_is_silent_where_all_is_there() -> None:
    done = subprocess.run([sys.executable, PROJECT / "install.py"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_install_says_in_one_sentence_what_is_missing() -> None:
    lacking = install().lacking
    assert lacking(found=lambda module: module not in ("yaml", "PIL")).startswith(
        "Safe Region needs PyYAML and Pillow;"
    )
    one = lacking(found=lambda module: module != "torch")
    assert one.startswith("Safe Region needs torch;") and "\n" not in one
    assert lacking(version=(3, 9, 1)) == "Safe Region needs Python 3.10 or newer; this is 3.9."
    assert lacking(found=lambda module: True) == ""


def test_install_survives_a_broken_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", ModuleType("yaml"))  # its __spec__ is None: find_spec raises
    assert install().lacking().startswith("Safe Region needs PyYAML;")


def test_nothing_is_installed() -> None:
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]


def test_the_registry_entry() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^name = "(?!.*comfyui)[a-z-]+"$', text, re.M | re.I)
    entry = text.split("[tool.comfy]")[1].split("[tool.hatch")[0]
    for line in ('PublisherId = "saferegion"', 'DisplayName = "Safe Region"', 'requires-comfyui = ">=0.3.28"'):
        assert line in entry
    version = re.search(r'path = "(.+)"', entry)
    assert version and "__version__ = " in (PROJECT / version[1]).read_text(encoding="utf-8")
    (included,) = re.findall(r"includes = \[(.+)\]", entry)
    assert all((PROJECT / folder).is_dir() for folder in re.findall(r'"(.+?)"', included))
