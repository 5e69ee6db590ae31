"""ComfyUI under an operator's policy: every workflow is guarded or refused, with or without a node of this pack.

Where SAFE_REGION_POLICY is set, the host does not start without its policy. See :mod:`.policy_hooks`.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "SAFE_REGION_POLICY"


def start() -> None:
    """Put the policy in force, where there is one.

    Where it cannot be, the process ends: other threads of the host would outlive an exception.
    """
    if os.environ.get(VARIABLE) is None:
        return
    try:
        from .policy_hooks import install

        install()
    except BaseException as error:
        print(
            f"Safe Region: the policy of {VARIABLE} is not in force, so ComfyUI does not start: {error}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
