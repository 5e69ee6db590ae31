"""Every family that ComfyUI can build: no text reaches its diffusion network unguarded, and none is guarded wrongly."""

from __future__ import annotations

import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from host_servers import Host
from safetensors.torch import load_file

from saferegion import CompileSettings, Conditioning, Fingerprint, compile
from saferegion.learn.recipes import read_neutral, read_recipe
from saferegion_lab import encoders

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit"))

from fakes import ADJECTIVES, KNOWN, NOUNS, benign_prompts  # noqa: E402

INSIDE = 1e-3
"""Benign standard deviations beyond the border that rounding may leave."""
PICTURES = {"Stable_Zero123", "SVD_img2vid", "SV3D_u", "SV3D_p", "Hunyuan3Dv2", "Hunyuan3Dv2mini", "Hunyuan3Dv2_1"}
"""Families that read pictures and no text."""
NEWER_PICTURES = {"TripoSplat", "SeedVR2", "RT_DETR_v4", "Trellis2", "DepthAnything3"}
WORDS = {"HiDreamO1": "text_input_ids", "Anima": "t5xxl_ids", "ACEStep15": "conditioning_lyrics"}
"""Families whose models are given words past every embedding, and the key that a refusal names."""
UNBUILT = {"LTXAV", "MiniMaxH3", "MiniMaxMusic3", "Lens", "SAM3", "SAM31"}
"""Families that cannot be built without their weights; comfyui_families.py says why. None of 0.3.64."""
SPACES = {
    "SD15": {"tokens"},
    "SD20": {"tokens"},
    "SDXL": {"tokens", "pooled"},
    "SDXLRefiner": {"tokens", "pooled"},
    "Stable_Cascade_C": {"tokens", "pooled"},
    "Stable_Cascade_B": {"tokens", "pooled"},
    "SD3": {"clip", "t5", "pooled"},
    "Flux": {"tokens", "pooled"},
    "HunyuanDiT": {"tokens", "mt5xl"},
    "HunyuanVideo": {"tokens", "pooled"},
    "HunyuanImage21": {"tokens", "byt5small"},
    "HiDream": {"tokens", "pooled", "llama3"},
    "WAN21_T2V": {"tokens"},
    "QwenImage": {"tokens"},
    "Lumina2": {"tokens"},
    "ACEStep": {"tokens"},
}
REACHED = {"Stable_Cascade_B": {"pooled"}, "HunyuanImage21Refiner": {"tokens"}}
"""Spaces that the network reads, where they are not all that the encoder gives."""
BEGIN = {
    "sd1": {"tokens": 1}, "sd2": {"tokens": 1}, "sdxl": {"tokens": 1}, "refiner": {"tokens": 1},
    "sd3": {"clip": 1, "t5": 0}, "sd3 without T5": {"clip": 1}, "flux": {"tokens": 0}, "pixart": {"tokens": 0},
    "mochi": {"tokens": 0}, "hunyuandit": {"tokens": 0, "mt5xl": 0},
}  # fmt: skip
"""Rows that never move because every prompt begins with them. Omnigen2's are its template."""
MOVABLE = {
    "sd1": {"tokens": [76, 228]}, "sd2": {"tokens": [76, 228]}, "sdxl": {"tokens": [76, 228]},
    "refiner": {"tokens": [76, 228]}, "sd3": {"clip": [76, 228], "t5": [77, 201]}, "flux": {"tokens": [256, 256]},
}  # fmt: skip
"""Tokens that may move of the empty prompt and of the one of three chunks."""
SAVED = ("sd1", "sd2", "sdxl", "sd3", "flux")
COMPILED = ("sd1", "sd2", "sdxl", "flux")
"""Those that a concept is compiled for on the command line's encoder: all that are narrow."""


