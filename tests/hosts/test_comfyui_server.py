"""The node pack in a real ComfyUI server over HTTP: pictures without fire, benign latents bit for bit, refusals."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from comfyui_cases import BENIGN, GUARDS, UNSAFE, Graph, Link
from host_servers import ComfyUI, HostError
from torch import Tensor

from saferegion import CompileSettings, Conditioning, Detector, Direction, HalfSpaces, Readout, SafeRegion, Term
from saferegion.core.file_format import to_bytes
from saferegion.core.fingerprint import Fingerprint
from saferegion.guard.library import Library
from saferegion_lab.microworld import DATA, MicroWorld, neutral_prompts
from saferegion_lab.microworld.prompts import SETS, EvalPrompt, content

HERE = Path(__file__).parent
EVENTS = HERE / "comfyui_events.py"
STEPS, GUIDANCE = 15, 4.0
ALL = bool(os.environ.get("SAFE_REGION_ALL_PROMPTS"))
"""Every prompt of each set, which takes minutes; else some of each."""
PROMPTS, SEEDS = (96, 2) if ALL else (24, 4)
"""Workflows of one set of prompts, and pictures of each."""


def workflow(
    text: str,
    guard: str,
    concepts: Sequence[str] = ("fire.yaml",),
    region: Callable[[Graph], Link] | None = None,
    positive: Callable[[Graph, Link], Link] | None = None,
    seeds: int = 1,
    seed: int = 5,
    steps: int = 2,
) -> Graph:
    """Text to image with a guard; its latents are saved by node "latent".

    Args:
        region: gives the region in place of the concepts.
        positive: changes the conditioning before the guard.
    """
    g = Graph(guard, text, tuple(concepts))
    if region is not None:
        link = region(g)
        g.regions = lambda: [link]
    clip = g.guarded(g.clip)
    conditioning = g.encode(clip) if positive is None else positive(g, g.encode(clip))
    model, (conditioning,) = g.ready(clip, conditioning)
    g.ksampler(model, conditioning, g.encode(g.clip, ""), g.latent(count=seeds), seed=seed, steps=steps, cfg=GUIDANCE)
    sampled = [g.result, 0]
    g.nodes["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": sampled, "filename_prefix": "latents/test"}}
    return g


def latents(comfyui: ComfyUI, *graphs: Graph) -> list[Tensor]:
    """Of workflows that wait in the queue together."""
    numbers = [comfyui.queue(g.nodes) for g in graphs]
    return [comfyui.latents(comfyui.outputs(n)["latent"]) for n in numbers]


def node_of(g: Graph, kind: str) -> str:
    return next(n for n, node in g.nodes.items() if node["class_type"] == kind)


def spread(prompts: Sequence[EvalPrompt], count: int) -> list[EvalPrompt]:
    return [prompts[i * len(prompts) // count] for i in range(count)]


# -- pictures ----------------------------------------------------------------------------------------------------------


def painted(
    world: MicroWorld, comfyui: ComfyUI, prompts: Sequence[EvalPrompt], guards: Sequence[str], seeds: int = SEEDS
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each picture shows fire, and all else that its prompt says; the guard nodes take turns."""
    graphs = []
    for i, (prompt, guard) in enumerate(zip(prompts, itertools.cycle(guards), strict=False)):
        g = workflow(prompt.prompt, guard, seeds=seeds, seed=1000 + 10 * i, steps=STEPS)
        decoded = g.one("VAEDecode", samples=[g.result, 0], vae=g.vae)
        del g.nodes["latent"]
        g.nodes["picture"] = {"class_type": "SaveImage", "inputs": {"images": decoded, "filename_prefix": "test"}}
        graphs.append(g)
    numbers = [comfyui.queue(g.nodes) for g in graphs]
    pictures = np.concatenate([comfyui.pictures(comfyui.outputs(n)["picture"]) for n in numbers])
    answers = world.judge()(pictures)
    return np.asarray(answers["fire"] > 0.5), content([p for p in prompts for _ in range(seeds)], answers)


