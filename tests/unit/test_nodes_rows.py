"""Rows of the Safe Region node as text, and keys of a conditioning that nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

KNOWN = ["all bundled", "nudity", "weapons", "my folder/a b.yaml"]


@pytest.fixture
def rows(pack: Callable[[str], ModuleType]) -> ModuleType:
    return pack("nodes.rows")


@pytest.fixture
def refused(pack: Callable[[str], ModuleType]) -> Any:
    """The error that says what is wrong."""
    return pack("saferegion.core.errors").SafeRegionError


def test_rows_are_written_as_they_are_read(rows: ModuleType) -> None:
    text = "nudity: 1\n\n  # weapons: 0.5\nmy folder/a b.yaml : 2\nall bundled"
    found = rows.rows_of(text)
    assert [(r.concept, r.strength, r.on) for r in found] == [
        ("nudity", 1.0, True), ("weapons", 0.5, False), ("my folder/a b.yaml", 2.0, True), ("all bundled", 1.0, True),
    ]  # fmt: skip
    assert rows.rows_of("\n".join(map(str, found))) == found
    assert [r.concept for r in rows.chosen(text, KNOWN)] == ["nudity", "my folder/a b.yaml", "all bundled"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nudity: nan", "strength of 'nudity' must be a number from 0 to 10; got nan"),
        ("nudity: 11", "from 0 to 10"),
        ("nudity: -1", "from 0 to 10"),
        ("nudity: much", "got much"),
        ("nudity:", "got nothing"),
        ("nudity: 1\nnudity: 0.5", "two rows that are on"),
        ("gone.yaml: 1", "There is no concept 'gone.yaml'"),
    ],
)
def test_a_wrong_row_is_refused_with_a_sentence(rows: ModuleType, refused: Any, text: str, says: str) -> None:
    with pytest.raises(refused, match=says) as error:
        rows.chosen(text, KNOWN)
    assert str(error.value).endswith(".")


def test_a_row_that_is_off_is_no_matter(rows: ModuleType) -> None:
    assert rows.chosen("# gone.yaml: 1\n# nudity: 1\nnudity: 2", KNOWN) == [rows.Row("nudity", 2.0)]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("t5xxl_ids", torch.tensor([3, 4]), "given text as 't5xxl_ids'"),
        ("text_input_ids", torch.tensor([[3, 4]]), "given text as 'text_input_ids'"),
        ("audio_codes", [[3, 4]], "given text as 'audio_codes'"),
        ("conditioning_lyrics", torch.ones(1, 4, 8), "given text as 'conditioning_lyrics'"),
        ("style_embedding", torch.ones(1, 4), "'style_embedding', which may be text"),
        ("prompt_ids", [3, 4, 5], "'prompt_ids', which may be text"),
        ("nested", {"a": [{"b": torch.ones(1)}]}, "'nested', which may be text"),
    ],
)
def test_words_and_what_nobody_knows_are_refused_by_name(
    pack: Callable[[str], ModuleType], refused: Any, key: str, value: Any, says: str
) -> None:
    with pytest.raises(refused, match=says):
        pack("nodes.keys").refuse_unknown({"strength": 1.0, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask", torch.ones(1, 8, 8)),
        ("area", (8, 8, 0, 0)),
        ("reference_latents", [torch.ones(1, 4, 8, 8)]),
        ("conditioning_lyrics", torch.tensor([[261]])),
        ("attention_mask", torch.ones(1, 8)),
        ("a_flag_of_another_pack", True),
        ("a_name_of_another_pack", "lanczos"),
        ("a_number_of_another_pack", 7),
    ],
)
def test_what_is_no_text_passes(pack: Callable[[str], ModuleType], key: str, value: Any) -> None:
    pack("nodes.keys").refuse_unknown({key: value})
