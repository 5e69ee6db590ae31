"""The hooks in ComfyUI that an operator's policy stands on, and the check that they are still there.

Text reaches a network through ``encode_model_conds``, once a sampling for each list of conditionings: what pushes
towards its text is guarded there. ``BaseModel.apply_model`` looks at what every pass reads, and ``CFGGuider`` says
whose sampling it is. Each of them refuses to work where another one was replaced.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.samplers
import comfy.utils
import folder_paths
import torch

from ..saferegion.core.errors import PolicyError
from ..saferegion.guard.enforce import Enforcement, Request, Verdict
from ..saferegion.guard.policy import policy_path, stamp_of
from ..saferegion.guard.policy_file import WARN, read_policy
from ..saferegion.guard.watch import Watch, away_of
from . import files
from .backstop import captured, watching
from .keys import CONTROLNET, LYRICS, POOLED, PREFIX
from .policy_texts import KnownTexts, Source
from .progress import this_run
from .wrap import guard_entry

log = logging.getLogger("saferegion")

NEGATIVE = "negative"
IMAGES = frozenset(
    """
    clip_vision_output clip_vision_outputs clip_vision_output_ref clip_vision_output_pose unclip_conditioning
    reference_latents reference_latents_text_embeds
    """.split()  # noqa: SIM905
)
"""Keys of conditionings that hold pictures to paint from."""
STEERED = (
    "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_calc_cond_batch_function",
)  # fmt: skip
"""Options of a model that may turn the sign of a negative prompt."""


class Sampling:
    """One sampling: who asked for it, what was found in it, what it may read."""

    def __init__(self, door: Door, guider: Any) -> None:
        self.door, self.guider = door, guider
        self.verdict = Verdict()
        self.sources: list[Source] = []
        self.free: list[torch.Tensor] = []
        self.watch = Watch(self._look)

    def leaves(self, name: str, entries: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Whether the conditionings of this name push away from their text, whatever happens."""
        if any(_turned(entry) for entry in entries):
            return False
        guider = self.guider
        if name != NEGATIVE or self.door.policy.negative or type(guider) is not comfy.samplers.CFGGuider:
            return False
        return float(guider.cfg) >= 1.0 and not any(guider.model_options.get(k) for k in STEERED)

    def _look(self, rows: torch.Tensor, _: Any) -> None:
        """Rows that no conditioning gave: what lies outside is refused."""
        for source in self.door.texts.sources(rows.unsqueeze(0)):
            family, guard = source.fitted.family, source.fitted.guard.naming(source.names)
            *_, report = family.guard(guard, rows.unsqueeze(0), None, {})
            verdict = self.door.enforcement.judge([report] if report is not None else [])
            if verdict.action not in ("none", "log"):
                self.verdict |= verdict
                raise self.door.enforcement.refused(
                    "A node paints from a text that does not come through its conditionings, and it is outside the "
                    "safe region.", tuple(verdict.concepts),
                )  # fmt: skip


