"""An extension for the tests: puts texts of its own before the diffusion model, as those of regions and details do.

POST /test/inject {"how": ..., "text": ...}: until told otherwise, ``encode`` (encodes it in each step), ``keep``
(encodes it now, before anything is painted), or ``noise`` (changes what is there a little), and puts that in place of
what the prompt gave. POST /test/own {"prompt": ...}: paints with a processing of its own.
"""

import base64
import io
import json
import time

import torch
from modules import processing, prompt_parser, script_callbacks, shared

_doing = {"how": "", "rows": None, "text": ""}


def _encode(text):
    found = shared.sd_model.get_learned_conditioning(prompt_parser.SdConditioning([text], width=64, height=64))
    return found["crossattn"][0] if isinstance(found, dict) else found[0]


def _step(params):
    if not _doing["how"]:
        return
    cond = params.text_cond
    rows = cond["crossattn"] if isinstance(cond, dict) else cond
    if _doing["how"] == "noise":
        torch.manual_seed(3)
        new = rows + 0.05 * rows.std() * torch.randn_like(rows)
    else:
        with torch.no_grad():
            one = _encode(_doing["text"]) if _doing["how"] == "encode" else _doing["rows"]
        new = one.to(rows).expand_as(rows).clone()
    if isinstance(cond, dict):
        cond["crossattn"] = new
    else:
        params.text_cond = new


def _started(_, app):
    @app.post("/test/inject")
    def inject(body: dict):
        _doing.update(how=body["how"], text=body.get("text", ""))
        if body["how"] == "keep":
            shared.state.begin(job="another")
            with torch.no_grad():
                _doing["rows"] = _encode(body["text"]).clone()
            shared.state.end()
        return {}

    @app.post("/test/own")
    def own(body: dict):
        shared.state.begin(job="another")
        if body.get("outside"):
            shared.state.time_start = -time.time()
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt=body["prompt"],
            steps=12,
            width=64,
            height=64,
            seed=7,
            cfg_scale=4.0,
            sampler_name="Euler",
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        done = processing.process_images(p)
        data = io.BytesIO()
        done.images[0].save(data, "PNG")
        return {"image": base64.b64encode(data.getvalue()).decode(), "info": json.loads(done.js())["infotexts"][0]}


script_callbacks.on_cfg_denoiser(_step)
script_callbacks.on_app_started(_started)
