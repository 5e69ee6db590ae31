"""Discovery on a model small enough to see through: pictures are a function of the prompt, a volcano brings fire."""

from __future__ import annotations

import hashlib
import re
from functools import cache

import pytest
import torch

from saferegion.core.conditioning import Conditioning, Space
from saferegion.core.direction import Direction
from saferegion.core.errors import DiscoverError, SafeRegionError
from saferegion.core.region import SafeRegion
from saferegion.discover import DiscoverySettings, discover, discover_vector, evidence
from saferegion.discover import detector as detectors
from saferegion.discover.model import Model
from saferegion.discover.offset import Shift
from saferegion.discover.resume import Kept
from saferegion.discover.train import target
from saferegion.learn.recipes import Concept

WIDTH, LENGTH = 24, 12


def vector_of(word: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def unit(word: str) -> torch.Tensor:
    v = vector_of(word)
    return v / v.norm()


FIRE = unit("fire axis")
LAVA = unit("lava") - (unit("lava") @ FIRE) * FIRE
LAVA = LAVA / LAVA.norm()
THINGS = ("house", "car", "tree", "boat", "chair", "tower", "bridge", "lamp")
PLACES = ("meadow", "beach", "forest", "city", "volcano", "crater", "museum", "harbour", "valley", "field")
BRINGING = ("volcano", "crater")


@cache
def token(word: str) -> torch.Tensor:
    if word in ("burning", "blazing"):
        return 5 * FIRE
    v = vector_of(word)
    v = v - (v @ FIRE) * FIRE - (v @ LAVA) * LAVA
    return v + 6 * LAVA if word in BRINGING else v


def encode(prompts: list[str]) -> Conditioning:
    rows = []
    for p in prompts:
        words = re.findall(r"\w+", p.lower())
        whole = torch.stack([token(w) for w in words]).mean(0) if words else torch.zeros(WIDTH)
        own = [token(w) / 4 for w in words][: LENGTH - 1]
        rows.append(torch.stack([torch.ones(WIDTH), *(whole + o for o in own), *[whole] * (LENGTH - 1 - len(own))]))
    mask = torch.ones(len(rows), LENGTH, dtype=torch.bool)
    mask[:, 0] = False
    return Conditioning(torch.stack(rows), mask)


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


def recipe() -> Concept:
    pairs = [(f"a {w} {t} in a {p}", f"a {t} in a {p}") for w in ("burning", "blazing") for t in THINGS
             for p in ("meadow", "museum")]  # fmt: skip
    return Concept.from_pairs("fire", pairs)


EVERY = [(p, f"a {a} {t} in a {p}") for p in PLACES for t in THINGS for a in ("small", "blue", "old")]
NEUTRAL = [text for i, (_, text) in enumerate(EVERY) if i % 5]
FRESH = [text for i, (p, text) in enumerate(EVERY) if i % 5 == 0]
FRESH_BRING = [text for text in FRESH if text.endswith(BRINGING)]
FRESH_OTHERS = [text for text in FRESH if not text.endswith(BRINGING)]
RUN = {"steps": 24, "sampling_steps": 4, "guidance": 2.0, "batch_size": 64, "pairs": 6, "rounds": 3}


def run(world: object | None = None, neutral: list[str] = NEUTRAL, **changes: object) -> Direction:
    return discover(recipe(), encode, world or World(), neutral, **(RUN | changes))  # type: ignore[arg-type]


def same(a: Direction, b: Direction) -> bool:
    mine, theirs = a.tensors(), b.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.fixture(scope="module")
def found() -> Direction:
    return run()


# -- what comes of it ------------------------------------------------------------------------------------------------


def test_what_a_place_brings_is_guarded_and_other_places_keep_every_bit(found):
    region, world = SafeRegion([found]), World()
    brings, others = encode(FRESH_BRING), encode(FRESH_OTHERS)
    assert bool((region.score(brings) > 0).all()) and not bool((region.score(others) > 0).any())
    guarded, report = region.apply(brings)
    assert float(world.heat(guarded.tokens).max()) < 0.02 < 0.5 < float(world.heat(brings.tokens).mean())
    assert not bool(report.unresolved_by.any())
    assert region.apply(others)[0] is others


def test_a_guarded_prompt_is_inside(found):
    region = SafeRegion([found])
    guarded, _ = region.apply(encode(FRESH_BRING))
    assert float(region.score(guarded).max()) < 0
    assert region.apply(guarded)[0] is guarded


@torch.no_grad()
def test_the_rest_of_the_picture_stays():
    world, brings = World(), encode(FRESH_BRING)
    guarded, _ = SafeRegion([run(steps=96)]).apply(brings)
    before, after = (world.picture(c.tokens)[:, :, :5] for c in (brings, guarded))  # the rows above the fire
    assert float((after - before).square().mean()) < 0.5 * float((before - before.mean(0)).square().mean())


def test_what_was_chosen_is_told(found):
    figures, meta = found.meta.calibration, found.meta
    assert (meta.method, meta.seed, len(meta.curve)) == ("discovered", 0, RUN["steps"])
    assert found.concept == "fire-discovered" and meta.recipe
    assert figures["evidence.area"] > 0.9 and (0 < figures["evidence.kappa"] <= 2)
    assert any(k.startswith("area.place.kappa 1.level ") for k in figures)
    assert figures["moved.opened"] == 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(found):
    again, other = run(), run(seed=1)
    assert same(again, found) and again.meta.curve == found.meta.curve
    assert other.meta.curve != found.meta.curve


def test_settings_may_be_given_whole(found):
    assert same(discover(recipe(), encode, World(), NEUTRAL, DiscoverySettings(**RUN)), found)


# -- evidence, ridge, target -----------------------------------------------------------------------------------------


def test_the_evidence_is_chosen_where_it_tells_best():
    class Noisy(World):
        """Says the concept at late steps only."""

        def predict(self, x_t, t, c):
            eps = super().predict(x_t, t, c)
            if int(t) < 50:
                return eps
            nothing = super().predict(x_t, t, encode([""]).expand(len(x_t)))
            draw = torch.Generator().manual_seed(int(1e3 * float(c.tokens.sum())) % 2**31)
            return nothing + 0.1 * torch.randn(x_t.shape, generator=draw)

    model = Model(Noisy(), encode, DiscoverySettings(**RUN), 1)
    axis = evidence.axis_of(model, recipe().pairs, {"tokens": encode(NEUTRAL).tokens.mean(0)}, "fire")
    chosen = evidence.choose(model, recipe().pairs, NEUTRAL, axis)
    telling = [n for n in chosen.levels if model.times[n] < 50]
    assert chosen.area > 0.9 and telling and len(chosen.levels) < DiscoverySettings().levels


def test_area_is_that_of_the_roc_curve():
    assert evidence.area(torch.tensor([3.0, 4]), torch.tensor([1.0, 2])) == 1
    assert evidence.area(torch.tensor([1.0, 1]), torch.tensor([1.0, 1])) == 0.5


def test_the_ridge_foretells_a_linear_score_with_few_prompts_and_many_channels():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(80, 200, generator=draw), torch.zeros(200)
    w[:3] = 1
    x[:, :3] *= 4
    y = x @ w + 0.1 * torch.randn(80, generator=draw)
    ridge = detectors.fit(x, y)
    fresh = torch.randn(50, 200, generator=draw)
    fresh[:, :3] *= 4
    assert float(torch.corrcoef(torch.stack([ridge(fresh), (fresh @ w).double()]))[0, 1]) > 0.6


def test_what_the_ridge_leaves_out_is_what_it_foretells_without():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=draw), torch.randn(30, generator=draw)
    ridge = detectors.fit(x, y)
    assert float((ridge(x) - y).square().mean()) < float((ridge.left - y).square().mean())


