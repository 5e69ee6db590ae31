"""What people connect, save and interrupt in real ComfyUI servers: a sentence on the node, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_cases import BENIGN, UNSAFE, Graph, Link
from comfyui_files import RECIPES
from host_servers import ComfyUI, Host, HostError
from test_comfyui_one import latent, one, refused, saved
from test_comfyui_server import events, node_of, progress, recipe

PROJECT = Path(__file__).resolve().parents[2]
NO_CLIP = "The CLIP input holds no text encoder; connect the CLIP of a checkpoint or loader."
NO_MODEL = "The MODEL input holds no diffusion model; connect the MODEL of a checkpoint or loader."


def lacking(kind: str, part: str, outputs: int = 1, **given: Any) -> Callable[[], Graph]:
    """A workflow with one node of this kind, whose CLIP or MODEL holds nothing."""

    def build() -> Graph:
        g = Graph("", UNSAFE)
        nothing = g.one("TestNothing")
        made = {k: v(g) if callable(v) else v for k, v in given.items()}
        out = g.add(kind, outputs, **made, **{part: nothing})[0]
        g.nodes["seen"] = {"class_type": "PreviewAny", "inputs": {"source": out}}
        return g

    return build


def region(g: Graph) -> Link:
    return g.one("SafeRegion", concept="fire.yaml", strength=1.0, mode="project")


def clip(g: Graph) -> Link:
    return g.clip


def model(g: Graph) -> Link:
    return g.model


def text(g: Graph) -> Link:
    return g.encode(g.clip)


ROWS = {"concepts": "fire.yaml: 1", "preset": "normal"}
DISCOVER = {
    "concept": "fire.yaml", "steps": 1, "discovery_seed": 0, "pictures": 1, "prompts": 24, "width": 64, "height": 64,
}  # fmt: skip
BALANCE = {"conditioning": text, "latent": Graph.latent, "axes": "gender", "seed": 0, "strength": 1.0}
LACKING = {
    "Safe Region, CLIP": (lacking("SafeRegionGuard", "clip", 5, model=model, **ROWS), NO_CLIP),
    "Safe Region, MODEL": (lacking("SafeRegionGuard", "model", 5, clip=clip, **ROWS), NO_MODEL),
    "Guard CLIP": (lacking("SafeRegionGuardCLIP", "clip", region=region), NO_CLIP),
    "Guard Model, CLIP": (lacking("SafeRegionGuardModel", "clip", model=model, guard_negative=False), NO_CLIP),
    "Guard Model, MODEL": (
        lacking("SafeRegionGuardModel", "model", clip=clip, region=region, guard_negative=False), NO_MODEL,
    ),
    "Guard Conditioning": (lacking("SafeRegionGuardConditioning", "clip", 3, conditioning=text), NO_CLIP),
    "Inspect": (lacking("SafeRegionInspect", "clip", 2, text="a house", region=region), NO_CLIP),
    "Save Directions": (
        lacking("SafeRegionSaveDirections", "clip", 2, region=region, prefix="a", overwrite=False), NO_CLIP,
    ),
    "Discover Direction, CLIP": (lacking("SafeRegionDiscover", "clip", 3, model=model, **DISCOVER), NO_CLIP),
    "Discover Direction, MODEL": (lacking("SafeRegionDiscover", "model", 3, clip=clip, **DISCOVER), NO_MODEL),
    "Balance": (lacking("SafeRegionBalance", "clip", 3, **BALANCE), NO_CLIP),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_a_part_that_the_checkpoint_does_not_have_is_told_on_the_node(comfyui: ComfyUI, name: str) -> None:
    build, said = LACKING[name]
    assert refused(comfyui, build()) == said


def test_a_checkpoint_without_a_text_encoder_is_told_on_the_node(comfyui: ComfyUI, comfyui_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = comfyui_folder / "models" / "checkpoints"
    whole = load_file(folder / "microworld.safetensors")
    path = folder / "no-text.safetensors"
    save_file({k: v for k, v in whole.items() if not k.startswith("cond_stage_model.")}, path)
    try:
        g = one(UNSAFE)
        g.nodes["1"]["inputs"]["ckpt_name"] = path.name
        told = refused(comfyui, g)
        assert told == NO_CLIP or "text encoder" in told, told  # newer hosts say it before this pack is asked
    finally:
        path.unlink()


def test_a_model_that_reads_pictures_alone_is_told_apart(comfyui: ComfyUI) -> None:
    """Its conditioning is no text of any CLIP; the advice must be one that can be followed."""
    g = Graph("model", UNSAFE)
    picture = g.one("TestBrokenConditioning", conditioning=g.encode(g.clip), how="wider")
    guarded, (positive,) = g.ready(g.clip, picture)
    g.ksampler(guarded, positive, g.encode(g.clip, ""))
    said = refused(comfyui, saved(g))
    assert said.startswith("This conditioning is ") and said.endswith(
        "or take the guard out where a model reads no text at all."
    ), said


# -- files and rows ----------------------------------------------------------------------------------------------------


def test_a_broken_recipe_is_refused_by_its_name_and_does_not_disturb_the_others(
    comfyui: ComfyUI, comfyui_folder: Path
) -> None:
    path = comfyui_folder / "models" / "safe_region" / "half-written.yaml"
    path.write_text("format: saferegion-recipe/1\nname: [half", encoding="utf-8")
    try:
        said = refused(comfyui, one(UNSAFE, "half-written.yaml: 1"))
        assert "half-written.yaml" in said and said.endswith(".") and "\n" not in said
        said = refused(comfyui, one(UNSAFE, "fire.yaml: 1\nhalf-written.yaml: 1"))
        assert "half-written.yaml" in said  # never guarded against a part of what was asked for
        assert not torch.equal(latent(comfyui, one(UNSAFE, "")), latent(comfyui, one(UNSAFE)))
        assert torch.equal(latent(comfyui, one(BENIGN, "")), latent(comfyui, one(BENIGN)))
    finally:
        path.unlink()


def test_a_concept_that_went_away_between_two_runs_is_told_before_the_queue(
    comfyui: ComfyUI, comfyui_folder: Path
) -> None:
    own = recipe(comfyui_folder, "went-away")
    assert comfyui.run(one(UNSAFE, f"{own}: 1").nodes)
    (comfyui_folder / "models" / "safe_region" / own).unlink()
    with pytest.raises(HostError, match="There is no concept 'went-away.yaml'"):
        comfyui.queue(one(UNSAFE, f"{own}: 1").nodes)
    g = Graph("clip", UNSAFE, (own,))  # and as the list of the node Choose Concept
    g.ksampler(g.model, g.encode(g.guarded(g.clip)), g.encode(g.clip, ""))
    with pytest.raises(HostError, match="went-away.yaml.*not in|not in.*went-away.yaml"):
        comfyui.queue(saved(g).nodes)


@pytest.mark.parametrize("rows", ["fire.yaml: 1\nfire.yaml: 1", "fire.yaml: nan", "fire.yaml: inf", "fire.yaml: -1"])
def test_wrong_rows_that_come_through_a_link_are_told_on_the_node(comfyui: ComfyUI, rows: str) -> None:
    g = Graph("", UNSAFE)
    linked = g.one("TestAnyText", text=rows)
    made = g.add("SafeRegionGuard", 5, clip=g.clip, model=g.model, concepts=linked, preset="normal")
    g.ksampler(made[0], g.encode(made[1]), g.encode(g.clip, ""))
    said = refused(comfyui, saved(g))
    assert "'fire.yaml'" in said and said.endswith(".") and "\n" not in said


# -- interrupted, twice at once, nowhere to write ----------------------------------------------------------------------


def test_an_interrupted_compile_of_the_node_leaves_nothing_and_the_next_run_guards(
    comfyui: ComfyUI, comfyui_folder: Path
) -> None:
    own = recipe(comfyui_folder, "stopped", templates=[f"{{}} {i} times" for i in range(100)])
    g = one(UNSAFE, f"{own}: 1")
    guard = node_of(g, "SafeRegionGuard")
    told = events(comfyui, g, interrupt=guard)
    done, total = progress(told, guard)[-1]
    assert told[-1]["type"] == "execution_interrupted" and done < total / 2
    assert not [p for p in comfyui.directions.rglob("*") if "stopped" in p.name or p.name.endswith(".part")]
    own = recipe(comfyui_folder, "stopped")
    assert not torch.equal(latent(comfyui, one(UNSAFE, "")), latent(comfyui, one(UNSAFE, f"{own}: 1")))


@pytest.fixture
def another(comfyui_host: Host, comfyui: ComfyUI, comfyui_folder: Path, tmp_path: Path) -> Iterator[ComfyUI]:
    """A second server over the same models, packs and compiled directions."""
    for name in ("models", "custom_nodes"):
        (tmp_path / name).symlink_to(comfyui_folder / name)
    for name in ("input", "output", "temp", "user"):
        (tmp_path / name).mkdir()
    with ComfyUI(comfyui_host, tmp_path, SAFE_REGION_CACHE=str(comfyui.directions)) as server:
        yield server


def test_two_queues_at_once_compile_the_same_and_paint_the_same(
    comfyui: ComfyUI, another: ComfyUI, comfyui_folder: Path
) -> None:
    own = recipe(comfyui_folder, "at-once")
    graphs = [one(UNSAFE, f"{own}: 1"), one(BENIGN, f"{own}: 1")]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(latent, server, g) for server in (comfyui, another) for g in graphs]
        unsafe, benign, unsafe_there, benign_there = [w.result() for w in waiting]
    assert torch.equal(unsafe, unsafe_there) and torch.equal(benign, benign_there)
    assert torch.equal(benign, latent(comfyui, one(BENIGN, "")))
    assert not torch.equal(unsafe, latent(comfyui, one(UNSAFE, "")))
    kept = [p.name for p in comfyui.directions.rglob("*") if "at-once" in p.name]
    assert len(kept) == 1 and not list(comfyui.directions.rglob("*.part"))


class Bound(ComfyUI):
    """A server that may not write where the bits of a folder forbid it, even as root."""

    def command(self) -> list[str]:
        bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        return [*(bound if os.geteuid() == 0 else []), *super().command()]


def registered(folder: Path) -> Path:
    """The pack as the registry hands it out: without what `.comfyignore` names."""

    def listed(*more: str) -> set[str]:
        done = subprocess.run(
            ["git", "ls-files", "--cached", *more], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        return set(done.stdout.splitlines())

    for name in sorted(listed() - listed("--ignored", "--exclude-from=.comfyignore")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    return folder


def closed(*folders: Path) -> None:
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)


def opened(*folders: Path) -> None:
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def read_only(comfyui_host: Host, comfyui_folder: Path, tmp_path: Path) -> Iterator[ComfyUI]:
    """A server over a read-only disk: the pack as the registry has it, its cache and the user's concepts."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and there is no setpriv to bind it")
    for name in ("models/safe_region", "custom_nodes", "input", "output", "temp", "user", "cache"):
        (tmp_path / name).mkdir(parents=True)
    for path in (comfyui_folder / "models").iterdir():
        if path.name != "safe_region":
            (tmp_path / "models" / path.name).symlink_to(path)
    for name in RECIPES:
        shutil.copyfile(comfyui_folder / "models" / "safe_region" / name, tmp_path / "models" / "safe_region" / name)
    (tmp_path / "custom_nodes" / "microworld_sizes").symlink_to(comfyui_folder / "custom_nodes" / "microworld_sizes")
    pack = registered(tmp_path / "custom_nodes" / "safe-region")
    shut = (pack, tmp_path / "cache", tmp_path / "models" / "safe_region")
    closed(*shut)
    try:
        with Bound(comfyui_host, tmp_path, SAFE_REGION_CACHE=str(tmp_path / "cache")) as server:
            yield server
    finally:
        opened(*shut)


def test_a_read_only_disk_guards_all_the_same_and_says_what_cannot_be_kept(
    comfyui: ComfyUI, read_only: ComfyUI
) -> None:
    assert torch.equal(latent(read_only, one(UNSAFE)), latent(comfyui, one(UNSAFE)))
    assert torch.equal(latent(read_only, one(BENIGN)), latent(comfyui, one(BENIGN, "")))
    assert not list((read_only.folder / "cache").iterdir())
    assert "Compiled directions cannot be kept in" in read_only.log_tail(100_000)
    g = Graph("", UNSAFE)
    g.add("SafeRegionSaveDirections", 2, clip=g.clip, region=region(g), prefix="mine-", overwrite=False)
    said = refused(read_only, g)
    assert said.startswith("mine-fire.safetensors cannot be written into models/safe_region") and said.endswith(".")
    assert not list((read_only.folder / "models" / "safe_region").glob("*mine*"))
