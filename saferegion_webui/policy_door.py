"""The webui's family under an operator's policy: every picture is guarded or refused, whatever the script is told.

The policy is named by ``--safe-region-policy`` or SAFE_REGION_POLICY. It lives in this package, not in the script: it
stays in force while the extension is "disabled" and the page reloaded, and the next start without it ends at the
unknown flag.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

from saferegion.core.conditioning import Conditioning
from saferegion.core.errors import PolicyError
from saferegion.guard.enforce import Enforcement, PolicyRefused, Request, Verdict
from saferegion.guard.library import Library
from saferegion.guard.policy import VARIABLE, Policy, policy_path, stamp_of
from saferegion.guard.policy_file import WARN, read_policy
from saferegion.guard.selection import Guard, GuardReport, Selection

from .arguments import Arguments
from .policy_pictures import script_with_picture
from .settings import TITLE

log = logging.getLogger("saferegion")

OPEN_FLAGS = {
    "allow_code": "--allow-code",
    "enable_insecure_extension_access": "--enable-insecure-extension-access",
}
"""Flags that let users run code, by their names among the host's options."""
IGNORES = "IGNORE_CMD_ARGS_ERRORS"
"""Environment variable with which a host starts although it does not know a flag."""


@dataclass
class Picture:
    """One run of the host's ``process_images_inner``: what was found in it."""

    verdict: Verdict = field(default_factory=Verdict)


@dataclass
class Door:
    """The policy of this process."""

    enforcement: Enforcement
    begin: Callable[[Any], None]
    hooks: list[tuple[Any, str, Any]] = field(default_factory=list)
    now: Picture | None = None
    hashes: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.enforcement.policy


door: Door | None = None


def named(options: Any = None) -> bool:
    """Whether the operator names a policy."""
    return os.environ.get(VARIABLE) is not None or getattr(options, "safe_region_policy", None) is not None


class JudgedGuard(Guard):
    """A guard of which every report of a picture is judged by the policy."""

    def apply(self, c: Conditioning) -> tuple[Conditioning, GuardReport]:
        found, report = super().apply(c)
        if door is not None and door.now is not None:
            door.now.verdict |= door.enforcement.judge([report])
            door.enforcement.require(door.now.verdict)
        return found, report


# -- what the rest of the package asks ---------------------------------------------------------------------------------


def merged(arguments: Arguments) -> Arguments:
    """``arguments`` switched on, where there is a policy."""
    if door is None:
        return arguments
    return replace(arguments, enabled=True, guard_negative=arguments.guard_negative or door.policy.negative)


def names(users: Iterable[str]) -> tuple[str, ...]:
    """The user's concepts, and those of the policy."""
    own = tuple(users)
    if door is None:
        return own
    known = {name for r in door.policy.rules for name in (r.name, r.choice_name)}
    return (*(n for n in own if n not in known), *(r.name for r in door.policy.rules))


def effective(selection: Selection, users: Iterable[str]) -> Selection:
    """What acts of ``selection``, which holds the concepts of :func:`names` as the user's strength and mode have them;
    ``users``: those that the user has switched on."""
    if door is None:
        return selection
    own = set(users)
    rules = {r.name for r in door.policy.rules}
    mine = tuple(c for c in selection.choices if c.name not in rules or c.name in own)
    return door.enforcement.selection(Selection(mine, selection.preset), by_name=True)


def judged(guard: Guard) -> Guard:
    if door is None:
        return guard
    return JudgedGuard(guard.regions, guard.minors, guard.entry, guard.named)


def stray() -> None:
    """Raise PolicyRefused under a policy: something paints, and it is no picture that anybody asked for."""
    if door is not None:
        raise door.enforcement.refused("Something paints outside of every request, which this host does not allow.")


# -- hooks -------------------------------------------------------------------------------------------------------------


def start(options: Any, library: Library, begin: Callable[[Any], None]) -> None:
    """Put the policy in force, where there is one; again, it changes nothing.

    Args:
        options: the host's command line. begin: takes note of the processing that the host begins.

    Raises:
        SafeRegionError: it cannot be.
    """
    global door  # noqa: PLW0603
    path = policy_path(getattr(options, "safe_region_policy", None))
    if path is None or door is not None:
        return
    policy = read_policy(path, library)
    for flag in open_flags(options):
        if policy.flags != WARN:
            raise PolicyError(f"{flag} lets users past the policy: take it away, or say 'flags: warn'.")
        log.warning("Safe Region: %s lets users past the policy.", flag)
    made = Door(Enforcement(policy), begin)
    _install(made)
    door = made
    log.info("Safe Region: the policy %s is in force (%s).", path, policy.digest[:16])


def open_flags(options: Any) -> list[str]:
    """What this host was started with that lets users past any policy."""
    found = [flag for name, flag in OPEN_FLAGS.items() if getattr(options, name, False)]
    return found + ([IGNORES] if os.environ.get(IGNORES) else [])


