"""What paints: the worlds of this package by their own sampler, and pipelines of diffusers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saferegion.core.errors import SafeRegionError, UnresolvedError
from saferegion.core.region import SafeRegion
from saferegion.guard.library import Library
from saferegion.learn.settings import CompileSettings, Progress

from .. import microworld
from ..bench.peers.sld import PUBLISHED as SLD_SETTINGS
from ..encoders.errors import first_line
from .prompts import Task
from .settings import Arm, EvaluationError, Run

PAINTED, REFUSED, FAILED = "painted", "refused", "failed"
IN_PLACE = "a"
"""Prompt that stands where one failed while the others of its batch are painted once more."""
Compiling = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a task. ``picture``: uint8 [H, W, 3]; None where nothing was painted, and ``error`` says why."""

    outcome: str
    picture: np.ndarray | None = None
    moved: bool = False
    opened: tuple[str, ...] = ()
    error: str = ""


class Painter(ABC):
    """Paints by one arm at a time. ``compiling``: what is entered while concepts are compiled."""

    def __init__(self, run: Run, compiling: Compiling = nullcontext, progress: Progress | None = None) -> None:
        self.run, self.compiling, self.progress = run, compiling, progress
        self.arm: Arm | None = None

    def paint(self, arm: Arm, tasks: Sequence[Task]) -> list[Outcome]:
        """Outcomes in order; a prompt that fails takes no other with it.

        Raises:
            EvaluationError: the arm cannot paint on this model at all.
        """
        if self.arm != arm:
            self.use(arm)
            self.arm = arm
        try:
            return self._batch([t.prompt.text for t in tasks], [t.seed for t in tasks])
        except Exception as error:
            if len(tasks) == 1:
                return [_failed(error)]
        alone = [self._alone(t) for t in tasks]
        texts = [t.prompt.text if o.outcome == PAINTED else IN_PLACE for t, o in zip(tasks, alone, strict=True)]
        try:  # the others once more among as many as before: rounding depends on how many there are
            together = self._batch(texts, [t.seed for t in tasks])
        except Exception:
            return alone
        return [b if a.outcome == PAINTED else a for a, b in zip(alone, together, strict=True)]

    def _alone(self, task: Task) -> Outcome:
        try:
            return self._batch([task.prompt.text], [task.seed])[0]
        except Exception as error:
            return _failed(error)

    @abstractmethod
    def use(self, arm: Arm) -> None:
        """Make ready for an arm. Raises EvaluationError."""

    @abstractmethod
    def _batch(self, texts: list[str], seeds: list[int]) -> list[Outcome]: ...


def _failed(error: BaseException) -> Outcome:
    if isinstance(error, UnresolvedError):
        return Outcome(REFUSED, error=first_line(error)[:300])
    kind = "" if isinstance(error, SafeRegionError) else f"{type(error).__name__}: "
    return Outcome(FAILED, error=f"{kind}{first_line(error)}"[:300])


