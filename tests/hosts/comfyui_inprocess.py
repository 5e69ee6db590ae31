"""Run by ComfyUI's interpreter: its own PromptExecutor runs every case, and what reaches the networks is recorded.

usage: comfyui_inprocess.py BASE_DIRECTORY [CASE...]    (in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import importlib
import inspect
import json
import sys
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

base, *wanted = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401, I001  (as main.py does: later another module takes that name)

import comfy.cldm.cldm  # noqa: E402
import comfy.utils  # noqa: E402
import comfyui_cases as cases  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

torch.set_num_threads(1)
Bits = str


class Recorder:
    """What reaches the UNet and the ControlNet as text, by the sampler's name of the conditioning, in its order."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.seen: dict[str, dict[Bits, torch.Tensor]] = {}
        self.calls = 0
        self._control: list[torch.Tensor] = []
        unet, control = UNetModel.forward, comfy.cldm.cldm.ControlNet.forward

        def unet_forward(net: Any, x: Any, timesteps: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            self.take(context, kwargs["transformer_options"]["cond_or_uncond"])
            return unet(net, x, timesteps, context, *args, **kwargs)

        def control_forward(net: Any, *args: Any, context: Any, **kwargs: Any) -> Any:
            self._control.append(context.clone())
            return control(net, *args, context=context, **kwargs)

        UNetModel.forward, comfy.cldm.cldm.ControlNet.forward = unet_forward, control_forward

    def take(self, context: torch.Tensor, order: list[int]) -> None:
        self.calls += 1
        for prefix, tensors in (("", [context]), ("control of ", self._control)):
            for rows in tensors:
                for name, part in zip((self.names[i] for i in order), rows.chunk(len(order)), strict=True):
                    for row in part:
                        self.seen.setdefault(prefix + name, {}).setdefault(bits(row), row.clone())
        self._control = []

    def start(self, names: tuple[str, ...]) -> None:
        self.names, self.seen, self.calls = names, {}, 0


class Kept:
    """Every tensor that any node has returned, with its bits at that time."""

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[torch.Tensor, Bits]] = {}

    def take(self, value: Any) -> None:
        for tensor in tensors_of(value):
            self.tensors.setdefault(id(tensor), (tensor, bits(tensor)))

    def changed(self) -> int:
        return sum(bits(tensor) != before for tensor, before in self.tensors.values())


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)
    elif hasattr(value, "outputs"):
        yield from tensors_of(value.outputs)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


def bits(tensor: torch.Tensor) -> Bits:
    data = tensor.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(repr((tensor.dtype, tuple(tensor.shape))).encode() + data).hexdigest()[:16]


def executor() -> execution.PromptExecutor:
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_, **__: None)
    sizes = {"cache_args": {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}}  # newer hosts ask for all of them
    known = inspect.signature(execution.PromptExecutor).parameters
    kind = execution.CacheType.CLASSIC
    return execution.PromptExecutor(server, cache_type=kind, **{k: v for k, v in sizes.items() if k in known})


def settled(result: Any) -> Any:
    """What a function of ComfyUI gives that is a coroutine since 0.3.47."""
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def start() -> tuple[Any, Any]:
    """Load the nodes and write a ControlNet; the pack's modules `wrap` and `encoder`."""
    settled(nodes.init_builtin_extra_nodes())
    for name in ("microworld_sizes", "safe-region"):
        if not settled(nodes.load_custom_node(f"{base}/custom_nodes/{name}")):
            raise SystemExit(f"ComfyUI did not load {name}.")
    controlnet(Path(base) / "models")
    package = nodes.NODE_CLASS_MAPPINGS["SafeRegion"].__module__.rpartition(".")[0]
    # the minors baseline, whose words this encoder does not know, would be tried for every LoRA and layer
    library = importlib.import_module(f"{package.rpartition('.')[0]}.saferegion.guard.library")
    library.Library.guarding = lambda own, *a: (own.directions(a[0], a[1], None, *a[2:]), [])
    return importlib.import_module(f"{package}.wrap"), importlib.import_module(f"{package}.encoder")


