"""The controls in txt2img and img2img, the settings, and the axes of X/Y/Z."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from saferegion.core.region import MODES, STRONGEST
from saferegion.guard.library import OWN

from .arguments import NAMES, Arguments, pasted
from .guards import concept_names

TITLE = "Safe Region"
DEFAULT_CONCEPTS = ("nudity", "violence", "self-harm")


def option(name: str, default: Any) -> Any:
    from modules import shared

    return getattr(shared.opts, f"safe_region_{name}", default)


def default_concepts() -> list[str]:
    chosen = option("concepts", list(DEFAULT_CONCEPTS))
    return [name for name in chosen if isinstance(name, str)] if isinstance(chosen, list | tuple) else []


def listed(names: Iterable[str]) -> list[str]:
    """Concepts as the page lists them: settings and parameters may hold the plain names of the user's own."""
    known = concept_names()
    return [OWN + name if name not in known and OWN + name in known else name for name in names]


def controls(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """The script's components by the names of its arguments, in their order; makes nothing else."""
    import gradio as gr
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion

    names = concept_names()
    with InputAccordion(bool(option("default_on", False)), label=TITLE, elem_id=elem_id("enabled")) as enabled:
        with gr.Row():
            concepts = gr.Dropdown(
                choices=names,
                value=[name for name in listed(default_concepts()) if name in names],
                multiselect=True,
                label="Concepts to keep out",
                elem_id=elem_id("concepts"),
            )
            create_refresh_button(
                concepts, lambda: None, lambda: {"choices": concept_names()}, elem_id("refresh_concepts")
            )
        with gr.Row():
            strength = gr.Slider(
                minimum=0.0,
                maximum=STRONGEST,
                step=0.05,
                value=1.0,
                label="Guard strength",
                elem_id=elem_id("strength"),
            )
            mode = gr.Radio(choices=list(MODES), value=MODES[0], label="Guard mode", elem_id=elem_id("mode"))
        strengths = gr.Textbox(
            value="",
            label="Strengths of single concepts",
            placeholder="nudity: 1.5, violence: 0.5",
            elem_id=elem_id("strengths"),
        )
        with gr.Row():
            avoid = gr.Textbox(
                value="", label="Own words to avoid", placeholder="fire, in flames", elem_id=elem_id("avoid")
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
        with gr.Row():
            guard_negative = gr.Checkbox(
                value=False, label="Guard the negative prompt too", elem_id=elem_id("guard_negative")
            )
            heat_map = gr.Checkbox(value=False, label="Heat map in the gallery", elem_id=elem_id("heat_map"))
    concepts.do_not_save_to_config = True  # the choices change with the files of the user
    strength.do_not_save_to_config = True  # ui-config.json would freeze its range
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
    }


def infotext_fields(components: dict[str, Any]) -> list[tuple[Any, Callable[[dict[str, Any]], Any]]]:
    """How each control reads itself out of pasted parameters."""

    def reader(name: str) -> Callable[[dict[str, Any]], Any]:
        def read(parameters: dict[str, Any]) -> Any:
            value = pasted(name, parameters)
            if name == "enabled" and value is None and not option("default_on", False):
                return False
            if not value:
                return value
            if name == "strengths":
                pairs = [part.rpartition(":") for part in value.split(",")]
                return ",".join(f"{listed([concept.strip()])[0]}:{number}" for concept, _, number in pairs)
            return listed(value) if name == "concepts" else value

        return read

    return [(components[name], reader(name)) for name in NAMES]


def add_settings() -> None:
    """The section "Safe Region" of the settings page."""
    import gradio as gr
    from modules import shared
    from modules.ui_components import DropdownMulti

    section = ("safe_region", TITLE)
    infos = {
        "default_on": shared.OptionInfo(False, "Safe Region is ticked when the page opens", section=section),
        "concepts": shared.OptionInfo(
            list(DEFAULT_CONCEPTS),
            "Concepts that are chosen when the page opens",
            DropdownMulti,
            lambda: {"choices": concept_names()},
            section=section,
        ),
        "report": shared.OptionInfo(True, "Say under the picture what Safe Region moved", gr.Checkbox, section=section),
    }
    infos["default_on"].needs_reload_ui()
    infos["concepts"].needs_reload_ui()
    for name, info in infos.items():
        shared.opts.add_option(f"safe_region_{name}", info)


def add_axes() -> None:
    """Axes of the X/Y/Z plot, once for each time the host loads that script."""
    from modules import scripts

    grids = [d.module for d in scripts.scripts_data if d.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid")]
    for grid in grids[:1]:
        if any(getattr(o, "label", "").startswith(f"[{TITLE}]") for o in grid.axis_options):
            continue

        def put(name: str) -> Callable[[Any, Any, Any], None]:
            def apply(p: Any, value: Any, values: Any) -> None:
                setattr(p, f"safe_region_{name}", value)

            return apply

        def on_off(text: str) -> bool:
            if text.strip().lower() not in ("on", "off"):
                raise ValueError(f"[{TITLE}] On or off: give on or off; got {text!r}.")
            return text.strip().lower() == "on"

        def mode(text: str) -> str:
            if text.strip() not in MODES:
                raise ValueError(f"[{TITLE}] Mode: give one of {', '.join(MODES)}; got {text!r}.")
            return text.strip()

        def one_concept(text: str) -> tuple[tuple[str, float], ...]:
            name = text.rpartition(":")[0].strip()
            return Arguments.parse([{"enabled": True, "concepts": [name], "strengths": text}]).strengths

        def show(p: Any, axis: Any, value: Any) -> str:
            shown = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
            if isinstance(value, tuple):
                shown = ", ".join(f"{n}: {s:g}" for n, s in value)
            return f"{axis.label}: {shown}"

        for label, kind, name, choices in (
            ("On or off", on_off, "enabled", ["on", "off"]),
            ("Strength", float, "strength", None),
            ("Strength of one concept", one_concept, "strengths", None),
            ("Mode", mode, "mode", list(MODES)),
        ):
            grid.axis_options.append(
                grid.AxisOption(
                    f"[{TITLE}] {label}",
                    kind,
                    put(name),
                    format_value=show,
                    choices=None if choices is None else (lambda c=choices: c),
                )
            )