def pictures_of(values: np.ndarray) -> list[np.ndarray | None]:
    """uint8 [H, W, 3] of float [B, H, W, 3] in 0 to 1; None of what is not finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    return [
        np.ascontiguousarray((v.clip(0, 1) * 255).round().astype(np.uint8)) if there else None
        for v, there in zip(values, finite, strict=True)
    ]


def _seen(picture: np.ndarray | None, moved: bool, opened: Sequence[str]) -> Outcome:
    if picture is None:
        return Outcome(FAILED, error="the model painted values that are no numbers")
    return Outcome(PAINTED, picture, moved, tuple(sorted(opened)))


class WorldPainter(Painter):
    """The microworld or the natural world."""

    def __init__(self, run: Run, compiling: Compiling = nullcontext, progress: Progress | None = None) -> None:
        super().__init__(run, compiling, progress)
        self.world: Any
        if run.model == "microworld":
            self.world, self.library = microworld.load(), _library(run, microworld.DATA)
        else:
            from .. import naturalworld

            self.world, self.library = naturalworld.load(), _library(run)
        if run.size not in (None, (self.world.side, self.world.side)):
            raise EvaluationError(
                f"The {run.model} paints {self.world.side} x {self.world.side} alone: leave size away."
            )
        self.region: SafeRegion | None = None
        self.peer: Any = None
        self.negative = ""

    def use(self, arm: Arm) -> None:
        self.region, self.peer, self.negative = None, None, ""
        if arm.kind == "negative":
            self.negative = str(arm.value)
        elif arm.kind == "safe_region":
            self.region = self._region(arm)
        elif arm.kind == "peer":
            self.peer = self._peer(str(arm.value))
        elif arm.kind != "none":
            raise EvaluationError(f"The arm {arm.name!r} needs a pipeline of diffusers; this model is a world.")

    def _region(self, arm: Arm) -> SafeRegion:
        if more := [k for k in arm.options if k not in ("mode", "strength")]:
            raise EvaluationError(
                f"The arm {arm.name!r} has {more[0]!r}, which counts for pipelines of diffusers alone."
            )
        settings = CompileSettings(family=self.run.model)
        with self.compiling():
            found = self.library.directions(arm.value, self.world.encode, None, self.progress, settings)
        return SafeRegion(found, float(arm.options.get("strength", 1.0)), arm.options.get("mode", "project"))

    def _peer(self, name: str) -> Any:
        from ..bench.peers import FAMILIES

        if self.run.model != "microworld":
            raise EvaluationError(f"The peers are made for the microworld; this run's model is {self.run.model}.")
        known = {g.name: g for f in FAMILIES if not f.discovers for g in f.guards()}
        if name not in known:
            raise EvaluationError(f"There is no peer {name!r}; there are: {'; '.join(known)}.")
        return known[name].prepare(self.world)

    def _batch(self, texts: list[str], seeds: list[int]) -> list[Outcome]:
        how: dict[str, Any] = {"seeds": seeds, "steps": self.run.steps, "guidance": self.run.guidance}
        if self.peer is not None:
            return self._by_peer(texts, how)
        c = self.world.encode(texts)
        moved, refused = [False] * len(texts), set[int]()
        opened: list[set[str]] = [set() for _ in texts]
        if self.region is not None:
            names = [d.concept for d in self.region.directions]
            opened = [
                {n for n, far in zip(names, row, strict=True) if far > 0} for row in self.region.score(c).tolist()
            ]
            c, report = self.region.apply(c)
            moved = report.moved_prompts()
            refused = {row for row, _ in report.unresolved}
        pictures = self.world.decode(self.world.sample(c, self.world.encode([self.negative]), **how))
        return [
            Outcome(REFUSED, error="a concept stayed open") if i in refused else _seen(p, moved[i], sorted(opened[i]))
            for i, p in enumerate(pictures)
        ]

    def _by_peer(self, texts: list[str], how: dict[str, Any]) -> list[Outcome]:
        from ..bench.peers.base import Prompts, paint

        prompts = Prompts.of(self.peer.meter, self.world.tokenize(texts))
        guarded = self.peer.painted(prompts, how["steps"])
        latents, _ = paint(self.peer, guarded, batch=len(texts), **how)
        kept = guarded.same_as(prompts.tokens).tolist()
        return [_seen(p, not k, ()) for p, k in zip(self.world.decode(latents), kept, strict=True)]


class PipelinePainter(Painter):
    """A pipeline of diffusers, guarded through :mod:`saferegion.diffusers`."""

    def __init__(self, run: Run, compiling: Compiling = nullcontext, progress: Progress | None = None) -> None:
        super().__init__(run, compiling, progress)
        device = run.model_options.get("device") or _device()
        self.pipe = load_pipeline(run.model, run.model_options).to(device)
        self.own = self.pipe
        self.call: dict[str, Any] = {}
        import inspect

        self.takes = inspect.signature(type(self.pipe).__call__).parameters

    def use(self, arm: Arm) -> None:
        import saferegion.diffusers as door

        door.unguard(self.pipe)
        self.pipe, self.call = self.own, {}
        if arm.kind == "negative":
            if "negative_prompt" not in self.takes:
                raise EvaluationError(f"{type(self.pipe).__name__} takes no negative prompt: leave {arm.name!r} away.")
            self.call = {"negative_prompt": str(arm.value)}
        elif arm.kind == "safe_region":
            options = {k: v for k, v in arm.options.items() if k in ("mode", "strength", "preset")}
            library = _library(self.run)
            settings = door.DoorSettings(library=library, progress=self.progress)
            with self.compiling():
                door.guard(self.pipe, [library.find(v) for v in arm.value], settings=settings, **options)
        elif arm.kind == "sld":
            self.pipe, self.call = self._sld(arm)
        elif arm.kind == "weights":
            self.pipe = _with_weights(self.pipe, Path(str(arm.value)), str(arm.options.get("part", "")))
        elif arm.kind == "peer":
            raise EvaluationError("The peers are made for the microworld; this run's model is a pipeline of diffusers.")

    def _sld(self, arm: Arm) -> tuple[Any, dict[str, Any]]:
        import diffusers

        own = type(self.own).__name__
        if own != "StableDiffusionPipeline":
            raise EvaluationError(f"Safe Latent Diffusion is there for StableDiffusionPipeline alone; this is {own}.")
        safe = getattr(diffusers, "StableDiffusionPipelineSafe", None)
        if safe is None:
            raise EvaluationError("The installed diffusers has no StableDiffusionPipelineSafe any more.")
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        parts = {n: self.own.components[n] for n in names}
        pipe = safe(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe.safety_concept = str(arm.options["concept"])
        pipe.set_progress_bar_config(disable=True)
        s = SLD_SETTINGS[str(arm.value)]
        return pipe, {
            "sld_guidance_scale": s["scale"],
            "sld_warmup_steps": round(s["warmup"] * self.run.steps),
            "sld_threshold": s["threshold"],
            "sld_momentum_scale": s["momentum"],
            "sld_mom_beta": s["beta"],
        }

    def _batch(self, texts: list[str], seeds: list[int]) -> list[Outcome]:
        call = dict(self.call)
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(texts)
        if self.run.size is not None:
            call["width"], call["height"] = self.run.size
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        told = {"num_inference_steps": self.run.steps, "guidance_scale": self.run.guidance, "output_type": "np"}
        made = self.pipe(prompt=texts, generator=generators, **{**told, **call})
        if not hasattr(made, "images"):
            raise EvaluationError(f"{type(self.pipe).__name__} paints no pictures.")
        pictures = pictures_of(np.asarray(made.images))
        door = vars(self.pipe).get("safe_region")
        if door is None:
            return [_seen(p, False, ()) for p in pictures]
        looks = door.looks
        if len(looks) != len(pictures):
            raise EvaluationError(f"The guard saw {len(looks)} prompts of {len(pictures)} pictures.")
        return [_seen(p, look.moved, sorted(look.opened)) for p, look in zip(pictures, looks, strict=True)]


def _library(run: Run, *more: Path) -> Library:
    """Bundled concepts, and those of the folder that the run names."""
    named = run.model_options.get("library")
    return Library((*([Path(named)] if named else []), *more))


def painter_of(run: Run, compiling: Compiling = nullcontext, progress: Progress | None = None) -> Painter:
    """What paints a run's model. Raises EvaluationError, OSError: it cannot be read."""
    kind = WorldPainter if run.model in ("microworld", "naturalworld") else PipelinePainter
    return kind(run, compiling, progress)


