"""Δ is trained through the frozen denoiser, on prompts that bring the concept.

At states of the prompts' own trajectories, steered by Δ and not, the denoiser is to say with c + Δ

    ε_∅ + g − (max(0, ⟨g, d̂⟩) + past ‖d‖) d̂,   g = ε(x_t, c) − ε_∅,  d̂ = d / ‖d‖:

what the prompt adds without its part along the concept's axis d, and a little further. Everything else is to stay: an
error beside the axis weighs more than one along it. The loss is in units of ‖d‖², so that all noise levels count alike.
Last, Δ is made as long as it takes: until pictures of held-out prompts show no more of the concept than is usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..core.conditioning import Conditioning
from ..core.errors import DiscoverError
from .evidence import Evidence, State, trajectory
from .model import Model
from .offset import Shift
from .resume import Kept

Tensor = torch.Tensor
STAGE = "learning"
LENGTHS = tuple(0.5 * 1.125**k for k in range(19))
"""Multiples of Δ that are tried, the shortest first."""
PICTURES = 2
"""Painted of each held-out prompt for every multiple."""
CALM = 0.9
"""Share of the pictures of calm prompts that show less than where they are said to end."""
SPENT = 0.02
"""Share of the pictures of held-out prompts that may show more than that."""


@dataclass
class Learned:
    """``best``: the Δ kept. ``left``: evidence [held-out prompts] with it. ``curve``: losses. ``judged``: what each
    round's Δ was judged at, the smaller the better. ``length``: by how much the best was multiplied."""

    best: Shift
    left: Tensor
    length: float = 1.0
    curve: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)


def target(g: Tensor, d: Tensor, past: float) -> Tensor:
    """What a guidance ``g`` [B, C, H, W] is to be without the concept, whose axis is ``d`` [B, C, H, W]."""
    length = d.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    unit = d / length
    along = (g * unit).flatten(1).sum(1).view(-1, 1, 1, 1)
    wanted: Tensor = g - (along.clamp_min(0) + past * length) * unit
    return wanted


def loss(error: Tensor, d: Tensor, keep: float) -> Tensor:
    """Sum of the squares of ``error`` [B, C, H, W], those beside the axis ``d`` times ``keep``."""
    unit = d / d.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    along = (error * unit).flatten(1).sum(1)
    total: Tensor = keep * error.square().sum() - (keep - 1) * along.square().sum()
    return total