def test_channels_that_say_nothing_have_no_weight():
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 7
    ridge = detectors.fit(x, x[:, 0])
    assert float(ridge.weight[2]) == 0 and bool(torch.isfinite(ridge.weight).all())


def test_a_few_prompts_far_out_do_not_move_the_end_of_calm():
    calm = torch.randn(900, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    risky = torch.full((200,), 20.0, dtype=torch.float64)
    alone, both = (detectors.end_of_calm(s, 0.005) for s in (calm, torch.cat([calm, risky])))
    assert alone == pytest.approx(2.58, abs=0.4) and both == pytest.approx(alone, abs=1.0)


def test_the_target_takes_the_concept_out_and_nothing_else():
    g, d = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    wanted = target(g, d, 0.5)
    along = (wanted * d).flatten(1).sum(1) / d.flatten(1).square().sum(1)
    before = (g * d).flatten(1).sum(1) / d.flatten(1).square().sum(1)
    assert torch.allclose(along, before.clamp_max(0) - 0.5, atol=1e-4)
    change = (wanted - g).flatten(1)
    assert torch.allclose(torch.nn.functional.cosine_similarity(change, -d.flatten(1)), torch.ones(3), atol=1e-4)


def test_the_shift_starts_from_nothing_and_leaves_what_may_not_move():
    c = encode(["a house"])
    shift = Shift.start(c, {"tokens": 1.0}, 0, torch.device("cpu"))
    assert torch.equal(shift.on(c).tokens, c.tokens)
    shift.b["tokens"].fill_(1)
    moved = shift.on(c).tokens
    assert torch.equal(moved[:, 0], c.tokens[:, 0]) and not torch.equal(moved[:, 1], c.tokens[:, 1])


def test_several_spaces_and_a_pooled_vector_all_move():
    spaces = (Space("one", slice(0, LENGTH)), Space("two", slice(LENGTH, 2 * LENGTH)))

    def both(prompts: list[str]) -> Conditioning:
        c = encode(prompts)
        tokens = torch.cat([c.tokens, 2 * c.tokens], 1)
        mask = None if c.mask is None else torch.cat([c.mask, c.mask], 1)
        return Conditioning(tokens, mask, c.tokens[:, 1:].mean(1), spaces)

    class Both(World):
        def predict(self, x_t, t, c):
            mixed = (c.tokens[:, :LENGTH] + c.tokens[:, LENGTH:] / 2 + c.pooled.unsqueeze(1)) / 3
            return super().predict(x_t, t, Conditioning(mixed))

    found = discover(recipe(), both, Both(), NEUTRAL, **RUN)
    assert set(found.movers) == {"one", "two", "pooled"} and all(bool(m.b.any()) for m in found.movers.values())
    region, brings = SafeRegion([found]), both(FRESH_BRING)
    guarded, _ = region.apply(brings)
    world, nothing = Both(), torch.zeros(len(FRESH_BRING), 4, 8, 8)
    shown = [world.predict(nothing, 50, c)[:, :, 5:, 5:].mean() for c in (brings, guarded)]
    assert float(shown[1]) > 0.5 * float(shown[0]) and bool((region.score(brings) > 0).all())


# -- a run that ends early, or goes on -------------------------------------------------------------------------------


def test_the_best_shift_is_kept_and_not_the_last(monkeypatch):
    from saferegion.discover.train import Trainer

    judge, seen = Trainer._judge, []

    def judged(self, shift, learned):
        judge(self, shift, learned)
        seen.append(shift.copy())
        learned.judged[-1] = (0.5, 0.1, 0.9)[len(seen) - 1]
        learned.best = seen[learned.judged.index(min(learned.judged))]

    monkeypatch.setattr(Trainer, "_judge", judged)
    found = run()
    assert found.meta.calibration["round"] == 1
    assert torch.equal(found.movers["tokens"].a, seen[1].a["tokens"])
    assert not torch.equal(found.movers["tokens"].a, seen[2].a["tokens"])


def test_a_killed_run_goes_on_to_the_same_result(found, tmp_path):
    path, seen = tmp_path / "run", []

    def killed(stage: str, loss: float) -> None:
        seen.append(stage)
        if seen.count("learning") == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, told=killed)
    assert path.exists()
    stages: list[str] = []
    again = run(checkpoint=path, told=lambda stage, loss: stages.append(stage))
    assert stages.count("learning") == RUN["steps"] - 16 and "looking" not in stages
    assert same(again, found) and again.meta.curve == pytest.approx(found.meta.curve)


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "run"
    Kept(path, "another").save({"evidence": torch.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(DiscoverError, match="another run"):
        run(checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"world": World(rest=0.3)}, {"steps": 30}, {"neutral": NEUTRAL[:-1]}])
