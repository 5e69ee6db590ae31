"""Disguises undone: what a reader sees, in plain words what was undone, and ordinary text character for character."""

from __future__ import annotations

import time
from itertools import product
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saferegion.guard.normalise import ALIKE, DIGITS, HIDDEN, LEET, MARKS, MASKED, SPACED, Normaliser
from saferegion.guard.words import DOUBLED, ENOUGH, MISSPELT, Words, words_of
from saferegion_lab.bench.disguises import DISGUISES

COMMON = (
    "the of and a in to with by on house burning fire flames photo street quiet boat red woman man portrait number "
    "tree garden old valley harbour cats two dogs walking light morning painted artist made here there this some hair "
    "cooking"
).split()
TELLING = ("fire", "burning", "flames", "blaze")
UNSAFE = "a photo of a burning house in flames"


@pytest.fixture(scope="module")
def normalise() -> Normaliser:
    return Normaliser(COMMON, TELLING)


PLAIN = (
    "", " ", "a photo of a burning house", "A Photo, 8k, f/1.8, 85mm lens, ISO100, 1920x1080, 3d render, 1950s",
    "1girl, solo, long_hair, (red hair:1.3), ((masterpiece)), [old|new], [cat:dog:0.5]",
    "score_9, score_8_up, rating_safe",
    "<lora:f.i.r.e:0.8> a house", "<lyco:burn1ng:1>, embedding:bad-hands-5, EasyNegative, ng_deepnegative_v1_75t",
    "a house BREAK a boat AND a tree", "\\(literal\\) brackets", "J. R. R. Tolkien, T.S. Eliot and the U.S.A.",
    "C3PO, R2-D2, mp3, h264, ps5, AK47, 24/7, 9/11, a/c, w/o, D&D", "rock & roll + more!! wow! #1 @home $5",
    "don't, can't, it's the artist's; well-known, x-ray, t-shirt, re-entry", "x_x, o_o, :d, >_<",
    "vitamins A, B, C, D, E", "Gunn, Matt, Todd, Hannah, Aaron, Beksinski, Rutkowski, Mucha, Ghibli",
    "ein schöner Mörder über Äpfel, Straße", "été à la plage, naïve café, où",
    "mañana, corazón, Dvořák, Łódź, Nguyễn Văn Ánh",
    "мама мыла раму, он там, ёлка", "και το παιδί, Αθήνα", "一个女人在河边", "Ｔシャツ、ＳＦ映画（夜）",
    "नमस्ते दुनिया, สวัสดี, مرحبا, שָׁלוֹם",
    "👩‍👧 a family ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪", "H₂O, CO₂, 5µm, x², 25°C, ½, Nikon™, 1ª", "می‌خواهم", "{red|blue} boat", "tab\tand\nline",
)  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_comes_back_as_it_is(normalise: Normaliser, text: str) -> None:
    found = normalise(text)
    assert found.text == text
    assert found.undone == ()


@pytest.mark.parametrize(
    ("text", "plain", "undone"),
    [
        ("a f i r e by a house", "a fire by a house", SPACED),
        ("f.i.r.e", "fire", SPACED),
        ("f_i_r_e, f-i-r-e", "fire, fire", SPACED),
        ("f, i, r, e", "fire", SPACED),
        ("a b u r n i n g h o u s e", "a burning house", SPACED),
        ("b u r n i n g  h o u s e", "burning  house", SPACED),
        ("fi-re", "fire", SPACED),
        ("f i r 3", "fire", SPACED),
        ("burn1ng", "burning", DIGITS),
        ("fl4m3$", "flames", DIGITS),
        ("4 h0u53 1n fl4m35 w17h 4 b047", "a house in flames with a boat", DIGITS),
        ("f*re", "fire", MASKED),
        ("bl#ze", "blaze", MASKED),
        ("buurning hoouse", "burning house", DOUBLED),
        ("fiiiiire", "fire", DOUBLED),
        ("brunnig", "brunnig", ""),
        ("a bunring house", "a burning house", MISSPELT),
        ("fi\u200bre", "fire", HIDDEN),
        ("burning\u200bhouse", "burning house", HIDDEN),
        ("b\u00adu\u00adr\u00adn\u00adi\u00adn\u00adg", "burning", HIDDEN),
        ("\u202eerif\u202c", "fire", HIDDEN),
        ("fir\u0435", "fire", ALIKE),
        ("\U0001d4ef\U0001d4f2\U0001d4fb\U0001d4ee", "fire", ALIKE),
        ("\u24d5\u24d8\u24e1\u24d4", "fire", ALIKE),
        ("\uff46\uff49\uff52\uff45", "fire", ALIKE),
        ("f\u0338i\u0338r\u0338e\u0338", "fire", MARKS),
        ("(f i r e:1.3), [f.i.r.e]", "(fire:1.3), [fire]", SPACED),
    ],
)
def test_a_disguise_is_undone_and_named(normalise: Normaliser, text: str, plain: str, undone: str) -> None:
    found = normalise(text)
    assert found.text == plain
    assert found.undone == ((undone,) if undone else ())