def _install(made: Door) -> None:
    from modules import extra_networks, processing, script_callbacks

    from . import host

    for owner, name, wrap in (
        (processing, "process_images_inner", _painting),
        (extra_networks, "activate", _networks),
        (script_callbacks, "app_started_callback", _serving),
    ):
        original = getattr(owner, name, None)
        if original is None:
            raise PolicyError(f"this webui has no {owner.__name__}.{name}, where requests are guarded.")
        hook = wraps(original)(wrap(made, original))
        setattr(owner, name, hook)
        made.hooks.append((owner, name, hook))
    sampler, denoiser = host.samplers()
    for owner, name in (
        (processing.StableDiffusionProcessing, "get_conds_with_caching"),
        (sampler, "launch_sampling"),
        (denoiser, "forward"),
    ):
        made.hooks.append((owner, name, getattr(owner, name)))


def _intact(made: Door) -> None:
    for owner, name, hook in made.hooks:
        if getattr(owner, name, None) is not hook:
            where = getattr(getattr(owner, name, None), "__module__", "another extension")
            made.enforcement.close(f"{where} replaced {owner.__name__}.{name}, where prompts are guarded")
    made.enforcement.check()


def _painting(made: Door, original: Any) -> Any:
    def process_images_inner(p: Any, *args: Any, **kwargs: Any) -> Any:
        before, made.now = made.now, Picture()
        now, failed = made.now, None
        try:
            _intact(made)
            _pictures(made, p)
            made.begin(p)
            return original(p, *args, **kwargs)
        except Exception as error:
            failed = error
            if isinstance(error, PolicyRefused):
                raise _refusal(error) from error
            raise
        finally:
            made.now = before
            _record(made, p, now, failed)

    return process_images_inner


def _pictures(made: Door, p: Any) -> None:
    """Refuse pictures that the policy does not allow to be painted from."""
    inputs = made.policy.inputs
    starts = getattr(p, "init_images", None) or getattr(p, "firstpass_image", None) is not None
    if starts and not inputs.init_images:
        raise made.enforcement.refused("This host starts from no picture.")
    if not inputs.image_prompts and (title := script_with_picture(p, TITLE)) is not None:
        raise made.enforcement.refused(
            f"This host takes no picture as a prompt: take the one out of '{title}', or switch it off."
        )


def _record(made: Door, p: Any, now: Picture, error: Exception | None) -> None:
    from modules import shared

    from . import host

    own = getattr(p, "safe_region", None)
    texts = getattr(p, "all_prompts", None) or getattr(p, "prompt", "")
    prompts = tuple(dict.fromkeys(str(t) for t in ([texts] if isinstance(texts, str) else texts)))
    info = getattr(shared.sd_model, "sd_checkpoint_info", None)
    request = Request(host.task() or getattr(own, "number", ""), "webui", prompts, str(getattr(info, "filename", "")))
    try:
        made.enforcement.record(request, now.verdict, error)
    except PolicyRefused as refused:
        raise _refusal(refused) from error


def _refusal(error: PolicyRefused) -> Exception:
    from .refusal import PolicyRefusal

    return PolicyRefusal(error)


def _networks(made: Door, original: Any) -> Any:
    def activate(p: Any, extra_network_data: Any, *args: Any, **kwargs: Any) -> Any:
        allowed = made.policy.inputs.loras
        if allowed is not None:
            for name in _network_names(extra_network_data):
                if _digest(made, name) not in allowed:
                    raise _refusal(made.enforcement.refused(f"This host does not use the extra network '{name}'."))
        return original(p, extra_network_data, *args, **kwargs)

    return activate


def _network_names(data: Any) -> list[str]:
    from modules import shared

    found = [
        str(params.items[0]) for kind in (data or {}).values() for params in kind if getattr(params, "items", None)
    ]
    added = shared.opts.data.get("sd_lora")
    return found + ([str(added)] if added not in (None, "", "None") else [])


def _digest(made: Door, name: str) -> str:
    """SHA-256 of the file of an extra network; empty of one whose file the host does not tell."""
    module = sys.modules.get("networks")
    for known in ("available_network_aliases", "available_networks"):
        entry = getattr(module, known, {}).get(name)
        path = getattr(entry, "filename", None)
        if path is None:
            continue
        stamp = (path, *stamp_of(Path(path)))
        if stamp not in made.hashes:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while data := file.read(2**20):
                    digest.update(data)
            made.hashes[stamp] = digest.hexdigest()
        return made.hashes[stamp]
    return ""


def _serving(made: Door, original: Any) -> Any:
    def app_started_callback(demo: Any, app: Any, *args: Any, **kwargs: Any) -> Any:
        serve(made, app)
        return original(demo, app, *args, **kwargs)

    return app_started_callback


def serve(made: Door, app: Any) -> None:
    """Status and metrics; and nothing of the server answers that the policy closes."""
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.routing import BaseRoute, Match

    class Closed(BaseRoute):
        def matches(self, scope: Mapping[str, Any]) -> tuple[Match, dict[str, Any]]:
            closed = scope["type"] == "http" and not made.policy.routes.allow(scope["path"])
            return (Match.FULL if closed else Match.NONE), {}

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            refused = made.enforcement.refused("This address is closed on this host.")
            await JSONResponse(refused.to_dict(), refused.status_code)(scope, receive, send)

    app.add_api_route("/safe-region/v1/policy", made.enforcement.status, methods=["GET"])
    app.add_api_route("/safe-region/v1/metrics", lambda: PlainTextResponse(made.enforcement.metrics()), methods=["GET"])
    app.router.routes.insert(0, Closed())
