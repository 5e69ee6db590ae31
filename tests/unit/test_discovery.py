"""Discovery on a model small enough to see through: pictures are a function of the prompt, a volcano brings fire."""

from __future__ import annotations

import re

import pytest
import torch
from fakes import _vector, same_bits

import saferegion as sr
from saferegion import discovery
from saferegion.core.conditioning import Conditioning
from saferegion.core.errors import DiscoverError, SafeRegionError

WIDTH, LENGTH = 24, 12
FIRE = torch.from_numpy(_vector("fire axis", WIDTH)).float()
FIRE = FIRE / FIRE.norm()
LAVA = torch.from_numpy(_vector("lava", WIDTH)).float()
LAVA = LAVA - (LAVA @ FIRE) * FIRE
LAVA = LAVA / LAVA.norm()
THINGS = ("house", "car", "tree", "boat", "chair", "tower", "bridge", "lamp")
PLACES = ("meadow", "beach", "forest", "city", "volcano", "crater", "museum", "harbour", "valley", "field")
BRINGING = ("volcano", "crater")


def word(w: str) -> torch.Tensor:
    if w in ("burning", "blazing"):
        return 5 * FIRE
    v = torch.from_numpy(_vector(w, WIDTH)).float()
    v = v - (v @ FIRE) * FIRE - (v @ LAVA) * LAVA
    return v + 6 * LAVA if w in BRINGING else v


def encode(prompts: list[str]) -> Conditioning:
    rows = []
    for p in prompts:
        words = re.findall(r"\w+", p.lower())
        whole = torch.stack([word(w) for w in words]).mean(0) if words else torch.zeros(WIDTH)
        own = [word(w) / 4 for w in words][: LENGTH - 1]
        rows.append(torch.stack([torch.ones(WIDTH), *(whole + o for o in own), *[whole] * (LENGTH - 1 - len(own))]))
    movable = torch.ones(len(rows), LENGTH, dtype=torch.bool)
    movable[:, 0] = False
    return Conditioning(torch.stack(rows), movable)


class World:
    """Pictures [4, 8, 8]: a pattern of the prompt, and fire in one corner where the prompt says or brings it."""

    latent_shape = (4, 8, 8)

    def __init__(self, fire: float = 1.0, rest: float = 0.2) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.02, 100)
        draw = torch.Generator().manual_seed(3)
        self.pattern = torch.nn.Parameter(rest * torch.randn(WIDTH, 256, generator=draw))
        self.fire, self.passes = fire, 0

    def parameters(self) -> list[torch.Tensor]:
        return [self.pattern]

    def heat(self, tokens: torch.Tensor) -> torch.Tensor:
        whole = tokens[:, 1:].mean(1)
        return torch.sigmoid(8 * (whole @ FIRE + whole @ LAVA - 1))

    def picture(self, tokens: torch.Tensor) -> torch.Tensor:
        whole = tokens[:, 1:].mean(1)
        x = ((whole - (whole @ FIRE)[:, None] * FIRE) @ self.pattern).reshape(-1, 4, 8, 8)
        corner = torch.zeros(8, 8)
        corner[5:, 5:] = 1
        return x + self.fire * 3 * self.heat(tokens)[:, None, None, None] * corner

    def predict(self, x_t: torch.Tensor, t: torch.Tensor | int, c: Conditioning) -> torch.Tensor:
        self.passes += len(x_t)
        a = self.alphas_cumprod[int(t)]
        return (x_t - a.sqrt() * self.picture(c.tokens)) / (1 - a).sqrt()


def recipe() -> sr.Concept:
    pairs = [(f"a {w} {t} in a {p}", f"a {t} in a {p}") for w in ("burning", "blazing") for t in THINGS
             for p in ("meadow", "museum")]  # fmt: skip
    return sr.Concept.from_pairs("fire", pairs)


EVERY = [(p, f"a {a} {t} in a {p}") for p in PLACES for t in THINGS for a in ("small", "blue", "old")]
NEUTRAL = [text for i, (_, text) in enumerate(EVERY) if i % 5]
FRESH = [text for i, (p, text) in enumerate(EVERY) if i % 5 == 0]
FRESH_BRING = [text for text in FRESH if text.endswith(BRINGING)]
FRESH_OTHERS = [text for text in FRESH if not text.endswith(BRINGING)]
RUN = {"steps": 12, "pictures": 1, "sampling_steps": 6, "guidance": 2.0, "batch_size": 40}


