"""The script on the real source of a webui of the family: its prompt parser, and the methods that make conditionings.

usage: webui_family.py FOLDER CHECKOUT…    (run by an interpreter that has torch and lark; prints JSON)

Everything else of the host is a stand-in: no checkpoint of Forge runs on the test machine.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import operator
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "unit")]

import torch  # noqa: E402
import webui_fakes as webui  # noqa: E402
from webui_fakes import BENIGN, ON, UNSAFE, conds, equal  # noqa: E402

from saferegion.guard.library import Library  # noqa: E402

METHODS = ("cached_params", "get_conds_with_caching", "setup_conds", "_minimal_clip_skip")


def parser_of(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prompt_parser_of_host", checkout / "modules" / "prompt_parser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def methods_of(checkout: Path, names: dict[str, Any]) -> dict[str, Any]:
    """The methods of ``StableDiffusionProcessing`` as they stand in the host's source."""
    tree = ast.parse((checkout / "modules" / "processing.py").read_text(encoding="utf-8"))
    (cls,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "StableDiffusionProcessing"]
    found: dict[str, Any] = {}
    body: list[ast.stmt] = [n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name in METHODS]
    exec(compile(ast.Module(body, []), str(checkout / "modules" / "processing.py"), "exec"), names, found)
    return found


class Patch:
    """Of pytest's monkeypatch what the stand-ins ask for; this process ends with them."""

    setitem = staticmethod(operator.setitem)


class Options(SimpleNamespace):
    """Every setting that is not given is off."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return 0

    @property
    def data(self) -> dict[str, Any]:
        return vars(self)


class Checkpoint(webui.Checkpoint):
    def __init__(self, family: str) -> None:
        super().__init__(family)
        self.extra_generation_params: dict[str, Any] = {}
        self.skipped: list[int] = []

    def set_clip_skip(self, skip: int) -> None:
        self.skipped.append(skip)

    def get_learned_conditioning(self, prompts: Any) -> Any:
        with torch.inference_mode():  # as Forge
            return super().get_learned_conditioning(prompts)


def check(checkout: Path, folder: Path, patch: Patch) -> list[dict[str, Any]]:
    from saferegion_webui import generation, interception, prompts

    parser = parser_of(checkout)
    done = []
    families = ("sd1", "sdxl", "sd3", "flux") if (checkout / "backend").is_dir() else ("sd1", "sdxl")
    for family in families:
        shared = webui.install(patch, folder / "models", Checkpoint(family), parser)
        shared.opts = Options(emphasis="Original", CLIP_stop_at_last_layers=1)
        for name in ("backend", "backend.text_processing", "backend.text_processing.classic_engine"):
            patch.setitem(sys.modules, name, ModuleType(name))
            sys.modules[name].__path__ = []  # type: ignore[attr-defined]
        engine = sys.modules["backend.text_processing.classic_engine"]
        engine.last_extra_generation_params = {}  # type: ignore[attr-defined]
        sys.modules["backend"].text_processing = sys.modules["backend.text_processing"]  # type: ignore[attr-defined]
        sys.modules["backend.text_processing"].classic_engine = engine  # type: ignore[attr-defined]
        names = {
            "shared": shared, "opts": shared.opts, "prompt_parser": parser, "devices": sys.modules["modules.devices"],
            "sd_samplers": SimpleNamespace(find_sampler_config=lambda _: None), "modules": sys.modules["modules"],
        }  # fmt: skip
        body = {
            **methods_of(checkout, names), "cached_c": [None, None, None], "cached_uc": [None, None, None],
            "width": 64, "height": 64, "sampler_name": "Euler", "distilled_cfg_scale": 3.5, "hr_distilled_cfg": 3.5,
        }  # fmt: skip
        processing = type("StableDiffusionProcessing", (webui.Processing,), body)
        interception.install(processing, prompts.guard_conditionings)

        def run(args: Any = None, prompt: Any = UNSAFE, cls: Any = processing, **values: Any) -> Any:
            p = cls(prompt, **values)
            generation.configure(p, args or [False], [])
            with torch.inference_mode():
                p.setup_conds()
            return p

        edited = "a [quiet:burning:0.5] house AND a blue boat"
        off, on, again = run(prompt=edited), run(ON, prompt=edited), run(prompt=edited)
        assert type(on.c) is parser.MulticondLearnedConditioning
        assert [e.end_at_step for e in on.c.batch[0][0].schedules] == [5, 10]
        assert not all(equal(a, b) for a, b in zip(conds(off), conds(on), strict=True))
        assert all(a is b for a, b in zip(conds(off), conds(again), strict=True)) and on.uc is not None
        benign, guarded = run(prompt=BENIGN), run(ON, prompt=BENIGN)
        assert benign.c is guarded.c and benign.uc is guarded.uc
        for step in (0, 9):  # what the sampler makes of it
            _, stacked = parser.reconstruct_multicond_batch(on.c, step)
            if family != "sd1":
                assert isinstance(stacked, dict) and hasattr(stacked, "shape")
                if hasattr(parser.DictWithShape, "advanced_indexing"):
                    assert stacked.advanced_indexing([0])["crossattn"].shape[0] == 1
        one = run(ON, guidance=1.0)
        done.append({"family": family, "no negative at CFG 1": one.uc is None})
    return done


def main(folder: Path, checkouts: list[Path]) -> None:
    os.environ["SAFE_REGION_CACHE"] = str(folder / "cache")
    webui.write_recipes(folder / "models" / "safe_region")
    Library.guarding = lambda library, *a: (library.directions(a[0], a[1], None, *a[2:]), [])  # type: ignore[method-assign]  # the stand-in's encoder knows no words for it
    print(json.dumps({checkout.name: check(checkout, folder, Patch()) for checkout in checkouts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:]])
