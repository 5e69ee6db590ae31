"""The webui's script without a webui: what it does to the conditionings of every family, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import webui_fakes as webui
from fakes import benign_prompts, fire
from webui_fakes import BENIGN, FIRE, ON, UNSAFE, conds, equal

import saferegion as sr
from saferegion.guard.minors import NO_MINORS
from saferegion_webui import generation, interception, layout, notes, page, panel, settings
from saferegion_webui.arguments import NAMES, Arguments
from saferegion_webui.refusal import SafeRegionRefused

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "llm", "anima")


class Host:
    def __init__(self, shared: Any, processing: type, folder: Path) -> None:
        self.shared, self.Processing, self.folder = shared, processing, folder

    def run(self, args: Any = None, prompt: Any = UNSAFE, **values: Any) -> Any:
        p = self.Processing(prompt, **values)
        generation.configure(p, args if args is not None else [False], [])
        p.setup_conds()
        return p


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was compiled for one test serves the others."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def fresh(hosts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is compiled yet."""
    monkeypatch.setenv("SAFE_REGION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path) -> Any:
    models = tmp_path / "models"
    guarded = webui.guarded(monkeypatch, models, kept)
    return lambda family="sd1": Host(*guarded(family), models / "safe_region")


def webui_layout(cond: torch.Tensor) -> sr.Conditioning:
    return layout.Layout().conditioning(cond[None], None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_guarded_and_benign_prompts_keep_their_objects(hosts: Any, family: str) -> None:
    host = hosts(family)
    off, on, again = host.run(), host.run(ON), host.run()
    assert not equal(conds(off)[0], conds(on)[0])
    assert equal(conds(off)[0], conds(again)[0]) and again.c is off.c
    raw, guarded = conds(off)[0], conds(on)[0]
    assert type(guarded) is type(raw)
    if isinstance(raw, dict):
        assert raw["crossattn"].shape == guarded["crossattn"].shape and raw["crossattn"].dtype is torch.float32
        assert all(torch.equal(raw[k], guarded[k]) for k in raw if k not in ("crossattn", "vector"))
        assert torch.equal(raw["vector"][webui.CLIP :], guarded["vector"][webui.CLIP :])
        erased = conds(host.run([{"enabled": True, "concepts": [FIRE], "mode": "erase"}]))[0]
        assert not torch.equal(raw["vector"][: webui.CLIP], erased["vector"][: webui.CLIP])
        assert torch.equal(raw["vector"][webui.CLIP :], erased["vector"][webui.CLIP :])
    a, b = host.run(prompt=BENIGN), host.run(ON, prompt=BENIGN)
    assert a.c is b.c and a.uc is b.uc


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(hosts: Any, dtype: torch.dtype) -> None:
    host = hosts("sdxl")
    host.shared.sd_model.clip.dtype = dtype
    off, on = conds(host.run())[0], conds(host.run(ON))[0]
    assert on["crossattn"].dtype is dtype and on["vector"].dtype is off["vector"].dtype
    assert torch.isfinite(on["crossattn"]).all() and not torch.equal(on["crossattn"], off["crossattn"])
    a, b = host.run(prompt=BENIGN), host.run(ON, prompt=BENIGN)
    assert a.c is b.c


def test_a_hires_pass_has_its_own_prompts_and_guidance(hosts: Any) -> None:
    host = hosts()
    hires = {"prompt": BENIGN, "hires_steps": 6, "hr_prompts": [UNSAFE], "hr_cfg": 1.0, "negative": "a burning boat"}
    off, on = host.run(**hires), host.run(ON, **hires)
    assert on.c is off.c and on.uc is off.uc  # this stand-in encodes the first prompts; signs are read off the second
    unguided = {**hires, "prompt": UNSAFE, "hr_cfg": -1.0}
    assert host.run(ON, **unguided).c is not host.run(**unguided).c


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_begin_tokens_and_filling_stay(hosts: Any, family: str) -> None:
    host = hosts(family)
    long = f"{UNSAFE} " + "very quiet " * 60
    raw, guarded = (layout.tokens_of(conds(host.run(args, prompt=long))[0]) for args in (None, ON))
    same = (raw == guarded).all(1)
    clip = same if family != "sd3" else same[: len(same) // 2]
    assert clip[:: layout.CHUNK].all() and not clip.all()
    if family == "sd3":
        half = len(same) // 2
        assert (guarded[:half, webui.CLIP :] == 0).all() and not same[half:].all()


def test_templates_and_filling_of_language_models_stay(hosts: Any) -> None:
    host = hosts("llm")
    raw, guarded = (layout.tokens_of(conds(host.run(args))[0]) for args in (None, ON))
    assert torch.equal(raw[:3], guarded[:3]) and not torch.equal(raw[3:], guarded[3:])
    host = hosts("anima")
    raw, guarded = (conds(host.run(args))[0] for args in (None, ON))
    assert raw.shape == guarded.shape == (1, 60, webui.T5) and not torch.equal(raw, guarded)
    assert torch.equal((raw != 0).any(-1), (guarded != 0).any(-1))


@pytest.mark.parametrize("template", [["<system>", "describe", "<user>", "the", "prompt"], []], ids=["away", "before"])
def test_rows_are_called_by_their_own_words_whatever_the_template(hosts: Any, template: list[str]) -> None:
    """Of a language model with three rows in front: its tokens begin with two more than there are rows, or with none
    of the template's."""
    host = hosts("llm")
    known: list[str] = []

    def tokenize_line(prompt: str) -> list[Any]:
        words = [*template, *prompt.split(), "<done>"]
        known.extend(word for word in words if word not in known)
        return [SimpleNamespace(tokens=[known.index(word) for word in words])]

    tokenizer = SimpleNamespace(decode=lambda tokens: known[tokens[0]])
    engine = SimpleNamespace(tokenize_line=tokenize_line, tokenizer=tokenizer)
    host.shared.sd_model.text_processing_engine_gemma = engine
    _, encoder = generation.guards.get(host.shared.sd_model, generation.Arguments.parse(ON), None)
    assert encoder.words("a burning house") == {
        "tokens": [*(template[2:] or [""] * 3), "a", "burning", "house", "<done>"]
    }


def test_spaces_are_those_of_the_command_line(hosts: Any) -> None:
    spaces = {}
    for family in FAMILIES:
        host = hosts(family)
        host.run(ON)
        guard, encoder = generation.guards.get(host.shared.sd_model, generation.Arguments.parse(ON), None)
        spaces[family] = (encoder.family, dict(encoder.fingerprint().widths), guard.spaces())
    clip, t5 = webui.CLIP, webui.T5
    assert spaces["sd1"] == ("sd1", {"tokens": clip}, {"tokens"})
    assert spaces["sdxl"] == ("sdxl", {"tokens": clip, "pooled": clip}, {"tokens", "pooled"})
    assert spaces["sd3"] == ("sd3", {"clip": clip, "t5": t5, "pooled": clip}, {"clip", "t5", "pooled"})
    assert spaces["flux"] == ("flux", {"tokens": t5, "pooled": clip}, {"tokens", "pooled"})
    assert spaces["chroma"] == ("t5", {"tokens": t5}, {"tokens"})
    assert spaces["llm"] == spaces["anima"] == ("llm", {"tokens": t5}, {"tokens"})


def test_schedules_and_parts_are_guarded_apart(hosts: Any) -> None:
    host = hosts()
    prompt = ["a quiet [house:burning house:0.5] AND a blue boat", BENIGN]
    off, on = host.run(prompt=prompt), host.run(ON, prompt=prompt)
    (first, boat), (benign,) = on.c.batch
    assert [e.end_at_step for e in first.schedules] == [5, 10]
    assert first.schedules[0] is off.c.batch[0][0].schedules[0]
    assert first.schedules[1].cond is not off.c.batch[0][0].schedules[1].cond
    assert boat is off.c.batch[0][1] and benign is off.c.batch[1][0]
    assert on.extra_generation_params["Safe region moved"][1] is None
    assert on.extra_generation_params["Safe region moved"][0].startswith(f"{FIRE} +")
    assert any("burning" in text or "on fire" in text for text in on.comments)


def test_what_moved_is_told_of_the_batch_in_which_it_did(hosts: Any) -> None:
    p = hosts().run(ON)
    assert p.extra_generation_params["Safe region moved"] != [None]
    p.prompts = [BENIGN]
    p.setup_conds()
    assert "Safe region moved" not in p.extra_generation_params


@pytest.mark.parametrize(
    ("guidance", "prompt", "args", "positive", "negative"),
    [
        (7.0, UNSAFE, ON, True, False),
        (0.5, UNSAFE, ON, True, True),
        (-3.0, UNSAFE, ON, False, True),
        (7.0, f"{BENIGN} AND {UNSAFE} :-1", ON, False, True),
        (7.0, f"{BENIGN} AND {UNSAFE} :-0.5", ON, False, False),
        (7.0, UNSAFE, [{"enabled": True, "concepts": [FIRE], "guard_negative": True}], True, True),
    ],
)
def test_the_sign_of_a_row_decides(
    hosts: Any, guidance: float, prompt: str, args: Any, positive: bool, negative: bool
) -> None:
    host = hosts()
    values = {"prompt": prompt, "negative": "a burning boat", "guidance": guidance}
    off, on = host.run(**values), host.run(args, **values)
    assert (on.c is not off.c) == positive
    assert (on.uc is not off.uc) == negative


def test_an_empty_negative_of_zeros_and_a_missing_one_stay(hosts: Any) -> None:
    args = [{"enabled": True, "concepts": [FIRE], "guard_negative": True, "mode": "erase"}]
    host = hosts("sdxl")
    on = host.run(args)
    assert not layout.tokens_of(on.uc[0][0].cond).any()
    assert host.run(args, guidance=1.0).uc is None


def test_directions_with_a_window_act_in_their_part_of_the_sampling(hosts: Any) -> None:
    host = hosts()
    host.run(ON)
    (made,) = generation.guards.directions(host.shared.sd_model, [FIRE])
    movers = {s: sr.Offset(torch.ones(1), -3 * m.displacement[0], (0.0, 0.45)) for s, m in made.movers.items()}
    early = dataclasses.replace(made, concept="early", movers=movers, meta=sr.Meta(method="discovered"))
    early.save(host.folder / "early.safetensors")
    off, on = host.run(), host.run([True, ["my/early"]])
    (part,) = on.c.batch[0]
    assert [e.end_at_step for e in part.schedules] == [4, 10]
    assert not equal(part.schedules[0].cond, conds(off)[0]) and part.schedules[1].cond is conds(off)[0]
    both = host.run([True, ["my/early"]], prompt="a quiet [boat:burning house:0.2]")
    ((edited,),) = both.c.batch
    assert [e.end_at_step for e in edited.schedules] == [2, 4, 10]
    assert host.run([True, ["my/early"]], prompt=BENIGN).c is host.run(prompt=BENIGN).c


def test_what_is_seen_of_a_picture_costs_no_encoding(hosts: Any) -> None:
    host = hosts()
    host.run(ON, prompt=BENIGN)
    asked = len(host.shared.sd_model.written)
    host.run(ON, prompt=BENIGN)
    host.run([True, [FIRE], 2.0], prompt=BENIGN)
    assert len(host.shared.sd_model.written) == asked


def test_prompts_of_recipes_are_taken_literally(hosts: Any) -> None:
    host = hosts()
    host.run([{"enabled": True, "concepts": [], "avoid": "burning (hot), [blazing], flaming BREAK"}], prompt=BENIGN)
    written = " ".join(host.shared.sd_model.written)
    assert r"burning \(hot\)" in written and r"\[blazing\]" in written and "flaming break" in written
    assert "(hot" not in written.replace(r"\(hot", "") and "BREAK" not in written


def test_networks_are_off_while_compiling_and_on_again_afterwards(hosts: Any, fresh: Path) -> None:
    host = hosts()
    host.run(ON, prompt=BENIGN)
    generation.guards.forget()
    host.shared.sd_model.lora = 0.7
    with_lora = host.run(ON, prompt=BENIGN, extra_network_data={"lora": 0.7})
    assert host.shared.sd_model.lora == 0.7
    assert generation.guards.directions(host.shared.sd_model, [FIRE])[0].encoder is not None
    assert with_lora.c is not None
    files = list(fresh.glob("on-fire-*.safetensors"))
    assert len(files) == 1  # the same encoder as without


def test_a_swapped_or_rewritten_encoder_is_noticed(hosts: Any) -> None:
    host = hosts()
    checkpoint = host.shared.sd_model
    first = host.run(ON)
    checkpoint.clip = webui.FakeEncoder(webui.CLIP, seed=5)
    with torch.no_grad():
        checkpoint.cond_stage_model["token_embedding"].weight.mul_(1)  # as loading weights into it does
    host.Processing.cached_c[:] = [None, None]
    second = host.run(ON)
    assert not equal(conds(first)[0], conds(second)[0])
    fresh = sr.compile(fire(), webui.FakeEncoder(webui.CLIP, 5, pooled=False), benign_prompts(60))
    region = sr.SafeRegion([fresh])
    assert float(region.score(webui_layout(conds(second)[0]))[0, 0]) <= 0
    host.shared.sd_model = webui.Checkpoint("sd1", seed=9, name="two")
    assert host.run(ON).c is not None
    host.shared.sd_model = checkpoint
    assert equal(conds(host.run(ON))[0], conds(second)[0])


def test_parts_that_an_extension_makes_inherit_the_guard(hosts: Any) -> None:
    host = hosts()
    outer = host.run(ON)
    detailer = host.Processing(UNSAFE)
    detailer.setup_conds()
    assert equal(conds(detailer)[0], conds(outer)[0])
    host.shared.state.time_start = 2.0  # another job
    free = host.Processing(UNSAFE)
    free.setup_conds()
    assert not equal(conds(free)[0], conds(outer)[0])
    again = copy.copy(outer)
    again.setup_conds()
    assert equal(conds(again)[0], conds(outer)[0])


@pytest.mark.parametrize("args", [["yes"], [True, ["nothing"]], [True, [FIRE], float("nan")], [{"enabled": 1}]])
def test_what_is_wrong_ends_the_generation(hosts: Any, args: Any) -> None:
    host = hosts()
    with pytest.raises(SafeRegionRefused, match="Safe Region") as caught:
        host.run(args)
    assert caught.value.status_code == 422 and caught.value.detail == str(caught.value)


def test_a_prompt_that_stays_outside_is_refused(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosts()
    monkeypatch.setattr(sr.SafeRegion, "verify", lambda self, over, opened: opened)
    with pytest.raises(SafeRegionRefused, match="could not be brought inside the safe region .* stayed open") as caught:
        host.run(ON)
    assert caught.value.status_code == 422
    assert host.run(ON, prompt=BENIGN).c is host.run(prompt=BENIGN).c


def test_the_baseline_for_minors_acts_whatever_is_switched_on(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosts()
    assert f"Safe Region: {NO_MINORS}." in host.run(ON).comments
    (made,) = generation.guards.directions(host.shared.sd_model, [FIRE])
    theme = dataclasses.replace(made, concept="theme-beside-a-child", meta=sr.Meta(title="The theme"))
    monkeypatch.setattr(
        sr.Library, "guarding", lambda library, *a: (library.directions(a[0], a[1], None, *a[2:]), [theme])
    )
    generation.guards.forget()
    for args in ([True, ["my/frost"]], [True, ["my/frost"], 0.0], [True, ["my/frost"], 0.01, "", "steer"]):
        p = host.run(args)
        assert "theme-beside-a-child +" in p.extra_generation_params["Safe region moved"][0]
        assert any("The theme was kept out" in text for text in p.comments) and not any(
            NO_MINORS in t for t in p.comments
        )
    assert host.run([True, ["my/frost"]], prompt=BENIGN).c is host.run(prompt=BENIGN).c


def test_heat_maps_show_what_is_switched_on_and_what_was_open(hosts: Any) -> None:
    args = [{"enabled": True, "concepts": [FIRE, "my/frost"], "heat_map": True}]
    host = hosts()
    moved, calm = (notes.heat_maps(host.run(args, prompt=p).safe_region) for p in (UNSAFE, BENIGN))
    assert len(moved) == len(calm) == 1 and moved[0].size[1] == calm[0].size[1]
    steer = host.run([{**args[0], "mode": "steer"}]).safe_region
    assert len(notes.heat_maps(steer)) == 1


def test_what_was_found_is_said_in_one_line(hosts: Any) -> None:
    line = next(text for text in hosts().run(ON).comments if NO_MINORS not in text)
    assert line.startswith("Safe Region, prompt: on fire was kept out (found in")


def test_an_error_of_ours_ends_the_generation(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosts()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("nothing left")

    monkeypatch.setattr(generation.guards, "get", broken)
    with pytest.raises(SafeRegionRefused, match="ZeroDivisionError") as caught:
        host.run(ON)
    assert caught.value.status_code == 500


def test_interrupting_ends_the_preparation(hosts: Any, fresh: Path) -> None:
    host = hosts()
    host.shared.state.interrupted = True
    with pytest.raises(SafeRegionRefused, match="interrupted"):
        host.run(ON)
    host.shared.state.interrupted = False
    assert host.run(ON).c is not None
    assert host.shared.state.sampling_steps == 20 and host.shared.state.textinfo is None


def test_rows_of_another_family_are_refused(hosts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosts()
    encode = host.shared.sd_model.get_learned_conditioning
    monkeypatch.setattr(host.shared.sd_model, "get_learned_conditioning", lambda p: encode(p)[:, :50])
    with pytest.raises(SafeRegionRefused, match="not supported"):
        host.run(ON)


def test_axes_take_the_place_of_arguments(hosts: Any) -> None:
    host = hosts()
    off, on = host.run(), host.run(ON)
    assert equal(conds(host.run([False, [FIRE]], safe_region_enabled=True))[0], conds(on)[0])
    assert host.run(ON, safe_region_enabled=False).c is off.c
    assert host.run(ON, safe_region_strengths=((FIRE, 0.0),)).c is off.c
    assert not equal(conds(host.run(ON, safe_region_mode="steer"))[0], conds(on)[0])
    with pytest.raises(SafeRegionRefused):
        host.run(ON, safe_region_strength=1e9)


def test_plain_names_of_own_concepts_are_pasted_as_the_page_lists_them(hosts: Any) -> None:
    hosts()
    written = Arguments(True, ("on-fire", FIRE, "nudity"), strengths=(("on-fire", 0.5), ("nudity", 2.0))).infotext()
    fields = page.infotext_fields({name: name for name in NAMES})
    read = {name: reader(written) for name, reader in fields}
    assert read["concepts"] == [FIRE, FIRE, "nudity"]
    assert Arguments.parse([read]).strengths == ((FIRE, 0.5), ("nudity", 2.0))
    unsaid = {name: value for name, reader in fields if (value := reader({"Steps": "20"})) is not None}
    assert unsaid == {"enabled": False, "balance": False}


def test_the_panel_says_what_is_on_in_plain_words(hosts: Any) -> None:
    host = hosts()
    names = ["nudity", "self-harm", FIRE]
    assert panel.headline(names) == "Safe Region: keep out nudity, self-harm, on fire"
    assert "nothing chosen" in panel.headline([])
    assert {"nudity", FIRE} <= set(panel.choices()) and "gender" not in panel.choices()  # an axis keeps nothing out
    assert "<b>Nudity</b>" in panel.explained(names) and "cannot be used" in panel.explained(["no such thing"])
    assert "read once" in panel.explained([FIRE]) or settings.loaded_checkpoint() is None
    host.run(ON)
    assert "read once" not in panel.explained([FIRE])


def test_strengths_of_single_concepts_are_rows(hosts: Any) -> None:
    hosts()
    names = ["nudity", FIRE]
    assert panel.rows(names, 0.8, "") == [("Nudity", 0.8), ("on fire", 0.8)]
    text = panel.strengths_of(names, 0.8, "", [0.8, 1.5])
    assert text == f"{FIRE}: 1.5" and panel.rows(names, 0.8, text) == [("Nudity", 0.8), ("on fire", 1.5)]
    assert panel.strengths_of(names, 0.8, text, [0.8, 0.8]) == ""
    assert panel.rows(names, 1.0, "not understood") == [("Nudity", 1.0), ("on fire", 1.0)]
    many = [f"c{i}" for i in range(panel.ROWS + 2)]
    assert panel.strengths_of(many, 1.0, f"{many[-1]}: 2", [1.0] * panel.ROWS) == f"{many[-1]}: 2"


def test_the_method_is_wrapped_once(hosts: Any) -> None:
    host = hosts()
    before = host.Processing.get_conds_with_caching
    interception.install(host.Processing, lambda p, conds, *_: "seen")
    assert host.Processing.get_conds_with_caching is before
    p = host.Processing(BENIGN)
    assert p.setup_conds() == ("seen", "seen")
    with pytest.raises(RuntimeError, match="get_conds_with_caching"):
        interception.install(SimpleNamespace, lambda *_: None)


def test_what_an_extension_encodes_in_the_midst_is_guarded(hosts: Any) -> None:
    host = hosts()
    p = host.run(ON, prompt=BENIGN)
    raw = conds(host.run([False]))[0]
    host.run(ON, prompt=BENIGN)
    p = host.run(ON, prompt=BENIGN)
    encode = host.shared.sd_model.get_learned_conditioning
    assert not torch.equal(encode(webui.Prompts([UNSAFE]))[0], raw)
    assert p.extra_generation_params["Safe region moved"].startswith(f"{FIRE} +")
    assert p.safe_region.seen[-1].where == "text of an extension"
    assert torch.equal(encode(webui.Prompts([UNSAFE], is_negative_prompt=True))[0], raw)
    host.run([False], prompt=BENIGN)
    assert torch.equal(encode(webui.Prompts([UNSAFE]))[0], raw)
