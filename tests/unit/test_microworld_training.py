"""The training of the microworld: it goes on where it was interrupted, and parts of different worlds never meet."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from saferegion_lab.microworld import load, model
from saferegion_lab.microworld.captions import caption
from saferegion_lab.microworld.scenes import sample_scene
from tests.microworld import drawings, train_world
from tests.microworld.stage import Log, Pace, Stage, finished
from tests.microworld.text import TextNet
from tests.microworld.truth import labels

CPU = torch.device("cpu")


def stage(folder, seconds: float, mark: str = "one", net: nn.Module | None = None) -> tuple[Stage, nn.Linear]:
    torch.manual_seed(0)
    line = nn.Linear(4, 1)
    pace = Pace(seconds, 1e-2, save=0.0)
    return Stage(folder / "line.part", pace, [line], CPU, mark, Log(folder / "log.txt")), line


def end(training: Stage, step: int) -> None:
    """The clock has run out after this step."""
    if training.step >= step:
        training.pace = replace(training.pace, seconds=1e-9)


def test_an_interrupted_stage_goes_on_and_leaves_no_part_behind(tmp_path):
    class Stop(Exception):
        pass

    first, line = stage(tmp_path, 60)
    x = torch.randn(64, 4)
    goal = x.sum(1, keepdim=True)

    def stop_after_five() -> None:
        if first.step == 5:
            raise Stop

    with pytest.raises(Stop):
        first.run(lambda: (line(x) - goal).square().mean(), stop_after_five)
    left = torch.load(tmp_path / "line.part", weights_only=True)["now"]
    second, line = stage(tmp_path, 60)
    assert second.step >= 4 and second.spent > 0
    assert all(torch.equal(now, there) for now, there in zip(second.parameters, left, strict=True))
    begun = second.step
    second.run(lambda: (line(x) - goal).square().mean(), lambda: end(second, begun + 20))
    assert second.step == begun + 20
    assert all(torch.equal(now, mean) for now, mean in zip(second.parameters, second.average, strict=True))
    second.finish(tmp_path / "line.pt", {"weight": line.weight.detach()})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["line.pt", "log.txt"]
    assert "goes on at step" in (tmp_path / "log.txt").read_text()
    done = finished(tmp_path / "line.pt", "one")
    assert done is not None and torch.equal(done["weight"], line.weight.detach())


def test_parts_of_another_world_are_refused(tmp_path):
    own, line = stage(tmp_path, 0.05)
    own.run(lambda: line(torch.ones(1, 4)).square().mean())
    with pytest.raises(ValueError, match="another world"):
        stage(tmp_path, 0.05, "two")
    own.finish(tmp_path / "line.pt", {})
    with pytest.raises(ValueError, match="another world"):
        finished(tmp_path / "line.pt", "two")
    assert finished(tmp_path / "nothing.pt", "one") is None


def test_weights_of_another_world_are_refused(tmp_path, monkeypatch):
    save_file({"known": torch.zeros(1)}, str(tmp_path / "old.safetensors"), {"format": "saferegion-microworld/1"})
    monkeypatch.setattr(model, "WEIGHTS", tmp_path / "old.safetensors")
    with pytest.raises(OSError, match="another world"):
        load()


def test_a_chunk_has_the_same_drawings_labels_and_words_every_time(monkeypatch):
    monkeypatch.setattr(drawings, "CHUNK", 12)
    pictures, masks, said = drawings.draw_chunk(3, 7, True)
    again = drawings.draw_chunk(3, 7, False)
    assert pictures.shape == (12, 64, 64, 3) and masks is not None and masks.any((1, 2)).sum() >= 6
    assert np.array_equal(pictures, again[0]) and again[1] is None and np.array_equal(said, again[2])
    assert np.array_equal(said, labels(drawings.scenes_of(3, 7)))
    assert not np.array_equal(pictures, drawings.draw_chunk(4, 7, False)[0])
    speaker = drawings.Speaker([320, 736, 49406, 49407])
    assert speaker.ids(["a red house"])[0, :5].tolist() == [2, 0, 1, 4, 3]
    assert speaker.chunk(3, 7, 0).shape == (12, 77)


def test_every_word_of_a_caption_is_known():
    speaker = drawings.Speaker([])
    known = set(drawings.known_ids(speaker.tokenizer, 21, count=500))
    rng = random.Random(77)
    texts = [caption(sample_scene(rng), rng, drawings.WORDING) for _ in range(1000)]
    unknown = {i for ids in speaker.tokenizer(texts).input_ids for i in ids} - known
    assert not unknown, speaker.tokenizer.convert_ids_to_tokens(sorted(unknown))


def test_the_text_transformer_of_the_training_is_that_of_transformers():
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    theirs = CLIPTextModel(CLIPTextConfig(vocab_size=50, bos_token_id=0, eos_token_id=1, **train_world.TEXT)).eval()
    own = TextNet(50, train_world.TEXT)
    state = {k.removeprefix("text_model."): v for k, v in theirs.state_dict().items() if "position_ids" not in k}
    own.load_state_dict(state)
    ids = torch.randint(50, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(own(ids), theirs(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)
