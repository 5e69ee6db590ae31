"""The tab: inspect a prompt, list concepts, make one from words, import and export direction files."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.core.region import MODES, STRONGEST
from saferegion.core.report import TOLD_BY
from saferegion.core.writing import write_whole
from saferegion.guard.library import OWN
from saferegion.guard.second_look import finds_more, undisguised, without_disguise
from saferegion.learn.bundled import RECIPE_SUFFIXES
from saferegion.learn.recipes import NAME, Concept, recipe_text

from .arguments import Arguments
from .generation import guards
from .guards import concept_names, library, user_folder
from .host import without_extra_networks
from .refusal import SafeRegionRefused
from .telling import pictures, shown, told

NO_LICENCE = "unspecified"


def inspect(prompt: str, concepts: list[str], strength: float, mode: str) -> tuple[Any, list[list[Any]], str]:
    """Heat map, table of distances and a sentence for a prompt as it would be typed; makes no picture."""
    import torch
    from modules import shared

    arguments = Arguments.parse(
        [{"enabled": True, "concepts": list(concepts or []), "strength": strength, "mode": mode}]
    )
    guard, encoder = guards.get(shared.sd_model, arguments, None)
    plain = undisguised(guards.normaliser(encoder, arguments), prompt)
    names = guards.names(arguments)
    with torch.no_grad(), without_extra_networks(None):
        _, report = guard.naming(names(prompt)).apply(encoder.encode_as_typed(prompt))
        if plain is not None:
            _, again = guard.naming(names(plain.text)).apply(encoder.encode_as_typed(plain.text))
            if finds_more(report, again):
                report, prompt = without_disguise(again, plain.undone), plain.text
    words = encoder.words(prompt)
    table = [
        [f.title, f.before, f.after, ", ".join(TOLD_BY[h] for h in f.how)]
        for region in report.reports
        for f in shown(region, 0)
        if f.before is not None
    ]
    picture = next(iter(pictures(report, 0, words, prompt)), None)
    return picture, table, told(report, 0, words)


def concepts_table() -> list[list[str]]:
    """Name, title, kind and origin of every concept; what is wrong with one that cannot be read."""
    found = library()
    rows = []
    for name in found.names():
        origin = "yours" if name.startswith(OWN) else "bundled"
        try:
            concept = found.find(name)
            kind = "recipe" if isinstance(concept, Concept) else f"directions, {concept.method}"
            rows.append([name, concept.title or name, concept.kind, kind, origin])
        except SafeRegionError as error:
            rows.append([name, str(error), "", "cannot be used", origin])
    return rows


def make_concept(name: str, avoid: str, instead: str, sentences: str) -> str:
    """Write a recipe of the user's words into their folder, and say so."""
    words = Arguments.parse(
        [{"enabled": True, "concepts": [], "avoid": avoid, "instead": instead, "sentences": sentences}]
    )
    concept = Concept.from_words(name, words.avoid, words.instead, words.sentences)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{concept.name}.yaml"
        path.write_text(recipe_text(replace(concept, licence=NO_LICENCE)), encoding="utf-8")
        return import_file(path)


def import_file(path: str | Path) -> str:
    """Check a direction file or recipe and put it into the user's folder."""
    source = Path(path)
    if source.suffix not in (*RECIPE_SUFFIXES, ".safetensors"):
        raise SafeRegionRefused(f"{source.name} is neither a direction file (.safetensors) nor a recipe (.yaml).")
    found = library().find(source)
    name = found.name if isinstance(found, Concept) else found.concept
    if not NAME.fullmatch(name):
        raise SafeRegionRefused(f"{source.name} names its concept {name!r}, which cannot be a file's name.")
    if OWN + name in concept_names():
        raise SafeRegionRefused(f"There is a concept '{OWN}{name}' already: remove it first, or take another name.")
    folder = user_folder()
    try:
        write_whole(folder / f"{name}{source.suffix}", source.read_bytes())
    except OSError as error:
        raise SafeRegionRefused(f"{folder} cannot be written: {error.strerror or error}.") from None
    return f"'{OWN}{name}' is in {folder} and can be chosen; a recipe is compiled when it is first used."


def export_file(name: str) -> str:
    """A direction file of a concept for the checkpoint that is loaded; compiled now where it was not."""
    from modules import shared

    if not name:
        raise SafeRegionRefused("Choose a concept to export first.")
    (direction,) = guards.directions(shared.sd_model, [name])
    folder = Path(tempfile.mkdtemp(prefix="safe-region-"))
    return str(direction.save(folder / f"{name.removeprefix(OWN)}.safetensors"))


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
    heads = ["concept", "before", "after", "told by"]
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
    return import_file(upload if isinstance(upload, str) else upload.name)
