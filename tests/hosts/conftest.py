"""The real hosts as fixtures: ComfyUI and stable-diffusion-webui, each a checkout with an interpreter in `.venv`.

SAFE_REGION_COMFYUI, SAFE_REGION_WEBUI, SAFE_REGION_FORGE and SAFE_REGION_NEO name the checkouts (default: comfyui,
webui, forge and neo in ~/.cache/safe-region/hosts); tests of a host that is not there are skipped. Everything a host
reads or writes lies in a temporary folder, where the microworld's export, the test-only plugin and this project are
linked; nothing is put into a checkout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import comfyui_files  # noqa: E402
import webui_files  # noqa: E402
from host_servers import ComfyUI, Host, WebUI  # noqa: E402

from saferegion_lab.microworld import MicroWorld, load  # noqa: E402

NAME = "microworld"
FAMILY = ("webui", "forge", "neo")
"""Hosts of the webui's family: AUTOMATIC1111's, Forge, Forge Neo."""
HOSTS = {"comfyui_host", "webui_host", "family_host"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and HOSTS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.hosts)


def _host(name: str, variable: str, entry: str) -> Host:
    root = Path(os.environ.get(variable) or Path.home() / ".cache" / "safe-region" / "hosts" / name).expanduser()
    host = Host(name, root.absolute())
    if not (root / entry).is_file() or not host.python.exists():
        pytest.skip(f"{name} is not at {root}: set {variable} to a checkout with an interpreter in its .venv.")
    return host


@pytest.fixture(scope="session")
def comfyui_host() -> Host:
    return _host("comfyui", "SAFE_REGION_COMFYUI", "main.py")


@pytest.fixture(scope="session")
def webui_host() -> Host:
    return _host("webui", "SAFE_REGION_WEBUI", "launch.py")


@pytest.fixture(scope="session", params=FAMILY)
def family_host(request: pytest.FixtureRequest) -> Host:
    """Each host of the webui's family."""
    return _host(request.param, f"SAFE_REGION_{request.param.upper()}", "launch.py")


@pytest.fixture(scope="session")
def family(
    family_host: Host, world: MicroWorld, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebUI]:
    """Each host of the webui's family, serving its API."""
    folder = webui_files.write(family_host, tmp_path_factory.mktemp(family_host.name), world, exported)
    with WebUI(family_host, folder) as server:
        yield server


@pytest.fixture(scope="session")
def world() -> MicroWorld:
    torch.set_num_threads(1)
    return load()


@pytest.fixture(scope="session")
def exported(world: MicroWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The microworld as one checkpoint, `microworld.safetensors`, with its sizes and its tokenizer beside it."""
    return world.export(tmp_path_factory.mktemp("export") / f"{NAME}.safetensors")


@pytest.fixture(scope="session")
def comfyui_folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI: the checkpoint, the plugin that knows its sizes, this project as a pack, and the
    microworld's own recipes, a LoRA and an embedding of its text encoder among the user's files."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    comfyui_files.write(base / "models", load())
    for file in (exported, exported.with_suffix(".json")):
        (base / "models" / "checkpoints" / file.name).symlink_to(file)
    (base / "custom_nodes" / "microworld_sizes").symlink_to(HERE / "comfyui_plugin")
    if (PROJECT / "__init__.py").exists():
        (base / "custom_nodes" / "safe-region").symlink_to(PROJECT)
    return base


@pytest.fixture(scope="session")
def webui_folder(webui_host: Host, world: MicroWorld, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory for the webui: the checkpoint with its configuration, this project as an extension."""
    return webui_files.write(webui_host, tmp_path_factory.mktemp("webui"), world, exported)


@pytest.fixture(scope="session")
def comfyui(comfyui_host: Host, comfyui_folder: Path) -> Iterator[ComfyUI]:
    """ComfyUI, serving."""
    with ComfyUI(comfyui_host, comfyui_folder) as server:
        yield server


@pytest.fixture(scope="session")
def webui(webui_host: Host, webui_folder: Path) -> Iterator[WebUI]:
    """The webui, serving its API."""
    with WebUI(webui_host, webui_folder) as server:
        yield server
