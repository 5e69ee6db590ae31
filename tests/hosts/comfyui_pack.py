"""ComfyUI and this pack in the process of a script whose first argument is ComfyUI's base directory."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

base, *arguments = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402

import nodes  # isort: skip  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
if not asyncio.run(nodes.load_custom_node(str(Path(base) / "custom_nodes" / "safe-region"))):
    raise SystemExit("The pack did not load.")
N = nodes.NODE_CLASS_MAPPINGS
_PACK = N["SafeRegionGuardCLIP"].__module__.removesuffix(".nodes.nodes_guard")


def module(name: str) -> ModuleType:
    """A module of the pack, as ComfyUI has it."""
    return importlib.import_module(f"{_PACK}.{name}")
