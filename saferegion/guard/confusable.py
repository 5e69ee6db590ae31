# ruff: noqa: RUF001
"""Characters that look like Latin letters: what a reader takes them for.

What Unicode itself calls a variant of a letter (full width, mathematical, circled, small) is found by its
compatibility form. The tables here hold what it does not: letters of other scripts that have the same shape.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

_ALIKE = (
    # Cyrillic
    "аaАAеeЕEёeсcСCоoОOрpРPхxХXуyУYіiІIїiјjЈJѕsЅSһhҺHКKМMТTНHВBԁdԀDԛqԚQԝwԌGѵvѴVѡwӏlӀIүyҮYөoєe"
    # Greek
    "αaΑAΕEοoΟOΡpΝNΤTΥYΧXΙIιiΚKΗHϲcϹCΒBΜMΖZϳj"
    # Armenian, Cherokee, Lisu
    "օoՕOոnսuՍUհhցgզqյjԼLիhբpէtꓮAꓐBꓚCꓓDꓰEꓝFꓖGꓧHꓲIꓙJꓗKꓡLꓟMꓠNꓳOꓑPꓣRꓢSꓔTꓴUꓦVꓪWꓫXꓬYꓜZᎪAᏴBᏟCᎠDᎬEᎻHᎥiᎫJᏦKᏞLᎷMᏢPᎡRᏚSᎢTᏙVᎳWᏃZ"
    # phonetic letters and small capitals
    "ɑaɐaɓbɗdɘeǝeɛeɡgɢgɦhʜhıiɩiɪiʝjʟlɭlɱmɯmᴍmɳnɴnɲnᴏoɔcʀrɾrɹrʂsꜱsʇtᴛtᴜuʋvᴠvᴡwʍwʏyʎyʐzᴢzᴀaʙbᴄcᴅdᴇeꜰfᴊjᴋkᴘp"
)
"""Pairs: a character, what it is taken for."""
_LOOSE = "кkмmтtнhвbгrпnиuцuшwщwзeεeνvτtυuκkηnωwγyσoβbμuµuρpχx"
"""The same of letters that are taken for others only inside a word of Latin letters."""

OVERLAYS = frozenset("\u0334\u0335\u0336\u0337\u0338\u0488\u0489\u20d0\u20d1\u20d2\u20d3\u20e5\u20e6\u20eb\u20dd\u20de")
"""Marks that strike a letter through or go around it; no spelling has them."""
_ALPHABETS = ("CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU")
_ORDINARY = frozenset("ªº™℠℡℃℉")
"""Characters of ordinary writing that have a compatibility form."""


def _pairs(text: str) -> dict[str, str]:
    return dict(zip(text[::2], text[1::2], strict=True))


@cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    alike = _pairs(_ALIKE)
    for first in (0x1F150, 0x1F170):  # white letters in black circles and squares
        alike |= {chr(first + i): chr(ord("A") + i) for i in range(26)}
    return alike, _pairs(_LOOSE)


@lru_cache(maxsize=4096)
def looks_like(c: str, loosely: bool = False) -> str:
    """The Latin letters that a character is taken for; empty where it is none, or is one itself."""
    if c.isascii() or c in _ORDINARY:
        return ""
    alike, loose = _tables()
    if c in alike:
        return alike[c]
    if c in loose:
        return loose[c] if loosely else ""
    form = unicodedata.normalize("NFKC", c)
    return form if form != c and form.isascii() and form.isalpha() else ""


@lru_cache(maxsize=4096)
def is_foreign(c: str) -> bool:
    """Whether a character is a letter of another alphabet with such look-alikes that is none itself."""
    return c.isalpha() and not c.isascii() and unicodedata.name(c, "").startswith(_ALPHABETS) and not looks_like(c)


def is_styled(c: str) -> bool:
    """Whether a look-alike is a variant of a letter, of no script of its own."""
    return c not in _tables()[0] and c not in _tables()[1]