class Trainer:
    """Learns Δ; goes on from what ``kept`` holds."""

    def __init__(self, model: Model, evidence: Evidence, risky: Sequence[str], calm: Tensor, kept: Kept) -> None:
        """``risky``: prompts to train on. ``calm``: evidence [N] in pictures of calm prompts."""
        self.model, self.evidence, self.kept, self.settings = model, evidence, kept, model.settings
        self.calm = float(calm.quantile(CALM))
        held = min(len(risky) - 1, max(1, round(self.settings.held_out * len(risky))))
        order = torch.randperm(len(risky), generator=torch.Generator().manual_seed(self.settings.seed)).tolist()
        self.held = [risky[i] for i in order[:held]][: model.settings.batch_size]
        self.risky = [risky[i] for i in order[held:]]
        self.steps = [n for n in range(len(model.times)) if model.acts(n)]
        self.episodes = math.ceil(self.settings.steps / len(self.steps))
        self.every = max(1, self.episodes // self.settings.rounds)

    def run(self, shift: Shift) -> Learned:
        """Train ``shift`` in place.

        Raises:
            DiscoverError: the loss is not finite, or memory ran out.
        """
        learned = self._begin(shift)
        optimiser = self._optimiser(shift)
        for episode in range(int(self.kept.told.get("episode", 0)), self.episodes):  # type: ignore[call-overload]
            ended = self._episode(episode, shift, optimiser, learned)
            if ended or (episode + 1) % self.every == 0 or episode + 1 == self.episodes:
                self._judge(shift, learned)
                if ended:
                    break
                self._save(shift, optimiser, learned, episode + 1)
        self._lengthen(learned)
        return learned

    def _begin(self, shift: Shift) -> Learned:
        if "episode" in self.kept.told:
            best = Shift.read("best", self.kept.tensors, torch.device("cpu"))
            now = Shift.read("shift", self.kept.tensors, self.model.device)
            for mine, theirs in zip(shift.parameters(), now.parameters(), strict=True):
                mine.copy_(theirs)
            curve, judged = (list(self.kept.told[k]) for k in ("curve", "judged"))  # type: ignore[call-overload]
            return Learned(best, self.kept.tensors["left"], curve=curve, judged=judged)
        return Learned(shift.copy(), torch.zeros(0))

    def _optimiser(self, shift: Shift) -> torch.optim.Adam:
        parameters = shift.parameters()
        sizes = [float(a.square().mean().sqrt()) for a in shift.a.values()] + [1.0] * len(shift.b)
        start = [float(v) for v in self.kept.told.get("sizes", sizes)]  # type: ignore[attr-defined]
        for p in parameters:
            p.requires_grad_(True)
        groups = [{"params": [p], "lr": self.settings.rate * s} for p, s in zip(parameters, start, strict=True)]
        self.sizes = start
        optimiser = torch.optim.Adam(groups)
        state = optimiser.state_dict()
        for name, value in self.kept.tensors.items():
            if name.startswith("adam."):
                _, i, entry = name.split(".", 2)
                state["state"].setdefault(int(i), {})[entry] = value
        optimiser.load_state_dict(state)
        return optimiser

    def _save(self, shift: Shift, optimiser: torch.optim.Adam, learned: Learned, episode: int) -> None:
        tensors = shift.tensors("shift") | learned.best.tensors("best") | {"left": learned.left}
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
        self.kept.save(tensors, episode=episode, curve=learned.curve, judged=learned.judged, sizes=self.sizes)

    def _episode(self, number: int, shift: Shift, optimiser: torch.optim.Adam, learned: Learned) -> bool:
        """One trajectory of a few prompts, a gradient step at each of its states; every other one is steered. Says
        whether the run is to end."""
        draw = torch.Generator().manual_seed(1_000_003 * self.settings.seed + number)
        which = torch.randint(len(self.risky), (min(self.settings.group, len(self.risky)),), generator=draw).tolist()
        c = self.model.conditioning([self.risky[i] for i in which])
        empty = self.model.conditioning([""])
        x = self.model.noise(len(which), STAGE, number)
        for step, t in enumerate(self.model.times):
            if len(learned.curve) >= self.settings.steps or self.settings.stopped():
                return self.settings.stopped()
            with torch.no_grad():
                without = self.model.predict(x, t, empty)
                given = self.model.predict(x, t, c)
            if step in self.steps:
                d = self.evidence.axis.direction(self.model, (x, step), c, self.evidence.kappa)
                wanted = without + target(given - without, d, self.settings.past)
                size = float(d.square().mean().clamp_min(1e-24))
                value, got = self._step((x, t, c, wanted, d), size, shift, optimiser)
                learned.curve.append(value)
                self.settings.tell(STAGE, value)
                given = got if number % 2 else given
            x = self.model.step(step, x, without + self.settings.guidance * (given - without))
        return False

    def _step(
        self,
        batch: tuple[Tensor, int, Conditioning, Tensor, Tensor],
        size: float,
        shift: Shift,
        optimiser: torch.optim.Adam,
    ) -> tuple[float, Tensor]:
        """One gradient step, in parts that fit the memory; the loss in units of ``size``, the mean square of the
        concept's axis, so that all noise levels count alike; and ε with Δ before the step."""
        x, t, c, wanted, d = batch
        while True:
            optimiser.zero_grad(set_to_none=True)
            try:
                value, got = self._backward(x, t, (c, wanted, d, size), shift)
                break
            except torch.cuda.OutOfMemoryError:
                self.model.halve()
        if not math.isfinite(value):
            raise DiscoverError(f"The loss became {value}; use a smaller rate or float32.")
        optimiser.step()
        return value, got

    def _backward(
        self, x: Tensor, t: int, asked: tuple[Conditioning, Tensor, Tensor, float], shift: Shift
    ) -> tuple[float, Tensor]:
        c, wanted, d, size = asked
        scale = 2.0 ** round(math.log2(x[0].numel() * len(x)))  # half precision would lose gradients this small
        value, parts = 0.0, []
        for at in range(0, len(x), self.model.batch_size):
            part = slice(at, at + self.model.batch_size)
            with torch.enable_grad():
                got = self.model.predict(x[part], t, shift.on(c[part]))
                wrong = loss(got - wanted[part], d[part], self.settings.keep) / (size * x.numel())
                torch.autograd.backward(wrong * scale)
            value += float(wrong.detach())
            parts.append(got.detach())
        for p in shift.parameters():
            if p.grad is not None:
                p.grad /= scale
        for b in shift.b.values():
            if b.grad is not None:
                b.grad += b.grad.sum()  # what one position learns all do, so that none is left that was never seen
        return value, torch.cat(parts)

    def _judge(self, shift: Shift, learned: Learned) -> None:
        """Keep this Δ if it is the best so far for held-out prompts: by the evidence that it leaves, and by how far the
        denoiser is from its target, both in units of the concept."""
        c, levels = self.model.conditioning(self.held), self.evidence.levels
        evidence, noise = self.evidence, self.model.noise(len(self.held), "held out")
        with torch.no_grad():
            states = trajectory(self.model, shift.on(c), noise, (evidence.axis, [evidence.kappa], levels), c)
            left = evidence.read(self.model, states)
            off = [self._off(s, c) for s, _ in states if self.model.acts(s.number)]
        told = float(left.clamp_min(0).mean()) + sum(off) / len(off)
        learned.judged.append(told)
        if told <= min(learned.judged):
            learned.best, learned.left = shift.copy(), left

    def _off(self, state: State, c: Conditioning) -> float:
        given = self.model.predict(state.x, self.model.times[state.number], c)
        d = self.evidence.axis.direction(self.model, (state.x, state.number), c, self.evidence.kappa)
        wanted = state.without + target(given - state.without, d, self.settings.past)
        wrong = loss(state.given - wanted, d, self.settings.keep) / state.given.numel()
        return float(wrong / d.square().mean().clamp_min(1e-24))

    def _lengthen(self, learned: Learned) -> None:
        """The multiple of the best Δ that follows the shortest after which hardly a held-out picture shows more than
        calm ones do; where none does so, that which leaves least."""
        c, evidence = self.model.conditioning(self.held), self.evidence
        noises = [self.model.noise(len(self.held), "length", k) for k in range(PICTURES)]
        tried: list[tuple[float, float, float, Tensor]] = []
        for times in LENGTHS:
            with torch.no_grad():
                left = torch.cat([evidence.of(self.model, learned.best.on(c, times), x, c) for x in noises])
            over = float((left > self.calm).double().mean())
            tried.append((over, float(left.mean()), times, left))
            if len(tried) > 1 and tried[-2][0] <= SPENT:
                break
        enough = len(tried) > 1 and tried[-2][0] <= SPENT
        _, _, learned.length, learned.left = tried[-1] if enough else min(tried, key=lambda t: t[:2])
        learned.best = learned.best.times(learned.length)
