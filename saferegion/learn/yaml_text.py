"""YAML files of recipes and policies: no surprise, no bomb, and every text knows its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError, SafeRegionError
from ..core.writing import read_whole

LARGEST = 4 * 2**20
"""Bytes of the largest recipe file that is read."""
DEEPEST = 20
"""Levels of lists and mappings in a recipe file."""


class Text(str):
    """A text of a file, with the line it stands in."""

    line: int = 0


def line_of(value: object) -> str:
    """`` line N`` of a text that came from a file, else nothing."""
    return f" line {value.line}" if isinstance(value, Text) and value.line else ""


def load(path: Path) -> dict[Any, Any]:
    """The mapping that a file holds. Raises RecipeError with one sentence."""
    raw = read_whole(path, LARGEST, RecipeError, f"a recipe is a short text of at most {LARGEST // 2**20} MB")
    return mapping_of(raw, path.name, RecipeError)


def mapping_of(raw: bytes, where: str, refusal: type[SafeRegionError]) -> dict[Any, Any]:
    """The mapping that the bytes of a file hold; ``where`` is its name. Raises ``refusal`` with one sentence."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(f"{where} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    try:
        data = _parse(text, where)
    except RecipeError as error:
        raise refusal(str(error)) from None
    if not isinstance(data, dict):
        raise refusal(f"{where} must be a YAML mapping of keys to values.")
    return data


def head(path: Path) -> dict[Any, Any]:
    """The texts and numbers before the first list or mapping of a file. Raises RecipeError."""
    raw = read_whole(path, LARGEST, RecipeError, f"a recipe is a short text of at most {LARGEST // 2**20} MB")
    text = re.split(r"^[a-z]+:\s*$", raw.decode("utf-8", "replace"), maxsplit=1, flags=re.M)[0]
    data = _parse(text, path.name)
    return data if isinstance(data, dict) else {}


def _second(mapping: Any) -> Any:
    """Where the second of two same keys of a YAML mapping stands."""
    seen = set()
    for key, _ in mapping.value:
        if key.value in seen:
            return key.start_mark
        seen.add(key.value if isinstance(key.value, str) else None)
    return mapping.start_mark


def _parse(text: str, where: str) -> Any:
    import yaml  # not before a recipe is read: the nodes and the script start without it

    safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(safe):
        """YAML's safe loader that refuses a key given twice and keeps the line of every text."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            if len(mapping) != len(node.value):
                raise yaml.constructor.ConstructorError(None, None, "a key is given twice", _second(node))
            return mapping

        def construct_yaml_str(self, node: Any) -> Text:
            found = Text(super().construct_yaml_str(node))
            found.line = node.start_mark.line + 1
            return found

    Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_yaml_str)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # the C loader calls itself for each level and would overrun the stack
                raise RecipeError(f"{where}: lists and mappings are nested more than {DEEPEST} deep.")
            if isinstance(event, yaml.AliasEvent):  # a small file of aliases can expand without end
                raise RecipeError(
                    f"{where}: YAML aliases (line {getattr(event.start_mark, 'line', -1) + 1}) are not allowed."
                )
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(f"{where} is not valid YAML{line}: {problem.removesuffix('.')}.") from None
