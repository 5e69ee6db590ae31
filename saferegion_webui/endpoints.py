"""``GET /safe-region/v1/…`` in the host's own API: which concepts there are, what is ready, what was done.

They read and change nothing. What a report says of a picture is numbers and concepts: no prompt and no word of one,
since whoever reaches the host can ask for it.
"""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

from saferegion.core.errors import SafeRegionError
from saferegion.guard.balance_files import axis_names
from saferegion.guard.library import OWN
from saferegion.guard.presets import PRESETS
from saferegion.learn.recipes import Concept

from . import generation
from .balance_panel import axis
from .guards import library
from .settings import default_concepts, loaded_checkpoint, option

PREFIX = "/safe-region/v1"
_given = Depends(HTTPBasic())


def concepts() -> dict[str, Any]:
    """Concepts that can be switched on, by name, with a title for people; those that cannot be used say why. And the
    axes that can be balanced, with their groups."""
    found = library()
    listed = []
    for name in found.names():
        entry: dict[str, Any] = {"name": name, "own": name.startswith(OWN)}
        try:
            concept = found.find(name)
            entry |= {"title": concept.title or name, "kind": concept.kind, "usable": True}
            entry["made_of"] = "recipe" if isinstance(concept, Concept) else "directions"
        except SafeRegionError as error:
            entry |= {"title": name, "usable": False, "why": str(error)}
        listed.append(entry)
    axes = [{"name": n, "title": (told := axis(n))[0], "groups": list(told[1])} for n in axis_names(found)]
    return {"concepts": listed, "presets": list(PRESETS), "axes": axes}


def status() -> dict[str, Any]:
    """What is switched on by default, what is ready for the loaded checkpoint, what goes on, and the newest reports."""
    model = loaded_checkpoint()
    return {
        "on_by_default": bool(option("default_on", False)),
        "concepts_by_default": default_concepts(),
        "checkpoint": getattr(getattr(model, "sd_checkpoint_info", None), "name_for_extra", None),
        "ready": generation.guards.ready(model),
        "preparing": generation.guards.preparing,
        "job": shared.state.job or None,
        "reports": [{"id": g.number, "at": g.at, "guarded": g.arguments.enabled} for g in generation.reports.newest()],
    }


def report(number: str) -> dict[str, Any]:
    """What the guard saw and did in one picture or batch, of the newest ones; by its number, or the host's task."""
    found = generation.reports.of(number)
    if found is None:
        raise HTTPException(status_code=404, detail="Safe Region: there is no report of that number any more.")
    return found.to_dict()


def add(app: Any) -> None:
    """Put them into the host's FastAPI; once an app."""
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        return
    needs = [Depends(key)] if (key := _key()) is not None else []
    for path, answer in (("concepts", concepts), ("status", status), ("report/{number}", report)):
        app.add_api_route(f"{PREFIX}/{path}", answer, methods=["GET"], tags=["Safe Region"], dependencies=needs)


def _key() -> Any:
    """As the host asks for the name and password of its API, where it does."""
    wanted = getattr(shared.cmd_opts, "api_auth", None)
    if not wanted:
        return None
    known = dict(pair.split(":", 1) for pair in wanted.split(",") if ":" in pair)

    def key(given: HTTPBasicCredentials = _given) -> None:
        right = known.get(given.username)
        if right is None or not secrets.compare_digest(given.password.encode(), right.encode()):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return key
