"""An extension for the tests of the operator's policy: breaks what the guard stands on, and asks pictures as prompts.

POST /test/fault {"place": ..., "kind": ...}: until told otherwise, that place raises (``exception``), returns ``None``
or nonsense (``wrong shape``), or is what it was without the guard (``replaced``). {"place": ""} mends all, and what the
policy has closed is open again, as after a start.
"""

import gradio as gr
import torch
from modules import extra_networks, processing, script_callbacks, scripts, sd_samplers_cfg_denoiser, shared
from modules import sd_samplers_common as common

_broken = []


def _fail(*_, **__):
    raise RuntimeError("injected")


def _nothing(*_, **__):
    return None


def _misshapen(*_, **__):
    return torch.zeros(3), torch.zeros(2)


def _places():
    from saferegion.guard import enforce, selection
    from saferegion_webui import extensions, generation, host, policy_door, prompts, schedules

    return {
        "process_images_inner": (processing, "process_images_inner"),
        "get_conds_with_caching": (processing.StableDiffusionProcessing, "get_conds_with_caching"),
        "launch_sampling": (common.Sampler, "launch_sampling"),
        "the denoiser": (sd_samplers_cfg_denoiser.CFGDenoiser, "forward"),
        "extra networks": (extra_networks, "activate"),
        "the pass of the model": (host.diffusion_model(shared.sd_model), "_forward_pre_hooks"),
        "the encoder": (shared.sd_model, "get_learned_conditioning"),
        "the guard": (selection.Guard, "apply"),
        "the guard of the policy": (policy_door.JudgedGuard, "apply"),
        "the guards": (type(generation.guards), "get"),
        "the walk of schedules": (schedules, "apply"),
        "guarding": (prompts, "_guarded"),
        "the look at rows": (extensions, "_look"),
        "what is watched": (extensions, "watching"),
        "judging": (enforce.Enforcement, "judge"),
        "the selection": (enforce.Enforcement, "selection"),
        "the log": (enforce.Enforcement, "record"),
        "what begins": (policy_door.door, "begin"),
    }


def _mend():
    from saferegion_webui import generation, policy_door

    for owner, name, kept in _broken:
        if kept is None:
            delattr(owner, name)
        else:
            setattr(owner, name, kept)
    _broken.clear()
    policy_door.door.enforcement._why_closed = None
    policy_door.door.now = None
    generation.guards.forget()


def _break(place, kind):
    owner, name = _places()[place]
    kept = vars(owner).get(name)
    if name == "_forward_pre_hooks":
        kept.clear()
        return
    _broken.append((owner, name, kept))
    if kind == "replaced":
        setattr(owner, name, kept.__wrapped__)
    else:
        setattr(owner, name, {"exception": _fail, "None": _nothing, "wrong shape": _misshapen}[kind])


def _started(_, app):
    @app.post("/test/fault")
    def fault(body: dict):
        _mend()
        if body["place"]:
            _break(body["place"], body["kind"])
        return {}


class PicturePrompt(scripts.Script):
    """Asks a picture and reads it as a prompt, as IP-Adapter and its like do."""

    def title(self):
        return "Picture prompt"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        with gr.Accordion("Picture prompt", open=False):
            return [gr.Checkbox(False, label="Picture prompt on"), gr.Image(label="Picture of a prompt", type="pil")]


script_callbacks.on_app_started(_started)
