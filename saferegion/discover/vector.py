"""The published method: Li et al., *Responsible Diffusion Models via Constraining Text Embeddings within Safe
Regions* (WWW 2025, arXiv 2505.15427), for comparison, for vectors to share and for fairness.

c' = c + β·(b ⊗ a), b [L] zero and a [D] Gaussian at first. At the steps ``learn`` (shares) of the steered trajectory,
one update each, ε(x_t, c') is drawn to ε_u + s·(ε_∅ − ε_u) with u the concept's words: negative guidance, distilled
into the text; s is the guidance, the loss 10·MSE, the optimiser Adam.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..core.conditioning import Conditioning
from ..core.direction import Direction, Meta
from ..core.errors import DiscoverError
from ..core.fingerprint import fingerprint_of
from ..learn.recipes import Concept
from .model import Denoiser, Encode, Model
from .offset import Shift
from .settings import DiscoverySettings

Tensor = torch.Tensor
STAGE = "learning"


@dataclasses.dataclass(frozen=True)
class VectorSettings:
    """What the published method adds to :class:`DiscoverySettings`; its own values.

    Attributes:
        words: u; None: the shortest unsafe sides of the recipe. prompts: c; None: ``words`` under many noises.
        toward: to ε_∅ + s·(ε_u − ε_∅) instead, for an attribute to steer to (fairness).
        learn: part of the sampling in which it is updated. rate: of Adam. cosine: weight of 1 − cos(c', c).
    """

    words: str | None = None
    prompts: Sequence[str] | None = None
    toward: bool = False
    learn: tuple[float, float] = (0.2, 1.0)
    rate: float = 0.06
    cosine: float = 0.0


PUBLISHED = DiscoverySettings(method="vector", steps=400, sampling_steps=50, guidance=7.5, group=1, window=(0.4, 1.0))


def discover_vector(
    concept: Concept,
    encode: Encode,
    denoiser: Denoiser,
    *,
    settings: DiscoverySettings | None = None,
    **changes: object,
) -> Direction:
    """The vector of the published method; see the module.

    Args:
        settings: of the run (None: as published); ``group`` is the pictures an update, ``guidance`` s, ``window``
            where the vector is to act. changes: fields of ``settings`` or of :class:`VectorSettings`.

    Returns:
        A direction without a detector: it can only steer, at strength β.

    Raises:
        DiscoverError: as :func:`saferegion.discover`; the words have the same embedding as the empty prompt.
    """
    own = {f.name for f in dataclasses.fields(VectorSettings)}
    run = {f.name for f in dataclasses.fields(DiscoverySettings)} - {"rate"}
    if unknown := sorted(set(changes) - own - run):
        raise DiscoverError(f"There is no setting {unknown[0]!r} of a vector.")
    how = VectorSettings(**{k: v for k, v in changes.items() if k in own})  # type: ignore[arg-type]
    settings = dataclasses.replace(
        settings or PUBLISHED,
        **{k: v for k, v in changes.items() if k in run},  # type: ignore[arg-type]
    )
    words = how.words or ", ".join(dict.fromkeys(sorted((u for u, _ in concept.pairs), key=len)[:3]))
    model = Model(denoiser, encode, settings, 4 * settings.steps * settings.group)
    with model.frozen(), torch.no_grad():
        vector = _Vector(model, how, words)
        vector.run()
        encoder = fingerprint_of(encode)
    model.finish()
    meta = Meta(
        title=f"{concept.title or concept.name}, vector", kind=concept.kind, version=concept.version,
        family=settings.family, recipe=concept.digest(()), method="discovered", seed=settings.seed,
        licence=concept.licence, curve=tuple(vector.curve),
    )  # fmt: skip
    movers = dict(vector.shift.copy().movers(settings.window))
    return Direction(concept.name + "-discovered", encoder, None, movers, meta=meta)


class _Vector:
    """Learns it, trajectory by trajectory."""

    def __init__(self, model: Model, how: VectorSettings, words: str) -> None:
        self.model, self.how, self.settings = model, how, model.settings
        self.prompts = list(how.prompts or [words])
        self.unsafe, self.empty = model.conditioning([words]), model.conditioning([""])
        if self.unsafe.tokens.shape == self.empty.tokens.shape and torch.equal(self.unsafe.tokens, self.empty.tokens):
            raise DiscoverError(f"The encoder does not tell {words!r} from the empty prompt; give other words.")
        sizes = {v.space: 1.0 for v in self.unsafe.views()}
        self.shift = Shift.start(self.unsafe, sizes, self.settings.seed, model.device)
        for p in self.shift.parameters():
            p.requires_grad_(True)
        self.optimiser = torch.optim.Adam(self.shift.parameters(), lr=how.rate)
        self.curve: list[float] = []
        count = len(model.times)
        self.learning = range(math.floor(how.learn[0] * count), math.ceil(how.learn[1] * count))

    def run(self) -> None:
        episode = 0
        while len(self.curve) < self.settings.steps and not self.settings.stopped():
            group = self.settings.group
            c = self.model.conditioning([self.prompts[(episode * group + k) % len(self.prompts)] for k in range(group)])
            x = self.model.noise(group, "vector", episode)
            for number, t in enumerate(self.model.times):
                if len(self.curve) >= self.settings.steps:
                    break
                without = self.model.predict(x, t, self.empty)
                if number in self.learning:
                    got = self._update(x, t, c, without)
                else:
                    got = self.model.predict(x, t, self.shift.on(c))
                x = self.model.step(number, x, without + self.settings.guidance * (got - without))
            episode += 1

    def _update(self, x: Tensor, t: int, c: Conditioning, without: Tensor) -> Tensor:
        said, s = self.model.predict(x, t, self.unsafe), self.settings.guidance
        wanted = without + s * (said - without) if self.how.toward else said + s * (without - said)
        with torch.enable_grad():
            moved = self.shift.on(c)
            got = self.model.predict(x, t, moved)
            loss = 10 * F.mse_loss(got, wanted)
            if self.how.cosine:
                alike = F.cosine_similarity(moved.tokens.float(), c.tokens.float(), dim=-1).mean()
                loss = loss + self.how.cosine * (1 - alike)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        self.optimiser.step()
        self.curve.append(float(loss.detach()))
        if not math.isfinite(self.curve[-1]):
            raise DiscoverError(f"The loss became {self.curve[-1]} at step {len(self.curve)}; lower the rate.")
        self.settings.tell(STAGE, self.curve[-1])
        return got.detach()
