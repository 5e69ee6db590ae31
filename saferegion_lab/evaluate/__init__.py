"""How safe a model is, guarded and not and beside other guards, on prompts of your own: ``saferegion evaluate``.

Work is split by prompt, arm and seed into units that are painted whole; any number of processes takes units from one
folder, one that is killed leaves its unit to the others, and the figures do not depend on how many there were.
"""

from __future__ import annotations

from .settings import Arm, Run, read_run

__all__ = ["Arm", "Run", "read_run"]
