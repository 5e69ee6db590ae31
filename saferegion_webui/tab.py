"""The tab: inspect a prompt, list concepts, make one from words, import and export direction files."""

from __future__ import annotations

import html
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.guard.files import load_directions
from saferegion.learn.recipes import RECIPE_FORMAT, Concept, read_recipe

from .arguments import MODES, STRONGEST, Arguments
from .guards import concept_names, library, user_folder
from .refusal import SafeRegionRefused

NO_LICENCE = "unspecified"


def inspect(prompt: str, concepts: list[str], strength: float, mode: str) -> tuple[Any, list[list[Any]], str]:
    """Heat map, table of scores and a sentence for a prompt as it would be typed; makes no picture."""
    import torch
    from modules import shared
    from PIL import Image

    from saferegion.view.heat_map import heat_map

    from .encoder import token_strings, without_extra_networks
    from .generation import describe, guards

    arguments = Arguments.parse(
        [{"enabled": True, "concepts": list(concepts or []), "strength": strength, "mode": mode}]
    )
    guard, encoder = guards.get(shared.sd_model, arguments, None)
    with torch.no_grad(), without_extra_networks(None):
        _, report = guard.apply(encoder.encode_as_typed(prompt))
    words = token_strings(shared.sd_model, prompt)
    table = [
        [f.title, f.space, f.before, f.after, len(f.tokens)]
        for region in report.reports
        for f in region.findings
        if f.before is not None
    ]
    picture = Image.fromarray(heat_map(report.reports[0], words, title=prompt))
    return picture, table, describe(report, 0, words)


def concepts_table() -> list[list[str]]:
    """Name, title, kind and origin of every concept; what is wrong with one that cannot be read."""
    found = library()
    rows = []
    for name in found.names():
        origin = "yours" if any(user_folder().glob(f"{name}.*")) else "bundled"
        try:
            concept = found.find(name)
            kind = "recipe" if isinstance(concept, Concept) else f"directions, {concept.method}"
            rows.append([name, concept.title or name, concept.kind, kind, origin])
        except SafeRegionError as error:
            rows.append([name, str(error), "", "cannot be used", origin])
    return rows


def make_concept(name: str, avoid: str, instead: str, sentences: str) -> str:
    """Write a recipe of the user's words into their folder, and say so."""
    import yaml

    arguments = Arguments.parse(
        [{"enabled": True, "concepts": [], "avoid": avoid, "instead": instead, "sentences": sentences}]
    )
    concept = Concept.from_words(name, arguments.avoid, arguments.instead, arguments.sentences)
    if concept.name in library().names():
        raise SafeRegionRefused(f"There is a concept '{concept.name}' already: choose another name.")
    recipe = {
        "format": RECIPE_FORMAT,
        "name": concept.name,
        "title": concept.title,
        "kind": concept.kind,
        "version": concept.version,
        "licence": NO_LICENCE,
        "pairs": [{"unsafe": unsafe, "safe": safe} for unsafe, safe in concept.pairs],
    }
    text = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        read_recipe(path)

    _keep(write, f"{concept.name}.yaml")
    return f"'{concept.name}' is in {user_folder()}; it is compiled when it is first used."


def import_file(path: str) -> str:
    """Check a direction file or recipe and put it into the user's folder."""
    source = Path(path)
    if source.suffix == ".safetensors":
        name = load_directions(source).concept
    elif source.suffix in (".yaml", ".yml"):
        name = read_recipe(source).name
    else:
        raise SafeRegionRefused(f"{source.name} is neither a direction file (.safetensors) nor a recipe (.yaml).")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
        raise SafeRegionRefused(f"{source.name} names its concept {name!r}, which cannot be a file's name.")
    if name in library().names():
        raise SafeRegionRefused(f"There is a concept '{name}' already: remove it first, or rename the new one.")
    _keep(lambda target: shutil.copyfile(source, target), f"{name}{source.suffix}")
    return f"'{name}' is in {user_folder()} and can be chosen."


def export_file(name: str) -> str:
    """A direction file of a concept for the checkpoint that is loaded; compiled now where it was not."""
    from modules import shared

    from .generation import guards

    if not name:
        raise SafeRegionRefused("Choose a concept to export first.")
    found = library().find(name)
    if isinstance(found, Concept):
        found = guards.directions(shared.sd_model, [name])[0]
    return str(found.save(Path(tempfile.mkdtemp(prefix="safe-region-")) / f"{name}.safetensors"))