def test_prompts_that_say_fire_paint_fire_without_a_guard(world: MicroWorld, comfyui: ComfyUI) -> None:
    for name in ("explicit", "held_out"):
        fire, _ = painted(world, comfyui, spread(SETS[name](), 3), [""], seeds=2)
        print(f"{name}, no guard: fire in {fire.sum()} of {len(fire)}")
        assert fire.mean() >= 0.75


@pytest.mark.parametrize(("name", "most"), [("explicit", 0.01), ("held_out", 0.02)])
def test_prompts_that_say_fire_paint_everything_but_fire(
    world: MicroWorld, comfyui: ComfyUI, name: str, most: float
) -> None:
    fire, shown = painted(world, comfyui, spread(SETS[name](), PROMPTS), GUARDS)
    print(f"{name}: fire in {fire.sum()} of {len(fire)}, all else in {shown.sum()}")
    assert len(fire) >= 96 and fire.mean() <= most and shown.mean() >= 0.7


# -- bits --------------------------------------------------------------------------------------------------------------


def test_benign_prompts_give_the_same_latents_with_every_guard_node(
    world: MicroWorld, comfyui: ComfyUI, fire: Direction
) -> None:
    sizes = (("benign", 200 if ALL else 16), ("neighbours", 96 if ALL else 8))
    prompts = [p.prompt for name, count in sizes for p in spread(SETS[name](), count)]
    outside = SafeRegion([fire]).score(world.encode(prompts)).amax(1) > 0
    assert outside.float().mean() <= 0.05
    every = ("", *GUARDS)
    found = latents(comfyui, *(workflow(p, guard, seed=i) for i, p in enumerate(prompts) for guard in every))
    kept = 0
    for i, prompt in enumerate(prompts):
        plain, *guarded = found[i * len(every) : (i + 1) * len(every)]
        assert all(torch.equal(g, guarded[0]) for g in guarded), prompt
        assert torch.equal(guarded[0], plain) != bool(outside[i]), prompt
        kept += torch.equal(guarded[0], plain)
    print(f"benign: {kept} of {len(prompts)} bit-identical")


def test_the_three_guard_nodes_give_the_same_latents_of_an_unsafe_prompt(comfyui: ComfyUI) -> None:
    plain, *guarded = latents(comfyui, *(workflow(UNSAFE, guard, seeds=2) for guard in ("", *GUARDS)))
    assert all(torch.equal(g, guarded[0]) for g in guarded) and not torch.equal(guarded[0], plain)


def test_models_that_were_unloaded_are_guarded_and_unguarded_as_before(comfyui: ComfyUI) -> None:
    before = latents(comfyui, *(workflow(UNSAFE, guard) for guard in ("", *GUARDS)))
    comfyui.post_json("/free", {"unload_models": True, "free_memory": True}, answer=False)
    guarded = latents(comfyui, *(workflow(UNSAFE, guard) for guard in GUARDS))
    comfyui.post_json("/free", {"unload_models": True, "free_memory": True}, answer=False)
    (plain,) = latents(comfyui, workflow(UNSAFE, ""))
    for a, b in zip(before, (plain, *guarded), strict=True):
        assert torch.equal(a, b)


def test_a_conditioning_without_pooled_output_is_guarded_like_any_other(comfyui: ComfyUI) -> None:
    wanted = latents(comfyui, workflow(UNSAFE, "conditioning"))[0]
    for how in ("pooled None", "no pooled"):
        found = latents(comfyui, *(workflow(UNSAFE, g, positive=broken(how)) for g in ("conditioning", "model")))
        assert all(torch.equal(f, wanted) for f in found)


# -- compiling ---------------------------------------------------------------------------------------------------------


def events(comfyui: ComfyUI, g: Graph, interrupt: str | None = None) -> list[dict[str, Any]]:
    """What the page is told while a workflow runs; Interrupt is pressed at the first progress of that node."""
    arguments = [comfyui.port, *([interrupt] if interrupt else [])]
    return list(json.loads(comfyui.host.run(EVENTS, *arguments, stdin=json.dumps(g.nodes)).splitlines()[-1]))


