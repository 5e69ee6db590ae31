"""Who may import whom: doors and laboratory the product, and in the product every room those below it, core no one."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PRODUCT, LAB = "saferegion", "saferegion_lab"
DOORS = ("nodes", "saferegion_webui", "scripts", "install", "preload", "")
"""What hosts load; the last is the file that makes the project a node pack."""
PACK = ("nodes", PRODUCT, "")
"""What ComfyUI loads under a name of its own, so that only relative imports find it."""
ROOMS = {
    "core": {"core"},
    "learn": {"core", "learn"},
    "discover": {"core", "learn", "discover"},
    "guard": {"core", "learn", "discover", "guard"},
    "view": {"core", "view"},
    "diffusers": {"core", "learn", "discover", "guard", "diffusers"},
}
"""Room of the product -> rooms it may import."""


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    absolute: bool


def files() -> dict[str, Path]:
    """Module name, from the project's root -> file."""
    found = [PROJECT / f"{name}.py" for name in ("__init__", "install", "preload")]
    found += [p for d in ("nodes", "scripts", "saferegion_webui", PRODUCT, LAB) for p in (PROJECT / d).rglob("*.py")]
    return {
        ".".join(p.relative_to(PROJECT).with_suffix("").parts).removesuffix("__init__").rstrip("."): p for p in found
    }


FILES = files()
FRONT = {PRODUCT, f"{PRODUCT}.__main__"}
"""What stands in front of the rooms: the names people import, and ``python -m``."""
UNSORTED = {f"{PRODUCT}.{p.stem}" for p in (PROJECT / PRODUCT).glob("*.py")} - {*FRONT, f"{PRODUCT}.__init__"}
"""Modules of the product that lie in no room yet; what they import, and who imports them, is not looked at."""


def imports(module: str) -> list[Import]:
    """Imports of modules of this project, those inside functions and for types included."""
    path = FILES[module]
    package = path.relative_to(PROJECT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names, absolute = [a.name for a in node.names], True
        elif isinstance(node, ast.ImportFrom):
            absolute = not node.level
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *((node.module,) if node.module else ())))
            inner = [f"{stem}.{a.name}".lstrip(".") for a in node.names]
            names = [name if name in FILES else stem for name in inner]
        else:
            continue
        for name in names:
            if name in FILES and not (absolute and name.partition(".")[0] == "nodes"):  # that is ComfyUI's
                found.append(Import(node.lineno, name, absolute))
    return found


IMPORTS = {module: imports(module) for module in FILES}


def top(module: str) -> str:
    return module.partition(".")[0]


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def said(module: str, found: Import) -> str:
    return f"{FILES[module].relative_to(PROJECT)}:{found.line} imports {found.target}"


@pytest.mark.parametrize("name", [*ROOMS, ""])
def test_a_room_imports_itself_and_the_rooms_below(name: str) -> None:
    allowed = ROOMS.get(name, set(ROOMS))
    assert not [
        said(module, i)
        for module in FILES
        if top(module) == PRODUCT and module not in UNSORTED and room(module) == name
        for i in IMPORTS[module]
        if i.target not in UNSORTED and not (top(i.target) == PRODUCT and room(i.target) in allowed)
    ]


def test_nothing_but_the_rooms_is_in_the_product() -> None:
    if (PROJECT / PRODUCT / "region.py").exists():
        pytest.skip("The core's modules are not in their room yet.")
    assert not UNSORTED
    assert {room(module) for module in FILES if top(module) == PRODUCT and module not in FRONT} == {*ROOMS}


def test_only_the_laboratory_imports_the_laboratory() -> None:
    assert not [
        said(module, i)
        for module in FILES
        if top(module) in (*DOORS, PRODUCT)
        for i in IMPORTS[module]
        if top(i.target) == LAB
    ]


def test_nothing_imports_a_door_but_itself() -> None:
    doors = {"nodes": ("nodes", ""), "saferegion_webui": ("saferegion_webui", "scripts", "preload")}
    assert not [
        said(module, i)
        for module in FILES
        for i in IMPORTS[module]
        if top(i.target) in DOORS and top(module) not in doors.get(top(i.target), ())
    ]


def test_what_is_in_the_node_pack_imports_its_own_relatively() -> None:
    assert not [said(m, i) for m in FILES if top(m) in PACK for i in IMPORTS[m] if i.absolute]


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: {i.target for i in IMPORTS[module]} - UNSORTED for module in FILES.keys() - UNSORTED}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
