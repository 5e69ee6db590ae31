"""``saferegion pack``: compiled concepts of one text encoder as a folder, to be handed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from saferegion.core.errors import NotSeparableError, SafeRegionError

from . import console
from .encoder import MICROWORLD, DeviceOption, TokenizerOption, directions_of, encoder_of, pipeline_encoder

if TYPE_CHECKING:
    from saferegion.core.direction import Direction
    from saferegion.guard.packs import Pack

    from .encoder import Encoder

app = typer.Typer(no_args_is_help=True, help="Vector packs: concepts compiled for one text encoder, for others to use.")


@app.command("build")
def pack_build(
    folder: Annotated[Path, typer.Argument(help="The folder to write; a pack that is there is replaced.")],
    name: Annotated[str, typer.Option("--name", "-n", help="What people read: which encoder it is for.")],
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help=f"Text encoder: directory, checkpoint or '{MICROWORLD}'.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="In its place: a pipeline of diffusers (folder, .safetensors or hub id)."),
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", "-c", help="Only these concepts (default: all bundled).")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the pack.")] = "",
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Compile concepts on a text encoder and write them as a pack.

    Of the bundled concepts, those whose words the encoder does not know are left out and named.
    """
    from saferegion.guard.library import Library
    from saferegion.guard.packs import build, check

    if folder.is_file():
        raise SafeRegionError(f"{folder} is a file; give a folder for the pack.")
    if (encoder is None) == (model is None):
        raise typer.BadParameter("say which text encoder the pack is for, with either --encoder or --model")
    loaded = encoder_of(encoder, device, tokenizer) if encoder is not None else pipeline_encoder(str(model), device)
    found, left = _compiled(loaded, concept or Library().names(), every=not concept)
    build(folder, found, name=name, licence=licence)
    pack = check(folder)
    if as_json:
        console.print_json({**_plain(pack), "left_out": left})
        return
    _show(pack)
    for what, why in left.items():
        console.out.print(f"left out: {what} ({why})", highlight=False, markup=False)
    console.out.print(f"written: {folder}; others put it into 'packs' of their models folder", highlight=False)


def _compiled(encoder: Encoder, names: Sequence[str], every: bool) -> tuple[list[Direction], dict[str, str]]:
    """Directions, and why others were left out, which only happens where ``every`` concept was asked for."""
    wanted = list(names)
    left: dict[str, str] = {}
    while True:
        try:
            return directions_of(encoder, wanted), left
        except NotSeparableError as error:
            lost = [n for n in wanted if str(error).startswith(f"'{n}'")]
            if not every or not lost or len(lost) == len(wanted):
                raise
            left[lost[0]] = str(error)
            wanted.remove(lost[0])


@app.command("check")
def pack_check(
    folders: Annotated[list[Path], typer.Argument(help="Folders of packs.")], as_json: console.JsonOption = False
) -> None:
    """Check a pack: its index, every file, and that they belong together."""
    from saferegion.guard.packs import check

    found = [check(folder) for folder in folders]
    if as_json:
        console.print_json([_plain(p) for p in found])
        return
    for pack in found:
        _show(pack)


@app.command("list")
def pack_list(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders that hold 'packs' (default: the cache folder).")
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """List the packs that are looked through before anything is compiled."""
    from saferegion.guard.library import cache_folder
    from saferegion.guard.packs import list_packs

    places = folders or [cache_folder()]
    found = list_packs(places)
    good = [(path, pack) for path, pack in found if not isinstance(pack, Exception)]
    broken = [(path, pack) for path, pack in found if isinstance(pack, Exception)]
    if as_json:
        console.print_json(
            [_plain(p) for _, p in good] + [{"folder": str(path), "error": str(error)} for path, error in broken]
        )
        return
    if not found:
        console.out.print("no packs in " + ", ".join(str(p / "packs") for p in places), highlight=False)
    if good:
        table = Table("folder", "name", "concepts", "licence")
        for path, pack in good:
            table.add_row(str(path), pack.name, str(len(pack.entries)), pack.licence or "not given")
        console.out.print(table)
    for path, error in broken:
        console.out.print(f"refused: {path}: {error}", style="red", highlight=False, markup=False)


def _plain(pack: Pack) -> dict[str, object]:
    return {
        "folder": str(pack.folder),
        "name": pack.name,
        "encoder": str(pack.encoder),
        "method": pack.method,
        "licence": pack.licence,
        "files": [{"file": e.file, "concept": e.concept, "size": e.size} for e in pack.entries],
    }


def _show(pack: Pack) -> None:
    table = Table("concept", "file", "bytes", title=f"{pack.name} ({pack.licence or 'no licence given'})")
    for entry in pack.entries:
        table.add_row(entry.concept, entry.file, f"{entry.size:,}")
    console.out.print(table)
