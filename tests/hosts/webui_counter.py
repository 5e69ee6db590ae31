"""An extension for the tests: counts the passes of the UNet and of the text encoder. POST /test/counts starts anew."""

from modules import script_callbacks, shared

_counts = {"unet": 0, "encoder": 0}
_hooks = []


def _count(name):
    def hook(*_):
        _counts[name] += 1

    return hook


def _started(_, app):
    @app.post("/test/counts")
    def counts():
        found = dict(_counts)
        _counts.update(unet=0, encoder=0)
        for hook in _hooks:
            hook.remove()
        checkpoint = shared.sd_model
        objects = getattr(checkpoint, "forge_objects", None)
        unet = checkpoint.model.diffusion_model if objects is None else objects.unet.model.diffusion_model
        text = checkpoint.cond_stage_model if objects is None else objects.clip.cond_stage_model.clip_l.transformer
        _hooks[:] = [
            unet.register_forward_pre_hook(_count("unet")),
            text.register_forward_pre_hook(_count("encoder")),
        ]
        return found


script_callbacks.on_app_started(_started)
