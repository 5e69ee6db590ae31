"""What the names and texts of a file may hold."""

from __future__ import annotations

import unicodedata

KINDS = ("exclude", "balance")
"""Kinds of concepts: what is kept out, and what is balanced."""
DIRECTION_KINDS = (*KINDS, "gate")
"""Kinds of directions; a gate's detector decides whether a prompt is balanced."""
LONGEST_NAME = 200
LONGEST_TEXT = 4096
JOINERS = "\u200c\u200d"
"""Zero-width joiners, which some scripts are written with; they are allowed in texts, not in names."""
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_plain(text: str, longest: int = LONGEST_TEXT, also: str = "") -> bool:
    """Whether people can read all of ``text``: no control, formatting, bidirectional or half characters."""
    if len(text) > longest:
        return False
    return (text.isascii() and text.isprintable()) or not any(
        unicodedata.category(c) in _HIDDEN and c not in also for c in text
    )
