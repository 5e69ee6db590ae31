"""``python -m saferegion_lab.naturalworld train FOLDER`` and ``measure``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.core.writing import write_whole

from ..encoders.minilm import load_minilm
from .measure import GUIDANCE, Measure, measure, table
from .model import WEIGHTS, load
from .train import Settings, Training, begin

SHARES = {"autoencoder": 0.2, "world": 0.67, "judge": 0.13}
"""Of ``--minutes``."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    try:
        return (_train if command == "train" else _measure)(**given)
    except (SafeRegionError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m saferegion_lab.naturalworld", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from nothing, or go on where a training stopped")
    train.add_argument("folder", type=Path)
    train.add_argument("--minutes", type=float, help="of all stages, shared out among them")
    train.add_argument("--begin-from", type=Path, metavar="FILE", help="take autoencoder and judge from this file")
    train.add_argument("--keep-world", action="store_true", help="with --begin-from: the world too, to train it on")
    for field in fields(Settings):
        kind = {"int": int, "float": float, "int | None": int}.get(str(field.type), str)
        train.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    figures = commands.add_parser("measure", help="obedience, associations and a contact sheet")
    figures.add_argument("--weights", type=Path, default=WEIGHTS)
    figures.add_argument("--out", type=Path, help="folder for measure.json and sheet.png")
    figures.add_argument("--count", type=int, default=1024)
    figures.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    figures.add_argument("--device", default="cpu")
    figures.add_argument("--batch", type=int, default=64)
    figures.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2; its package otherwise")
    return parser


def _train(folder: Path, minutes: float | None, begin_from: Path | None, keep_world: bool, **given: Any) -> int:
    if minutes is not None:
        given |= {f"{name}_seconds": 60 * minutes * share for name, share in SHARES.items()}
    if begin_from is not None:
        begin(folder, begin_from, keep_world)
    Training(folder, Settings(**given), _tell).run()
    return 0


def _measure(
    weights: Path,
    out: Path | None,
    count: int,
    guidance: list[float],
    device: str,
    batch: int,
    encoder: Path | None,
) -> int:
    world = load(device, weights, load_minilm("The natural world", encoder, device))
    found = []
    for strength in guidance:
        found.append(measure(world, _tell, count, strength, batch))
        _tell(f"guidance {strength:g}\n{table(found[-1])}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "measure.json", json.dumps(found, indent=1).encode())
        Measure(world, guidance[0], batch=batch).sheet(out / "sheet.png")
    return 0


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
