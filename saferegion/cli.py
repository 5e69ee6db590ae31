"""The command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError:
    sys.exit("The command line needs typer and rich: pip install 'saferegion[demo]'")

from . import __version__, discover_command
from .errors import SafeRegionError

if TYPE_CHECKING:
    from .conditioning import Conditioning
    from .directions import ConceptDirections

REFUSED = 1
OTHER_ENCODER = 3
MICROWORLD = "microworld"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep a prompt's embedding inside a safe region. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, "
    "3 the directions belong to another encoder, 130 stopped with Ctrl-C.",
)
concepts_app = typer.Typer(no_args_is_help=True, help="The concepts that can be named.")
export_app = typer.Typer(no_args_is_help=True, help="Write what other programs read.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure; a table and JSON, with the machine named.")
app.add_typer(concepts_app, name="concepts")
app.add_typer(export_app, name="export")
app.add_typer(bench_app, name="bench")
discover_command.register(app)

out = Console()
err = Console(stderr=True)

EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        "-e",
        help="A transformers directory (CLIP, T5 …), a diffusers directory, a Stable Diffusion checkpoint "
        f"(.safetensors), or '{MICROWORLD}', the tiny model inside this package.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1, mps.")]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(help="Tokenizer directory for a checkpoint (default: the CLIP tokenizer in this package)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def main() -> None:
    """Entry point: every refusal is one line on standard error."""
    try:
        app()
    except SafeRegionError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        err.print(f"error: {what}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        err.print("stopped; nothing half-written was left", style="red")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"saferegion {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, fed with (done, in all)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass(frozen=True)
class Encoder:
    """An encoder named on the command line, with the concepts and neutral prompts that go with it."""

    encode: Callable[[list[str]], Conditioning]
    token_strings: Callable[[str], list[str]]
    family: str
    folders: tuple[Path, ...] = ()
    neutral: tuple[str, ...] | None = None


def _encoder(name: str, device: str, tokenizer: Path | None) -> Encoder:
    if name == MICROWORLD:
        from . import microworld

        world = microworld.load(device)
        return Encoder(world.encode, world.token_strings, MICROWORLD, (microworld.DATA,), microworld.neutral_prompts())
    from . import encoders

    with err.status("reading the text encoder"):
        loaded = encoders.load(name, device=device, tokenizer=tokenizer)
    return Encoder(loaded, loaded.token_strings, loaded.family)


def _directions(encoder: Encoder, names: list[str]) -> list[ConceptDirections]:
    from .library import Library

    with progress("compiling on the text encoder") as told:
        return Library(encoder.folders).directions(
            list(names), encoder.encode, encoder.neutral, told, family=encoder.family
        )


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


@app.command()
def demo(
    path: Annotated[Path, typer.Option("--out", "-o", help="Where the picture goes.")] = Path("saferegion-demo.png"),
    seeds: Annotated[int, typer.Option(min=1, max=8, help="Pictures per prompt.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Paint prompts without and with the guard, same seeds, with the tiny diffusion model inside this package."""
    from . import demo as demos

    with progress("painting") as told:
        shown = demos.run(path, seeds=seeds, progress=told)
    if as_json:
        _print_json(shown)
        return
    out.print(demos.NOTE, style="dim")
    for row in shown["prompts"]:
        out.print(f"\n[bold]{row['kind']}[/bold]  {row['prompt']}", highlight=False)
        out.print(
            f"  pictures that show fire: {row['fire_unguarded']} of {seeds} unguarded, "
            f"{row['fire_guarded']} of {seeds} guarded{'; bit-identical' if row['identical'] else ''}",
            highlight=False,
        )
        out.print("  " + row["report"].replace("\n", "\n  "), style="cyan", highlight=False, markup=False)
    out.print(f"\npicture: {path}", highlight=False)