def _keep(write: Callable[[Path], object], name: str) -> None:
    """A whole file or none."""
    folder = user_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
            write(Path(new) / name)
            os.replace(Path(new) / name, folder / name)
    except OSError as error:
        raise SafeRegionRefused(f"{folder} cannot be written: {error.strerror or error}.") from None


def _answer(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """``function`` in the host's queue, with a message behind its outputs: what it refuses is shown, not thrown."""
    from modules import call_queue, shared

    @wraps(function)
    def answer(*values: Any) -> Any:
        try:
            with call_queue.queue_lock:
                shared.state.begin(job="safe-region")
                try:
                    found = function(*values)
                finally:
                    shared.state.end()
        except (SafeRegionError, OSError) as error:
            return (*[None] * outputs, f"<div class='error'>{html.escape(str(error))}</div>")
        found = found if isinstance(found, tuple) else (found,)
        if len(found) == outputs:
            return (*found, "")
        return (*found[:-1], f"<div>{html.escape(str(found[-1]))}</div>")

    return answer


def build() -> list[tuple[Any, str, str]]:
    """The tab, as the host wants it."""
    import gradio as gr

    names = concept_names()
    heads = ["concept", "space", "before (sd from the border)", "after", "tokens outside"]
    with gr.Blocks(analytics_enabled=False) as block:
        with gr.Tab("Inspect a prompt", elem_id="safe_region_tab_inspect"), gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt to inspect", lines=3, elem_id="safe_region_prompt")
                chosen = gr.Dropdown(
                    choices=names, multiselect=True, label="Concepts to look for", elem_id="safe_region_chosen"
                )
                strength = gr.Slider(
                    0.0, STRONGEST, value=1.0, step=0.05, label="Strength to try", elem_id="safe_region_strength"
                )
                mode = gr.Radio(list(MODES), value=MODES[0], label="Mode to try", elem_id="safe_region_mode")
                look = gr.Button("Inspect", variant="primary", elem_id="safe_region_inspect")
            with gr.Column():
                picture = gr.Image(label="Distance of each token from the border", elem_id="safe_region_heat_map")
                table = gr.Dataframe(headers=heads, label="Scores", elem_id="safe_region_scores")
                seen = gr.HTML(elem_id="safe_region_inspected")
        with gr.Tab("Concepts", elem_id="safe_region_tab_concepts"):
            listed = gr.Dataframe(
                headers=["name", "title", "kind", "made of", "origin"],
                label="Concepts there are",
                elem_id="safe_region_list",
            )
            with gr.Row():
                refresh = gr.Button("List concepts", elem_id="safe_region_refresh")
            with gr.Row():
                with gr.Column():
                    name = gr.Textbox(label="Name of the new concept", elem_id="safe_region_name")
                    avoid = gr.Textbox(label="Words to avoid", elem_id="safe_region_avoid")
                    instead = gr.Textbox(label="Words in their place", elem_id="safe_region_instead")
                    sentences = gr.Textbox(
                        label="Sentences with {} for the words", lines=3, elem_id="safe_region_sentences"
                    )
                    make = gr.Button("Make the concept", variant="primary", elem_id="safe_region_make")
                with gr.Column():
                    upload = gr.File(
                        label="Direction file or recipe to import",
                        file_types=[".safetensors", ".yaml", ".yml"],
                        elem_id="safe_region_upload",
                    )
                    take = gr.Button("Import", elem_id="safe_region_import")
                    which = gr.Dropdown(choices=names, label="Concept to export", elem_id="safe_region_which")
                    give = gr.Button("Export for this checkpoint", elem_id="safe_region_export")
                    file = gr.File(label="Exported direction file", interactive=False, elem_id="safe_region_file")
            said = gr.HTML(elem_id="safe_region_said")

        def relist() -> tuple[Any, ...]:
            choices = concept_names()
            return (concepts_table(), gr.update(choices=choices), gr.update(choices=choices))

        lists = [listed, chosen, which]
        look.click(_answer(inspect, 2), inputs=[prompt, chosen, strength, mode], outputs=[picture, table, seen])
        refresh.click(relist, outputs=lists)
        make.click(_answer(make_concept, 0), inputs=[name, avoid, instead, sentences], outputs=[said]).then(
            relist, outputs=lists
        )
        take.click(_answer(_import_uploaded, 0), inputs=[upload], outputs=[said]).then(relist, outputs=lists)
        give.click(_answer(export_file, 1), inputs=[which], outputs=[file, said])
    return [(block, "Safe Region", "safe_region")]


def _import_uploaded(upload: Any) -> str:
    if upload is None:
        raise SafeRegionRefused("Choose a file to import first.")
    path = upload if isinstance(upload, str) else upload.name
    return import_file(path)
