"""A training loop that ends by its clock or after so many steps, tells how far it is, and goes on where it stopped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from saferegion.core.errors import SafeRegionError
from saferegion.core.writing import write_whole

SAVED = 30.0
"""Seconds between two checkpoints of a stage."""
TOLD = 10.0
WARM = 100
Told = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """When a stage is over: after `seconds`, or after `steps` where they are given; then a run that was interrupted
    ends with the same bits as one that was not."""

    seconds: float
    steps: int | None = None

    def share(self, step: int, elapsed: float) -> float:
        return step / self.steps if self.steps is not None else elapsed / self.seconds


class Loop:
    """Trains a module: iterate over it for each step's random numbers, and give `step` the loss.

    The average of the weights is what a stage leaves behind. What is random in a step depends on the seed and on the
    step's number alone.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        module: nn.Module,
        budget: Budget,
        told: Told,
        *,
        rate: float,
        seed: int,
        mark: str,
    ) -> None:
        self.name, self.module, self.budget, self.told = name, module, budget, told
        self.rate, self.seed, self.mark = rate, seed, mark
        self.file = folder / f"{name}.part"
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.98), weight_decay=1e-3, foreach=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.count, self.before, self.loss = 0, 0.0, 0.0
        if self.file.exists():
            self._resume()
        self.start = self.saved = self.spoke = time.monotonic()

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    def __iter__(self) -> Iterator[torch.Generator]:
        self.start = self.saved = self.spoke = time.monotonic()
        while (share := self.budget.share(self.count, self.elapsed())) < 1:
            warm = min(1.0, (self.count + 1) / WARM)
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
            yield torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.count)
        self.save()
        self.told(f"{self.name}: {self.count} steps in {self.elapsed():.0f} s")

    def step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.count += 1
        keep = min(0.999, (1 + self.count) / (20 + self.count))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        now = time.monotonic()
        if now - self.spoke > TOLD:
            self.spoke = now
            self.told(f"{self.name}: step {self.count}, {self.elapsed():.0f} s, loss {float(loss.detach()):.4f}")
        if now - self.saved > SAVED:
            self.saved = now
            self.save()

    def averaged(self) -> dict[str, Tensor]:
        """The module's state with averaged weights, float32 on the CPU."""
        mean = {id(p): a for p, a in zip(self.parameters, self.average, strict=True)}
        state = {k: v.detach().float().cpu().clone() for k, v in self.module.state_dict().items()}
        for name, p in self.module.named_parameters():
            if id(p) in mean:
                state[name] = mean[id(p)].float().cpu().clone()
        return state

    def save(self) -> None:
        kept = {
            "mark": self.mark,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "count": self.count,
            "elapsed": self.elapsed(),
        }
        whole = io.BytesIO()
        torch.save(kept, whole)
        write_whole(self.file, whole.getvalue())

    def _resume(self) -> None:
        kept = torch.load(self.file, map_location=self.device, weights_only=True)
        if kept["mark"] != self.mark:
            raise SafeRegionError(
                f"{self.file} belongs to the training of another world ({kept['mark']}; this is {self.mark}): give "
                "another folder."
            )
        self.module.load_state_dict(kept["module"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.average = kept["average"]
        self.count, self.before = kept["count"], kept["elapsed"]
        self.told(f"{self.name}: going on at step {self.count}, {self.before:.0f} s")
