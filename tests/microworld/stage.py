"""One part of a training: its clock, its weights with their running means, and the file from which it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LINES = 15.0
"""Seconds between two lines of the log."""


class Log:
    """Prints lines and keeps them in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"[{time.monotonic() - self.began:6.0f} s] {text}"
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Pace:
    """How a stage learns: `seconds` of training in all, the highest rate, and how slowly the running means move;
    `warm`: steps until the rate is reached; `floor`: its share at the end; `save`: seconds between two files; `graph`:
    whether a GPU takes its steps as one CUDA graph."""

    seconds: float
    rate: float
    mean: float = 0.998
    decay: float = 1e-3
    warm: int = 200
    floor: float = 0.02
    save: float = 60.0
    graph: bool = True


class Stage:
    """Trains parameters for a number of seconds and leaves their running means in them."""

    def __init__(
        self, path: Path, pace: Pace, modules: Sequence[nn.Module], device: torch.device, signature: str, log: Log
    ) -> None:
        self.path, self.pace, self.device, self.signature, self.log = path, pace, device, signature, log
        self.modules = modules
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        graph = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(pace.rate, device=device) if graph else pace.rate,
            weight_decay=pace.decay,
            betas=(0.9, 0.98),
            foreach=True,
            capturable=graph,
        )
        self.step, self.spent = 0, 0.0
        if path.exists():
            self._resume(torch.load(path, map_location=device, weights_only=True))

    def _resume(self, saved: dict[str, Any]) -> None:
        if saved["signature"] != self.signature:
            raise ValueError(f"{self.path} belongs to another world: name another folder.")
        with torch.no_grad():
            for own, there in zip((*self.parameters, *self.average), (*saved["now"], *saved["mean"]), strict=True):
                own.copy_(there)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.spent = saved["step"], saved["spent"]
        self.log(f"{self.path.stem}: goes on at step {self.step}, {self.spent:.0f} s")

    def _save(self) -> None:
        part = self.path.with_suffix(".tmp")
        state = {
            "signature": self.signature, "now": [p.detach() for p in self.parameters], "mean": self.average,
            "optimiser": self.optimiser.state_dict(), "step": self.step, "spent": self.spent,
        }  # fmt: skip
        torch.save(state, part)
        part.replace(self.path)

    def _rate(self, share: float) -> None:
        shape = self.pace.floor + (1 - self.pace.floor) * 0.5 * (1 + math.cos(math.pi * share))
        rate = self.pace.rate * min(1.0, (self.step + 1) / self.pace.warm) * shape
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _advance(self, loss: Callable[[], Tensor]) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimiser.step()
        return value.detach()

    def _captured(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """One step as a CUDA graph, which spares the launches; the first three steps are taken before it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance(loss)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = self._advance(loss)

        def replay() -> Tensor:
            graph.replay()
            return value

        return replay

    def run(self, loss: Callable[[], Tensor], between: Callable[[], None] | None = None) -> None:
        """Trains until the seconds are spent. `loss`: the loss of a fresh batch, without any word to the host where a
        GPU trains; `between`: called after each step."""
        for module in self.modules:
            module.train()
        before = time.monotonic() - self.spent
        spoken = saved = time.monotonic()
        self._rate(self.spent / self.pace.seconds)
        graph = self.device.type == "cuda" and self.pace.graph
        advance = self._captured(loss) if graph else lambda: self._advance(loss)
        while (share := (time.monotonic() - before) / self.pace.seconds) < 1:
            self._rate(share)
            value = advance()
            self.step += 1
            with torch.no_grad():
                kept = min(self.pace.mean, (self.step + 1) / (self.step + 30))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - kept)
            if between is not None:
                between()
            if self.step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            self.spent = now - before
            if now - spoken > LINES or self.step == 3:
                spoken = now
                self.log(f"{self.path.stem}: step {self.step}, {self.spent:.0f} s, loss {value.item():.4f}")
            if now - saved > self.pace.save:
                saved = now
                self._save()
        self.log(f"{self.path.stem}: {self.step} steps in {self.spent:.0f} s")
        with torch.no_grad():
            for own, mean in zip(self.parameters, self.average, strict=True):
                own.copy_(mean)
        for module in self.modules:
            module.eval()

    def finish(self, out: Path, state: dict[str, Any]) -> None:
        """Writes what the stage has learnt, beside its signature, and removes the file to go on from."""
        part = out.with_suffix(".tmp")
        torch.save({**state, "signature": self.signature, "steps": self.step, "seconds": self.spent}, part)
        part.replace(out)
        self.path.unlink(missing_ok=True)


def finished(path: Path, signature: str) -> dict[str, Any] | None:
    """What a finished stage has left, or None where it has not been finished.

    Raises:
        ValueError: the file belongs to a world of other words, sizes or seed.
    """
    if not path.exists():
        return None
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved.get("signature") != signature:
        raise ValueError(f"{path} belongs to another world: name another folder.")
    return saved
