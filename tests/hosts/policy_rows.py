"""The operator's policy of the host tests, and the rows of their table."""

from __future__ import annotations

import json
import os
from pathlib import Path

POLICY = """\
policy: 1
contact: ask room 12
minors: false
concepts: {fire: guard, lightning: refuse}
inputs: {init_images: true, loras: any}
log: {file: %s}
"""


def write_policy(folder: Path) -> Path:
    """``policy.yaml`` in a folder, which keeps its log beside it."""
    path = folder / "policy.yaml"
    path.write_text(POLICY % (folder / "audit.jsonl"))
    return path


def record(name: str, host: str, **figures: int) -> None:
    """A row of the table, where SAFE_REGION_TABLE names a file."""
    if path := os.environ.get("SAFE_REGION_TABLE"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"row": name, "host": host, **figures}) + "\n")