def controlnet(models: Path) -> None:
    """A random ControlNet of the microworld's sizes."""
    sizes = json.loads((models / "checkpoints" / "microworld.json").read_text(encoding="utf-8"))["unet"]
    blocks = len(sizes["channel_mult"]) * sizes["num_res_blocks"]
    changed = {
        **sizes, "num_res_blocks": [sizes["num_res_blocks"]] * len(sizes["channel_mult"]), "hint_channels": 3,
        "transformer_depth": [sizes["transformer_depth"]] * blocks, "transformer_depth_middle": 1,
        "dtype": torch.float32,
    }  # fmt: skip
    torch.manual_seed(0)
    net = comfy.cldm.cldm.ControlNet(**changed, operations=comfy.ops.manual_cast)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    comfy.utils.save_torch_file(net.state_dict(), str(models / "controlnet" / "tiny.safetensors"))


class Table:
    """Runs cases and says what was seen."""

    def __init__(self) -> None:
        self.guards, self.encoder = start()
        self.recorder, self.kept, self.executor = Recorder(), Kept(), executor()
        outputs = self.executor.caches.outputs
        keep = outputs.set

        def remembered(node_id: str, value: Any) -> Any:
            self.kept.take(value)
            return keep(node_id, value)

        outputs.set = remembered  # newer hosts await what it returns

    def case(self, name: str) -> dict[str, dict[str, Any]]:
        """For each kind of prompt and each guard: what was seen, its scores, and what became of the node cache."""
        case = cases.CASES[name]
        found: dict[str, dict[str, Any]] = {}
        for kind in ("unsafe", "benign"):
            regions: list[list[Any]] = []
            for guard in ("", *cases.GUARDS):
                graph = cases.Graph(guard, getattr(case, kind), case.concepts, case.avoided)
                case.build(graph)
                told = self.run(graph, case)
                if "error" not in told:
                    regions = regions or self.regions(graph)
                    told["scores"] = self.scores(regions, case)
                found[f"{kind} {guard}".strip()] = told
        found["cache"] = {"tensors": len(self.kept.tensors), "changed": self.kept.changed()}
        return found

    def run(self, graph: cases.Graph, case: cases.Case) -> dict[str, Any]:
        self.recorder.start(case.names)
        states = [] if graph.guard else [link[0] for link in graph.states]
        self.executor.execute(graph.nodes, "test", {}, list(dict.fromkeys([graph.result, *states])))
        status, said = self.executor.status_messages[-1]
        if status != "execution_success":
            return {"error": f"{said.get('node_type')}: {said.get('exception_message', status)}"}
        return {
            "latent": bits(self.value([graph.result, 0])["samples"]),
            "seen": {name: list(rows) for name, rows in self.recorder.seen.items()},
            "calls": self.recorder.calls,
        }

    def value(self, link: list[Any]) -> Any:
        kept = settled(self.executor.caches.outputs.get(link[0]))
        return getattr(kept, "outputs", kept)[link[1]][0]

    @torch.inference_mode()
    def regions(self, graph: cases.Graph) -> list[list[Any]]:
        """For each state of the text encoder its regions, one a concept, fitted where no guard node is."""
        choose = nodes.NODE_CLASS_MAPPINGS["SafeRegion"]().choose
        found = []
        for link in graph.states:
            encoder = self.encoder.TextEncoder.of(self.value(link))
            found.append([])
            for together in graph.concepts:
                region = None
                for concept in together.split("+"):
                    (region,) = choose(concept, 1.0, "project", region)
                found[-1].append(self.guards.fit(region, encoder))
        return found

    @torch.inference_mode()
    def scores(self, regions: list[list[Any]], case: cases.Case) -> dict[str, list[float]]:
        """The core's score of every conditioning seen, in the regions of the state that made it; 0 is the border."""
        return {
            name: [
                max(score(fitted, row) for fitted in regions[i if len(regions) > 1 else 0])
                for i, row in enumerate(rows.values())
            ]
            for name, rows in self.recorder.seen.items()
            if name.removeprefix("control of ") in case.guarded
        }


def score(fitted: Any, row: torch.Tensor) -> float:
    c = fitted.family.conditioning(row.unsqueeze(0))
    if c.mask is not None and not bool(c.mask.any()):
        return -1e9
    return max(float(region.score(c).max()) for region in fitted.guard.regions)


