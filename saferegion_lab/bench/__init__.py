"""Benchmarks: figures, never verdicts; each result names the machine it was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a figure was measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    found: dict[str, Any] = {
        "cpu": name,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    p = hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * ((p * (1 - p) + z * z / (4 * total)) / total) ** 0.5 / (1 + z * z / total)
    low, high = middle - half, middle + half
    return (0.0 if hits == 0 else max(0.0, low)), (1.0 if hits == total else min(1.0, high))
