"""A small webui: the structures that its family of hosts hands to the script, and checkpoints of every layout."""

from __future__ import annotations

import re
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml
from fakes import FakeEncoder, benign_prompts, fire, frost

PROJECT = Path(__file__).resolve().parents[2]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

UNSAFE, BENIGN = "a burning house in a valley", "a quiet house and a blue boat in a harbour, number 7"
FIRE = "my/on-fire"
"""As the library calls a recipe of the user's own."""
ON = [True, [FIRE]]

Scheduled = namedtuple("Scheduled", ["end_at_step", "cond"])
CLIP, T5 = 12, 30
TIMES = 1536


class Checkpoint:
    """Encodes with a fake encoder, arranged as a family's conditionings are; ``written`` keeps what it was asked."""

    def __init__(self, family: str, seed: int = 0, name: str = "one") -> None:
        self.family, self.written = family, []
        self.clip, self.t5 = FakeEncoder(CLIP, seed), FakeEncoder(T5, seed + 1)
        self.sd_checkpoint_info = SimpleNamespace(filename=name, sha256=None, shorthash=None)
        self.is_sd1, self.is_sd2, self.is_sdxl, self.is_sd3 = (family == f for f in ("sd1", "sd2", "sdxl", "sd3"))
        self.cond_stage_model = torch.nn.ModuleDict({"token_embedding": torch.nn.Embedding(2, 2)})
        self.model = SimpleNamespace(diffusion_model=torch.nn.Identity())
        self.lora = 0.0
        if family in ("flux", "chroma"):
            self.text_processing_engine_t5 = SimpleNamespace()
        if family == "flux":
            self.text_processing_engine_l = SimpleNamespace()
        if family in ("llm", "anima"):
            self.text_processing_engine_gemma = SimpleNamespace()

    @staticmethod
    def _plain(prompts: Any) -> list[str]:
        return [re.sub(r"\\([\\()\[\]])", r"\1", p) for p in prompts]

    def get_learned_conditioning(self, prompts: Any) -> Any:
        self.written.extend(prompts)
        texts = self._plain(prompts)
        clip = self.clip(texts)
        tokens, pooled = clip.tokens + self.lora, clip.pooled
        empty = getattr(prompts, "is_negative_prompt", False) and all(p == "" for p in prompts)
        if self.family in ("sd1", "sd2"):
            return tokens
        if self.family == "sdxl":
            sizes = torch.full((len(texts), TIMES), 0.5)
            if empty:
                tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
            return {"crossattn": tokens, "vector": torch.cat([pooled, sizes], 1)}
        rows = self.t5(texts).tokens
        if self.family == "chroma":
            if len(texts) > 1:
                raise RuntimeError("stack expects each tensor to be equal size")
            return rows[:, : len(texts[0].split()) + 1]
        if self.family == "llm":  # a template in front, as many rows as each needs, a list
            template = torch.linspace(-1, 1, 3 * T5).reshape(3, T5)
            return [torch.cat([template, r[: len(t.split()) + 1]]) for r, t in zip(rows, texts, strict=True)]
        if self.family == "anima":  # filled up with zeros, another dimension in front
            return [torch.nn.functional.pad(r[: len(t.split()) + 1], (0, 0, 0, 60)).unsqueeze(0)[:, :60]
                    for r, t in zip(rows, texts, strict=True)]  # fmt: skip
        if self.family == "flux":
            rows = torch.cat([rows, rows, rows, rows[:, :25]], 1)  # 256
            return {"crossattn": rows, "vector": pooled, "guidance": torch.full((len(texts),), 3.5)}
        wide = torch.nn.functional.pad(tokens, (0, T5 - CLIP))
        return {"crossattn": torch.cat([wide, rows], 1), "vector": pooled}


class Prompts(list):
    def __init__(self, prompts: Any, is_negative_prompt: bool = False, copy_from: Any = None, **_: Any) -> None:
        super().__init__(prompts)
        self.is_negative_prompt = is_negative_prompt or getattr(copy_from or prompts, "is_negative_prompt", False)


