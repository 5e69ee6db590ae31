"""The text encoder that a command names, with the concepts and neutral prompts that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console

if TYPE_CHECKING:
    from saferegion.core.conditioning import Conditioning
    from saferegion.core.direction import Direction

MICROWORLD = "microworld"

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


@dataclass(frozen=True)
class Encoder:
    """An encoder named on the command line, with the concepts and neutral prompts that go with it."""

    encode: Callable[[list[str]], Conditioning]
    token_strings: Callable[[str], list[str]]
    family: str
    folders: tuple[Path, ...] = ()
    neutral: tuple[str, ...] | None = None
    batch: int | None = None


def encoder_of(name: str, device: str, tokenizer: Path | None) -> Encoder:
    if name == MICROWORLD:
        from .. import microworld

        world = microworld.load(device)
        return Encoder(world.encode, world.token_strings, MICROWORLD, (microworld.DATA,), microworld.neutral_prompts())
    from .. import encoders

    with console.err.status("reading the text encoder"):
        loaded = encoders.load(name, device=device, tokenizer=tokenizer)
    return Encoder(loaded, loaded.token_strings, loaded.family)


def pipeline_encoder(model: str, device: str) -> Encoder:
    """The text encoder of a whole pipeline of diffusers, asked through the pipeline's own ``encode_prompt``."""
    from saferegion.diffusers import encoder_of as of

    from ..evaluate.painters import load_pipeline

    with console.err.status("reading the pipeline"):
        encode = of(load_pipeline(model, {}).to(device))
    return Encoder(encode, lambda prompt: [], encode.family, batch=encode.batch)


def directions_of(encoder: Encoder, names: list[str]) -> list[Direction]:
    from saferegion.guard.library import Library
    from saferegion.learn.settings import CompileSettings

    settings = CompileSettings(family=encoder.family)
    if encoder.batch is not None:
        settings = replace(settings, batch_size=encoder.batch)
    with console.compiling() as told:
        return Library(encoder.folders).directions(list(names), encoder.encode, encoder.neutral, told, settings)