def _device() -> str:
    import os

    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "cpu"


def load_pipeline(model: str, options: Any) -> Any:
    """A pipeline of a folder, a single file or a hub id. Raises EvaluationError."""
    try:
        import diffusers
    except ImportError as error:
        raise EvaluationError("Models are read with diffusers: pip install 'saferegion[evaluate]'.") from error
    told = str(options.get("dtype", "float32"))
    dtype = getattr(torch, told, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise EvaluationError(f"dtype is float32, float16 or bfloat16; got {told!r}.")
    path, name = Path(model), str(options.get("pipeline", ""))
    single = path.is_file()
    kind = getattr(diffusers, name or ("StableDiffusionPipeline" if single else "DiffusionPipeline"), None)
    if kind is None:
        raise EvaluationError(f"diffusers {diffusers.__version__} has no pipeline {name!r}.")
    if single and path.suffix.lower() != ".safetensors":
        raise EvaluationError(f"{path.name} is no .safetensors, and other files can run code when they are read.")
    try:
        if single:
            pipe = kind.from_single_file(model, torch_dtype=dtype)
        else:
            pipe = kind.from_pretrained(model, torch_dtype=dtype, local_files_only=path.is_dir())
    except Exception as error:
        raise EvaluationError(
            f"{model} cannot be read as a pipeline ({type(error).__name__}: {first_line(error)[:300]}): get it again, "
            "or name its class with model: {path: …, pipeline: …}."
        ) from error
    if getattr(pipe, "safety_checker", None) is not None:  # pictures are judged as they come
        pipe.safety_checker = None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_weights(pipe: Any, path: Path, part: str) -> Any:
    """The same pipeline with other weights in its denoiser, all of them or those that a file has."""
    import copy

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    part = part or ("unet" if getattr(pipe, "unet", None) is not None else "transformer")
    own = getattr(pipe, part, None)
    if own is None:
        raise EvaluationError(f"{type(pipe).__name__} has no part {part!r}.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(f.suffix != ".safetensors" for f in files):
        raise EvaluationError(f"{path} holds no .safetensors; other files can run code when they are read.")
    try:
        state = {k: v for f in files for k, v in load_file(str(f)).items()}
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path} cannot be read ({first_line(error)}): get it again.") from error
    there = own.state_dict()
    strange = [k for k, v in state.items() if k not in there or there[k].shape != v.shape]
    if strange or not state:
        raise EvaluationError(f"{path} does not fit {part}: of {len(state)} tensors, {len(strange)} are not its own.")
    new = copy.deepcopy(own)
    new.load_state_dict(state, strict=False)
    changed = type(pipe)(**{**pipe.components, part: new})
    changed.set_progress_bar_config(disable=True)
    return changed
