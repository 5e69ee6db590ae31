"""``saferegion inspect``: what the guard does to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import console
from .encoder import DeviceOption, EncoderOption, TokenizerOption, directions_of, encoder_of


def inspect(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, in quotes.")],
    encoder: EncoderOption,
    concept: Annotated[
        list[str], typer.Option("--concept", "-c", help="A concept, recipe or direction file; repeatable.")
    ],
    mode: Annotated[str, typer.Option(help="project, steer or erase.")] = "project",
    strength: Annotated[float, typer.Option(help="1 ends at the safe mean; 0.5 half way.")] = 1.0,
    heat_map: Annotated[
        Path | None, typer.Option("--heat-map", help="Write a heat map PNG; with several prompts NAME-1.png …")
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Say how far prompts lie from the border of each concept, and what the guard does to them."""
    from saferegion.core.region import SafeRegion

    loaded = encoder_of(encoder, device, tokenizer)
    region = SafeRegion(directions_of(loaded, concept), strength, mode)
    rows = []
    for i, prompt in enumerate(prompts, 1):
        c = loaded.encode([prompt])
        _, report = region.apply(c)
        strings = loaded.token_strings(prompt)
        if heat_map is not None:
            from saferegion.view.heat_map import heat_map as paint

            where = heat_map if len(prompts) == 1 else heat_map.with_name(f"{heat_map.stem}-{i}{heat_map.suffix}")
            console.write_png(paint(report, strings, title=prompt), where)
        scores = region.score(c)[0].tolist()
        rows.append({"prompt": prompt, "scores": dict(zip(region.names, scores, strict=True)), **report.to_dict()})
        if not as_json:
            table = Table("concept", "sd from the border", title=prompt[:100], title_justify="left")
            for name, score in zip(region.names, scores, strict=True):
                table.add_row(name, f"[red]{score:+.2f} outside[/red]" if score > 0 else f"{score:+.2f} inside")
            console.out.print(table)
            console.out.print(report.text([strings]), highlight=False, markup=False)
    if as_json:
        console.print_json(rows)
