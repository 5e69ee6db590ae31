"""``saferegion compile``, ``import`` and ``verify``: direction files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import console
from .encoder import DeviceOption, EncoderOption, TokenizerOption, directions_of, encoder_of

OTHER_ENCODER = 3


def compile_command(
    concepts: Annotated[list[str], typer.Argument(help="Bundled concepts or recipe files.")],
    encoder: EncoderOption,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write NAME.safetensors into this folder.")
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Fit the directions of concepts on a text encoder; kept in the cache, read from there the next time."""
    from ..check import terms_of

    loaded = encoder_of(encoder, device, tokenizer)
    found = directions_of(loaded, concepts)
    written = [d.save(folder / f"{d.concept}.safetensors") for d in found] if folder else []
    if as_json:
        console.print_json([console.plain(d) for d in found])
        return
    table = Table("concept", "told by", "area under ROC", "unsafe found")
    for d in found:
        figures = (d.meta.calibration.get(key) for key in ("area", "found"))
        table.add_row(d.concept, ", ".join(terms_of(d)), *("" if f is None else f"{f:.3f}" for f in figures))
    console.out.print(table)
    console.out.print("measured on the recipe's own held-out pairs", style="dim")
    for path in written:
        console.out.print(f"written: {path}", highlight=False)


def import_command(
    source: Annotated[Path, typer.Argument(help="A vector of the paper (.pth with tensors b and a).")],
    name: Annotated[str, typer.Option("--name", "-n", help="The concept it removes.")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The direction file to write (.safetensors).")],
    licence: Annotated[str, typer.Option(help="Licence of the vector.")] = "",
) -> None:
    """Bring in a vector published with the paper (Li et al. 2025); it steers."""
    from saferegion.learn.paper_vector import import_paper_vector

    directions = import_paper_vector(source, name, licence=licence)
    directions.save(path)
    console.out.print(f"written: {path} (steers only: use mode 'steer')", highlight=False)


def verify(
    files: Annotated[list[Path], typer.Argument(help="Direction files.")],
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="Also say whether they fit this encoder.")
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Check direction files, and whether they fit an encoder."""
    from saferegion.core.fingerprint import fingerprint_of
    from saferegion.guard.files import load_directions

    found = [load_directions(f) for f in files]
    mark = fingerprint_of(encoder_of(encoder, device, tokenizer).encode) if encoder else None
    rows, code = [], 0
    for file, d in zip(files, found, strict=True):
        fits = None if mark is None or d.encoder is None else d.encoder.matches(mark)
        code = OTHER_ENCODER if mark is not None and not fits else code
        rows.append({"file": str(file), **console.plain(d), "fits": fits})
        if not as_json:
            console.show_directions(d, False)
            if mark is not None:
                far = None if d.encoder is None else d.encoder.distance(mark)
                word = "unknown: the file carries no fingerprint" if far is None else "yes" if fits else "no"
                console.out.print(
                    f"fits this encoder: {word}" + (f" (distance {far:.3f})" if far is not None else ""),
                    highlight=False,
                )
    if as_json:
        console.print_json(rows)
    raise typer.Exit(code)
