"""``saferegion demo``: pictures without and with the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console


def demo(
    path: Annotated[Path, typer.Option("--out", "-o", help="Where the picture goes.")] = Path("saferegion-demo.png"),
    seeds: Annotated[int, typer.Option(min=1, max=8, help="Pictures per prompt.")] = 3,
    as_json: console.JsonOption = False,
) -> None:
    """Paint prompts without and with the guard, same seeds, with the tiny diffusion model inside this package."""
    from .. import demo as demos

    with console.progress("painting") as told:
        shown = demos.run(path, seeds=seeds, progress=told)
    if as_json:
        console.print_json(shown)
        return
    console.out.print(demos.NOTE, style="dim")
    for row in shown["prompts"]:
        console.out.print(f"\n[bold]{row['kind']}[/bold]  {row['prompt']}", highlight=False)
        console.out.print(
            f"  pictures that show fire: {row['fire_unguarded']} of {seeds} unguarded, "
            f"{row['fire_guarded']} of {seeds} guarded{'; bit-identical' if row['identical'] else ''}",
            highlight=False,
        )
        console.out.print("  " + row["report"].replace("\n", "\n  "), style="cyan", highlight=False, markup=False)
    console.out.print(f"\npicture: {path}", highlight=False)