@concepts_app.command("list")
def concepts_list(as_json: JsonOption = False) -> None:
    """List the bundled concepts."""
    from .library import Library
    from .recipes import Concept

    library = Library()
    rows = [(name, library.find(name)) for name in library.names()]
    if as_json:
        _print_json(
            [
                {
                    "name": n,
                    "title": c.title,
                    "kind": c.kind,
                    "version": c.version,
                    "licence": c.licence,
                    "pairs": len(c.pairs) if isinstance(c, Concept) else None,
                }
                for n, c in rows
            ]
        )
        return
    table = Table("name", "title", "kind", "version", "pairs", "own neutral prompts")
    for name, c in rows:
        pairs, own = (len(c.pairs), len(c.neutral)) if isinstance(c, Concept) else ("compiled", "")
        table.add_row(name, c.title, c.kind, str(c.version), str(pairs), str(own))
    out.print(table)


@concepts_app.command("show")
def concepts_show(
    name: Annotated[str, typer.Argument(help="A bundled concept, or a recipe or direction file.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a concept is made of."""
    from .library import load_concept
    from .recipes import Concept

    c = load_concept(name)
    if not isinstance(c, Concept):
        _show_directions(c, as_json)
        return
    if as_json:
        _print_json(
            {
                "name": c.name,
                "title": c.title,
                "kind": c.kind,
                "version": c.version,
                "licence": c.licence,
                "description": c.description,
                "pairs": c.pairs,
                "neutral": c.neutral,
            }
        )
        return
    out.print(f"[bold]{c.title}[/bold] ({c.name}, {c.kind}, version {c.version}, {c.licence})", highlight=False)
    out.print(c.description, highlight=False, markup=False)
    table = Table("unsafe", "safe")
    for unsafe, safe in c.pairs:
        table.add_row(unsafe, safe)
    out.print(table)
    out.print("benign near neighbours: " + "; ".join(c.neutral), highlight=False, markup=False)


@concepts_app.command("new")
def concepts_new(
    path: Annotated[Path, typer.Argument(help="The recipe to write, NAME.yaml.")],
    avoid: Annotated[list[str], typer.Option(help="A word or phrase to keep out; repeatable.")],
    instead: Annotated[list[str] | None, typer.Option(help="What may stand in its place; repeatable.")] = None,
    sentence: Annotated[list[str] | None, typer.Option(help="A sentence with {} where it goes; repeatable.")] = None,
    title: Annotated[str, typer.Option(help="What people read.")] = "",
) -> None:
    """Write a recipe from a few words, to be filled up by hand and measured with 'concepts check'."""
    from .files import write_whole
    from .recipes import Concept, read_recipe, recipe_text

    if path.exists():
        raise SafeRegionError(f"{path} is there already; give another name.")
    concept = Concept.from_words(path.stem, avoid, instead or (), sentence or ())
    if concept.name != path.stem or path.suffix not in (".yaml", ".yml"):
        raise SafeRegionError(f"Call the file {concept.name}.yaml: a concept is called like its file.")
    write_whole(path, recipe_text(concept, title).encode())
    read_recipe(path)
    out.print(f"written: {path} ({len(concept.pairs)} pairs)", highlight=False)


@concepts_app.command("check")
def concepts_check(
    name: Annotated[str, typer.Argument(help="A bundled concept or a recipe file.")],
    encoder: EncoderOption,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a recipe on a text encoder: what it finds, what it moves that it should not, which pairs say nothing."""
    from dataclasses import asdict

    from .check import check
    from .library import Library
    from .recipes import Concept

    loaded = _encoder(encoder, device, tokenizer)
    library = Library(loaded.folders)
    concept = library.find(name)
    if not isinstance(concept, Concept):
        raise SafeRegionError(f"{name} is a direction file; only a recipe can be checked.")
    (directions,) = _directions(loaded, [name])
    others = [c for c in library.recipes() if c.name != concept.name]
    with err.status("measuring"):
        found = check(
            concept, directions, loaded.encode, loaded.neutral or library.neutral(), others, loaded.token_strings
        )
    if as_json:
        _print_json(asdict(found))
        return
    figures = Table("what", "share", title=f"{concept.title or concept.name} on {loaded.family}")
    figures.add_row("unsafe prompts found", f"{found.found:.1%}")
    figures.add_row("safe prompts left alone", f"{found.spared:.1%}")
    if found.own_inside is not None:
        figures.add_row("own neutral prompts left alone", f"{found.own_inside:.1%}")
    figures.add_row("shared neutral prompts left alone", f"{found.neutral_inside:.2%}")
    for other, share in found.nearest:
        figures.add_row(f"unsafe prompts of '{other}' found too", f"{share:.1%}")
    out.print(figures)
    spaces = Table("space", "separation (AUC)", "threshold (sd)", "found")
    for space in sorted(k.removesuffix(".area") for k in found.calibration if k.endswith(".area")):
        area, border, hits = (found.calibration[f"{space}.{k}"] for k in ("area", "border", "found"))
        spaces.add_row(space, f"{area:.3f}", f"{border:.2f}", f"{hits:.1%}")
    out.print(spaces)
    for title, rows in (
        ("unsafe prompts that are not found", found.missed),
        ("benign prompts that are moved", found.caught),
        ("tokens that drive it", found.words),
    ):
        if rows:
            table = Table(title, "sd from the border")
            for text, z in rows:
                table.add_row(text, f"{z:+.2f}")
            out.print(table)
    if found.faint:
        table = Table("unsafe", "safe", "lead (sd)", title="pairs that do not contrast")
        for unsafe, safe, lead in found.faint:
            table.add_row(unsafe, safe, f"{lead:+.2f}")
        out.print(table)


@app.command("compile")
def compile_command(
    concepts: Annotated[list[str], typer.Argument(help="Bundled concepts or recipe files.")],
    encoder: EncoderOption,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write NAME.safetensors into this folder.")
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the directions of concepts on a text encoder; kept in the cache, read from there the next time."""
    loaded = _encoder(encoder, device, tokenizer)
    found = _directions(loaded, concepts)
    written = [d.save(folder / f"{d.concept}.safetensors") for d in found] if folder else []
    if as_json:
        _print_json([_plain(d) for d in found])
        return
    table = Table("concept", "space", "area under ROC", "unsafe outside", "safe outside", "border (sd)", "length (sd)")
    for d in found:
        for space in d.spaces:
            figures = [
                d.calibration.get(f"{space}.{key}") for key in ("area", "found", "safe_moved", "border", "length")
            ]
            table.add_row(d.concept, space, *("" if f is None else f"{f:.3f}" for f in figures))
    out.print(table)
    out.print("measured on the recipe's own held-out pairs", style="dim")
    for path in written:
        out.print(f"written: {path}", highlight=False)


@app.command()
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
    as_json: JsonOption = False,
) -> None:
    """Say how far prompts lie from the border of each concept, and what the guard does to them."""
    from .region import SafeRegion

    loaded = _encoder(encoder, device, tokenizer)
    region = SafeRegion(_directions(loaded, concept), strength, mode)
    rows = []
    for i, prompt in enumerate(prompts, 1):
        c = loaded.encode([prompt])
        _, report = region.apply(c)
        strings = loaded.token_strings(prompt)
        if heat_map is not None:
            from .picture import heat_map as paint

            where = heat_map if len(prompts) == 1 else heat_map.with_name(f"{heat_map.stem}-{i}{heat_map.suffix}")
            _write_png(paint(report, strings, title=prompt), where)
        scores = region.score(c)[0].tolist()
        rows.append({"prompt": prompt, "scores": dict(zip(region.names, scores, strict=True)), **report.to_dict()})
        if not as_json:
            table = Table("concept", "sd from the border", title=prompt[:100], title_justify="left")
            for name, score in zip(region.names, scores, strict=True):
                table.add_row(name, f"[red]{score:+.2f} outside[/red]" if score > 0 else f"{score:+.2f} inside")
            out.print(table)
            out.print(report.text([strings]), highlight=False, markup=False)
    if as_json:
        _print_json(rows)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A vector of the paper (.pth with tensors b and a).")],
    name: Annotated[str, typer.Option("--name", "-n", help="The concept it removes.")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The direction file to write (.safetensors).")],
    licence: Annotated[str, typer.Option(help="Licence of the vector.")] = "",
) -> None:
    """Bring in a vector published with the paper (Li et al. 2025); it steers."""
    from .paper import import_paper_vector

    directions = import_paper_vector(source, name, licence=licence)
    directions.save(path)
    out.print(f"written: {path} (steers only: use mode 'steer')", highlight=False)


@export_app.command("checkpoint")
def export_checkpoint(path: Annotated[Path, typer.Argument(help="The checkpoint to write (.safetensors).")]) -> None:
    """Write the tiny diffusion model in Stable Diffusion 1.x's original key layout, which both hosts load."""
    from . import microworld

    microworld.load().export(path)
    out.print(f"written: {path}", highlight=False)


@export_app.command("vector")
def export_vector(
    source: Annotated[Path, typer.Argument(help="A direction file.")],
    path: Annotated[Path, typer.Argument(help="The .pth to write.")],
) -> None:
    """Write a direction in the paper's format (tensors b and a), for its own code."""
    from .files import load_directions
    from .paper import export_paper_vector

    export_paper_vector(load_directions(source), path)
    out.print(f"written: {path}", highlight=False)


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(help="Direction files.")],
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="Also say whether they fit this encoder.")
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check direction files, and whether they fit an encoder."""
    from .files import load_directions
    from .fingerprint import fingerprint_of

    found = [load_directions(f) for f in files]
    mark = fingerprint_of(_encoder(encoder, device, tokenizer).encode) if encoder else None
    rows, code = [], 0
    for file, d in zip(files, found, strict=True):
        fits = None if mark is None or d.encoder is None else d.encoder.matches(mark)
        code = OTHER_ENCODER if mark is not None and not fits else code
        rows.append({"file": str(file), **_plain(d), "fits": fits})
        if not as_json:
            _show_directions(d, False)
            if mark is not None:
                far = None if d.encoder is None else d.encoder.distance(mark)
                word = "unknown: the file carries no fingerprint" if far is None else "yes" if fits else "no"
                out.print(
                    f"fits this encoder: {word}" + (f" (distance {far:.3f})" if far is not None else ""),
                    highlight=False,
                )
    if as_json:
        _print_json(rows)
    raise typer.Exit(code)


@bench_app.command("microworld")
def bench_microworld(
    pictures: Annotated[int, typer.Option(min=8, help="Pictures per cell.")] = 96,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Unsafe rate, content, benign identity and drift of each guard, on the tiny diffusion model."""
    from .bench import microworld as benchmark

    with progress("painting") as told:
        result = benchmark.run(pictures=pictures, steps=steps, guidance=guidance, progress=told)
    _bench_result(result, benchmark.tables, path, as_json)


@bench_app.command("speed")
def bench_speed(
    rounds: Annotated[int, typer.Option(min=3, help="Paired rounds.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: DeviceOption = "cpu",
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Cost of guarding, compiling and importing, as ratios to one encoder pass (random full-size encoders)."""
    from .bench import speed as benchmark

    with progress("timing") as told:
        result = benchmark.run(rounds=rounds, threads=threads, device=device, progress=told)
    _bench_result(result, benchmark.tables, path, as_json)


@bench_app.command("language")
def bench_language(
    prompts: Annotated[Path, typer.Option(help="Folder with coco_dev.csv, i2p_dev.csv and ring_a_bell_dev.csv.")],
    concept: Annotated[list[str] | None, typer.Option("--concept", "-c", help="Concepts (default: all)")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the figures as a PNG.")] = None,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What the recipes find in prompts nobody here wrote, on a real language encoder."""
    from .bench import language as benchmark

    with progress("reading prompts") as told:
        result = benchmark.run(prompts, concept, progress=told)
    if plot is not None:
        benchmark.plot(result, plot)
    _bench_result(result, benchmark.tables, path, as_json)


@bench_app.command("vector")
def bench_vector(
    pictures: Annotated[int, typer.Option(min=2, help="Pictures per cell.")] = 48,
    updates: Annotated[int, typer.Option(min=1, help="Updates of each vector.")] = 410,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The published additive vector on the microworld: strength swept, and fairness vectors on skewed words."""
    from .bench import vector as benchmark

    with progress("training") as told:
        result = benchmark.run(pictures=pictures, updates=updates, progress=told)
    _bench_result(result, benchmark.tables, path, as_json)


@bench_app.command("peers")
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
    as_json: JsonOption = False,
) -> None:
    """Every guard on the tiny diffusion model: published and tuned, attacked, with what it spares and costs."""
    from .bench import peers as benchmark

    with progress("painting") as told:
        if tune:
            result, shown = benchmark.tune_all(pictures, steps, guidance, guard or (), told), benchmark.tuning_tables
        elif transfer:
            from .bench.peers import transfer as other

            result, shown = other.run(pictures, steps, guidance, told, discovered), other.tables
        else:
            before = json.loads(path.read_text("utf-8")) if add and path is not None and path.is_file() else None
            save = None if path is None else lambda found: _write_json(found, path)
            result = benchmark.run(pictures, steps, guidance, attacked, guard or (), told, before, save, discovered)
            shown = benchmark.tables
            if plot is not None:
                benchmark.plot(result, plot)
    _bench_result(result, shown, path, as_json)


def _bench_result(
    result: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]], path: Path | None, as_json: bool
) -> None:
    if path is not None:
        _write_json(result, path)
    if as_json:
        _print_json(result)
        return
    for table in tables(result):
        out.print(table)


def _write_json(result: dict[str, Any], path: Path) -> None:
    from .files import write_whole

    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())


def _plain(d: ConceptDirections) -> dict[str, Any]:
    return {
        "concept": d.concept,
        "title": d.title,
        "kind": d.kind,
        "version": d.version,
        "method": d.method,
        "family": d.family,
        "encoder": str(d.encoder) if d.encoder else None,
        "recipe": d.recipe,
        "window": list(d.window),
        "licence": d.licence,
        "calibration": dict(d.calibration),
        "spaces": {n: {"width": s.width, "half_spaces": s.facets, "positions": s.period} for n, s in d.spaces.items()},
    }


def _show_directions(d: ConceptDirections, as_json: bool) -> None:
    if as_json:
        _print_json(_plain(d))
        return
    table = Table(
        title=f"{d.title or d.concept} ({d.concept}, {d.method}, version {d.version})",
        title_justify="left",
        show_header=False,
    )
    for name, s in d.spaces.items():
        border = "a border" if s.calibrated else "no border, steers only"
        table.add_row(f"space {name}", f"{s.width} wide, {s.facets} half-space(s), {s.period} position(s), {border}")
    table.add_row("encoder", f"{d.family or 'unnamed'} {str(d.encoder)[:60]}…" if d.encoder else "unknown")
    table.add_row("step window", f"{d.window[0]:g} to {d.window[1]:g}")
    for key, value in d.calibration.items():
        table.add_row(key, f"{value:g}")
    table.add_row("licence", d.licence or "not given")
    out.print(table)


def _write_png(picture: Any, path: Path) -> None:
    import io

    from PIL import Image

    from .files import write_whole

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


if __name__ == "__main__":
    main()
