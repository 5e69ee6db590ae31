"""``python -m saferegion``: the command line, where the workshop is installed beside the product."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

if __name__ == "__main__":
    if find_spec("saferegion_lab") is None:
        sys.exit("The command line is not part of the host pack: pip install 'saferegion[demo]'")
    import_module("saferegion_lab.cli").main()
