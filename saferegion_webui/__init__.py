"""Safe Region in stable-diffusion-webui, Forge, reForge and forge-classic.

The host-independent library is the folder ``saferegion`` beside this package, and never another one: hosts put many
folders on the module path, and a ``saferegion`` installed with pip may be of another version.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _load_library(name: str = "saferegion") -> None:
    entry = ROOT / name / "__init__.py"
    loaded = sys.modules.get(name)
    if loaded is not None:
        at = getattr(loaded, "__file__", None)
        if at is None or Path(at).resolve() != entry:
            raise ImportError(
                f"Safe Region cannot start: another '{name}' ({at}) is loaded in this process already; "
                f"remove it with 'pip uninstall {name}'."
            )
        return
    spec = spec_from_file_location(name, entry, submodule_search_locations=[str(entry.parent)])
    if spec is None or spec.loader is None or not entry.is_file():
        raise ImportError(f"Safe Region cannot start: {entry.parent} is missing; install the extension again.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


_load_library()