class Siblings:
    """Guarded and unguarded copies of one CLIP and one MODEL, called by hand: who has run before changes no bit."""

    def __init__(self, table: Table) -> None:
        kinds = nodes.NODE_CLASS_MAPPINGS
        table.recorder.start(cases.Case(cases.plain).names)
        self.model, self.clip = kinds["CheckpointLoaderSimple"]().load_checkpoint("microworld.safetensors")[:2]
        self.region = kinds["SafeRegion"]().choose("fire.yaml", 1.0, "project")[0]
        self.lora = lambda clip, s: kinds["LoraLoader"]().load_lora(self.model, clip, "styled.safetensors", 1.0, s)[1]
        self.layer = lambda clip, n: kinds["CLIPSetLastLayer"]().set_last_layer(clip, n)[0]
        self.encode = lambda clip, text=cases.UNSAFE: kinds["CLIPTextEncode"]().encode(clip, text)[0]
        self.guard_clip = lambda clip, region=self.region: kinds["SafeRegionGuardCLIP"]().guard(clip, region)[0]
        self.guard_model = lambda: kinds["SafeRegionGuardModel"]().guard(self.model, self.clip, False, self.region)[0]

    def latent(self, model: Any, positive: Any) -> Bits:
        empty = {"samples": torch.zeros(1, 4, 8, 8)}
        negative = self.encode(self.clip, "")
        sampled = nodes.KSampler().sample(model, 5, 3, 4.0, "euler", "normal", positive, negative, empty)[0]
        return bits(sampled["samples"])

    def text(self, clip: Any) -> Bits:
        return bits(self.encode(clip)[0][0])

    @torch.inference_mode()
    def run(self) -> dict[str, list[Bits]]:
        """By what was called, its results over the time; a dictionary of lists in which every list is of one value."""
        found: dict[str, list[Bits]] = {}

        def look(guards: dict[str, Any]) -> None:
            encoders = {"": self.clip, "clip": guards["clip"]} if guards else {"": self.clip}
            for name, clip in encoders.items():
                variants = {"": clip, "lora ": self.lora(clip, 1.0), "layer ": self.layer(clip, -2)}
                for kind, variant in variants.items():
                    found.setdefault(f"{kind}text {name}".strip(), []).append(self.text(variant))
            models = {"": self.model, **({"model": guards["model"]} if guards else {})}
            for name, model in models.items():
                found.setdefault(f"latent {name}".strip(), []).append(self.latent(model, self.encode(self.clip)))

        look({})
        guards = {"clip": self.guard_clip(self.clip), "model": self.guard_model()}
        other = nodes.NODE_CLASS_MAPPINGS["SafeRegion"]().choose("lightning.yaml", 1.0, "erase")[0]
        another = self.guard_clip(self.clip, other)
        for _ in range(2):
            look(guards)
            found.setdefault("text of another guard", []).append(self.text(another))
        comfy.model_management.unload_all_models()
        look(guards)
        look({})
        clones = {"clip": guards["clip"].clone().clone(), "model": guards["model"].clone()}
        look(clones)
        guarded = self.guard_clip(self.clip)
        found["text clip"].append(bits(guarded.encode_from_tokens(guarded.tokenize(cases.UNSAFE))))
        scheduled = guarded.encode_from_tokens_scheduled(guarded.tokenize(cases.UNSAFE))
        found["text clip"].append(bits(scheduled[0][0]))
        return found


def side_by_side(table: Table) -> dict[str, list[Bits]]:
    """Guarded and unguarded samplers in one workflow, in both orders; by guard, latents (unguarded, guarded)."""
    case = cases.CASES["KSampler"]
    found: dict[str, list[Bits]] = {}
    for guard in cases.GUARDS:
        for turn in (False, True):
            graph = cases.Graph(guard, case.unsafe)
            results = []
            for on in (turn, not turn):
                graph.guard = guard if on else ""
                case.build(graph)
                results.append((on, graph.result))
            table.recorder.start(case.names)
            table.executor = executor()
            table.executor.execute(graph.nodes, "test", {}, [number for _, number in results])
            for on, number in results:
                latent = bits(table.value([number, 0])["samples"])
                found.setdefault(f"{guard} {'guarded' if on else 'unguarded'}", []).append(latent)
    return found


