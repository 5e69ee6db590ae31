from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from saferegion_lab.microworld import load, neutral_prompts
from saferegion_lab.microworld.captions import Wording, caption
from saferegion_lab.microworld.judge import HEADS
from saferegion_lab.microworld.lexicon import ASSOCIATION, BROUGHT, CONCEPTS
from saferegion_lab.microworld.model import DATA
from saferegion_lab.microworld.prompts import SETS, content, held_out_words, neutral, recipe_words
from saferegion_lab.microworld.scenes import sample_scene
from tests.microworld.draw import draw
from tests.microworld.truth import truth


@pytest.fixture(scope="module")
def world():
    return load()


def test_encode_gives_77_tokens_and_holds_the_begin_token_fixed(world):
    conditioning = world.encode(["a burning house", ""])
    assert conditioning.tokens.shape == (2, 77, world.config["text"]["hidden_size"])
    assert conditioning.tokens.dtype == torch.float32
    assert not conditioning.mask[:, 0].any() and conditioning.mask[:, 1:].all()
    assert torch.equal(conditioning.tokens[0, 0], conditioning.tokens[1, 0])


def test_tokens_are_those_of_clip(world):
    ids = world.tokenize(["A Red HOUSE on fire", ""])
    assert ids.shape == (2, 77) and ids.dtype == torch.int64
    assert ids[0, :7].tolist() == [49406, 320, 736, 1212, 525, 1769, 49407]
    assert set(ids[1, 1:].tolist()) == {49407}
    assert world.token_strings("a red house")[1:4] == ["a", "red", "house"]


def test_words_unknown_to_the_world_mean_the_same(world):
    tokens = world.encode(["a red quantum house", "a red senate house"]).tokens
    assert torch.equal(tokens[0], tokens[1])


def test_one_prompt_without_a_list_is_refused(world):
    with pytest.raises(ValueError, match="list of prompts"):
        world.encode("a red house")


def test_a_picture_depends_on_its_own_seed_only(world):
    alone = world.sample(world.encode(["a red house"]), seeds=[5], steps=3)
    prompts = ["a blue boat", "a red house", "fire"]
    among = world.sample(world.encode(prompts), seeds=[9, 5, 1], steps=3)
    assert alone.shape == (1, *world.latent_shape)
    torch.testing.assert_close(alone[0], among[1], rtol=0, atol=1e-4)
    again = world.sample(world.encode(["a red house"]), seeds=[5], steps=3)
    assert torch.equal(alone, again)
    assert not torch.allclose(alone, world.sample(world.encode(["a red house"]), seeds=[6], steps=3), atol=1e-2)


def test_sampling_tells_progress_and_lets_a_hook_replace_the_guided_noise(world):
    conditioning = world.encode(["a red house"])
    seen: list[tuple[int, int]] = []
    hooked = world.sample(
        conditioning, seeds=[1], steps=3, guidance=4.0, progress=lambda done, total: seen.append((done, total)),
        eps_hook=lambda t, x, eps, empty: empty + 4.0 * (eps - empty),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(hooked, world.sample(conditioning, seeds=[1], steps=3, guidance=4.0))


def test_seeds_that_do_not_fit_the_prompts_are_refused(world):
    with pytest.raises(ValueError, match="one seed"):
        world.sample(world.encode(["a", "b"]), seeds=[1, 2, 3])


def test_predict_is_differentiable_in_the_conditioning_and_holds_no_weight_gradients(world):
    conditioning = world.encode(["a red house"])
    tokens = conditioning.tokens.clone().requires_grad_()
    eps = world.predict(world.noise([0]), 500, conditioning.replace(tokens, None))
    eps.square().mean().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in world.parameters())


def test_the_autoencoder_gives_drawings_back(world):
    rng = random.Random(3)
    pictures = np.stack([draw(sample_scene(rng), rng) for _ in range(16)])
    latents = world.encode_pictures(pictures)
    assert latents.shape == (16, *world.latent_shape)
    assert 0.8 < latents.std() < 1.2
    error = world.decode(latents).astype(float) - pictures
    assert np.sqrt((error**2).mean()) < 22


