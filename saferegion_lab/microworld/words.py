"""Words that the microworld's captions never use: they all share one embedding row."""

from __future__ import annotations

from collections.abc import Collection

from transformers import CLIPTokenizer


def unknown_words(tokenizer: CLIPTokenizer, known: Collection[int]) -> list[str]:
    """Plain lower-case words of four letters or more that are one token outside `known`, in the order of their ids."""
    taken = set(known)
    words = sorted((index, token[:-4]) for token, index in tokenizer.get_vocab().items() if token.endswith("</w>"))
    return [w for i, w in words if i not in taken and len(w) >= 4 and w.isascii() and w.isalpha()]
