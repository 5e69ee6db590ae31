from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeEncoder, benign_prompts, fire

from saferegion import Direction, compile

settings.register_profile(
    "saferegion", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
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