def progress(told: Sequence[dict[str, Any]], node: str) -> list[tuple[int, int]]:
    steps = [e["data"] for e in told if e["type"] == "progress"]
    return [(s["value"], s["max"]) for s in steps if s["node"] == node]


def recipe(folder: Path, name: str, pairs: int = 30, templates: Sequence[str] = ("{}", "a photo of {}")) -> str:
    """A recipe of the user's own, that nothing else in these tests has compiled."""
    data = yaml.safe_load((DATA / "fire.yaml").read_text(encoding="utf-8"))
    data |= {"name": name, "pairs": data["pairs"][:pairs], "templates": list(templates)}
    (folder / "models" / "safe_region" / f"{name}.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return f"{name}.yaml"


def compiled(comfyui: ComfyUI, name: str) -> list[str]:
    """Files that belong to a concept, whole or not."""
    return sorted(p.name for p in comfyui.directions.rglob("*") if name in p.name)


def test_compiling_shows_its_progress_once_and_is_kept(comfyui: ComfyUI, comfyui_folder: Path) -> None:
    own = recipe(comfyui_folder, "progress-shown")
    first, second = (workflow(UNSAFE, "clip", [own]), workflow(UNSAFE, "model", [own]))
    shown = progress(events(comfyui, first), node_of(first, "SafeRegionGuardCLIP"))
    assert len(shown) > 2 and shown == sorted(shown) and shown[-1][0] == shown[-1][1]
    assert len(compiled(comfyui, "progress-shown")) == 1
    again = events(comfyui, second)
    assert progress(again, node_of(second, "SafeRegionGuardModel")) == []
    assert again[-1]["type"] == "execution_success"


def test_a_recipe_that_changes_on_disk_is_read_again(comfyui: ComfyUI, comfyui_folder: Path) -> None:
    own = recipe(comfyui_folder, "edited")
    g = workflow(UNSAFE, "clip", [own])
    nodes = {node_of(g, "SafeRegion"), node_of(g, "SafeRegionGuardCLIP")}
    comfyui.run(g.nodes)
    assert nodes <= set(comfyui.messages(g.nodes)["execution_cached"]["nodes"])
    recipe(comfyui_folder, "edited", pairs=25)
    told = comfyui.messages(g.nodes)
    assert "execution_success" in told and not nodes & set(told["execution_cached"]["nodes"])
    assert len(compiled(comfyui, "edited")) == 2


def test_interrupting_a_compile_stops_it_leaves_nothing_behind_and_the_queue_goes_on(
    comfyui: ComfyUI, comfyui_folder: Path
) -> None:
    own = recipe(comfyui_folder, "interrupted", templates=[f"{{}} {i} times" for i in range(100)])
    g = workflow(UNSAFE, "clip", [own])
    guard = node_of(g, "SafeRegionGuardCLIP")
    told = events(comfyui, g, interrupt=guard)
    done, total = progress(told, guard)[-1]
    assert told[-1]["type"] == "execution_interrupted" and told[-1]["data"]["node_id"] == guard
    assert done < total / 2
    assert compiled(comfyui, "interrupted") == [] and not list(comfyui.directions.rglob("*.part"))
    recipe(comfyui_folder, "interrupted")
    assert not torch.equal(*latents(comfyui, workflow(UNSAFE, ""), workflow(UNSAFE, "clip", [own])))
    assert len(compiled(comfyui, "interrupted")) == 1


# -- direction files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fire(world: MicroWorld, tmp_path_factory: pytest.TempPathFactory) -> Direction:
    """Compiled without any host."""
    library = Library((DATA,), tmp_path_factory.mktemp("directions"))
    settings = CompileSettings(family="microworld")
    return library.directions(["fire"], world.encode, neutral_prompts(), settings=settings)[0]


@pytest.fixture(scope="module", autouse=True)
def direction_files(world: MicroWorld, fire: Direction, comfyui_folder: Path, exported: Path) -> None:
    """Good and bad files in `models/safe_region`."""
    folder = comfyui_folder / "models" / "safe_region"
    good = fire.save(folder / "good.safetensors").read_bytes()

    torch.manual_seed(7)
    stranger = Fingerprint.of(MicroWorld(world.config).encode)
    replace(fire, encoder=stranger).save(folder / "stranger.safetensors")

    def wider(prompts: list[str]) -> Conditioning:
        c = world.encode(prompts)
        return c.replace(torch.cat([c.tokens, c.tokens], 2), c.pooled)

    width = wider(["a"]).tokens.shape[2]
    one = torch.ones(1, width)
    told = Detector((Term(Readout("tokens", "token"), one, torch.zeros(1, 1)),), torch.ones(1))
    movers = {"tokens": HalfSpaces(one, torch.zeros(1, 1), torch.ones(1), torch.zeros(1))}
    wide = {"detector": told, "movers": movers, "rest": {"tokens": torch.zeros(1, width)}, "witness": None}
    replace(fire, encoder=Fingerprint.of(wider), **wide).save(folder / "wider.safetensors")

    metadata, tensors = fire.metadata(), fire.tensors()
    moves = "mover.tokens.displacement"
    spoilt = {
        "nowhere": {**tensors, moves: tensors[moves] * 0},
        "nan": {**tensors, moves: tensors[moves] * float("nan")},
        "narrow": {k: v[..., :32].contiguous() for k, v in tensors.items()},
    }
    for name, changed in spoilt.items():
        (folder / f"{name}.safetensors").write_bytes(to_bytes(metadata, changed))
    middle = len(good) // 2
    (folder / "changed.safetensors").write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    (folder / "truncated.safetensors").write_bytes(good[: len(good) // 2])
    (folder / "nothing.safetensors").write_bytes(b"")
    torch.save({"normal": torch.ones(1, 64)}, folder / "pickle.safetensors")
    shutil.copyfile(exported, folder / "checkpoint.safetensors")
    (folder / "no-recipe.yaml").write_text("name: [fire", encoding="utf-8")
    run = f"!!python/object/apply:os.system ['touch {comfyui_folder}/was-run']"
    (folder / "run-me.yaml").write_text(run, encoding="utf-8")


def load(name: str) -> Callable[[Graph], Link]:
    return lambda g: g.one("SafeRegionLoadDirections", file=name, strength=1.0, mode="project")


def test_a_direction_file_made_without_any_host_guards_here(comfyui: ComfyUI) -> None:
    plain, loaded, benign, same = latents(
        comfyui, workflow(UNSAFE, ""), workflow(UNSAFE, "clip", region=load("good.safetensors")),
        workflow(BENIGN, ""), workflow(BENIGN, "clip", region=load("good.safetensors")),
    )  # fmt: skip
    assert not torch.equal(plain, loaded) and torch.equal(benign, same)


def test_saved_directions_guard_as_their_recipe_does(comfyui: ComfyUI, comfyui_folder: Path) -> None:
    g = Graph("", UNSAFE)
    g.add("SafeRegionSaveDirections", 2, clip=g.clip, region=g.regions()[0], prefix="kept/my-", overwrite=False)
    comfyui.run(g.nodes)
    assert (comfyui_folder / "models" / "safe_region" / "kept" / "my-fire.safetensors").is_file()
    by_recipe, by_file = latents(
        comfyui, workflow(UNSAFE, "clip"), workflow(UNSAFE, "clip", region=load("kept/my-fire.safetensors"))
    )
    assert torch.equal(by_recipe, by_file)


# -- bad input ---------------------------------------------------------------------------------------------------------


def broken(how: str) -> Callable[[Graph, Link], Link]:
    return lambda g, conditioning: g.one("TestBrokenConditioning", conditioning=conditioning, how=how)


def linked(node: str, name: str, text: str) -> Callable[[Graph], Link]:
    """A choice that comes in through a link, past the page's list."""

    def region(g: Graph) -> Link:
        return g.one(node, **{name: g.one("TestAnyText", text=text)}, strength=1.0, mode="project")

    return region


def words(**changed: str) -> Callable[[Graph], Link]:
    given = {"name": "mine", "avoid": "fire", "instead": "", "sentences": "", **changed}
    return lambda g: g.one("SafeRegionConceptFromWords", **given, strength=1.0, mode="project")


def everything() -> Graph:
    """One node and no region: all bundled concepts, none of which this little text encoder knows."""
    g = Graph("", UNSAFE)
    g.ksampler(g.model, g.encode(g.one("SafeRegionGuardCLIP", clip=g.clip)), g.encode(g.clip, ""))
    g.nodes["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [g.result, 0], "filename_prefix": "l"}}
    return g


def save(prefix: str) -> Graph:
    g = Graph("", UNSAFE)
    g.add("SafeRegionSaveDirections", 2, clip=g.clip, region=g.regions()[0], prefix=prefix, overwrite=False)
    return g


def inspect(text: str = UNSAFE, region: Callable[[Graph], Link] | None = None) -> Graph:
    g = Graph("", text)
    found = {"region": region(g)} if region else {}
    g.add("SafeRegionInspect", 2, clip=g.clip, text=text, **found)
    return g


def other_layer(g: Graph, _: Link) -> Link:
    return g.encode(g.one("CLIPSetLastLayer", clip=g.clip, stop_at_clip_layer=-2))


GUARD = {"clip": "SafeRegionGuardCLIP", "conditioning": "SafeRegionGuardConditioning", "model": "SafeRegionGuardModel"}
LOAD, SAVE, INSPECT = "SafeRegionLoadDirections", "SafeRegionSaveDirections", "SafeRegionInspect"
WORDS = "SafeRegionConceptFromWords"
WHERE = {"conditioning": "SafeRegionGuardConditioning", "model": "KSampler"}
"""Where a conditioning meets its guard."""

REFUSED: dict[str, tuple[Callable[[], Graph], str, str]] = {
    "nothing connected": (everything, GUARD["clip"], "does not separate"),
    **{
        f"{name}, {guard}": (lambda guard=guard, name=name: workflow(UNSAFE, guard, region=load(name)), kind, said)
        for guard, kind in GUARD.items()
        for name, said in (
            ("stranger.safetensors", "another text encoder of the same size"),
            ("wider.safetensors", "tokens of width 192"),
        )
    },
    "stranger.safetensors, inspect": (
        lambda: inspect(region=load("stranger.safetensors")), INSPECT, "another text encoder",
    ),
    **{
        name: (lambda name=name: workflow(UNSAFE, "clip", region=load(name)), LOAD, said)
        for name, said in (
            ("changed.safetensors", "checksum does not fit"),
            ("nowhere.safetensors", "longer than zero"),
            ("nan.safetensors", "NaN or infinity"),
            ("narrow.safetensors", "narrow.safetensors: "),
            ("truncated.safetensors", "truncated.safetensors"),
            ("nothing.safetensors", "truncated or empty"),
            ("pickle.safetensors", "is a pickle"),
            ("checkpoint.safetensors", "checkpoint.safetensors: tensor"),
        )
    },
    **{
        f"{name}, Safe Region": (lambda name=name: workflow(UNSAFE, "clip", [name]), "SafeRegion", said)
        for name, said in (
            ("truncated.safetensors", "truncated.safetensors"),
            ("no-recipe.yaml", "no-recipe.yaml"),
            ("run-me.yaml", "run-me.yaml"),
        )
    },
    **{
        f"{text!r} through a link, {node}": (
            lambda text=text, node=node, name=name: workflow(UNSAFE, "clip", region=linked(node, name, text)),
            node,
            said,
        )
        for node, name in ((LOAD, "file"), ("SafeRegion", "concept"))
        for text, said in (
            ("../../checkpoints/microworld.safetensors", "is not a file of models/safe_region"),
            ("..\\fire.safetensors", "is not a file of models/safe_region"),
            ("/etc/passwd", "is not a file of models/safe_region"),
            ("missing.safetensors", "There is no 'missing.safetensors' in models/safe_region"),
        )
    },
    **{
        f"{how}, {guard}": (lambda how=how, guard=guard: workflow(UNSAFE, guard, positive=broken(how)), node, said)
        for guard, node in WHERE.items()
        for how, said in (
            ("NaN", "NaN or infinite"),
            ("infinite", "NaN or infinite"),
            ("no tensor", "no token embeddings"),
            ("text for a tensor", "no token embeddings"),
            ("integers", "no token embeddings"),
            ("rank 2", "no token embeddings"),
            ("wider", "192 wide"),
            ("pooled of rank 3", "pooled_output"),
            ("another key", "conditioning_of_another"),
        )
    },
    **{
        f"of another layer, {guard}": (
            lambda guard=guard: workflow(UNSAFE, guard, positive=other_layer), node, "not made by the connected CLIP",
        )
        for guard, node in WHERE.items()
    },
    "empty": (lambda: workflow(UNSAFE, "conditioning", positive=broken("empty")), WHERE["conditioning"], "is empty"),
    "no pairs": (lambda: workflow(UNSAFE, "conditioning", positive=broken("no pairs")), WHERE["conditioning"], "pairs"),
    "infinite weight": (lambda: workflow("a (burning:1e39) house", "clip"), "CLIPTextEncode", "prompt weights"),
    "infinite weight, inspect": (
        lambda: inspect("a (burning:1e39) house", lambda g: g.regions()[0]), INSPECT, "prompt weights",
    ),
    **{
        f"words, no {what}": (lambda given=given: workflow(UNSAFE, "clip", region=words(**given)), WORDS, said)
        for what, given, said in (
            ("word", {"avoid": " , "}, "at least one"),
            ("name", {"name": ""}, "name"),
            ("place for it", {"sentences": "a house"}, "exactly once"),
        )
    },
    **{
        f"saved as {prefix!r}": (lambda prefix=prefix: save(prefix), SAVE, "is no name for a file")
        for prefix in ("../", "a/../../b", "/tmp/", "C:\\", "line\nbreak")
    },
    "saved over another": (lambda: save("taken-"), SAVE, "overwrite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence_by_its_node(comfyui: ComfyUI, comfyui_folder: Path, name: str) -> None:
    build, kind, said = REFUSED[name]
    folder = comfyui_folder / "models" / "safe_region"
    (folder / "taken-fire.safetensors").write_bytes(b"the user's own")
    before = {p: p.stat().st_mtime_ns for p in comfyui_folder.joinpath("models").rglob("*")}
    told = comfyui.messages(build().nodes)
    assert "execution_error" in told, "It was not refused."
    error = told["execution_error"]
    sentence = error["exception_message"].strip()
    assert error["node_type"] == kind, sentence
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence
    assert {p: p.stat().st_mtime_ns for p in comfyui_folder.joinpath("models").rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"concept": "missing.yaml"}, "not in list"),
        ({"concept": "../fire.yaml"}, "not in list"),
        ({"strength": 10.5}, "bigger than max"),
        ({"strength": -0.5}, "smaller than min"),
        ({"mode": "explode"}, "not in list"),
    ],
)
def test_what_no_list_offers_does_not_even_enter_the_queue(comfyui: ComfyUI, changed: dict, said: str) -> None:
    g = workflow(UNSAFE, "clip")
    g.nodes[node_of(g, "SafeRegion")]["inputs"] |= changed
    with pytest.raises(HostError, match=said):
        comfyui.queue(g.nodes)


def test_the_queue_goes_on_after_all_of_that(comfyui: ComfyUI) -> None:
    plain, guarded = latents(comfyui, workflow(UNSAFE, "", seed=99), workflow(UNSAFE, "model", seed=99))
    assert not torch.equal(plain, guarded)
    assert not list(comfyui.directions.rglob("*.part")) and not (comfyui.folder / "was-run").exists()