@torch.inference_mode()
def freed(table: Table) -> dict[str, bool]:
    """Whether text encoder and diffusion model go away once nobody holds them any more."""
    siblings = Siblings(table)
    siblings.latent(siblings.guard_model(), siblings.encode(siblings.guard_clip(siblings.clip)))
    kept = {"clip": weakref.ref(siblings.clip.cond_stage_model), "model": weakref.ref(siblings.model.model)}
    del siblings
    comfy.model_management.unload_all_models()
    gc.collect()
    return {name: reference() is None for name, reference in kept.items()}


def window(table: Table) -> dict[str, dict[str, Any]]:
    """An offset that acts in the first half of the sampling only, and the same that always acts: what was seen, by kind
    of prompt, and by guard or "always"."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("unsafe", "benign"):
        for guard, concept in (("", "early"), *((g, "early") for g in cases.GUARDS), ("clip", "always")):
            case = cases.Case(cases.four_steps, concepts=(f"{concept}.safetensors",))
            graph = cases.Graph(guard, getattr(case, kind), case.concepts)
            case.build(graph)
            name = guard if concept == "early" else concept
            found[f"{kind} {name}".strip()] = table.run(graph, case)
            if not guard:
                fitted = table.regions(cases.Graph("", "", states=[graph.clip]))[0][0]
                write_offsets(fitted.guard.regions[0].directions[0])
    return found


@torch.inference_mode(False)
def write_offsets(compiled: Any) -> None:
    """Direction files of one concept that moves by an offset, in the first half of the sampling and always."""
    core = importlib.import_module(f"{type(compiled).__module__.rpartition('.')[0]}.movers")
    for name, acts in (("early", (0.0, 0.5)), ("always", (0.0, 1.0))):
        back = torch.full((1,), -2.0)
        movers = {s: core.Offset(back, m.displacement[0].clone(), acts) for s, m in compiled.movers.items()}
        changed = dataclasses.replace(compiled, concept=name, movers=movers, witness=None)
        changed.save(Path(base) / "models" / "safe_region" / f"{name}.safetensors")


def unresolved(table: Table) -> dict[str, str]:
    """What is said, by guard, of a prompt that stays open whatever is done; and what Inspect says."""
    selection = importlib.import_module(f"{table.guards.Guard.__module__}")
    apply = selection.Guard.apply

    def held_open(guard: Any, c: Any) -> Any:
        c, report = apply(guard, c)
        opened = [dataclasses.replace(r, unresolved_by=r.before.far > 0) for r in report.reports]
        return c, dataclasses.replace(report, reports=tuple(opened))

    selection.Guard.apply = held_open
    try:
        case, found = cases.CASES["KSampler"], {}
        for guard in cases.GUARDS:
            graph = cases.Graph(guard, case.unsafe)
            case.build(graph)
            found[guard] = table.run(graph, case).get("error", "")
            graph = cases.Graph(guard, case.benign)
            case.build(graph)
            found[f"benign {guard}"] = table.run(graph, case).get("error", "")
        kinds = nodes.NODE_CLASS_MAPPINGS
        with torch.inference_mode():
            clip = kinds["CheckpointLoaderSimple"]().load_checkpoint("microworld.safetensors")[1]
            region = kinds["SafeRegion"]().choose("fire.yaml", 1.0, "project")[0]
            found["inspect"] = kinds["SafeRegionInspect"]().inspect(clip, case.unsafe, region)["result"][1]
        return found
    finally:
        selection.Guard.apply = apply


def main() -> None:
    table = Table()
    extras = {
        "siblings": lambda: Siblings(table).run(),
        "side by side": lambda: side_by_side(table),
        "window": lambda: window(table),
        "freed": lambda: freed(table),
        "unresolved": lambda: unresolved(table),
    }
    found = {}
    for name in wanted or (*cases.CASES, *extras):
        try:
            found[name] = extras[name]() if name in extras else table.case(name)
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    print(json.dumps(found))


main()
