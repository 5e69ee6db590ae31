"""Safe Region in AUTOMATIC1111's stable-diffusion-webui, Forge, Forge Neo, reForge and classic.

Over the API the script is ``"safe region"`` in ``alwayson_scripts``. Its ``args`` are, in this order: ``enabled``,
``concepts``, ``strength``, ``strengths``, ``mode``, ``avoid``, ``instead``, ``sentences``, ``guard_negative``,
``heat_map``, ``preset``, ``balance``, ``axes``, ``balance_strength``, ``groups``; or one JSON object with these names,
which then counts alone. What is left out or null takes its default; later versions only add to the end.
``saferegion_webui/arguments.py`` says what each must be. While ``enabled`` or ``balance`` is true, a request that
cannot be guarded, or balanced, is answered with an error and without a picture.
"""

import os
import sys
from inspect import signature
from pathlib import Path

from modules import processing, script_callbacks, scripts, shared

try:
    import saferegion_webui

    ROOT = Path(__file__).resolve().parent.parent
    if saferegion_webui.ROOT != ROOT:
        raise ImportError(
            f"Safe Region is installed twice, in {saferegion_webui.ROOT} and in {ROOT}: remove one of them."
        )

    from saferegion_webui import (
        endpoints,
        extensions,
        generation,
        guards,
        host,
        interception,
        notes,
        page,
        panel,
        policy_door,
        prompts,
        requests,
        settings,
        tab,
    )

    interception.install(processing.StableDiffusionProcessing, prompts.guard_conditionings)
    interception.install_sampling(*host.samplers(), extensions.painting)
    policy_door.start(shared.cmd_opts, guards.library(), generation.begin)
except Exception as error:  # the host would go on without; under an operator's policy it must not
    if "SAFE_REGION_POLICY" in os.environ or getattr(shared.cmd_opts, "safe_region_policy", None) is not None:
        print(
            f"Safe Region: the policy is not in force, so the webui does not start: {error}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # other threads would keep the host alive
    raise


class SafeRegionScript(scripts.Script):
    """The accordion, and the road from its controls to the guard."""

    def title(self):
        return settings.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        components = panel.controls(self.elem_id)
        self.infotext_fields = page.infotext_fields(components)
        self.paste_field_names = []
        return list(components.values())

    def process(self, p, *args):
        generation.configure(p, args, settings.default_concepts(), bool(settings.option("default_on", False)))

    def postprocess(self, p, processed, *args):
        notes.show_heat_maps(p, processed)


def register(kind, callback):
    """As ``script_callbacks.on_<kind>``; those look for this file's name in every module, 50 ms each time."""
    add = getattr(script_callbacks, "add_callback", None)
    callbacks = getattr(script_callbacks, "callback_map", {}).get(f"callbacks_{kind}")
    if add is not None and callbacks is not None and "filename" in signature(add).parameters:
        add(callbacks, callback, category=kind, filename=__file__)
    else:
        getattr(script_callbacks, f"on_{kind}")(callback)


def started(_, app):
    """The host serves: its API is there, if it has one."""
    host_api = sys.modules.get("modules.api.api")
    if host_api is not None:
        requests.install(host_api.Api, settings.TITLE, page.check_request)
    endpoints.add(app)


register("ui_settings", page.add_settings)
register("before_ui", page.add_axes)
register("ui_tabs", tab.build)
register("app_started", started)