class Part:
    def __init__(self, schedules: list[Any], weight: float = 1.0) -> None:
        self.schedules, self.weight = schedules, weight


class Many:
    def __init__(self, shape: tuple[int, ...], batch: list[list[Part]]) -> None:
        self.shape, self.batch = shape, batch


def _schedules(prompts: Any, steps: int, hires_steps: Any = None, old: bool = False) -> list[list[list[Any]]]:
    """``[before:after:when]`` once a prompt."""
    found = []
    for prompt in prompts:
        match = re.search(r"\[([^:\[\]]*):([^:\[\]]*):([\d.]+)\]", prompt)
        if match is None:
            found.append([[steps, prompt]])
            continue
        cut = prompt[: match.start()], prompt[match.end() :]
        when = int(float(match[3]) * steps)
        found.append([[when, match[1].join(cut)], [steps, match[2].join(cut)]])
    return found


def _parts(prompts: Any) -> tuple[list[list[tuple[int, float]]], Prompts, dict[str, int]]:
    flat, known, rows = Prompts([], copy_from=prompts), {}, []
    for prompt in prompts:
        row = []
        for part in re.split(r"\bAND\b", prompt):
            text, _, weight = part.partition(" :")
            if text not in known:
                known[text] = len(flat)
                flat.append(text)
            row.append((known[text], float(weight) if weight else 1.0))
        rows.append(row)
    return rows, flat, known


def _learned(checkpoint: Any, prompts: Any, steps: int, hires_steps: Any = None, old: bool = False) -> list[list[Any]]:
    found, known = [], {}
    for prompt, parts in zip(prompts, _schedules(prompts, steps), strict=True):
        if prompt not in known:
            conds = [checkpoint.get_learned_conditioning(Prompts([text], copy_from=prompts)) for _, text in parts]
            one = [{k: v[0] for k, v in c.items()} if isinstance(c, dict) else c[0] for c in conds]
            known[prompt] = [Scheduled(end, c) for (end, _), c in zip(parts, one, strict=True)]
        found.append(known[prompt])
    return found


def _learned_many(checkpoint: Any, prompts: Any, steps: int, hires_steps: Any = None, old: bool = False) -> Many:
    rows, flat, _ = _parts(prompts)
    learned = _learned(checkpoint, flat, steps)
    return Many((len(prompts),), [[Part(learned[i], weight) for i, weight in row] for row in rows])


class Processing:
    """Prompts become conditionings here, through a cache of one slot."""

    cached_c: list[Any] = [None, None]
    cached_uc: list[Any] = [None, None]
    hires_steps: Any = None

    def __init__(self, prompt: Any = "", negative: str = "", guidance: float = 7.0, **values: Any) -> None:
        self.prompts = prompt if isinstance(prompt, list) else [prompt]
        self.negative_prompts = [negative] * len(self.prompts)
        self.cfg_scale, self.steps = guidance, 10
        self.extra_generation_params: dict[str, Any] = {}
        self.extra_network_data: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.s_min_uncond = 0.0
        self.c = self.uc = None
        vars(self).update(values)

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def get_conds_with_caching(
        self, function: Any, required_prompts: Any, steps: int, caches: Any, extra_network_data: Any, hires: Any = None
    ) -> Any:
        from modules import shared

        key = (tuple(required_prompts), steps, hires, id(shared.sd_model))
        for cache in caches:
            if cache[0] == key:
                return cache[1]
        caches[0][:] = [key, function(shared.sd_model, required_prompts, steps, hires, False)]
        return caches[0][1]

    def setup_conds(self) -> tuple[Any, Any]:
        data, hires = self.extra_network_data, self.hires_steps
        negative = Prompts(self.negative_prompts, is_negative_prompt=True)
        self.uc = None
        if self.cfg_scale != 1:  # as Forge
            self.uc = self.get_conds_with_caching(_learned, negative, self.steps, [self.cached_uc], data, hires)
        positive = Prompts(self.prompts)
        self.c = self.get_conds_with_caching(_learned_many, positive, self.steps, [self.cached_c], data, hires)
        return self.c, self.uc


