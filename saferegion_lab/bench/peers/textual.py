"""Guards that act on the text: negative prompt, SAFREE, Semantic Surgery, LEACE."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from saferegion.learn.recipes import read_recipe

from ..microworld import NEGATIVE
from .base import PHRASES, WORDS, Guard, Guarded, Prompts


@dataclass
class NegativePrompt(Guard):
    text: str = NEGATIVE

    def setup(self) -> None:
        self.sides = (self.meter.encode([self.text]),)


def projection(rows: Tensor) -> Tensor:
    """The orthogonal projection onto the span of rows [..., n, D]: [..., D, D]."""
    found: Tensor = torch.linalg.pinv(rows, rtol=1e-5) @ rows
    return found


@dataclass
class Safree(Guard):
    """Yoon et al., "SAFREE" (ICLR 2025): of a prompt with n words, n copies with one word masked each are encoded;
    words whose masked copy is nearer to the concept's subspace than (1 + alpha) times the mean of the others are
    triggers, and their tokens are taken to (1 - P_concept) P_masked c. Self-validation: that is used in the first
    steps alone, as many as a sigmoid of the change says. Its re-attention in the latents is left out.

    ``upper``: largest share of the sampling (10 of 50 steps) that self-validation grants.
    """

    alpha: float = 0.01
    upper: float = 0.2
    validate: bool = True
    negative: bool = False
    concept: Tensor = field(init=False, repr=False)

    def setup(self) -> None:
        ids = self.meter.world.tokenize(PHRASES)
        with torch.no_grad():
            tokens = self.meter.read(ids)
        self.concept = projection(tokens[torch.arange(len(ids)), ids.argmax(1)])
        self.sides = (self.meter.encode([NEGATIVE if self.negative else ""]),)

    @torch.no_grad()
    def _triggers(self, p: Prompts) -> tuple[Tensor, Tensor]:
        """Which tokens are triggers [B, 77], and the projection onto each prompt's masked copies [B, D, D]."""
        words = (p.end - 1).tolist()
        place = torch.tensor([i for n in words for i in range(1, n + 1)])
        owner = torch.tensor([b for b, n in enumerate(words) for _ in range(n)])
        ids = p.ids[owner].clone()
        rows = torch.arange(len(owner))
        ids[rows, place] = 0
        embeds = None
        if p.embeds is not None:
            embeds = p.embeds[owner].clone()
            embeds[rows, place] = self.meter.embed(torch.tensor(0))
        pooled = self.meter.read(ids, embeds)[rows, p.end[owner]]
        width = p.tokens.shape[-1]
        far = (pooled - pooled @ self.concept).norm(dim=1)
        triggers = torch.zeros(p.ids.shape, dtype=torch.bool)
        spans = torch.zeros(len(words), width, width)
        for b, n in enumerate(words):
            mine = owner == b
            if n == 0:
                continue
            d = far[mine]
            others = (d.sum() - d) / (n - 1) if n > 1 else d
            triggers[b, 1 : n + 1] = d >= (1 + self.alpha) * others
            spans[b] = projection(pooled[mine])
        return triggers, spans

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        triggers, spans = self._triggers(prompts)
        width = prompts.tokens.shape[-1]
        away = spans @ (torch.eye(width) - self.concept)
        moved = prompts.tokens @ away
        new = torch.where(triggers[:, :, None], moved, prompts.tokens)
        if not self.validate:
            return Guarded(new)
        with torch.no_grad():
            said = torch.arange(77)[None] <= prompts.end[:, None]
            alike = (F.cosine_similarity(moved, prompts.tokens, dim=-1) * said).sum(1) / said.sum(1)
            share = torch.sigmoid(2 * 2.5 * (10 * (1 - alike) - 5.333))
            last = (self.upper * steps * share).round()
        return Guarded(new, prompts.tokens, last + 1)


@dataclass
class Surgery(Guard):
    """Xiong et al., "Semantic Surgery" (NeurIPS 2025), without its second pass through a detector: a concept is present
    by sigmoid((cos + beta) / gamma), cos the mean over positions of the cosine of prompt and concept less the empty
    prompt; where the largest is at least ``least``, that much of the joint embedding of the present concepts goes off.
    """

    gamma: float = 0.02
    beta: float = -0.06
    least: float = 0.5
    strength: float = 1.0
    concepts: Tensor = field(init=False, repr=False)
    empty: Tensor = field(init=False, repr=False)
    joint: dict[tuple[int, ...], Tensor] = field(init=False, repr=False, default_factory=dict)

    def setup(self) -> None:
        self.empty = self.meter.encode([""])
        self.concepts = self.meter.encode(WORDS) - self.empty

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        alike = torch.stack([F.cosine_similarity(c[None], prompts.tokens, dim=-1).mean(1) for c in self.concepts], 1)
        alpha = torch.sigmoid((alike + self.beta) / self.gamma)
        rows = []
        for a, token in zip(alpha, prompts.tokens, strict=True):
            present = tuple((a >= self.least).nonzero().flatten().tolist())
            if not present:
                rows.append(token)
                continue
            if present not in self.joint:
                self.joint[present] = self.meter.encode([", ".join(WORDS[i] for i in present)])
            rows.append(token - self.strength * a.max() * (self.joint[present] - self.empty)[0])
        return Guarded(torch.stack(rows))

    @property
    def plain(self) -> bool:
        return True


@dataclass
class Leace(Guard):
    """Belrose et al., "LEACE" (NeurIPS 2023): the least change of the tokens after which no linear classifier tells the
    recipe's unsafe prompts from its safe ones; fitted on all tokens that may move, or ``by_position``."""

    strength: float = 1.0
    by_position: bool = False
    along: Tensor = field(init=False, repr=False)
    off: Tensor = field(init=False, repr=False)
    mean: Tensor = field(init=False, repr=False)

    def setup(self) -> None:
        from ...microworld import DATA

        pairs = read_recipe(DATA / "fire.yaml").pairs
        x = self.meter.encode([p for pair in pairs for p in pair])[:, 1:].double()
        z = torch.tensor([1.0, 0.0] * len(pairs), dtype=torch.float64) - 0.5
        mean = x.mean(0) if self.by_position else x.mean((0, 1)).expand(x.shape[1:])
        flat = (x - mean).flatten(0, 1)
        across = (flat * z.repeat_interleave(x.shape[1])[:, None]).mean(0)
        whole = torch.cov(flat.T) + 1e-6 * torch.eye(flat.shape[1], dtype=torch.float64)
        look = torch.linalg.solve(whole, across)
        self.along = look.float()
        self.off = (across / (across @ look)).float()
        self.mean = mean.float()

    def tokens(self, prompts: Prompts, steps: int) -> Guarded:
        t = prompts.tokens
        if self.strength == 0:
            return Guarded(t)
        body = t[:, 1:]
        amount = ((body - self.mean) @ self.along)[..., None]
        return Guarded(torch.cat([t[:, :1], body - self.strength * amount * self.off], 1))

    @property
    def plain(self) -> bool:
        return True
