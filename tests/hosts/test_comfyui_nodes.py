"""The guard nodes in ComfyUI's own executor: whatever stands between them and the sampler, what reaches it is inside.

All workflows of `comfyui_cases.py` run once in ComfyUI's interpreter, without a guard and with each guard node.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_cases import CASES, GUARDS
from host_servers import Host

from saferegion import CompileSettings, SafeRegion, load_directions
from saferegion.core.fingerprint import Fingerprint
from saferegion.guard.library import Library
from saferegion_lab.microworld import DATA, MicroWorld, neutral_prompts
from saferegion_lab.microworld.prompts import SETS

HERE = Path(__file__).parent
Seen = dict[str, dict[str, Any]]


def table(*left_out: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("case", "guard"), [(c, g) for c in CASES if c not in left_out for g in GUARDS])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("directions")


@pytest.fixture(scope="module")
def seen(comfyui_host: Host, comfyui_folder: Path, cache: Path) -> Seen:
    """What was seen, by case and by kind of prompt and guard; see comfyui_inprocess.py."""
    printed = comfyui_host.run(HERE / "comfyui_inprocess.py", comfyui_folder, SAFE_REGION_CACHE=cache)
    return dict(json.loads(printed.splitlines()[-1]))


def told(seen: Seen, case: str, which: str) -> dict[str, Any]:
    assert "failed" not in seen[case], seen[case]["failed"]
    found = seen[case][which]
    assert "error" not in found, found["error"]
    return dict(found)


@table("two guards")  # the second knows nothing of what the first took off
def test_an_unsafe_prompt_reaches_the_networks_inside_the_region(seen: Seen, case: str, guard: str) -> None:
    without, guarded = told(seen, case, "unsafe"), told(seen, case, f"unsafe {guard}")
    before = [s for scores in without["scores"].values() for s in scores]
    after = [s for scores in guarded["scores"].values() for s in scores]
    assert max(before) > 0, "The prompt is inside by itself and shows nothing."
    assert len(after) == len(before) and max(after) <= 0
    if CASES[case].control:
        assert max(without["scores"]["control of positive"]) > 0 >= max(guarded["scores"]["control of positive"])
    assert guarded["latent"] != without["latent"]


@table("negative prompt guarded")
def test_a_benign_prompt_is_sampled_from_the_same_bits(seen: Seen, case: str, guard: str) -> None:
    without, guarded = told(seen, case, "benign"), told(seen, case, f"benign {guard}")
    assert guarded["seen"] == without["seen"]
    assert guarded["latent"] == without["latent"]


@table(*(name for name, case in CASES.items() if "negative" not in case.names))
def test_a_negative_prompt_is_left_alone_unless_asked(seen: Seen, case: str, guard: str) -> None:
    without, guarded = told(seen, case, "unsafe"), told(seen, case, f"unsafe {guard}")
    if "negative" in CASES[case].guarded:
        assert max(guarded["scores"]["negative"]) <= 0
    else:
        assert guarded["seen"]["negative"] == without["seen"]["negative"]


@table()
def test_no_evaluation_is_added(seen: Seen, case: str, guard: str) -> None:
    for kind in ("unsafe", "benign"):
        assert told(seen, case, f"{kind} {guard}")["calls"] == told(seen, case, kind)["calls"] > 0


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_of_the_node_cache_is_changed(seen: Seen, case: str) -> None:
    cache = told(seen, case, "cache")
    assert cache["tensors"] > 0 == cache["changed"]


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.same])
def test_the_three_guard_nodes_give_the_same_bits(seen: Seen, case: str) -> None:
    found = [told(seen, case, f"unsafe {guard}") for guard in GUARDS]
    assert found[0]["seen"] == found[1]["seen"] == found[2]["seen"]
    assert found[0]["latent"] == found[1]["latent"] == found[2]["latent"]


def test_unguarded_siblings_give_the_same_bits_before_and_after(seen: Seen) -> None:
    found = seen["siblings"]
    assert "failed" not in found, found["failed"]
    for what, results in found.items():
        assert len(results) > 1 and len(set(results)) == 1, what
    for what in ("text", "lora text", "layer text"):
        assert found[what][0] != found[f"{what} clip"][0]
    assert found["latent"][0] != found["latent model"][0]
    assert found["text of another guard"][0] not in (found["text"][0], found["text clip"][0])


def test_guards_keep_no_model_in_memory(seen: Seen) -> None:
    assert seen["freed"] == {"clip": True, "model": True}


@pytest.mark.parametrize("guard", GUARDS)
def test_guarded_and_unguarded_samplers_of_one_workflow_do_not_disturb_each_other(seen: Seen, guard: str) -> None:
    found = seen["side by side"]
    assert "failed" not in found, found["failed"]
    assert set(found[f"{guard} unguarded"]) == {told(seen, "KSampler", "unsafe")["latent"]}
    assert set(found[f"{guard} guarded"]) == {told(seen, "KSampler", f"unsafe {guard}")["latent"]}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_direction_with_a_window_acts_in_its_part_of_the_sampling(seen: Seen, guard: str) -> None:
    unguarded, guarded = (told(seen, "window", f"unsafe {g}".strip())["seen"]["positive"] for g in ("", "always"))
    assert unguarded != guarded
    early = told(seen, "window", f"unsafe {guard}")["seen"]["positive"]
    assert early == (guarded if guard == "clip" else guarded + unguarded)  # an encoder knows no steps
    plain, benign = told(seen, "window", "benign"), told(seen, "window", f"benign {guard}")
    assert benign["seen"] == plain["seen"] and benign["latent"] == plain["latent"]


def test_a_prompt_that_stays_open_is_refused_by_every_guard_and_shown_by_inspect(seen: Seen) -> None:
    found = seen["unresolved"]
    assert "failed" not in found, found["failed"]
    for guard in GUARDS:
        assert "could not be brought inside the safe region (Fire stayed open)" in found[guard]
        assert found[guard].strip().endswith("word it differently.") and not found[f"benign {guard}"]
    assert "STILL OPEN" in found["inspect"]


def test_comfyui_compiles_the_directions_that_the_core_compiles(
    seen: Seen, cache: Path, world: MicroWorld, tmp_path: Path
) -> None:
    library = Library((DATA,), tmp_path)
    settings = CompileSettings(family="microworld")
    (ours,) = library.directions(["fire"], world.encode, neutral_prompts(), settings=settings)
    encoder = Fingerprint.of(world.encode)
    files = [load_directions(path) for path in cache.glob("fire-*.safetensors")]
    theirs = min((d for d in files if d.encoder), key=lambda d: d.encoder.distance(encoder))
    assert theirs.meta.recipe == ours.meta.recipe and theirs.encoder.distance(encoder) < 1e-2
    a, b = ours.movers["tokens"], theirs.movers["tokens"]
    assert float(torch.cosine_similarity(a.displacement, b.displacement).min()) > 0.99
    prompts = world.encode([p.prompt for name in ("explicit", "benign", "neighbours") for p in SETS[name]()])
    outside = [SafeRegion([d]).score(prompts).amax(1) > 0 for d in (ours, theirs)]
    assert float((outside[0] == outside[1]).float().mean()) >= 0.99
