"""``python -m saferegion_lab.smallworlds train|check|bench``."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from . import NAMES, load, train
from .check import check


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m saferegion_lab.smallworlds", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("train", "check"):
        commands.add_parser(command).add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default all")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.names or NAMES:
        if given.command == "train":
            print(train(name, lambda step, loss, s: print(f"{step}: {loss:.4f}, {s:.0f} s", flush=True)))
        print(json.dumps({name: check(load(name))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
