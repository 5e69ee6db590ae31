"""``python -m saferegion_lab.cli``."""

from . import main

main()
