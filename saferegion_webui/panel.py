"""The accordion in txt2img and img2img: one box, what to keep out, one strength; everything else is folded away."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.core.region import MODES, STRONGEST
from saferegion.guard.library import OWN
from saferegion.guard.presets import NORMAL, PRESETS
from saferegion.learn.recipes import Concept

from . import balance_panel, generation, page
from .arguments import Arguments, show
from .guards import concept_names, library, speed, spell
from .refusal import SafeRegionRefused
from .settings import TITLE, default_concepts, loaded_checkpoint, option

ROWS = 16
"""Concepts that can have a strength of their own on the page; over the API, any number."""
LONGEST = 150
"""Characters of a description."""
ROWS_OF_ONE, ROWS_OF_ALL = 1500, 4000
"""Prompts that are encoded for one concept at first use, and for all that are bundled, at most."""


@lru_cache(maxsize=256)
def _described(name: str, path: Path, changed: int) -> tuple[str, str, str]:
    try:
        found = library().find(name)
    except SafeRegionError as error:
        return name, f"cannot be used: {error}", ""
    if not isinstance(found, Concept):
        return found.meta.title or name.removeprefix(OWN), "a direction file", found.kind
    first = re.split(r"(?<=[.!?])\s", " ".join(found.description.split()), maxsplit=1)[0]
    short = first if len(first) <= LONGEST else first[: LONGEST - 1].rsplit(" ", 1)[0] + "…"
    return found.title or name.removeprefix(OWN), short, found.kind


def described(name: str) -> tuple[str, str, str]:
    """Title, a short description, and the kind of a concept; the kind is empty where it cannot be used."""
    try:
        path = library().where(name)
        return _described(name, path, path.stat().st_mtime_ns)
    except (SafeRegionError, OSError) as error:
        return name, f"cannot be used: {error}", ""


def choices() -> list[str]:
    """Names of the concepts that can be kept out."""
    return [name for name in concept_names() if described(name)[2] != "balance"]


def headline(names: Sequence[str]) -> str:
    """What the box of the accordion says."""
    if not names:
        return f"{TITLE}: nothing chosen yet"
    return f"{TITLE}: keep out " + ", ".join(described(name)[0].lower() for name in names)


def explained(names: Sequence[str]) -> str:
    """HTML: what each chosen concept means, and what its first use costs."""
    items = "".join(
        f"<li><b>{html.escape(title)}</b> {html.escape(text)}</li>"
        for title, text, _ in (described(name) for name in names or [])
    )
    notice = first_use(loaded_checkpoint(), names or [])
    said = f"<p class='safe-region-first'>{html.escape(notice)}</p>" if notice else ""
    return f"<ul class='safe-region-concepts'>{items}</ul>{said}"


def first_use(checkpoint: Any, names: Sequence[str]) -> str:
    """What people are told before the first use of concepts with a checkpoint; nothing where all are ready."""
    ready = {name for n in generation.guards.ready(checkpoint) for name in (n, OWN + n)}
    missing = [name for name in names if checkpoint is not None and name not in ready]
    if not missing:
        return ""
    count = min(ROWS_OF_ALL, ROWS_OF_ONE + (len(missing) - 1) * 300)
    took = f", about {spell(count * speed[-1])}" if speed else ""
    return (
        f"The first picture takes longer: up to {count:,} short prompts are read once for this checkpoint{took} "
        "(none where it was done before). The progress bar counts them, and Interrupt stops it."
    )


def rows(names: Sequence[str], strength: float, strengths: str) -> list[tuple[str, float]]:
    """Title and strength of each chosen concept, as the sliders show them."""
    own = _own(names, strengths)
    return [(described(name)[0], own.get(name, strength)) for name in list(names or [])[:ROWS]]


def strengths_of(names: Sequence[str], strength: float, strengths: str, values: Sequence[float]) -> str:
    """The text of the strengths that differ from the one of all, from the sliders; others keep theirs."""
    known = list(names or [])
    moved = {n: float(v) for n, v in zip(known[:ROWS], values, strict=False) if float(v) != float(strength)}
    kept = {n: v for n, v in _own(names, strengths).items() if n in known[ROWS:]}
    return str(show("strengths", tuple({**moved, **kept}.items())))


def _own(names: Sequence[str], strengths: str) -> dict[str, float]:
    if not names or not (strengths or "").strip():
        return {}
    try:
        read = Arguments.parse([{"enabled": True, "concepts": list(names), "strengths": strengths, "avoid": "x"}])
    except SafeRegionRefused:
        return {}
    return dict(read.strengths)


def controls(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """The script's components by the names of its arguments, in their order; makes nothing else."""
    import gradio as gr
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion

    names = choices()
    chosen = [name for name in page.listed(default_concepts()) if name in names]
    with InputAccordion(bool(option("default_on", False)), label=TITLE, elem_id=elem_id("enabled")) as enabled:
        with gr.Row():
            concepts = gr.Dropdown(
                choices=names, value=chosen, multiselect=True, label="Keep out", elem_id=elem_id("concepts")
            )
            create_refresh_button(concepts, lambda: None, lambda: {"choices": choices()}, elem_id("refresh_concepts"))
        about = gr.HTML(explained(chosen), elem_id=elem_id("about"))
        with gr.Row():
            strength = _slider(
                gr, elem_id("strength"), "How strongly", info="1 is made for everyday use; 0 changes nothing."
            )
            careful = "strict finds more, and changes more that is harmless."
            preset = _radio(gr, elem_id("preset"), "How careful", PRESETS, value=NORMAL, info=careful)
        heat_map = gr.Checkbox(
            value=False, label="Show what was found as a picture (heat map)", elem_id=elem_id("heat_map")
        )
        with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
            with gr.Accordion("How strongly, for each of them", open=False, elem_id=elem_id("each")):
                shown = [described(name)[0] for name in chosen[:ROWS]]
                labels = [*shown, *(f"Concept {i + 1}" for i in range(len(shown), ROWS))]
                sliders = [
                    _slider(gr, elem_id(f"strength_{i}"), label, visible=i < len(shown))
                    for i, label in enumerate(labels)
                ]
            with gr.Accordion("Keep out words of your own", open=False, elem_id=elem_id("own")):
                avoid = gr.Textbox(
                    value="", label="Own words to keep out", placeholder="fire, in flames", elem_id=elem_id("avoid")
                )
                instead = gr.Textbox(
                    value="", label="Own words instead", placeholder="fog, in mist", elem_id=elem_id("instead")
                )
                sentences = gr.Textbox(
                    value="",
                    lines=2,
                    label="Sentences for own words",
                    placeholder="One a line, with {} where the words go; empty: general ones.",
                    elem_id=elem_id("sentences"),
                )
            ways = "project changes only what shows it; steer and erase change every picture."
            mode = _radio(gr, elem_id("mode"), "Way of keeping out", MODES, value=MODES[0], info=ways)
            guard_negative = gr.Checkbox(
                value=False, label="Look at the negative prompt too", elem_id=elem_id("guard_negative")
            )
        strengths = gr.Textbox(
            value="", label="Strengths of single concepts", visible=False, elem_id=elem_id("strengths")
        )
    concepts.do_not_save_to_config = True  # the choices change with the files of the user
    for slider in (strength, *sliders):
        slider.do_not_save_to_config = True  # ui-config.json would freeze its range
    _connect(gr, enabled, (concepts, strength, strengths), about, sliders)
    return {
        "enabled": enabled,
        "concepts": concepts,
        "strength": strength,
        "strengths": strengths,
        "mode": mode,
        "avoid": avoid,
        "instead": instead,
        "sentences": sentences,
        "guard_negative": guard_negative,
        "heat_map": heat_map,
        "preset": preset,
        **balance_panel.controls(elem_id),
    }