@pytest.fixture(scope="module")
def found() -> sr.Direction:
    return sr.discover(recipe(), encode, World(), NEUTRAL, **RUN)


def compiled() -> sr.Direction:
    return sr.compile(recipe(), encode, NEUTRAL)


def test_what_a_place_brings_is_guarded_and_other_places_keep_every_bit(found):
    region = sr.SafeRegion([compiled(), found])
    brings = encode(FRESH_BRING)
    others = encode(FRESH_OTHERS)
    assert bool((region.score(brings).amax(1) > 0).all())
    assert float((region.score(others).amax(1) > 0).float().mean()) <= 0.02
    world = World()
    guarded, _ = region.apply(brings)
    assert float(world.heat(guarded.tokens).mean()) < 0.35 * float(world.heat(brings.tokens).mean())
    kept = (region.score(others).amax(1) <= 0).nonzero()[:, 0]
    same = discovery.rows_of(others, kept)
    assert region.apply(same)[0] is same


def test_words_alone_do_not_find_what_a_place_brings():
    brings = encode(FRESH_BRING)
    assert float((sr.SafeRegion([compiled()]).score(brings)[:, 0] > 0).float().mean()) < 0.5


def test_a_guarded_prompt_is_inside(found):
    region = sr.SafeRegion([compiled(), found])
    guarded, _ = region.apply(encode(FRESH_BRING))
    assert float(region.score(guarded).max()) <= 1e-3
    assert region.apply(guarded)[0] is guarded


def test_the_file_says_how_it_was_made_and_comes_back_whole(found, tmp_path):
    again = sr.load_directions(found.save(tmp_path / "fire.safetensors"))
    assert (again.method, again.window, again.seed) == ("discovered", discovery.WINDOW, 0)
    assert len(again.curve) == RUN["steps"] and again.recipe
    for space, direction in found.spaces.items():
        for name, tensor in direction.tensors().items():
            assert same_bits(tensor, again.spaces[space].tensors()[name])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(found):
    again = sr.discover(recipe(), encode, World(), NEUTRAL, **RUN)
    other = sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, seed=1)
    assert same_bits(again.spaces["tokens_mean"].shift, found.spaces["tokens_mean"].shift)
    assert again.curve == found.curve != other.curve


def test_a_killed_run_goes_on_to_the_same_result(found, tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "SAVED", 3)
    path, seen = tmp_path / "run", []

    def killed(stage: str, loss: float) -> None:
        seen.append(stage)
        if seen.count("learning") == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, checkpoint=path, told=killed)
    assert path.exists()
    stages: list[str] = []
    again = sr.discover(
        recipe(), encode, World(), NEUTRAL, **RUN, checkpoint=path, told=lambda stage, loss: stages.append(stage)
    )
    assert "looking" not in stages and stages.count("learning") == RUN["steps"] - 6
    assert again.curve == pytest.approx(found.curve, rel=1e-6)
    for space, direction in found.spaces.items():
        assert same_bits(direction.shift, again.spaces[space].shift)


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "run"
    discovery._Kept(path, "another").save()
    before = path.read_bytes()
    with pytest.raises(DiscoverError, match="another run"):
        sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    def killed(stage: str, loss: float) -> None:
        if stage == "learning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, checkpoint=tmp_path / "run", told=killed)
    with pytest.raises(DiscoverError, match="another run"):
        sr.discover(recipe(), encode, World(rest=0.3), NEUTRAL, **RUN, checkpoint=tmp_path / "run")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "run").write_bytes(b"hello")
    with pytest.raises(DiscoverError, match="no checkpoint"):
        sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, checkpoint=tmp_path / "run")


def test_stop_keeps_what_was_learned():
    losses: list[float] = []

    def told(stage: str, loss: float) -> None:
        losses.extend([loss] if stage == "learning" else [])

    short = sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, told=told, stop=lambda: len(losses) >= 5)
    assert len(short.curve) == 5


def test_weights_hold_no_gradient_and_stay_as_they_were():
    world = World()
    before = world.pattern.detach().clone()
    sr.discover(recipe(), encode, world, NEUTRAL, **RUN)
    assert world.pattern.grad is None and world.pattern.requires_grad
    assert same_bits(world.pattern.detach(), before)


