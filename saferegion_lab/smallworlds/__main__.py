"""``python -m saferegion_lab.smallworlds train|check|bench``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from saferegion.discover import DiscoverySettings

from . import SPECS, load, train
from .bench import NAMES, bench
from .check import check


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m saferegion_lab.smallworlds", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, known in (("train", tuple(SPECS)), ("check", tuple(SPECS)), ("bench", NAMES)):
        sub = commands.add_parser(command)
        sub.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    sub.add_argument("--out", type=Path, default=Path("benchmarks/discovery.json"))
    sub.add_argument("--halves", action="store_true", help="every setting at half and at double too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.command == "bench":
        short = DiscoverySettings(steps=80) if given.halves else None
        bench(given.out, given.names or NAMES, short, lambda text: print(text, flush=True))
        return 0
    for name in given.names or SPECS:
        if given.command == "train":
            print(train(name, lambda step, loss, s: print(f"{step}: {loss:.4f}, {s:.0f} s", flush=True)))
        print(json.dumps({name: check(load(name))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
