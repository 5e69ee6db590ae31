"""Screenshots of ComfyUI's page for the README, and the pictures of the example workflows.

    python tests/hosts/screenshots_comfyui.py

The real ComfyUI (SAFE_REGION_COMFYUI, else ~/.cache/safe-region/hosts/comfyui) paints with the microworld, whose
pictures of 64 pixels are enlarged. Needs Chromium and playwright.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(PROJECT)]

import comfyui_files  # noqa: E402
from comfyui_page import Desk, Graph, desk, enlarged, fitted  # noqa: E402
from host_servers import ComfyUI, Host  # noqa: E402

from saferegion.view.heat_map import font, text_width  # noqa: E402
from saferegion_lab.microworld import load  # noqa: E402

SIZES = {"one_node": (1600, 690), "audit": (1900, 845)}
"""Of the page, so that the workflow fills it."""
SIDE, STRIP, GAP = 280, 34, 6
BYPASS = 4


def base(folder: Path) -> Path:
    """A base directory for ComfyUI with the microworld and this project."""
    world = load()
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir()
    comfyui_files.write(folder / "models", world)
    world.export(folder / "models" / "checkpoints" / "microworld.safetensors")
    (folder / "custom_nodes" / "microworld_sizes").symlink_to(HERE / "comfyui_plugin")
    (folder / "custom_nodes" / "safe-region").symlink_to(PROJECT)
    return folder


def bypassed(graph: Graph) -> Graph:
    """The same without its guard."""
    for node in graph["nodes"]:
        if node["type"].startswith("SafeRegionGuard"):
            node["mode"] = BYPASS
    return graph


def painted(page: Desk, server: ComfyUI, graph: Graph, node: str = "SaveImage") -> Image.Image:
    """The picture on a node after a run."""
    page.load(graph)
    page.run()
    return Image.open(io.BytesIO(server.get(page.picture(node)))).convert("RGB")


def side_by_side(without: Image.Image, guarded: Image.Image) -> Image.Image:
    """Two pictures with what they are above them."""
    sheet = Image.new("RGB", (2 * SIDE + GAP, SIDE + STRIP), (24, 26, 30))
    draw, face = ImageDraw.Draw(sheet), font(17)
    for i, (picture, words) in enumerate(((without, "without the guard"), (guarded, "with the guard"))):
        left = i * (SIDE + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, STRIP))
        draw.text((left + (SIDE - text_width(face, words)) // 2, 7), words, fill=(235, 235, 235), font=face)
    return sheet


def below(above: Image.Image, under: Image.Image) -> Image.Image:
    """The heat map above the picture that was painted."""
    wide = above.resize((560, round(above.height * 560 / above.width)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (560, wide.height + SIDE + 2 * GAP), (24, 26, 30))
    sheet.paste(wide, (0, 0))
    sheet.paste(under.resize((SIDE, SIDE), Image.Resampling.LANCZOS), ((560 - SIDE) // 2, wide.height + GAP))
    return sheet


def save(picture: Image.Image, path: Path, **how: Any) -> None:
    picture.save(path, **how)
    print(f"{path.relative_to(PROJECT)}: {picture.width} x {picture.height}, {path.stat().st_size // 1024} KB")


def pictures(server: ComfyUI) -> None:
    """Those of the example workflows."""
    folder = PROJECT / "example_workflows"
    with desk(server.port) as page:
        for name in ("one_node", "own_concept"):
            without, guarded = (painted(page, server, g) for g in (bypassed(fitted(name)), fitted(name)))
            save(side_by_side(without, guarded), folder / f"{name}.jpg", quality=88)
        guarded = painted(page, server, fitted("audit"))
        heat = Image.open(io.BytesIO(server.get(page.picture("SafeRegionInspect")))).convert("RGB")
        save(below(heat, guarded), folder / "audit.jpg", quality=90)
        graph = fitted("discover")
        (node,) = (n for n in graph["nodes"] if n["type"] == "SafeRegionDiscover")
        node["widgets_values"][1:5] = 60, 0, 1, 400
        page.load(graph)
        page.run(1200)
        shot = Image.open(io.BytesIO(server.get(page.picture("Without and with the guard"))))
        wide = shot.convert("RGB").resize((560, round(shot.height * 560 / shot.width)))
        save(wide, folder / "discover.jpg", quality=88)
        page.show_all()
        page.page.wait_for_timeout(1500)
        whole = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
        whole = whole.resize((1400, 700), Image.Resampling.LANCZOS)
        save(whole, PROJECT / "docs" / "comfyui-discover.png", optimize=True)


def screenshots(server: ComfyUI) -> None:
    """Those of the page."""
    for name, (width, height) in SIZES.items():
        with desk(server.port, width, height, sharpness=1.5) as page:
            for setting in ("Comfy.Graph.CanvasMenu", "Comfy.Graph.CanvasInfo"):
                page.setting(setting, False)
            page.load(enlarged(fitted(name)), name)
            page.run()
            page.picture("SaveImage")
            page.show_all()
            page.page.mouse.move(width / 2, 30)
            page.page.wait_for_timeout(1500)
            shot = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
            save(shot, PROJECT / "docs" / f"comfyui-{name.replace('_', '-')}.png", optimize=True)


def main() -> None:
    torch.set_num_threads(1)
    default = Path.home() / ".cache" / "safe-region" / "hosts" / "comfyui"
    host = Host("comfyui", Path(os.environ.get("SAFE_REGION_COMFYUI") or default).expanduser().absolute())
    with tempfile.TemporaryDirectory() as folder, ComfyUI(host, base(Path(folder))) as server:
        pictures(server)
        screenshots(server)


if __name__ == "__main__":
    main()