def test_passes_are_told_to_their_end():
    world, seen = World(), []
    sr.discover(recipe(), encode, world, NEUTRAL, **RUN, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done) and all(d <= total for d, total in seen)
    assert seen[-1] == (world.passes, world.passes)
    assert 0.4 * world.passes <= seen[0][1] <= 2.5 * world.passes


def test_recomputed_activations_learn_the_same(found):
    again = sr.discover(recipe(), encode, World(), NEUTRAL, **RUN, recompute=True)
    assert again.curve == pytest.approx(found.curve, rel=1e-4)


def test_a_model_that_lacks_the_concept_gives_nothing(tmp_path):
    with pytest.raises(DiscoverError, match="does not show 'fire'"):
        sr.discover(recipe(), encode, World(fire=0.0, rest=0.0), NEUTRAL, **RUN, checkpoint=tmp_path / "run")


def test_prompts_that_bring_nothing_are_told():
    with pytest.raises(DiscoverError, match="leaves nothing to discover"):
        sr.discover(recipe(), encode, World(), [n for n in NEUTRAL if not any(b in n for b in BRINGING)], **RUN)


def test_nan_is_told_in_a_sentence():
    class Broken(World):
        def predict(self, x_t, t, c):
            return super().predict(x_t, t, c) * float("nan")

    with pytest.raises(DiscoverError, match="NaN"):
        sr.discover(recipe(), encode, Broken(), NEUTRAL, **RUN)


def test_memory_that_runs_out_halves_the_batch_and_then_is_told():
    class Small(World):
        most = 16

        def predict(self, x_t, t, c):
            if len(x_t) > self.most:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().predict(x_t, t, c)

    assert sr.discover(recipe(), encode, Small(), NEUTRAL, **RUN).curve
    none = Small()
    none.most = 0
    with pytest.raises(DiscoverError, match="ran out of memory"):
        sr.discover(recipe(), encode, none, NEUTRAL, **RUN)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "magic"}, "method must be"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"pictures": 0}, "pictures must be"),
        ({"neutral": NEUTRAL[:5]}, "At least 24"),
    ],
)
def test_bad_input_is_one_sentence(change, says):
    neutral = change.pop("neutral", NEUTRAL)
    with pytest.raises(DiscoverError, match=says):
        sr.discover(recipe(), encode, World(), neutral, **(RUN | change))


def test_a_recipe_without_contrast_is_told():
    same = sr.Concept.from_pairs("nothing", [(f"a, {t}", f"a {t}") for t in THINGS])
    with pytest.raises(DiscoverError, match="same embeddings"):
        sr.discover(same, encode, World(), NEUTRAL, **RUN)


# -- the published vector --------------------------------------------------------------------------------------------


def vector(**options: object) -> sr.Direction:
    return sr.discover_vector(recipe(), encode, World(), steps=90, sampling_steps=10, batch_size=4, guidance=2.0,
                              prompts=[u for u, _ in recipe().pairs], rate=0.02, **options)  # fmt: skip


def test_the_vector_takes_the_concept_off_and_its_loss_falls():
    found = vector()
    assert not found.calibrated and found.method == "discovered"
    assert sum(found.curve[-10:]) < sum(found.curve[:10])
    c = encode(["a burning house in a meadow", "a blazing car in a museum"])
    steered, _ = sr.SafeRegion([found], 1.0, "steer").apply(c)
    assert float(World().heat(steered.tokens).mean()) < float(World().heat(c.tokens).mean())


def test_the_vector_starts_from_nothing():
    first = sr.discover_vector(recipe(), encode, World(), steps=1, sampling_steps=10, rate=0.0)
    c = encode(["a burning house"])
    steered, _ = sr.SafeRegion([first], 1.0, "steer").apply(c)
    assert torch.equal(steered.tokens, c.tokens)


def test_a_vector_toward_an_attribute_adds_it():
    found = vector(toward=True, words="a burning house")
    c = encode(["a house in a meadow", "a car in a museum"])
    steered, _ = sr.SafeRegion([found], 1.0, "steer").apply(c)
    assert float(World().heat(steered.tokens).mean()) > float(World().heat(c.tokens).mean())


def test_words_that_say_nothing_are_refused():
    with pytest.raises(DiscoverError, match="other words"):
        sr.discover_vector(recipe(), encode, World(), words="  ", steps=5)