class Door:
    """The policy of this process, and its hooks."""

    def __init__(self, enforcement: Enforcement) -> None:
        self.enforcement, self.policy = enforcement, enforcement.policy
        self.texts = KnownTexts(enforcement)
        self.now: Sampling | None = None
        self.refusals: dict[str, dict[str, Any]] = {}
        self._hashes: dict[tuple[Any, ...], str] = {}
        self._hooks: list[tuple[Any, str, Any]] = []

    # -- hooks -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        for owner, name, wrap in (
            (comfy.samplers, "encode_model_conds", self._encoding),
            (comfy.samplers.CFGGuider, "inner_sample", self._sampling),
            (comfy.model_base.BaseModel, "apply_model", self._applying),
            (comfy.utils, "load_torch_file", self._loading),
        ):
            original = getattr(owner, name, None)
            if original is None:
                raise PolicyError(f"this ComfyUI has no {owner.__name__}.{name}, where prompts are guarded.")
            hook = functools.wraps(original)(wrap(original))
            setattr(owner, name, hook)
            self._hooks.append((owner, name, hook))
        self.texts.install()

    def intact(self) -> None:
        """Raise PolicyRefused where a hook is not what is called any more, and paint nothing from then on."""
        for owner, name, hook in self._hooks:
            if getattr(owner, name, None) is not hook:
                where = getattr(getattr(owner, name, None), "__module__", "another module")
                self.enforcement.close(f"{where} replaced {owner.__name__}.{name}, where prompts are guarded")
        self.enforcement.check()

    def _sampling(self, original: Any) -> Any:
        def inner_sample(guider: Any, noise: Any, latent_image: Any, *args: Any, **kwargs: Any) -> Any:
            with self._one(guider) as now:
                self._inputs(latent_image)
                found = original(guider, noise, latent_image, *args, **kwargs)
                now.watch.finish()
                return found

        return inner_sample

    @contextmanager
    def _one(self, guider: Any) -> Iterator[Sampling]:
        """A sampling, written down when it ends; one inside another is part of it."""
        before, self.now = self.now, Sampling(self, guider)
        now, failed = self.now, None
        try:
            self.intact()
            yield now
        except Exception as error:
            failed = self.enforcement.refusal(error) if _ours(error) else error
            if _ours(error):
                raise failed from error
            raise
        finally:
            self.now = before
            self._record(now, failed)

    def _record(self, now: Sampling, error: BaseException | None) -> None:
        prompts = tuple(dict.fromkeys(s.text for s in now.sources if s.text))
        model = str(now.sources[0].fitted.encoder) if now.sources else ""
        request = Request(this_run() or "", "comfyui", prompts, model)
        if error is not None and hasattr(error, "to_dict"):
            self.refusals[request.number] = error.to_dict()
            while len(self.refusals) > 1000:
                del self.refusals[next(iter(self.refusals))]
        self.enforcement.record(request, now.verdict, error)

    def _encoding(self, original: Any) -> Any:
        def encode_model_conds(
            model_function: Any, conds: Any, noise: Any, device: Any, prompt_type: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if self.now is None:
                with self._one(None):
                    return encode_model_conds(model_function, conds, noise, device, prompt_type, *args, **kwargs)
            try:
                self.intact()
                model = getattr(model_function, "__self__", None)
                if "apply_model" in vars(model if model is not None else object):
                    self.enforcement.close("another pack replaced apply_model of a model, where prompts are guarded")
                    self.enforcement.check()
                free = self.now.leaves(str(prompt_type), conds)
                entries = [self._guarded(dict(entry), free, device) for entry in conds]
            except Exception as error:
                raise self.enforcement.refusal(error) from error
            found = original(model_function, entries, noise, device, prompt_type, *args, **kwargs)
            for entry in found:
                self._allow(entry, free)
            return found

        return encode_model_conds

    def _guarded(self, entry: dict[str, Any], free: bool, device: Any) -> dict[str, Any]:
        """One entry of a list of conditionings, guarded where it pushes towards its text."""
        assert self.now is not None
        if not self.policy.inputs.image_prompts and (key := next((k for k in IMAGES if entry.get(k)), None)):
            raise self.enforcement.refused(f"This host paints from no pictures as prompts ({key}).")
        tokens = entry.get("cross_attn")
        if tokens is None and not free and _texts(entry):
            raise self.enforcement.refused("This host paints from no text without its tokens.")
        if tokens is None or free:
            if isinstance(tokens, torch.Tensor):
                self.now.free.append(tokens)
            return entry
        for source in self.texts.sources(tokens):
            fitted = source.fitted
            options = {k: v for k, v in entry.items() if k != "cross_attn"}
            there = {k: v.to(device) if isinstance(v, torch.Tensor) and k != LYRICS else v for k, v in options.items()}
            guard = fitted.guard.naming(source.names)
            tokens, found, reports = guard_entry(fitted, guard, tokens.to(device), {**options, **_texts(there)})
            entry = {**found, "cross_attn": tokens}
            self.now.sources.append(source)
            self.now.verdict |= self.enforcement.judge([*source.reports, *reports])
        self.enforcement.require(self.now.verdict)
        return entry

    def _allow(self, entry: Mapping[str, Any], free: bool) -> None:
        """What the model makes of an entry may be read."""
        assert self.now is not None
        made = getattr(entry.get("model_conds", {}).get("c_crossattn"), "cond", None)
        allow = self.now.watch.allow_away if free else self.now.watch.allow
        if isinstance(made, torch.Tensor) and made.ndim == 3:
            for row in made:
                allow(row)

    def _applying(self, original: Any) -> Any:
        def apply_model(model: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
            self.intact()
            context = kwargs.get("c_crossattn", args[1] if len(args) > 1 else None)
            options = kwargs.get("transformer_options", args[3] if len(args) > 3 else None) or {}
            now = self.now or Sampling(self, None)
            if isinstance(context, torch.Tensor) and context.ndim == 3:
                marks = away_of(options, len(context)) if now.leaves(NEGATIVE) else None
                now.watch.check(context, None, marks or [False] * len(context))
            if now.sources and captured({"transformer_options": options}):
                fitted = now.sources[0].fitted
                with watching(model.diffusion_model, fitted.family, fitted.guard, now.free):
                    return original(model, x, t, *args, **kwargs)
            return original(model, x, t, *args, **kwargs)

        return apply_model

    # -- what is not text ------------------------------------------------------------------------------------------

    def _inputs(self, latent: Any) -> None:
        if self.policy.inputs.init_images or not isinstance(latent, torch.Tensor):
            return
        if bool(torch.count_nonzero(latent)):
            raise self.enforcement.refused("This host starts from no picture: use an empty latent.")

    def _loading(self, original: Any) -> Any:
        def load_torch_file(path: Any, *args: Any, **kwargs: Any) -> Any:
            allowed = self.policy.inputs.loras
            if allowed is not None and _inside(path, folder_paths.get_folder_paths("loras")):
                stamp = (os.path.realpath(path), *stamp_of(Path(path)))
                if stamp not in self._hashes:
                    with open(path, "rb") as file:
                        self._hashes[stamp] = _sha256(file)
                if self._hashes[stamp] not in allowed:
                    raise self.enforcement.refused(f"This host does not use the LoRA '{Path(path).name}'.")
            return original(path, *args, **kwargs)

        return load_torch_file


def _texts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in entry.items()
        if isinstance(v, torch.Tensor) and (k.startswith((POOLED, PREFIX)) or k in CONTROLNET)
    }


def _turned(entry: Mapping[str, Any]) -> bool:
    """Whether a weight of an entry may turn the sign of what it pushes towards."""
    weights = [entry.get("strength", 1.0), entry.get("mask_strength", 1.0)]
    mask = entry.get("mask")
    if isinstance(mask, torch.Tensor) and bool((mask < 0).any()):
        return True
    return not all(isinstance(w, int | float) and w >= 0 for w in weights)


def _ours(error: BaseException) -> bool:
    return hasattr(error, "to_dict") or isinstance(error, ValueError)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while data := file.read(2**20):
        digest.update(data)
    return digest.hexdigest()


def _inside(path: Any, folders: list[str]) -> bool:
    found = os.path.realpath(path)
    return any(os.path.commonpath([found, os.path.realpath(f)]) == os.path.realpath(f) for f in folders)


def open_flags() -> list[str]:
    """What this ComfyUI was started with that lets users install what runs code."""
    import sys

    manager = [p for p in folder_paths.get_folder_paths("custom_nodes") for _ in (Path(p) / "ComfyUI-Manager",)]
    found = [f for f in ("--enable-manager",) if f in sys.argv]
    return found + ["ComfyUI-Manager" for p in manager if (Path(p) / "ComfyUI-Manager").is_dir()][:1]


def install() -> None:
    """Read the policy of the environment and put it in force.

    Raises:
        SafeRegionError: it cannot be.
    """
    path = policy_path()
    if path is None:
        raise PolicyError("no policy is named.")
    policy = read_policy(path, files.library())
    opening = open_flags()
    if opening and policy.flags != WARN:
        raise PolicyError(f"{opening[0]} lets users install what runs code: take it away, or say 'flags: warn'.")
    for flag in opening:
        log.warning("Safe Region: %s lets users install what runs code, which is not bound by the policy.", flag)
    door = Door(Enforcement(policy))
    door.install()
    _serve(door)
    log.info("Safe Region: the policy %s is in force (%s).", path, policy.digest[:16])


def _serve(door: Door) -> None:
    """Status, metrics and refusals; and nothing of the server answers that the policy closes."""
    from aiohttp import web
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @web.middleware
    async def routes(request: Any, handler: Any) -> Any:
        path = request.path.removeprefix("/api") or "/"
        if not (door.policy.routes.allow(request.path) and door.policy.routes.allow(path)):
            return web.json_response(
                door.enforcement.refused("This address is closed on this host.").to_dict(), status=403
            )
        return await handler(request)

    server.app.middlewares.insert(0, routes)

    @server.routes.get("/safe-region/v1/policy")
    async def status(_: Any) -> Any:
        return web.json_response(door.enforcement.status())

    @server.routes.get("/safe-region/v1/metrics")
    async def metrics(_: Any) -> Any:
        return web.Response(text=door.enforcement.metrics(), content_type="text/plain", charset="utf-8")

    @server.routes.get("/safe-region/v1/refusals/{number}")
    async def refusal(request: Any) -> Any:
        found = door.refusals.get(request.match_info["number"])
        if found is None:
            return web.json_response({"error": "none"}, status=404)
        return web.json_response(found, status=found["status"])
