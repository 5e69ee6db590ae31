"""``saferegion concepts``: list, show, begin and measure recipes."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from saferegion.core.errors import SafeRegionError

from . import console
from .encoder import DeviceOption, EncoderOption, TokenizerOption, directions_of, encoder_of

app = typer.Typer(no_args_is_help=True, help="The concepts that can be named.")


@app.command("list")
def concepts_list(as_json: console.JsonOption = False) -> None:
    """List the bundled concepts."""
    from saferegion.learn.bundled import bundled_names, label
    from saferegion.learn.places import vectors_folder

    folder = vectors_folder()
    found = [label(folder / f"{name}.yaml") for name in bundled_names(folder)]
    if as_json:
        console.print_json([asdict(c) for c in found])
        return
    table = Table("name", "title", "kind", "version", "what it is")
    for c in found:
        table.add_row(c.name, c.title, c.kind, c.version, c.description)
    console.out.print(table)


@app.command("show")
def concepts_show(
    name: Annotated[str, typer.Argument(help="A bundled concept, or a recipe or direction file.")],
    as_json: console.JsonOption = False,
) -> None:
    """Show what a concept is made of."""
    from saferegion.guard.library import load_concept
    from saferegion.learn.recipes import Concept

    c = load_concept(name)
    if not isinstance(c, Concept):
        console.show_directions(c, as_json)
        return
    if as_json:
        console.print_json(
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
    console.out.print(f"[bold]{c.title}[/bold] ({c.name}, {c.kind}, version {c.version}, {c.licence})", highlight=False)
    console.out.print(c.description, highlight=False, markup=False)
    table = Table("unsafe", "safe")
    for unsafe, safe in c.pairs:
        table.add_row(unsafe, safe)
    console.out.print(table)
    console.out.print("benign near neighbours: " + "; ".join(c.neutral), highlight=False, markup=False)


@app.command("new")
def concepts_new(
    path: Annotated[Path, typer.Argument(help="The recipe to write, NAME.yaml.")],
    avoid: Annotated[list[str] | None, typer.Option(help="A word or phrase to keep out; repeatable.")] = None,
    words: Annotated[Path | None, typer.Option(help="A text file of such words, one a line: names, say.")] = None,
    kind: Annotated[str, typer.Option(help="What they are: things, stuff, people, acts, looks or scenes.")] = "things",
    keep: Annotated[list[str] | None, typer.Option(help="What sounds like it and stays; repeatable.")] = None,
    instead: Annotated[list[str] | None, typer.Option(help="What may stand in its place, in sentences.")] = None,
    sentence: Annotated[list[str] | None, typer.Option(help="A sentence with {} where it goes; repeatable.")] = None,
    title: Annotated[str, typer.Option(help="What people read.")] = "",
) -> None:
    """Write a recipe from words, to be filled up by hand and measured with 'concepts check'; an example without any."""
    from saferegion.core.writing import write_whole
    from saferegion.learn.recipes import NAME, Concept, read_recipe, recipe_text, words_text
    from saferegion.learn.vocabulary import KINDS

    if path.exists():
        raise SafeRegionError(f"{path} is there already; give another name.")
    if path.suffix not in (".yaml", ".yml") or not NAME.fullmatch(path.stem):
        plain = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:64] or "name"
        raise SafeRegionError(f"Call the file {plain}.yaml: a concept is called like its file, in lower-case letters.")
    if kind not in KINDS:
        raise SafeRegionError(f"--kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    listed = list(dict.fromkeys(w.strip() for w in [*(avoid or ()), *_lines(words)] if w.strip()))
    if instead or sentence:
        text = recipe_text(Concept.from_words(path.stem, listed, instead or (), sentence or ()), title)
    elif listed:
        text = words_text(path.stem, {kind: listed}, keep or (), title)
    else:
        text = words_text(path.stem, EXAMPLE, EXAMPLE_SENSES, title, "An example: put your own words in their place.")
    write_whole(path, text.encode())
    try:
        made = read_recipe(path)
    except SafeRegionError:
        path.unlink()
        raise
    console.out.print(f"written: {path} ({len(made.pairs)} pairs)", highlight=False)


EXAMPLE = {
    "things": ["umbrella", "parasol", "rain umbrella", "broken umbrella"],
    "stuff": ["umbrellas"],
    "people": ["umbrella seller"],
}
EXAMPLE_SENSES = ["umbrella term", "umbrella pine", "cocktail umbrella"]


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise SafeRegionError(f"{path} cannot be read as text ({error}); give a file with one word a line.") from None


@app.command("check")
def concepts_check(
    name: Annotated[str, typer.Argument(help="A bundled concept or a recipe file.")],
    encoder: EncoderOption,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Measure a recipe on a text encoder: what it finds, what it moves that it should not, which pairs say nothing."""
    from dataclasses import asdict

    from saferegion.guard.library import Library
    from saferegion.learn.recipes import Concept

    from ..check import check

    loaded = encoder_of(encoder, device, tokenizer)
    library = Library(loaded.folders)
    concept = library.find(name)
    if not isinstance(concept, Concept):
        raise SafeRegionError(f"{name} is a direction file; only a recipe can be checked.")
    (directions,) = directions_of(loaded, [name])
    others = [c for c in library.recipes() if c.name != concept.name]
    with console.err.status("measuring"):
        found = check(
            concept, directions, loaded.encode, loaded.neutral or library.neutral(), others, loaded.token_strings
        )
    if as_json:
        console.print_json(asdict(found))
        return
    figures = Table("what", "share", title=f"{concept.title or concept.name} on {loaded.family}")
    figures.add_row("unsafe prompts found", f"{found.found:.1%}")
    figures.add_row("safe prompts left alone", f"{found.spared:.1%}")
    if found.own_inside is not None:
        figures.add_row("own neutral prompts left alone", f"{found.own_inside:.1%}")
    figures.add_row("shared neutral prompts left alone", f"{found.neutral_inside:.2%}")
    for other, share in found.nearest:
        figures.add_row(f"unsafe prompts of '{other}' found too", f"{share:.1%}")
    console.out.print(figures)
    terms = Table("told by (chosen on held-out pairs)", "separation (AUC)", "found")
    figures_of = [found.calibration.get(k) for k in ("area", "found")]
    terms.add_row(", ".join(found.terms), *("" if f is None else f"{f:.3f}" for f in figures_of))
    console.out.print(terms)
    for title, rows in (
        ("unsafe prompts that are not found", found.missed),
        ("benign prompts that are moved", found.caught),
        ("tokens that drive it", found.words),
    ):
        if rows:
            table = Table(title, "sd from the border")
            for text, z in rows:
                table.add_row(text, f"{z:+.2f}")
            console.out.print(table)
    if found.faint:
        table = Table("unsafe", "safe", "lead (sd)", title="pairs that do not contrast")
        for unsafe, safe, lead in found.faint:
            table.add_row(unsafe, safe, f"{lead:+.2f}")
        console.out.print(table)