def test_a_checkpoint_of_other_settings_or_weights_is_refused(tmp_path, change):
    def killed(stage: str, loss: float) -> None:
        if stage == "learning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "run", told=killed)
    with pytest.raises(DiscoverError, match="another run"):
        run(checkpoint=tmp_path / "run", **change)


def test_no_flipped_bit_of_a_checkpoint_is_trusted(tmp_path):
    path = tmp_path / "run"
    Kept(path, "mine").save({"evidence": torch.arange(6.0)}, curve=[0.5], judged=[0.25])
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            again = Kept.open(path, "mine")
        except DiscoverError:
            continue
        assert torch.equal(again.tensors["evidence"], torch.arange(6.0)) and again.told["curve"] == [0.5]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "run").write_bytes(b"hello")
    with pytest.raises(DiscoverError, match="no checkpoint"):
        run(checkpoint=tmp_path / "run")


def test_stop_keeps_the_best_so_far():
    losses: list[float] = []

    def told(stage: str, loss: float) -> None:
        losses.extend([loss] if stage == "learning" else [])

    short = run(told=told, stop=lambda: len(losses) >= 10)
    assert len(short.meta.curve) == 10 and bool(short.movers["tokens"].b.any())


# -- how the model is treated ----------------------------------------------------------------------------------------