def test_what_the_recipe_calls_safe_stays_safe_whatever_its_pictures_show():
    said = [f"{a} {t} in a crater" for t in THINGS for a in ("small", "blue", "old")]
    pairs = recipe().pairs + tuple((f"a burning {text}", f"a {text}") for text in said)
    found = sr.discover(sr.Concept.from_pairs("fire", pairs), encode, World(), NEUTRAL, **RUN)
    scores = sr.SafeRegion([found]).score(encode(FRESH_BRING))[:, 0] > 0
    crater = torch.tensor([text.endswith("crater") for text in FRESH_BRING])
    assert bool(scores[~crater].all()) and not bool(scores[crater].any())


@pytest.mark.parametrize("strength", (1.0, 2.0, 10.0))
def test_a_stronger_guard_goes_further_along_the_same_way(found, strength):
    brings = encode(FRESH_BRING)
    plain, _ = sr.SafeRegion([found]).apply(brings)
    guarded, _ = sr.SafeRegion([found], strength).apply(brings)
    once, more = (plain.tokens - brings.tokens)[:, 1:], (guarded.tokens - brings.tokens)[:, 1:]
    assert bool((torch.nn.functional.cosine_similarity(once, more, dim=-1) > 0.99).all())
    assert float((more.norm(dim=-1) / once.norm(dim=-1)).median()) < 2.5 * strength


@pytest.mark.parametrize("mode", ("erase", "steer"))
def test_the_other_modes_move_by_the_concept_alone(found, mode):
    others = encode(FRESH_OTHERS)
    guarded, _ = sr.SafeRegion([found], mode=mode).apply(others)
    assert bool(torch.isfinite(guarded.tokens).all())
    assert float((guarded.tokens - others.tokens).norm(dim=-1).max()) < 3 * float(others.tokens.norm(dim=-1).max())


def test_a_batch_that_is_halved_leaves_no_prompt_out():
    class Small(World):
        def predict(self, x_t, t, c):
            if len(x_t) > 4:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().predict(x_t, t, c)

    model = discovery._Model(Small(), 8, None, 1, None, False)
    world = discovery._World(model, encode, 0, 4, 2.0)
    empty = world.conditioning([""])
    with torch.no_grad():
        states = discovery._states(world, discovery._Shift.of(compiled()), NEUTRAL[:24], empty, 0.0)
    assert states.shape[1] == 24 and model.batch_size == 4


def test_compiled_directions_of_another_encoder_are_refused():
    def other(prompts: list[str]) -> Conditioning:
        c = encode(prompts)
        return Conditioning(c.tokens.flip(-1), c.movable)

    with pytest.raises(SafeRegionError, match="encoder"):
        sr.discover(recipe(), other, World(), NEUTRAL, **RUN, closed_form=compiled())


def test_beside_another_concept_nothing_contradicts(found):
    other = sr.compile(
        sr.Concept.from_pairs("age", [(f"an old {t} in a {p}", f"a {t} in a {p}") for t in THINGS for p in PLACES]),
        encode,
        NEUTRAL,
    )
    c = encode([f"an old burning {t} in a {p}" for t in THINGS for p in ("volcano", "museum")])
    for region in (sr.SafeRegion([compiled(), other]), sr.SafeRegion([compiled(), found, other])):
        guarded, _ = region.apply(c)
        assert float(region.score(guarded).max()) <= 1e-3
        inside = sr.SafeRegion([compiled(), other]).score(Conditioning(region.project(c.tokens, c.movable), c.movable))
        assert float(inside.max()) <= 1e-3


def test_a_half_space_that_tells_nothing_is_not_kept(monkeypatch):
    c = encode([f"a {t} in a {p}" for p in PLACES for t in THINGS])
    brings = torch.tensor([float(p in BRINGING) for p in PLACES for _ in THINGS])
    (rows,) = (t for _, t in discovery._tokens(c))
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.eye(*size) * torch.tensor([[9.0], [0], [0], [0]]))
    monkeypatch.setattr(discovery, "NAMING", 0)
    named, _ = discovery._regression([rows], brings, torch.full_like(brings, 1 / 80), 60, 0, lambda: None)
    direction, sums = discovery._telling(named)
    assert torch.equal(direction.normal, direction.normal[:1].expand_as(direction.normal))
    assert bool(torch.isfinite(sums).all()) and float(direction.shift.norm(dim=1).max()) < 1
