"""Installs nothing: says in one sentence what Safe Region lacks here, and is silent when all is there."""

import sys
from importlib.util import find_spec

OLDEST = (3, 10)
NEEDED = {"torch": "torch", "safetensors": "safetensors", "numpy": "numpy", "yaml": "PyYAML", "PIL": "Pillow"}


def _found(module):
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def lacking(version=sys.version_info, found=_found):
    """One sentence about what is missing; empty where nothing is."""
    if tuple(version[:2]) < OLDEST:
        return "Safe Region needs Python {}.{} or newer; this is {}.{}.".format(*OLDEST, *version[:2])
    names = [name for module, name in NEEDED.items() if not found(module)]
    if not names:
        return ""
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return "Safe Region needs {}; install it into the Python that runs this program ({}).".format(
        listed, sys.executable or "python"
    )


if __name__ == "__main__":
    sentence = lacking()
    if sentence:
        print(sentence)
