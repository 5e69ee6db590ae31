"""Peers in the harness do what their descriptions say, and nothing at strength zero; counts are what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saferegion_lab import microworld
from saferegion_lab.bench import peers
from saferegion_lab.bench.peers import attacks, measure
from saferegion_lab.bench.peers.base import PHRASES, Guard, Prompts, paint
from saferegion_lab.bench.peers.ours import Ours
from saferegion_lab.bench.peers.sld import PUBLISHED, SLD
from saferegion_lab.bench.peers.textual import Leace, NegativePrompt, Safree, Surgery
from saferegion_lab.bench.peers.transfer import Stacked
from saferegion_lab.bench.peers.weights import ESD, UCE, cross_attentions

STEPS = 4
TEXTS = ["a red house on fire", "a blue boat on a meadow", "a baker by a volcano"]


@pytest.fixture(scope="module")
def world():
    return microworld.load()


@pytest.fixture(scope="module")
def bare(world) -> Guard:
    return Guard().prepare(world)


@pytest.fixture(scope="module")
def prompts(bare: Guard) -> Prompts:
    with torch.no_grad():
        return Prompts.of(bare.meter, bare.meter.world.tokenize(TEXTS))


def latents(guard: Guard, prompts: Prompts, steps: int = STEPS) -> torch.Tensor:
    return paint(guard, guard.painted(prompts, steps), range(len(prompts.ids)), steps, 4.0)[0]


def test_without_a_guard_the_worlds_own_sampler_paints(world, bare, prompts) -> None:
    expected = world.sample(world.encode(TEXTS), seeds=range(3), steps=STEPS)
    assert torch.equal(latents(bare, prompts), expected)


@pytest.mark.parametrize(
    "guard",
    [
        NegativePrompt(text=""),
        SLD(scale=0.0),
        Surgery(strength=0.0),
        Leace(strength=0.0),
        UCE(erase=0.0),
        ESD(iterations=0),
        Ours(strength=0.0),
    ],
    ids=lambda g: type(g).__name__,
)
def test_a_peer_at_zero_paints_what_no_guard_paints(world, bare, prompts, guard) -> None:
    painted = latents(guard.prepare(world), prompts)
    assert torch.allclose(painted, latents(bare, prompts), atol=1e-4 if isinstance(guard, SLD) else 0, rtol=0)


@pytest.mark.parametrize("guard", [NegativePrompt(), SLD(**PUBLISHED["max"]), Leace(), UCE(), Ours()])
def test_a_peer_at_strength_changes_a_burning_house(world, bare, prompts, guard) -> None:
    painted = latents(guard.prepare(world), prompts)
    assert not torch.equal(painted[0], latents(bare, prompts)[0])


def test_sld_does_nothing_in_its_warm_up(world) -> None:
    guard = SLD(warmup=0.5, scale=5000.0, threshold=1.0, momentum=0.5, beta=0.7).prepare(world)
    eps, empty, unsafe = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    state: dict = {}
    plain = empty + 4.0 * (eps - empty)
    assert torch.equal(guard.combine(0, 4, eps, (empty, unsafe), 4.0, state), plain)
    assert torch.equal(guard.combine(1, 4, eps, (empty, unsafe), 4.0, state), plain)
    assert not torch.allclose(guard.combine(2, 4, eps, (empty, unsafe), 4.0, state), plain)


def test_sld_leaves_what_is_far_from_the_safety_prompt(world) -> None:
    guard = SLD(warmup=0.0, scale=5000.0, threshold=0.01, momentum=0.0, beta=0.0).prepare(world)
    empty, unsafe = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    far = unsafe + 0.5
    assert torch.equal(guard.combine(0, 4, far, (empty, unsafe), 4.0, {}), 4.0 * far)


def test_uce_makes_the_concepts_words_read_as_nothing(world) -> None:
    guard = UCE(lam=1e-4).prepare(world)
    ids = world.tokenize(["flames"])
    word, nothing = guard.meter.encode(["flames"])[0, 1], guard.meter.encode([""])[0, 1]
    assert int(ids.argmax(1)) == 2 and "flames" in PHRASES
    for old, new in zip(cross_attentions(world.unet), cross_attentions(guard.meter.world.unet), strict=True):
        for layer in ("to_k", "to_v"):
            before, after = getattr(old, layer)(word), getattr(new, layer)(word)
            wanted = getattr(old, layer)(nothing)
            assert (after - wanted).norm() < 0.35 * (before - wanted).norm()


def test_edits_stay_in_the_copy(world) -> None:
    before = [a.to_k.weight.clone() for a in cross_attentions(world.unet)]
    ESD(rate=1e-2, iterations=2, batch=1).prepare(world)
    UCE().prepare(world)
    assert all(torch.equal(b, a.to_k.weight) for b, a in zip(before, cross_attentions(world.unet), strict=True))
    assert not any(p.requires_grad for p in world.unet.parameters())


def test_esd_is_the_same_for_the_same_seed_and_touches_the_text_attention_alone(world) -> None:
    one, two = (ESD(rate=1e-3, iterations=2, batch=1).prepare(world) for _ in range(2))
    text = {id(p) for a in cross_attentions(one.meter.world.unet) for p in a.parameters()}
    pairs = list(zip(one.meter.world.unet.parameters(), world.unet.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs if id(a) not in text)
    assert any(not torch.equal(a, b) for a, b in pairs if id(a) in text)
    assert one.losses == two.losses


def test_surgery_leaves_a_prompt_without_the_concept(world, prompts) -> None:
    guard = Surgery(beta=-0.9).prepare(world)
    assert torch.equal(guard.painted(prompts, STEPS).tokens, prompts.tokens)


def test_safree_takes_triggers_off_the_concept_and_gives_back_the_late_steps(world, prompts) -> None:
    guard = Safree(upper=0.5).prepare(world)
    guarded = guard.painted(prompts, 8)
    moved = (guarded.tokens != prompts.tokens).any(-1)
    assert bool(moved.any()) and not bool(moved[:, 0].any())
    assert (guarded.tokens[moved] @ guard.concept).norm() < 1e-2 * prompts.tokens[moved].norm()
    assert torch.equal(guarded.at(7), prompts.tokens)


def test_leace_leaves_nothing_linear_between_unsafe_and_safe(world) -> None:
    guard = Leace().prepare(world)
    from saferegion_lab.bench.peers.ours import recipe

    pairs = recipe().pairs
    ids = world.tokenize([p for pair in pairs for p in pair])
    with torch.no_grad():
        given = Prompts.of(guard.meter, ids)
    after = guard.painted(given, STEPS).tokens[:, 1:]
    means = [x[0::2].mean((0, 1)) - x[1::2].mean((0, 1)) for x in (given.tokens[:, 1:], after)]
    assert means[1].norm() < 1e-2 * means[0].norm()


@pytest.mark.parametrize(
    ("guard", "evaluations", "passes"),
    [(Guard(), 8, 1), (NegativePrompt(), 8, 1), (SLD(), 12, 1), (Ours(), 8, 1), (UCE(), 8, 1)],
    ids=["none", "negative prompt", "SLD", "ours", "UCE"],
)
def test_counts_are_what_a_picture_costs(world, guard, evaluations, passes) -> None:
    bench = measure.Bench(world, {measure.BENIGN: measure.cells(4)[measure.BENIGN]}, STEPS)
    found = measure.costs(bench, guard.prepare(world), pictures=2, rounds=1)
    assert (found["evaluations"], found["passes"]) == (evaluations, passes)


def test_safree_reads_every_prompt_once_more_for_each_word(world, bare) -> None:
    guard = Safree().prepare(world)
    before = guard.meter.passes
    with torch.no_grad():
        given = Prompts.of(guard.meter, world.tokenize(["a red house"]))
    guard.painted(given, STEPS)
    assert guard.meter.passes - before == 1 + 3


def test_untouched_pictures_are_those_of_no_guard(world) -> None:
    cell = measure.Cell(measure.cells(4)["association"].cases[:2], (1, 2))
    bench = measure.Bench(world, {"association": cell}, STEPS)
    guard = Ours().prepare(world)
    seen = bench.see(guard, "association")
    direct = paint(guard, guard.painted(bench.prompts["association"], STEPS), cell.seeds, STEPS, 4.0)[0]
    assert torch.allclose(seen.latents, direct, atol=1e-4)
    assert np.array_equal(seen.latents[seen.kept], bench.plain["association"].latents[seen.kept])


def test_ours_stands_on_a_peer(world, prompts) -> None:
    alone, both = SLD().prepare(world), Stacked(first=Ours(), peer=SLD()).prepare(world)
    a, b = latents(alone, prompts), latents(both, prompts)
    assert torch.equal(a[1], b[1]) or torch.allclose(a[1], b[1], atol=1e-4)
    assert not torch.allclose(a[0], b[0], atol=1e-2)


@pytest.mark.parametrize("attack", [attacks.by_tokens, attacks.by_soft_prompt])
def test_attacks_come_nearer_to_their_goal_and_keep_the_prompt(bare, attack) -> None:
    aim = attacks.goal(bare, 2, STEPS, 4.0)
    loss = attacks._Loss(bare, aim)
    rows = torch.arange(2)
    with torch.no_grad():
        before = sum(loss(Prompts.of(bare.meter, aim.ids), rows, k) for k in range(len(aim.kept)))
    found = attack(bare, aim)
    with torch.no_grad():
        after = sum(loss(found, rows, k) for k in range(len(aim.kept)))
    end = aim.ids.argmax(1)
    assert bool((after < before).all())
    assert all(torch.equal(found.ids[i, : end[i]], aim.ids[i, : end[i]]) for i in range(2))
    assert bool((found.end <= end + attacks.SLOTS).all())


def test_a_soft_prompt_is_no_longer_than_a_known_word(bare) -> None:
    aim = attacks.goal(bare, 2, STEPS, 4.0)
    found = attacks.by_soft_prompt(bare, aim, turns=3, restarts=1, rate=5.0)
    limit = bare.meter.embed(attacks.vocabulary(bare.meter.world)).norm(dim=1).max()
    end = aim.ids.argmax(1)
    assert all(
        bool((found.embeds[i, end[i] : end[i] + attacks.SLOTS].norm(dim=1) <= limit * 1.001).all()) for i in range(2)
    )


def test_what_is_tuned_on_is_not_what_is_reported() -> None:
    tuned = {c.prompt for cell in measure.validation(24).values() for c in cell.cases}
    seeds = {s for cell in measure.validation(24).values() for s in cell.seeds}
    for cell in measure.cells(96).values():
        assert len(tuned & {c.prompt for c in cell.cases}) <= 2
        assert not seeds & set(cell.seeds)


def test_the_frechet_distance_of_a_set_from_itself_is_zero_and_grows_with_a_shift() -> None:
    x = np.random.default_rng(0).normal(size=(60, 112))
    axes = measure.axes_of(x)
    assert measure.frechet(x, x, axes) < 1e-6
    assert measure.frechet(x + 0.5, x, axes) > measure.frechet(x + 0.1, x, axes) > 0


def test_the_command_writes_a_table_json_and_a_plot(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from saferegion_lab.cli import app

    out, plot = tmp_path / "peers.json", tmp_path / "peers.png"
    args = ["bench", "peers", "--pictures", "4", "--attacked", "0", "--steps", "2", "-g", "no guard"]
    args += ["-g", "safe region, closed form", "--out", str(out), "--plot", str(plot)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "safe region" in done.output and plot.read_bytes().startswith(b"\x89PNG")
    rows = {r["guard"]: r for r in json.loads(out.read_text())["rows"]}
    assert rows["no guard"]["identical"][0] == 1 and rows["no guard"]["drift"][0] == 0
    assert rows["safe region, closed form"]["evaluations"] == rows["no guard"]["evaluations"]


def test_an_unknown_guard_is_refused() -> None:
    with pytest.raises(Exception, match="there are: no guard"):
        peers.run(only=["nothing"])