def _slider(gr: Any, elem_id: str, label: str, **more: Any) -> Any:
    """Of a strength."""
    return gr.Slider(minimum=0.0, maximum=STRONGEST, step=0.05, value=1.0, label=label, elem_id=elem_id, **more)


def _radio(gr: Any, elem_id: str, label: str, choices: Iterable[str], **more: Any) -> Any:
    return gr.Radio(choices=list(choices), label=label, elem_id=elem_id, **more)


def _connect(gr: Any, enabled: Any, inputs: Sequence[Any], about: Any, sliders: Sequence[Any]) -> None:
    """The box says what is chosen; the sliders and the hidden text of strengths follow each other."""
    concepts, strength, strengths = inputs
    accordion = getattr(enabled, "accordion", None)
    quiet = {"queue": False, "show_progress": "hidden"}

    def follow(names: Any, one: Any, text: Any) -> list[Any]:
        shown = rows(names, float(one or 0), text)
        return [
            gr.update(visible=True, label=shown[i][0], value=shown[i][1])
            if i < len(shown)
            else gr.update(visible=False, value=float(one or 0))
            for i in range(ROWS)
        ]

    def told(names: Any) -> list[Any]:
        said = [gr.update(value=explained(names))]
        return said if accordion is None else [*said, gr.update(label=headline(names))]

    if accordion is not None:
        accordion.label = headline(concepts.value or [])
    concepts.change(told, inputs=[concepts], outputs=[about, *([] if accordion is None else [accordion])], **quiet)
    for component in (concepts, strength, strengths):
        component.change(follow, inputs=list(inputs), outputs=list(sliders), **quiet)

    def write(names: Any, one: Any, text: Any, *values: Any) -> str:
        return strengths_of(names, float(one or 0), text, [float(v or 0) for v in values])

    for slider in sliders:
        slider.input(write, inputs=[*inputs, *sliders], outputs=[strengths], **quiet)