def test_weights_hold_no_gradient_and_stay_as_they_were():
    world = World()
    before = world.pattern.detach().clone()
    run(world)
    assert world.pattern.grad is None and world.pattern.requires_grad
    assert torch.equal(world.pattern.detach(), before)


def test_passes_are_told_to_their_end():
    world, seen = World(), []
    run(world, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done) and all(d <= total for d, total in seen)
    assert seen[-1] == (world.passes, world.passes)
    assert 0.4 * world.passes <= seen[0][1] <= 2.5 * world.passes


def test_recomputed_activations_learn_the_same(found):
    assert run(recompute=True).meta.curve == pytest.approx(found.meta.curve, rel=1e-4)


def test_half_precision_keeps_its_gradients(found):
    class Half(World):
        def predict(self, x_t, t, c):
            tokens = c.tokens.half()
            return super().predict(x_t.half().float(), t, c.replace(tokens.float(), None)).half()

    half = run(Half())
    assert half.meta.curve[-1] == pytest.approx(found.meta.curve[-1], rel=0.3)


def test_a_batch_that_is_halved_leaves_no_prompt_out(found):
    class Small(World):
        most = 4

        def predict(self, x_t, t, c):
            if len(x_t) > self.most:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().predict(x_t, t, c)

    again = run(Small())
    assert again.meta.curve == pytest.approx(found.meta.curve, rel=1e-3)
    none = Small()
    none.most = 0
    with pytest.raises(DiscoverError, match="ran out of memory"):
        run(none)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_model_that_lacks_the_concept_gives_nothing(tmp_path):
    with pytest.raises(DiscoverError, match="does not show the concept"):
        run(World(fire=0.0, rest=0.0), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_that_bring_nothing_are_told():
    with pytest.raises(DiscoverError, match="leaves nothing to discover"):
        run(neutral=[n for n in NEUTRAL if not any(b in n for b in BRINGING)])


def test_nan_is_told_in_a_sentence():
    class Broken(World):
        def predict(self, x_t, t, c):
            return super().predict(x_t, t, c) * float("nan")

    with pytest.raises(DiscoverError, match="NaN"):
        run(Broken())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "magic"}, "method must be"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"pictures": 0}, "pictures must be"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"window": (0.5, 0.5)}, "window must be"),
        ({"neutral": NEUTRAL[:5]}, "At least 24"),
        ({"speed": 3}, "no setting 'speed'"),
    ],
)
def test_bad_input_is_one_sentence(change, says):
    with pytest.raises(DiscoverError, match=says):
        run(**change)


