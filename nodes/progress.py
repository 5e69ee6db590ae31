"""The progress bar of the node that runs, and the text below a node."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import comfy.utils
from comfy import model_management

log = logging.getLogger("saferegion")


class Progress:
    """Prompts done and in all, as the core tells them; stops the work where the user has pressed Interrupt."""

    def __init__(self) -> None:
        self._bar: comfy.utils.ProgressBar | None = None
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        if self._bar is None:
            long = lasting((time.monotonic() - self._began) * total / max(1, done))
            said = f"the text encoder reads {total} prompts once, {long}"
            log.info("Safe Region: %s; the result is kept.", said)
            show_below(getattr(_server(), "last_node_id", None), f"{said}; the result is kept")
            self._bar = comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)


def lasting(seconds: float) -> str:
    """How long that is, in words."""
    if seconds < 90:
        return "about a minute or less"
    minutes = round(seconds / 60)
    return f"about {minutes} minutes" if minutes < 90 else f"about {seconds / 3600:.1f} hours"


def _server() -> Any:
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def this_run() -> str | None:
    """Identifies the workflow that runs now; None where there is no server."""
    return getattr(_server(), "last_prompt_id", None)


def show_below(node: Any, text: str) -> None:
    """Text below a node of the page, which keeps it when the page is loaded again (web/safe_region.js)."""
    server = _server()
    if server is not None and node is not None:
        server.send_sync("safe_region.report", {"node": str(node), "text": text}, getattr(server, "client_id", None))
