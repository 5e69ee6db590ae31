"""Trains the microworld from nothing: autoencoder, world, decoder, judge, and the file in the package.

A training that was interrupted goes on when it is called again with the same folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from saferegion_lab.microworld.judge import HEADS
from saferegion_lab.microworld.model import TOKENIZER, WEIGHTS

from . import assemble, train_autoencoder, train_judge, train_world
from .drawings import CHUNK, Drawings, known_ids
from .stage import Log, Pace


@dataclass(frozen=True)
class Scale:
    """What a training may cost: seconds of each part, pictures a step, how many drawings there are, and how many of
    them go through the autoencoder for the judge."""

    seconds: tuple[float, float, float, float]
    batches: tuple[int, int, int, int]
    drawings: int
    judged: int


SCALES = {
    "cpu": Scale((1000, 2900, 400, 300), (16, 160, 16, 128), 24000, 8000),
    "cuda": Scale((45, 150, 12, 30), (160, 1024, 160, 1024), 200000, 80000),
}
"""On two cores of a CPU, and on one large GPU with a dozen cores beside it."""


def signature(known: list[int], seed: int) -> str:
    """What makes parts fit each other: words, sizes, what the judge says, and the seed."""
    what = [known, train_world.TEXT, train_world.UNET, train_autoencoder.SIZES, HEADS, seed]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Machine:
    """`workers`: processes that draw and say scenes; `compiled`: whether the step of the world is compiled (for a CPU);
    `graph`: whether a GPU takes its steps as CUDA graphs."""

    device: torch.device
    workers: int
    compiled: bool = False
    graph: bool = True


def main(folder: Path, out: Path, machine: Machine, scale: Scale, seed: int) -> None:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.txt")
    torch.backends.cudnn.benchmark = True
    known = known_ids(CLIPTokenizer.from_pretrained(str(TOKENIZER)), seed)
    mark = signature(known, seed)
    log(f"seed {seed}, world {mark}, {machine}, {scale}")
    count = -(-scale.drawings // CHUNK) * CHUNK
    drawings = Drawings(count, min(train_autoencoder.POOL, count), seed, machine.workers, known)
    s, b, device, graph = scale.seconds, scale.batches, machine.device, machine.graph
    try:
        pace = Pace(s[0], 1.5e-3, 0.997, 1e-4, graph=graph)
        first = train_autoencoder.train(folder, drawings, pace, b[0], device, mark, log)
        pace = Pace(s[1], 2e-3, graph=graph)
        world = train_world.train(folder, drawings, first, pace, b[1], device, mark, log, machine.compiled)
        pace = Pace(s[2], 1e-3, 0.997, 1e-4, graph=graph)
        tuned = train_autoencoder.train_decoder(folder, drawings, first, pace, b[2], device, mark, log)
        pace = Pace(s[3], 2e-3, 0.995, graph=graph)
        judge = train_judge.train(folder, drawings, tuned, pace, b[3], device, mark, log, scale.judged)
    finally:
        drawings.close()
    size = assemble.write(world, judge, tuned, out, {"seed": str(seed), "world": mark})
    log(f"{out.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the parts and the log go")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, nargs=4, help="of autoencoder, world, decoder and judge")
    parser.add_argument("--batches", type=int, nargs=4, help="pictures a step, of the same four")
    parser.add_argument("--drawings", type=int)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--compile", action="store_true", help="compiles the step of the world (for a CPU)")
    parser.add_argument("--no-graph", action="store_true", help="a GPU takes its steps one kernel at a time")
    args = parser.parse_args()
    machine = Machine(torch.device(args.device), args.workers, args.compile, not args.no_graph)
    usual = SCALES[machine.device.type]
    scale = Scale(
        tuple(args.seconds or usual.seconds),
        tuple(args.batches or usual.batches),
        args.drawings or usual.drawings,
        usual.judged,
    )
    main(args.folder, args.out, machine, scale, args.seed)
