"""``saferegion discover``: learn a concept's border and shift through a diffusion model."""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saferegion.core.errors import DiscoverError, SafeRegionError

from . import console
from .encoder import MICROWORLD

if TYPE_CHECKING:
    from saferegion.core.direction import Direction
    from saferegion.discover import DiscoverySettings
    from saferegion.learn.recipes import Concept

STOPPED = 130
RESUME = ".resume"
"""Ending of the file beside the result that a run goes on from."""


class Dtype(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Method(str, Enum):
    region = "region"
    vector = "vector"


def discover_command(
    name: Annotated[str, typer.Argument(help="A bundled concept or a recipe file.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-m",
            help="A Stable Diffusion 1 or 2 checkpoint (.safetensors) or diffusers folder, or "
            f"'{MICROWORLD}', the tiny model inside this package.",
        ),
    ],
    path: Annotated[Path, typer.Option("--out", "-o", help="The direction file to write (.safetensors).")],
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures painted of each prompt it is asked about.")] = 1,
    prompts: Annotated[
        int, typer.Option(min=24, help="How many benign prompts the model is asked about: more finds more.")
    ] = 400,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance of the pictures.")] = 4.0,
    sampling: Annotated[int, typer.Option("--sampling-steps", min=2, max=1000, help="Steps of a picture.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that go through the model together.")] = 32,
    size: Annotated[int | None, typer.Option(min=8, help="Width of the pictures (default: the model's own).")] = None,
    method: Annotated[
        Method, typer.Option(help="region: border and shift, so that benign prompts stay; vector: the paper's.")
    ] = Method.region,
    neutral: Annotated[
        Path | None, typer.Option(help="A file of benign prompts (saferegion-neutral/1) instead of those bundled.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the diffusion model's weights.")] = Dtype.float32,
    save_memory: Annotated[
        bool, typer.Option("--save-memory", help="Recompute activations instead of keeping them: slower, smaller.")
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer directory for a checkpoint (default: the CLIP tokenizer in this package)."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from where a run to the same file was stopped or killed.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Write the loss over the steps as a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Learn a concept's border and shift through a diffusion model, also for prompts that do not say it.

    Ctrl-C while it learns stops after the step that runs and writes the best so far. A run that was killed goes on
    where it was when the same command is given again.
    """
    from saferegion.discover import DiscoverySettings
    from saferegion.learn.prompts import spread
    from saferegion.learn.recipes import Concept, read_neutral

    if path.suffix != ".safetensors":
        raise SafeRegionError(f"A direction file ends in .safetensors; got {path.name!r}.")
    for target in (path, plot):
        if target is not None and not target.parent.is_dir():
            raise SafeRegionError(f"There is no folder {target.parent}: make it, or give another.")
    benign = None if neutral is None else read_neutral(neutral)
    model = _read(checkpoint, device, dtype, size, tokenizer, benign)
    concept = model.library.find(name)
    if not isinstance(concept, Concept):
        raise SafeRegionError(f"{name} is a direction file; a concept is discovered from its recipe.")
    settings = (dtype.value, size, seed, steps, pictures, prompts, guidance, sampling, batch_size, method.value)
    kept = path.with_name(f"{path.name}.{_tag(checkpoint, *settings)}{RESUME}")
    if not resume:
        kept.unlink(missing_ok=True)
    with _stoppable() as stopped, _bar(stopped) as bar:
        how = DiscoverySettings(
            method=method.value,
            seed=seed,
            steps=steps,
            pictures=pictures,
            sampling_steps=sampling,
            guidance=guidance,
            batch_size=batch_size,
            checkpoint=kept,
            family=model.family,
            progress=bar.step,
            told=bar.tell,
            stop=stopped,
            recompute=save_memory,
        )
        found = _discover(concept, model, spread(model.neutral, prompts), how)
        early = stopped()
    found.save(path)
    if plot is not None:
        from saferegion.view.curve import loss_curve

        console.write_png(loss_curve(found.meta.curve, f"{found.title}: loss"), plot)
    kept.unlink(missing_ok=True)
    if as_json:
        curve = list(found.meta.curve)
        console.print_json({**console.plain(found), "curve": curve, "stopped": early, "file": str(path)})
    else:
        _show(found, path, plot, early)
    if early:
        raise typer.Exit(STOPPED)


def _discover(concept: Concept, model: _Model, prompts: list[str], how: DiscoverySettings) -> Direction:
    """A direction, or one sentence; evidence that was gathered stays for another try where memory ran out."""
    import torch

    from saferegion.discover import discover

    kept = Path(str(how.checkpoint))
    new = not kept.exists()
    try:
        return discover(concept, model.encode, model.denoiser, prompts, how)
    except KeyboardInterrupt:
        console.err.print("stopped before anything was learned; nothing half-written was left", style="red")
        raise typer.Exit(STOPPED) from None
    except DiscoverError:
        if new:  # what led to a refusal leads to it again
            kept.unlink(missing_ok=True)
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise SafeRegionError(
            "The device ran out of memory: give --save-memory, --dtype float16, or a smaller --batch-size or --size."
        ) from error


def _tag(checkpoint: str, *settings: Any) -> str:
    """Short, and another one for another model: a run does not go on with evidence from another."""
    known: list[Any] = [checkpoint, *settings]
    if checkpoint != MICROWORLD:
        place = Path(checkpoint).resolve()
        files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
        known += [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:8]


class _Model:
    """A text encoder and its diffusion model, with the concepts and neutral prompts that go with them."""

    def __init__(self, encode: Any, denoiser: Any, family: str, folders: tuple[Path, ...], neutral: Any) -> None:
        from saferegion.guard.library import Library

        self.encode, self.denoiser, self.family = encode, denoiser, family
        self.library = Library(folders)
        self.neutral = neutral if neutral is not None else self.library.neutral()


def _read(
    name: str, device: str, dtype: Dtype, size: int | None, tokenizer: Path | None, neutral: Sequence[str] | None
) -> _Model:
    import torch

    kind = getattr(torch, dtype.value)
    if name == MICROWORLD:
        from .. import microworld

        if size not in (None, 64):
            raise SafeRegionError(f"The microworld paints pictures of 64 pixels; got --size {size}.")
        try:
            world = microworld.load(device, kind)
        except (RuntimeError, AssertionError) as error:
            raise SafeRegionError(f"The device '{device}' cannot be used here: give another, such as cpu.") from error
        return _Model(world.encode, world, MICROWORLD, (microworld.DATA,), neutral or microworld.neutral_prompts())
    from .. import denoisers, encoders

    with console.err.status("reading the text encoder"):
        encoder = encoders.load(name, device=device, tokenizer=tokenizer)
    with console.err.status("reading the diffusion model"):
        denoiser = denoisers.load(name, device, kind, size)
    return _Model(encoder, denoiser, encoder.family, (), neutral)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once is remembered; twice ends at once."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        console.err.print("stopping after this step; once more to stop at once", style="dim")

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A bar on standard error with the stage, the loss and the time left."""

    def __init__(self, bar: Progress, stopped: Callable[[], bool]) -> None:
        self.bar, self.stopped, self.learns = bar, stopped, False
        self.task = bar.add_task("starting", total=None, loss="")

    def step(self, done: int, total: int) -> None:
        if self.stopped() and not self.learns:  # there is nothing to keep yet
            raise KeyboardInterrupt
        self.bar.update(self.task, completed=done, total=total)

    def tell(self, stage: str, loss: float) -> None:
        self.learns = not math.isnan(loss) or self.learns
        self.bar.update(self.task, description=stage, loss="" if math.isnan(loss) else f"loss {loss:.4f}")


@contextmanager
def _bar(stopped: Callable[[], bool]) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console.err, transient=True, disable=not console.err.is_terminal) as bar:
        yield _Bar(bar, stopped)


def _show(found: Direction, path: Path, plot: Path | None, early: bool) -> None:
    if early:
        console.out.print(
            f"stopped after {len(found.meta.curve)} steps; the best so far is kept", style="yellow", highlight=False
        )
    console.show_directions(found, False)
    console.out.print(f"written: {path}", highlight=False)
    if plot is not None:
        console.out.print(f"loss: {plot}", highlight=False)
