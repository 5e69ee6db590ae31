"""``saferegion export``: what other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console

app = typer.Typer(no_args_is_help=True, help="Write what other programs read.")


@app.command("checkpoint")
def export_checkpoint(path: Annotated[Path, typer.Argument(help="The checkpoint to write (.safetensors).")]) -> None:
    """Write the tiny diffusion model in Stable Diffusion 1.x's original key layout, which both hosts load."""
    from .. import microworld

    microworld.load().export(path)
    console.out.print(f"written: {path}", highlight=False)


@app.command("vector")
def export_vector(
    source: Annotated[Path, typer.Argument(help="A direction file.")],
    path: Annotated[Path, typer.Argument(help="The .pth to write.")],
) -> None:
    """Write a direction in the paper's format (tensors b and a), for its own code."""
    from saferegion.guard.files import load_directions
    from saferegion.learn.paper_vector import export_paper_vector

    export_paper_vector(load_directions(source), path)
    console.out.print(f"written: {path}", highlight=False)
