"""Trains the microworld from nothing: autoencoder, world, decoder, judge, and the file in the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from saferegion_lab.microworld.model import WEIGHTS
from tests.microworld import assemble, train_autoencoder, train_judge, train_world


def main(folder: Path, out: Path, share: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first, tuned = folder / "autoencoder.pt", folder / "decoder.pt"
    world, judge = folder / "world.pt", folder / "judge.pt"
    train_autoencoder.train(first, 1100 * share, batch=16, rate=1.5e-3, compiled=False, resume=None)
    train_world.train(world, first, 3600 * share, batch=160, rate=2e-3, count=40000, compiled=True, resume=None)
    train_autoencoder.train_decoder(tuned, first, 600 * share, batch=16, rate=1e-3)
    train_judge.train(judge, tuned, 400 * share, count=10000, batch=128, rate=2e-3)
    assemble.main(world, judge, tuned, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the parts go")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual time for each part")
    args = parser.parse_args()
    main(args.folder, args.out, args.share)