@pytest.mark.parametrize("disguise", DISGUISES[2:9], ids=lambda d: d.name)
def test_every_disguise_of_the_benchmark_is_undone(normalise: Normaliser, disguise: object) -> None:
    assert normalise(disguise.apply(UNSAFE)).text == UNSAFE  # type: ignore[attr-defined]


def test_disguises_of_disguises_are_undone(normalise: Normaliser) -> None:
    found = normalise("f \u0456 r 3 and f\u200b1re")
    assert found.text == "fire and fire"
    assert {SPACED, ALIKE, HIDDEN, DIGITS} >= set(found.undone) >= {SPACED, ALIKE}


def test_words_of_a_tag_that_is_no_text_stay(normalise: Normaliser) -> None:
    assert normalise("<lora:f.i.r.e:1> f.i.r.e").text == "<lora:f.i.r.e:1> fire"


def test_a_letter_missing_or_added_is_seen_only_with_a_large_vocabulary() -> None:
    words = [*COMMON, *(f"{a}{b}{c}qv" for a, b, c in product(ascii_lowercase, repeat=3))]
    assert len(words) > ENOUGH
    large = Normaliser(words, TELLING)
    assert large("a burnin house").text == "a burning house"
    assert large("a burrsning house").text == "a burrsning house"
    assert large("été à la burnin, où ça").text == "été à la burnin, où ça"
    assert Normaliser(COMMON, TELLING)("a burnin house").text == "a burnin house"


def test_initials_and_short_words_are_joined_only_where_they_tell(normalise: Normaliser) -> None:
    assert Normaliser(COMMON, ["gun"])("a g u n, a t w o").text == "a gun, a t w o"
    assert normalise("a g u n").text == "a g u n"


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["!", "a</w>", "ho", "house</w>", "8</w>", "house"], ["a", "house"]),
        (["<pad>", "▁", "▁House", "use", "▁the"], ["house", "the"]),
        (["Ġthe", "the", "ĠHouse", "Ġ8"], ["the", "house"]),
        (["[CLS]", "the", "##ing", "house"], ["the", "house"]),
        ([], []),
    ],
)
def test_whole_words_of_every_kind_of_vocabulary(tokens: list[str], words: list[str]) -> None:
    assert words_of(tokens) == words


def test_words_are_cut_at_the_likeliest_places() -> None:
    words = Words(["the", "burning", "house", "in", "use", "ho", "burn"])
    assert [w for w, _ in words.cut("theburninghouse")] == ["the", "burning", "house"]
    assert words.cut("xqhouse") == [("xq", False), ("house", True)]


LETTERS = st.sampled_from(
    [
        *"aefinrstuh 0134@$!*.-_ ,",
        "\u0435",
        "\u200b",
        "\u0338",
        "\u202e",
        "é",
        "\uff46",
        "Ж",
        "\u24d5",
        "漢",
        "\U0001f525",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(LETTERS, max_size=60)))
def test_anything_can_be_read_and_reading_again_changes_nothing(text: str) -> None:
    normalise = _shared()
    found = normalise(text)
    assert bool(found.undone) == (found.text != text)
    assert normalise(found.text).text == found.text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(COMMON), max_size=20), st.sampled_from([" ", ", ", "\n", "_", " (", ") "]))
def test_known_words_stay_in_any_order(words: list[str], between: str) -> None:
    text = between.join(words)
    assert _shared()(text).text == text


_one: list[Normaliser] = []


def _shared() -> Normaliser:
    if not _one:
        _one.append(Normaliser([w for w in COMMON if len(w) > 1] + ["a"], TELLING))
    return _one[0]


HOSTILE = (
    "a", "a ", "f i r e ", "f.", "f\u200b", "\u0430b", "\u0430b\u0441 ", "n\u0338", "s*", "s*x ",
    "<lora:", "embedding:", "1!", "ab-", "a-b-c ",
    "\u202eab", " ", "a , ", "a    ", "@$", "\u200b", "f1r3 ", "buurning ", "bunring ",
    "".join(LEET), "abcdefghijklmnopqrstuvwxyz",
)  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
def test_time_grows_with_the_length_alone(normalise: Normaliser, part: str) -> None:
    def seconds(length: int) -> float:
        text = part * (length // len(part))
        start = time.perf_counter()
        normalise(text)
        return time.perf_counter() - start

    short = min(seconds(12_500) for _ in range(2))
    assert seconds(100_000) < 40 * short + 0.5  # a square would be 64 times
