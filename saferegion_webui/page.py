"""The settings, what parameters of a picture set the controls to, and the axes of X/Y/Z."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from saferegion.core.region import MODES
from saferegion.guard.library import OWN

from .arguments import NAMES, Arguments, joined, pasted, separated
from .guards import concept_names
from .settings import DEFAULT_CONCEPTS, TITLE, default_concepts, option


def check_request(values: Sequence[Any]) -> None:
    """Refuse what a request gives for this script's arguments where it cannot be understood."""
    Arguments.parse(values, default_concepts(), default_on=bool(option("default_on", False)))


def listed(names: Iterable[str]) -> list[str]:
    """Concepts as the page lists them: settings and parameters may hold the plain names of the user's own."""
    known = concept_names()
    return [OWN + name if name not in known and OWN + name in known else name for name in names]


def infotext_fields(components: dict[str, Any]) -> list[tuple[Any, Callable[[dict[str, Any]], Any]]]:
    """How each control reads itself out of pasted parameters."""

    def reader(name: str) -> Callable[[dict[str, Any]], Any]:
        def read(parameters: dict[str, Any]) -> Any:
            value = pasted(name, parameters)
            if value is None and (name == "balance" or (name == "enabled" and not option("default_on", False))):
                return False
            if not value:
                return value
            if name == "strengths":
                pairs = [part.rpartition(":") for part in value.split(",")]
                return ",".join(f" {joined(listed(separated(concept)))}:{number}" for concept, _, number in pairs)[1:]
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
                raise ValueError(f"[{TITLE}]: give on or off; got {text!r}.")
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
            ("Balance on or off", on_off, "balance", ["on", "off"]),
            ("Balance strength", float, "balance_strength", None),
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
