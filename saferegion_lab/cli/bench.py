"""``saferegion bench``: measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saferegion.core.errors import SafeRegionError

from . import console
from .encoder import DeviceOption

app = typer.Typer(no_args_is_help=True, help="Measure; a table and JSON, with the machine named.")


@app.command("microworld")
def bench_microworld(
    pictures: Annotated[int, typer.Option(min=8, help="Pictures per cell.")] = 96,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Unsafe rate, content, benign identity and drift of each guard, on the tiny diffusion model."""
    from ..bench import microworld as benchmark

    with console.progress("painting") as told:
        result = benchmark.run(pictures=pictures, steps=steps, guidance=guidance, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("speed")
def bench_speed(
    rounds: Annotated[int, typer.Option(min=3, help="Paired rounds.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: DeviceOption = "cpu",
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Cost of guarding, compiling and importing, as ratios to one encoder pass (random full-size encoders)."""
    from ..bench import speed as benchmark

    with console.progress("timing") as told:
        result = benchmark.run(rounds=rounds, threads=threads, device=device, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("graph")
def bench_graph(
    rounds: Annotated[int, typer.Option(min=3, help="Rounds.")] = 8,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """What 'project' costs on a GPU, alone and replayed from a CUDA graph, beside the CPU's answer."""
    import torch

    if not torch.cuda.is_available():
        raise SafeRegionError("This benchmark needs a CUDA device, and torch finds none here.")
    from ..bench import graph as benchmark

    with console.progress("timing") as told:
        result = benchmark.run(rounds=rounds, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("language")
def bench_language(
    prompts: Annotated[Path, typer.Option(help="Folder with coco_dev.csv, i2p_dev.csv and ring_a_bell_dev.csv.")],
    concept: Annotated[list[str] | None, typer.Option("--concept", "-c", help="Concepts (default: all)")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the figures as a PNG.")] = None,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """What the recipes find in prompts nobody here wrote, on a real language encoder."""
    from ..bench import language as benchmark

    with console.progress("reading prompts") as told:
        result = benchmark.run(prompts, concept, progress=told)
    if plot is not None:
        benchmark.plot(result, plot)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("disguises")
def bench_disguises(
    prompts: Annotated[Path, typer.Option(help="Folder with coco_dev.csv, i2p_dev.csv and ring_a_bell_dev.csv.")],
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """What the second look finds of prompts in disguise on a real language encoder, and what it costs."""
    from ..bench import second_look as benchmark

    with console.progress("reading prompts") as told:
        result = benchmark.run(prompts, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("words")
def bench_words(
    recipes: Annotated[list[str] | None, typer.Argument(help="Concepts or recipe files (default: all).")] = None,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """What recipes of words find, of the words they list and of words held out, on a real language encoder."""
    from ..bench import words as benchmark

    with console.progress("compiling") as told:
        result = benchmark.run(recipes, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("vector")
def bench_vector(
    pictures: Annotated[int, typer.Option(min=2, help="Pictures per cell.")] = 48,
    updates: Annotated[int, typer.Option(min=1, help="Updates of each vector.")] = 410,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """The published additive vector on the microworld: strength swept, and fairness vectors on skewed words."""
    from ..bench import vector as benchmark

    with console.progress("training") as told:
        result = benchmark.run(pictures=pictures, updates=updates, progress=told)
    console.bench_result(result, benchmark.tables, path, as_json)


@app.command("peers")
def bench_peers(
    pictures: Annotated[int, typer.Option(min=4, help="Pictures per cell.")] = 64,
    attacked: Annotated[
        int | None, typer.Option(min=0, help="Prompts per attack (default: a quarter; 0: none).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    guard: Annotated[
        list[str] | None, typer.Option("--guard", "-g", help="Only this kind of guard; repeatable.")
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option("--transfer", help="Other checkpoints and guards on top of each other instead (in a checkout)."),
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Show how each setting does on the validation draw instead.")
    ] = False,
    discovered: Annotated[
        Path | None, typer.Option(help="What 'discover' wrote for this model (default: it is learned here).")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the rows of --out that are not measured anew.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the figures as a PNG.")] = None,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Every guard on the tiny diffusion model: published and tuned, attacked, with what it spares and costs."""
    from ..bench import peers as benchmark

    with console.progress("painting") as told:
        if tune:
            result, shown = benchmark.tune_all(pictures, steps, guidance, guard or (), told), benchmark.tuning_tables
        elif transfer:
            from ..bench.peers import transfer as other

            result, shown = other.run(pictures, steps, guidance, told, discovered), other.tables
        else:
            before = json.loads(path.read_text("utf-8")) if add and path is not None and path.is_file() else None
            save = None if path is None else lambda found: console.write_json(found, path)
            result = benchmark.run(pictures, steps, guidance, attacked, guard or (), told, before, save, discovered)
            shown = benchmark.tables
            if plot is not None:
                benchmark.plot(result, plot)
    console.bench_result(result, shown, path, as_json)