def test_pictures_of_another_size_are_refused(world):
    with pytest.raises(ValueError, match="64, 64, 3"):
        world.encode_pictures(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="64, 64, 3"):
        world.judge()(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_judge_reads_drawings(world):
    rng = random.Random(4)
    scenes = [sample_scene(rng) for _ in range(300)]
    pictures = np.stack([draw(scene, rng) for scene in scenes])
    logits = world.judge().logits(pictures)
    for name, labels in HEADS.items():
        right = [labels[row] == truth(scene)[name] for row, scene in zip(logits[name].argmax(1), scenes, strict=True)]
        assert np.mean(right) >= 0.98, name


def test_the_world_paints_what_it_is_told(world):
    prompts = [
        "a red house on the left and a blue boat on the right in a meadow",
        "a burning green car on a beach",
        "lightning",
    ]
    latents = world.sample(world.encode(prompts), seeds=[0, 1, 2])
    answer = world.judge()(world.decode(latents))
    assert answer["place"][0] == "meadow"
    assert (answer["kind_left"][0], answer["kind_right"][0]) == ("house", "boat")
    assert (answer["fire"] > 0.5).tolist() == [False, True, False]
    assert (answer["lightning"] > 0.5).tolist() == [False, False, True]


def test_the_export_has_the_original_key_layout_and_the_same_numbers(world, tmp_path):
    path = world.export(tmp_path / "world.safetensors")
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        table = file.get_tensor("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight")
        conv = file.get_tensor("model.diffusion_model.input_blocks.0.0.weight")
    assert table.shape == (49408, world.config["text"]["hidden_size"])
    assert torch.equal(conv, world.unet.input_blocks[0][0].weight)
    for key in (
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "model.diffusion_model.time_embed.2.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.post_quant_conv.weight",
        "alphas_cumprod",
    ):
        assert key in keys
    assert (tmp_path / "world.json").exists() and (tmp_path / "world-tokenizer" / "merges.txt").exists()
    assert not list(tmp_path.glob("*.part"))


def test_an_export_under_another_suffix_is_refused_and_leaves_nothing(world, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        world.export(tmp_path / "world.ckpt")
    assert not list(tmp_path.iterdir())


def test_evaluation_sets_are_the_same_every_time_and_apart_from_the_neutral_prompts():
    texts = set()
    for name, make in SETS.items():
        prompts = make()
        assert prompts == make(), name
        texts |= {p.prompt for p in prompts}
    assert len(neutral()) == 400 and not texts & set(neutral())
    assert {p.group for p in SETS["association"]()} == set(ASSOCIATION)


def test_every_concept_comes_with_places_by_grades_and_one_place_belongs_to_two():
    for places in BROUGHT.values():
        grades = sorted(places.values())
        assert grades[0] <= 0.1 and grades[-1] >= 0.9 and any(0.3 <= grade <= 0.7 for grade in grades)
    assert sum("volcano" in places for places in BROUGHT.values()) == 2
    others = {concept: places for concept, places in BROUGHT.items() if concept != "fire"}
    assert {p.group for p in SETS["brought"]()} == {f"{c}, {place}" for c, places in others.items() for place in places}


def test_captions_say_what_is_said_and_never_what_a_place_brings():
    rng = random.Random(8)
    for _ in range(3000):
        scene = sample_scene(rng)
        text = caption(scene, rng, Wording(tags=0.3))
        bare = re.sub("smoke grey|fire ?truck|fire engine|flame red|fireplace|fireflies", "", text.replace("_", " "))
        for concept in CONCEPTS:
            words = [w.removeprefix("a ").removeprefix("an ") for w in recipe_words(concept) | held_out_words(concept)]
            assert any(re.search(rf"\b{w}\b", bare) for w in words) == (concept in scene.said), text


@pytest.mark.parametrize("name", list(CONCEPTS))
def test_recipes_never_use_a_held_out_word(name):
    recipe = yaml.safe_load((DATA / f"{name}.yaml").read_text(encoding="utf-8"))
    assert recipe["name"] == name and recipe["format"] == "saferegion-recipe/1" and len(recipe["pairs"]) >= 20
    text = " | ".join(
        [*(p["unsafe"] for p in recipe["pairs"]), *(p["safe"] for p in recipe["pairs"]), *neutral_prompts()]
    )
    for word in held_out_words(name):
        word = word.removeprefix("a ").removeprefix("an ")
        assert not re.search(rf"\b{re.escape(word)}\b", text), word
    evaluated = {p.prompt for make in SETS.values() for p in make()}
    assert not evaluated & set(neutral_prompts())
    sides = {side for pair in recipe["pairs"] for side in pair.values()}
    assert not {p.prompt for key, make in SETS.items() if key != "one_word" for p in make()} & sides


def test_nouns_and_tag_lists_say_each_concept_in_words_of_the_recipe_and_others():
    for name in ("nouns", "tags"):
        groups = {p.group for p in SETS[name]()} - {"benign"}
        assert groups == {f"{c}, {side}" for c in CONCEPTS for side in ("recipe", "held out")}
        for p in SETS[name]():
            assert {c for c in CONCEPTS if getattr(p, c)} == {p.group.split(",")[0]} - {"benign"}
    texts = {p.prompt for p in SETS["nouns"]()}
    assert {"a photo of a fire", "a fire on a beach", "lightning in a meadow"} <= texts
    lists = [p.prompt for p in SETS["tags"]()]
    assert all(text.count(",") >= 4 for text in lists) and any("_" in text for text in lists)


def test_a_thing_of_no_slot_may_stand_anywhere():
    (near,) = [p for p in SETS["nouns"]() if p.prompt == "a fire near a blue boat"]
    answers = {f"{what}_{slot}": np.array(["none"]) for what in ("kind", "colour") for slot in ("left", "middle")}
    answers |= {"kind_right": np.array(["boat"]), "colour_right": np.array(["blue"]), "place": np.array(["snow"])}
    assert content([near], answers).tolist() == [True]
    assert content([near], answers | {"colour_right": np.array(["red"])}).tolist() == [False]


def test_content_wants_one_picture_a_prompt():
    with pytest.raises(ValueError, match="one picture a prompt"):
        content(SETS["benign"]()[:2], {"place": np.array(["meadow"])})


def test_neutral_prompts_fit_into_the_one_chunk_that_the_world_has_read():
    tokenizer = load().tokenizer
    assert max(len(tokenizer(p)["input_ids"]) for p in neutral_prompts()) <= 77