@pytest.fixture(scope="module")
def base(comfyui_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI: this project as a pack, and a recipe with neutral prompts of its own."""
    base = tmp_path_factory.mktemp("families")
    for name in ("models/safe_region", "custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "safe-region").symlink_to(HERE.parents[1])
    user = base / "models" / "safe_region"
    calm = (ADJECTIVES * 4)[: len(KNOWN) * len(NOUNS)]
    pairs = [(f"a {k} {n}", f"a {c} {n}") for (k, n), c in zip(itertools.product(KNOWN, NOUNS), calm, strict=True)]
    recipe = {
        "format": "saferegion-recipe/1", "name": "ablaze", "title": "Ablaze", "kind": "exclude", "version": 1,
        "licence": "MIT", "description": "Fire, for text encoders of bags of words.",
        "pairs": [{"unsafe": u, "safe": s} for u, s in pairs],
        "neutral": [f"a {a} stove in a kitchen" for a in ADJECTIVES[:4]],
    }  # fmt: skip
    benign = benign_prompts(60)  # and some of them behind each other: prompts are of every length
    neutral = {
        "format": "saferegion-neutral/1", "name": "neutral", "version": 1, "licence": "MIT",
        "prompts": [*benign, *(", ".join(benign[i : i + 2 + i % 9]) for i in range(0, 60, 3))],
    }  # fmt: skip
    for name, data in (("ablaze", recipe), ("neutral", neutral)):
        (user / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return base


@pytest.fixture(scope="module")
def printed(comfyui_host: Host, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scripts tell, two at a time."""
    folder = tmp_path_factory.mktemp("encoders")

    def run(script: str, *arguments: object) -> dict[str, Any]:
        cache = tmp_path_factory.mktemp("cache")
        return json.loads(comfyui_host.run(HERE / script, base, *arguments, SAFE_REGION_CACHE=cache).splitlines()[-1])

    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(run, "comfyui_encoders.py", "write", folder, "ablaze.yaml")
        families = pool.submit(run, "comfyui_families.py", "ablaze.yaml")
        found = {"folder": folder, "encoders": written.result()}
        _compile_with_the_command_lines_encoders(folder, base / "models" / "safe_region")
        used = pool.submit(run, "comfyui_encoders.py", "use", folder, *COMPILED)
        return {**found, "families": families.result()["families"], "used": used.result()}


def _path(folder: Path, name: str) -> Path:
    checkpoint = folder / f"{name}.safetensors"
    return checkpoint if checkpoint.is_file() else folder / name


def _compile_with_the_command_lines_encoders(folder: Path, user: Path) -> None:
    concept, neutral = read_recipe(user / "ablaze.yaml"), read_neutral(user / "neutral.yaml")
    for name in COMPILED:
        encoder = encoders.load(_path(folder, name))
        settings = CompileSettings(family=encoder.family)
        compile(concept, encoder, neutral, settings=settings).save(user / f"{name}.safetensors")


def table(families: dict[str, Any]) -> str:
    """Family, spaces, and how far outside its border each lies before and after the guard."""
    lines = []
    for name, found in families.items():
        if "unbuilt" in found:
            lines.append(f"{name:24} not built here: {found['unbuilt']}")
        elif "refused" in found:
            lines.append(f"{name:24} refused: {next(iter(found['refused'].values()))}")
        else:
            far = ", ".join(f"{s} {b:+.1f} -> {a:+.1f}" for s, (b, a) in found["far"]["plain"].items())
            lines.append(f"{name:24} {' + '.join(found['spaces']):24} {far}")
    return "\n".join(lines)


def built(printed: dict[str, Any]) -> dict[str, Any]:
    """Families that are guarded."""
    return {name: found for name, found in printed["families"].items() if "far" in found}


def test_every_family_of_the_host_is_guarded_or_refused_for_a_reason_that_is_known(printed: dict[str, Any]) -> None:
    """A family that is new in the host fails here until it is looked at."""
    families = printed["families"]
    print(table(families))
    refused = {name for name, found in families.items() if "refused" in found}
    assert refused == (PICTURES | NEWER_PICTURES | WORDS.keys()) & families.keys()
    assert {name for name, found in families.items() if "unbuilt" in found} == UNBUILT & families.keys()
    for name, key in WORDS.items():
        if name in families:
            (said,) = families[name]["refused"].values()
            assert f"'{key}'" in said and said.endswith("or use another model."), said


def test_no_text_reaches_a_network_unguarded(printed: dict[str, Any]) -> None:
    families = printed["families"]
    guarded = built(printed)
    assert len(guarded) >= 53
    for name, found in guarded.items():
        spaces = set(found["spaces"])
        assert spaces == SPACES.get(name, spaces), name
        for which, far in found["far"].items():
            inside = found["open"][which] <= 0  # what the core finds inside keeps its bits
            assert inside or all(after <= INSIDE for _, after in far.values()), (name, which, far)
        plain = found["far"]["plain"]
        assert found["open"]["plain"] > 0, name
        assert {space for space in plain if "ControlNet" not in space} == REACHED.get(name, spaces), name
        assert all(before > 1 for before, _ in plain.values()), (name, plain)
    assert families["SD15"]["far"]["plain"].keys() == {"tokens", "tokens of a ControlNet"}


def test_long_prompts_and_end_tokens_typed_into_them_hide_nothing(printed: dict[str, Any]) -> None:
    moved: dict[str, set[str]] = {"long": set(), "ended": set(), "ended early": set()}
    for found in built(printed).values():
        for which in moved.keys() & found["open"].keys():
            if found["open"][which] > 0:
                moved[which].add(found["encoder"].split()[0])
    every = {found["encoder"].split()[0] for found in built(printed).values()}
    print(f"not found in a third chunk: {sorted(every - moved['long']) or 'none'}")
    assert len(every - moved["long"]) <= len(every) // 10, every - moved["long"]
    both = {f"{name}Tokenizer" for name in ("SD1", "SD2", "SDXL", "SD3", "Flux", "QwenImage", "Lumina", "HunyuanVideo")}
    assert moved["ended"] >= both, both - moved["ended"]
    assert "HyditTokenizer" in moved["ended early"], moved["ended early"]


def test_the_three_guards_give_one_result_and_leave_benign_prompts_alone(printed: dict[str, Any]) -> None:
    for name, found in built(printed).items():
        assert found["apart"] == 0, name
        assert all(found["benign"].values()), (name, found["benign"])
    encoders = {found["encoder"]: len(found["benign"]) for found in built(printed).values()}
    assert len(encoders) >= 22


def test_a_prompt_in_disguise_is_read_by_every_encoder(printed: dict[str, Any]) -> None:
    for name, found in built(printed).items():
        assert found["disguise"], name


def test_a_family_that_reads_no_text_is_refused_with_a_sentence(printed: dict[str, Any]) -> None:
    for name in (PICTURES | NEWER_PICTURES) & printed["families"].keys():
        for encoder, said in printed["families"][name]["refused"].items():
            assert "connect the CLIP that made" in said, (name, encoder, said)


def test_lyrics_are_refused_with_a_sentence(printed: dict[str, Any]) -> None:
    assert "song lyrics" in printed["families"]["ACEStep"]["lyrics"]


def test_batches_are_what_comfyui_gives_for_each_prompt(printed: dict[str, Any]) -> None:
    for name, found in printed["encoders"].items():
        print(f"{name:16} {found['apart']:.1e}")
        assert found["apart"] <= 1e-5, name
        assert found["literal"], name


def test_begin_tokens_stay_and_all_others_may_move(printed: dict[str, Any]) -> None:
    found = printed["encoders"]
    for name, begin in BEGIN.items():
        assert found[name]["begin"] == begin, name
    assert found["omnigen2"]["begin"]["tokens"] > 10
    for name, spaces in MOVABLE.items():
        assert {s: [counts[1], counts[-1]] for s, counts in found[name]["movable"].items()} == spaces, name
    lengths = found["pixart"]["movable"]["tokens"]
    assert lengths == found["mochi"]["movable"]["tokens"] and lengths[1] == 1  # Mochi masks what PixArt does not have
    assert {name for name, f in found.items() if f["pooled"]} == {"sdxl", "refiner", "sd3", "sd3 without T5", "flux"}


def test_weighted_prompts_are_guarded_on_real_encoders(printed: dict[str, Any]) -> None:
    for name, found in printed["encoders"].items():
        if "guard" not in found:
            continue
        before, after = found["guard"]["far"]
        print(f"{name:16} {before:+.1f} -> {after:+.1f}")
        assert before > 0 and after <= INSIDE, name
        assert found["guard"]["benign"], name


@pytest.mark.parametrize("name", SAVED)
def test_the_command_lines_encoder_is_comfyuis(printed: dict[str, Any], name: str) -> None:
    folder, known = printed["folder"], printed["encoders"][name]["reference"]
    encoder = encoders.load(_path(folder, name))
    wanted = load_file(folder / f"{name}-reference.safetensors")
    found: dict[str, torch.Tensor] = {}
    for i, prompt in enumerate(known["prompts"]):
        c: Conditioning = encoder([prompt])
        for space in c.spaces or ():
            found[f"{i}.{space.name}"] = c.tokens[:, space.rows, space.channels]
            found[f"{i}.{space.name}.mask"] = c.mask[:, space.rows]
        if c.pooled is not None:
            found[f"{i}.pooled"] = c.pooled
    assert encoder.family == name and found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        assert float((found[key].double() - value.double()).abs().max()) <= (0 if "mask" in key else 1e-4), key
    distance = encoder.fingerprint().distance(Fingerprint.parse(known["fingerprint"]))
    print(f"{name}: fingerprints {distance:.1e} apart")
    assert distance <= 2e-3


@pytest.mark.parametrize("name", COMPILED)
def test_a_file_compiled_by_the_command_lines_encoder_guards_in_comfyui(printed: dict[str, Any], name: str) -> None:
    before, after = printed["used"][name]["far"]
    assert before > 0 and after <= INSIDE
    assert printed["used"][name]["benign"]
