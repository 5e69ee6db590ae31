"""What the host's settings say of this script, and which checkpoint it has loaded."""

from __future__ import annotations

from typing import Any

TITLE = "Safe Region"
DEFAULT_CONCEPTS = ("nudity", "violence", "self-harm")


def option(name: str, default: Any) -> Any:
    from modules import shared

    return getattr(shared.opts, f"safe_region_{name}", default)


def loaded_checkpoint() -> Any:
    """The host's checkpoint, without loading one."""
    from modules import sd_models

    return getattr(sd_models.model_data, "sd_model", None)


def default_concepts() -> list[str]:
    chosen = option("concepts", list(DEFAULT_CONCEPTS))
    return [name for name in chosen if isinstance(name, str)] if isinstance(chosen, list | tuple) else []
