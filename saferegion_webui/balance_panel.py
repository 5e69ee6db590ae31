"""The fold of balance: which looks of people are shared out over the pictures, and how many of each."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from saferegion.core.errors import SafeRegionError
from saferegion.guard.balance import STRONGEST
from saferegion.guard.balance_files import axis_names, find_axis, wanted_of

from .arguments import DEFAULT_AXES
from .guards import library, own_axes
from .settings import TITLE

ROWS = 16
"""Groups that have a slider; over the API, any number."""
CLOSE = 0.1
"""By which shares may miss 100, as three thirds do."""


@lru_cache(maxsize=64)
def _axis(name: str, _changed: Any) -> tuple[str, tuple[str, ...], str]:
    try:
        found = find_axis(library(), name)
    except SafeRegionError as error:
        return name, (), f"cannot be used: {error}"
    return found.title, found.names, ", ".join(found.names)


def axis(name: str) -> tuple[str, tuple[str, ...], str]:
    """Title and groups of an axis, and what is said of it; no groups where it cannot be used."""
    return _axis(name, own_axes())


def shares_of(text: str) -> dict[str, dict[str, float]]:
    """By axis, what part of 100 each group has; nothing where the text says nothing that can be read."""
    try:
        wanted = wanted_of(text or "")
    except SafeRegionError:
        return {}
    found = {}
    for w in wanted:
        groups = axis(w.axis)[1]
        given = w.shares if isinstance(w.shares, Mapping) else dict.fromkeys(groups, 100 / max(1, len(groups)))
        whole = 1 if sum(given.values()) <= 1 else 100
        found[w.axis] = {g: round(100 * given.get(g, 0) / whole, 1) for g in groups}
    return found


def rows(text: str) -> list[tuple[str, str, float]]:
    """Axis, group and share of each slider."""
    return [(a, g, share) for a, groups in shares_of(text).items() for g, share in groups.items()][:ROWS]


def text_of(names: Sequence[str], text: str, values: Sequence[float] | None = None) -> str:
    """The text of the axes that are chosen: those that ``text`` has keep their shares, or have those of the sliders'
    ``values``; others are even."""
    known, lines = shares_of(text), []
    moved = {(a, g): v for (a, g, _), v in zip(rows(text), values or (), strict=False)}
    for name in names:
        groups = axis(name)[1]
        before = known.get(name, dict.fromkeys(groups, 1.0))
        now = {g: moved.get((name, g), share) for g, share in before.items()}
        even = max(now.values(), default=0) - min(now.values(), default=0) <= CLOSE
        right = even and (name not in known or abs(sum(now.values()) - 100) <= 1)
        lines.append(name if right else f"{name}: " + ", ".join(f"{g} {share:g}" for g, share in now.items()))
    return "\n".join(lines)


def headline(text: str) -> str:
    """What the box of the fold says."""
    named = [axis(name)[0].lower() for name in shares_of(text)]
    return f"{TITLE}: balance " + (", ".join(named) if named else "(nothing chosen yet)")


def explained(text: str) -> str:
    """HTML: what is shared out, and what does not add up."""
    items = ""
    for name, groups in shares_of(text).items():
        title, _, said = axis(name)
        whole = sum(groups.values())
        if groups and abs(whole - 100) > 1:
            said += f": together {whole:g}, make it 100"
        items += f"<li><b>{html.escape(title)}</b> {html.escape(said)}</li>"
    return f"<ul class='safe-region-concepts'>{items}</ul>"


def controls(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """The fold's components by the names of the script's arguments; makes nothing else."""
    import gradio as gr
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion

    with InputAccordion(False, label=f"{TITLE}: balance", elem_id=elem_id("balance")) as balance:
        with gr.Row():
            chosen = gr.Dropdown(
                choices=axis_names(library()),
                value=[DEFAULT_AXES],
                multiselect=True,
                label="Share out",
                elem_id=elem_id("balance_axes"),
            )
            create_refresh_button(
                chosen, lambda: None, lambda: {"choices": axis_names(library())}, elem_id("refresh_axes")
            )
        about = gr.HTML(explained(DEFAULT_AXES), elem_id=elem_id("balance_about"))
        shown = rows(DEFAULT_AXES)
        sliders = [
            gr.Slider(
                minimum=0,
                maximum=100,
                step=0.1,
                value=shown[i][2] if i < len(shown) else 0,
                label=f"Of 100 pictures: {shown[i][1]}" if i < len(shown) else f"Group {i + 1}",
                visible=i < len(shown),
                elem_id=elem_id(f"share_{i}"),
            )
            for i in range(ROWS)
        ]
        strength = gr.Slider(
            minimum=0.0,
            maximum=STRONGEST,
            step=0.05,
            value=1.0,
            label="How far a picture is moved to its group",
            elem_id=elem_id("balance_strength"),
        )
        gr.HTML(
            "<p class='safe-region-first'>Only prompts about one person of whom nothing else is said; all others stay "
            "as they are. The seed says who is in which picture.</p>"
        )
        axes = gr.Textbox(
            value=DEFAULT_AXES, lines=2, label="Shares of balance", visible=False, elem_id=elem_id("axes")
        )
        groups = gr.Textbox(value="", label="Groups of a picture", visible=False, elem_id=elem_id("groups"))
    chosen.do_not_save_to_config = True  # the choices change with the files of the user
    for slider in (strength, *sliders):
        slider.do_not_save_to_config = True  # ui-config.json would freeze its range
    _connect(gr, balance, chosen, axes, about, sliders)
    return {"balance": balance, "axes": axes, "balance_strength": strength, "groups": groups}


def _connect(gr: Any, balance: Any, chosen: Any, axes: Any, about: Any, sliders: Sequence[Any]) -> None:
    """The list, the sliders and the hidden text of shares follow each other; the box says what is shared out."""
    accordion = getattr(balance, "accordion", None)
    quiet = {"queue": False, "show_progress": "hidden"}

    def follow(text: Any) -> list[Any]:
        names, found = list(shares_of(text)), rows(text)
        known = axis_names(library())
        listed = gr.update(value=names, choices=[*known, *(n for n in names if n not in known)])
        moved = [
            gr.update(visible=True, label=f"Of 100 pictures: {found[i][1]}", value=found[i][2])
            if i < len(found)
            else gr.update(visible=False)
            for i in range(ROWS)
        ]
        said = [gr.update(value=explained(text)), *([] if accordion is None else [gr.update(label=headline(text))])]
        return [listed, *moved, *said]

    if accordion is not None:
        accordion.label = headline(DEFAULT_AXES)
    told = [about, *([] if accordion is None else [accordion])]
    axes.change(follow, inputs=[axes], outputs=[chosen, *sliders, *told], **quiet)
    chosen.change(lambda names, text: text_of(names or [], text), inputs=[chosen, axes], outputs=[axes], **quiet)
    for slider in sliders:
        slider.input(
            lambda text, *values: text_of(list(shares_of(text)), text, [float(v or 0) for v in values]),
            inputs=[axes, *sliders],
            outputs=[axes],
            **quiet,
        )