def install(monkeypatch: Any, models: Path, checkpoint: Checkpoint, prompt_parser: Any = None) -> ModuleType:
    """Puts the modules of a webui where ``from modules import …`` finds them; returns ``modules.shared``."""

    def module(name: str, **values: Any) -> ModuleType:
        made = ModuleType(f"modules.{name}")
        vars(made).update(values)
        monkeypatch.setitem(sys.modules, f"modules.{name}", made)
        setattr(package, name, made)
        return made

    class Options(SimpleNamespace):
        @property
        def data(self) -> dict[str, Any]:
            return vars(self)

    package = ModuleType("modules")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "modules", package)
    state = SimpleNamespace(
        interrupted=False, textinfo=None, sampling_step=0, sampling_steps=20, time_start=1.0, told=[]
    )
    options = Options(
        emphasis="Original", use_old_scheduling=False, CLIP_stop_at_last_layers=1, skip_early_cond=0.0, sd_lora="None"
    )

    class Off(Processing):
        all_prompts: list[str]

    def activate(p: Any, data: dict[str, Any]) -> None:
        shared.sd_model.lora = float(data.get("lora", 0.0))

    class Nothing:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    shared = module("shared", opts=options, state=state, sd_model=checkpoint)
    module("devices", autocast=Nothing)
    hijack = SimpleNamespace(extra_generation_params={}, comments=[], embedding_db=SimpleNamespace(ids_lookup={1: 2}))
    module("sd_hijack", model_hijack=hijack)
    module("extra_networks", activate=activate)
    module("processing", StableDiffusionProcessing=Processing, StableDiffusionProcessingTxt2Img=Off)
    module("sd_models", model_data=SimpleNamespace(sd_model=checkpoint))
    module("paths_internal", models_path=str(models))
    if prompt_parser is None:
        prompt_parser = SimpleNamespace(
            SdConditioning=Prompts,
            get_multicond_prompt_list=_parts,
            get_learned_conditioning_prompt_schedules=_schedules,
        )
    package.prompt_parser = prompt_parser
    monkeypatch.setitem(sys.modules, "modules.prompt_parser", prompt_parser)
    return shared


def write_recipes(folder: Path) -> None:
    folder.mkdir(parents=True)
    for concept in (fire(), frost()):
        recipe = {
            "format": "saferegion-recipe/1", "name": concept.name, "title": concept.title, "kind": "exclude",
            "version": 1, "licence": "MIT", "pairs": [{"unsafe": a, "safe": b} for a, b in concept.pairs],
        }  # fmt: skip
        if concept.neutral:
            recipe["neutral"] = list(concept.neutral)
        (folder / f"{concept.name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    neutral = {"format": "saferegion-neutral/1", "prompts": benign_prompts(60)}
    (folder / "neutral.yaml").write_text(yaml.safe_dump(neutral), encoding="utf-8")


def conds(p: Any) -> list[Any]:
    return [entry.cond for parts in p.c.batch for part in parts for entry in part.schedules]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return torch.equal(a, b)


def guarded(monkeypatch: Any, models: Path, kept: Path) -> Any:
    """What makes a webui of a family whose generations pass the guard: its ``shared``, and its ``Processing``. What is
    compiled stays in ``kept``."""
    import saferegion as sr
    from saferegion_webui import generation, interception, prompts

    monkeypatch.setenv("SAFE_REGION_CACHE", str(kept))
    monkeypatch.setattr(
        sr.Library, "guarding", lambda library, *a: (library.directions(a[0], a[1], None, *a[2:]), [])
    )  # its own tests ask for it
    monkeypatch.setattr(generation.guards, "_known", [])
    write_recipes(models / "safe_region")

    def make(family: str = "sd1") -> tuple[Any, type]:
        shared = install(monkeypatch, models, Checkpoint(family))

        class Guarded(Processing):
            cached_c: list[Any] = [None, None]
            cached_uc: list[Any] = [None, None]
            get_conds_with_caching = Processing.get_conds_with_caching

        interception.install(Guarded, prompts.guard_conditionings)
        return shared, Guarded

    return make