def test_a_recipe_without_contrast_is_told():
    same_sides = Concept.from_pairs("nothing", [(f"a, {t}", f"a {t}") for t in THINGS])
    with pytest.raises(DiscoverError, match="same embeddings"):
        discover(same_sides, encode, World(), NEUTRAL, **RUN)


def test_an_axis_to_balance_is_refused():
    axis = Concept("age", recipe().pairs, kind="balance")
    with pytest.raises(DiscoverError, match="method 'vector'"):
        discover(axis, encode, World(), NEUTRAL, **RUN)


def test_a_direction_of_another_encoder_is_refused(found):
    other = run()
    assert other.encoder is not None and found.encoder is not None

    def turned(prompts: list[str]) -> Conditioning:
        c = encode(prompts)
        return Conditioning(c.tokens.flip(-1), c.mask)

    class Turned(World):
        def predict(self, x_t, t, c):
            return super().predict(x_t, t, c.replace(c.tokens.flip(-1), None))

    with pytest.raises(SafeRegionError, match="encoder"):
        SafeRegion([found, discover(recipe(), turned, Turned(), NEUTRAL, **RUN)])


# -- the published vector --------------------------------------------------------------------------------------------


def vector(**changes: object) -> Direction:
    given = {"steps": 90, "sampling_steps": 10, "group": 4, "guidance": 2.0, "rate": 0.02} | changes
    return discover_vector(recipe(), encode, World(), prompts=[u for u, _ in recipe().pairs], **given)


def test_the_vector_takes_the_concept_off_and_its_loss_falls():
    found = vector()
    assert found.detector is None and found.method == "discovered"
    assert sum(found.meta.curve[-10:]) < sum(found.meta.curve[:10])
    c = encode(["a burning house in a meadow", "a blazing car in a museum"])
    steered, _ = SafeRegion([found], 1.0, "steer").apply(c)
    assert float(World().heat(steered.tokens).mean()) < float(World().heat(c.tokens).mean())


def test_the_vector_starts_from_nothing():
    first = discover_vector(recipe(), encode, World(), steps=1, sampling_steps=10, rate=0.0)
    c = encode(["a burning house"])
    assert torch.equal(SafeRegion([first], 1.0, "steer").apply(c)[0].tokens, c.tokens)


def test_a_vector_toward_an_attribute_adds_it():
    found = vector(toward=True, words="a burning house")
    c = encode(["a house in a meadow", "a car in a museum"])
    steered, _ = SafeRegion([found], 1.0, "steer").apply(c)
    assert float(World().heat(steered.tokens).mean()) > float(World().heat(c.tokens).mean())


def test_the_method_may_be_chosen_where_all_is_discovered():
    found = run(method="vector", steps=5)
    assert found.detector is None and len(found.meta.curve) == 5


def test_words_that_say_nothing_are_refused():
    with pytest.raises(DiscoverError, match="other words"):
        discover_vector(recipe(), encode, World(), words="  ", steps=5)
