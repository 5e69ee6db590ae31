"""The script on the source of Forge, reForge and forge-classic, read and run in part: see webui_family.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from host_servers import Host

HERE = Path(__file__).parent
CHECKOUTS = {
    "webui": "SAFE_REGION_WEBUI",
    "forge": "SAFE_REGION_FORGE",
    "reforge": "SAFE_REGION_REFORGE",
    "forge-classic": "SAFE_REGION_FORGE_CLASSIC",
}


def root(name: str) -> Path:
    named = os.environ.get(CHECKOUTS[name])
    return Path(named or Path.home() / ".cache" / "safe-region" / "hosts" / name).expanduser()


@pytest.fixture(scope="module")
def found(webui_host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the script did on the source of every host that is here, in one process."""
    here = {name: root(name) for name in CHECKOUTS if (root(name) / "modules" / "prompt_parser.py").is_file()}
    printed = webui_host.run(HERE / "webui_family.py", tmp_path_factory.mktemp("family"), *here.values())
    results = json.loads(printed.splitlines()[-1])
    return {name: results[path.name] for name, path in here.items()}


@pytest.mark.parametrize("name", CHECKOUTS)
def test_the_script_on_the_source_of(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    if name not in found:
        pytest.skip(f"the source of {name} is not at {root(name)}: set {CHECKOUTS[name]} to a checkout.")
    print(found[name])
    families = {d["family"] for d in found[name]}
    assert {"sd1", "sdxl"} <= families
    if name == "forge":
        assert {"sd3", "flux"} <= families
        assert all(d["no negative at CFG 1"] for d in found[name])
