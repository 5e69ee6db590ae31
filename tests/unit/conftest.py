from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeEncoder, benign_prompts, fire

from saferegion import Direction, compile

_PROJECT = Path(__file__).resolve().parents[2]
_PACK = "safe_region_pack"

settings.register_profile(
    "saferegion",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[p for p in Phase if p is not Phase.shrink or "SAFE_REGION_NO_SHRINK" not in os.environ],
)
settings.load_profile("saferegion")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def neutral() -> list[str]:
    return benign_prompts(120)


@pytest.fixture(scope="session")
def on_fire(neutral: list[str]) -> Direction:
    """The concept "on fire", compiled on the fake encoder."""
    return compile(fire(), FakeEncoder(), neutral)


@pytest.fixture(scope="module")
def pack() -> Iterator[Callable[[str], ModuleType]]:
    """Modules of the project as ComfyUI has them: below a package of another name."""
    for name, path in ((_PACK, _PROJECT), (f"{_PACK}.nodes", _PROJECT / "nodes")):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    yield lambda name: importlib.import_module(f"{_PACK}.{name}")
    for name in [n for n in sys.modules if n == _PACK or n.startswith(f"{_PACK}.")]:
        del sys.modules[name]
