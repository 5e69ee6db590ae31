"""The script on the source of Forge, reForge and forge-classic, read and run in part: see webui_family.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from host_servers import Host

HERE = Path(__file__).parent
CHECKOUTS = {
    "webui": "SAFE_REGION_WEBUI",
    "forge": "SAFE_REGION_FORGE",
    "reforge": "SAFE_REGION_REFORGE",
    "forge-classic": "SAFE_REGION_FORGE_CLASSIC",
}


@pytest.mark.parametrize("name", CHECKOUTS)
def test_the_script_on_the_source_of(name: str, webui_host: Host, tmp_path: Path) -> None:
    variable = CHECKOUTS[name]
    root = Path(os.environ.get(variable) or Path.home() / ".cache" / "safe-region" / "hosts" / name).expanduser()
    if not (root / "modules" / "prompt_parser.py").is_file():
        pytest.skip(f"the source of {name} is not at {root}: set {variable} to a checkout.")
    done = json.loads(webui_host.run(HERE / "webui_family.py", root, tmp_path).splitlines()[-1])
    print(done)
    assert {"sd1", "sdxl"} <= {d["family"] for d in done}
    if name == "forge":
        assert {"sd3", "flux"} <= {d["family"] for d in done}
        assert all(d["no negative at CFG 1"] for d in done)
