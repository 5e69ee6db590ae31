"""Gates, axes and the composition of balance, on a small encoder whose words have themes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, _vector, benign_prompts

from saferegion import Concept, Conditioning, Library, SafeRegion, compile
from saferegion.core.errors import BalanceError, EncoderMismatchError, NotSeparableError, RecipeError, SafeRegionError
from saferegion.guard.balance import Balance, Wanted
from saferegion.guard.balance_files import axis_names, balance_of, find_axis, recipes_of, wanted_of
from saferegion.guard.files import load_directions
from saferegion.learn.balance import Set, compile_balance
from saferegion.learn.people import bundled_gates, read_axis, read_gate

ROLES = (
    "nurse", "smith", "baker", "pilot", "clerk", "miner", "judge", "cook", "tailor", "guide", "porter", "diver", "poet",
    "sailor",
)  # fmt: skip
THINGS = (
    "house", "car", "tree", "boat", "chair", "tower", "bridge", "lamp", "piano", "street", "bowl", "clock", "vase",
    "bench", "train",
)  # fmt: skip
THEMES = {
    **dict.fromkeys((*ROLES, "weaver", "monk", "actress"), "somebody"),
    **dict.fromkeys(("tall", "lofty", "towering", "highgrown"), "tall"),
    **dict.fromkeys(("short", "tiny", "lowly", "smallgrown"), "short"),
    **dict.fromkeys(("crowd", *(f"{r}s" for r in ROLES)), "many"),
}  # fmt: skip
RECIPE = f"""
format: saferegion-axis/1
name: height
title: Height
version: 1
licence: MIT
people:
  roles: [{", ".join(ROLES)}]
  frames: ["{{a}}", "a photo of {{a}}", "{{a}} in a kitchen", "{{a}} by a window", "a drawing of {{a}} at work"]
groups:
  - name: tall
    says: ["tall {{}}", "lofty {{}}", "towering {{}}"]
  - name: short
    says: ["short {{}}", "tiny {{}}", "lowly {{}}"]
stated:
  before: [tall, lofty, towering, highgrown, short, tiny, lowly, smallgrown]
unstated:
  before: [blue, quiet, modern, painted, bright]
gates:
  - name: person
    title: no person in it
    opens: true
    holds: {{before: [blue, quiet, modern, painted]}}
    spares: {{instead: [{", ".join(THINGS)}]}}
  - name: one
    title: more than one person
    holds: {{instead: [crowd, nurses, smiths, bakers, pilots, clerks, miners, cooks, guides, poets, divers]}}
    spares: {{after: [with a lamp, with two boats]}}
"""


class PeopleEncoder(FakeEncoder):
    """Words of one theme lie close together."""

    def __init__(self, seed: int = 3, width: int = 24, themes: dict[str, str] = THEMES) -> None:
        super().__init__(width=width, seed=seed)
        self.themes = themes

    def word(self, word: str) -> np.ndarray:
        vector = _vector(f"{self.seed}:{word}", self.width)
        theme = self.themes.get(word)
        return vector if theme is None else vector / 3 + 3 * _vector(f"{self.seed}:theme {theme}", self.width)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.mktemp("own")
    (own / "balance").mkdir()
    (own / "balance" / "axis-height.yaml").write_text(RECIPE, encoding="utf-8")
    return own


@pytest.fixture(scope="module")
def encode() -> PeopleEncoder:
    return PeopleEncoder()


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library((folder,), folder / "cache")


@pytest.fixture(scope="module")
def balance(library: Library, encode: PeopleEncoder) -> Balance:
    return balance_of(library, [Wanted("my/height")], encode)


def groups(balance: Balance, c: Conditioning, numbers: range, text: str | None = None) -> list[str]:
    return [g.get("height", "") for g in balance.apply(c, numbers, text)[1].groups]


def test_a_batch_is_shared_out_and_reads_as_what_it_was_given(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a photo of a nurse"])
    rows, report = balance.apply(c, range(100, 116))
    assert rows.tokens.shape == (16, 77, 24) and rows.tokens.dtype == c.tokens.dtype
    assert [g["height"] for g in report.groups] == ["tall", "short"] * 8
    stated = encode(["a photo of a tall nurse", "a photo of a short nurse"])
    apart = (stated.tokens[0] - stated.tokens[1]).mean(0)
    along = rows.tokens.mean(1) @ apart
    assert float(along[::2].min()) > float((c.tokens.mean(1) @ apart)[0]) > float(along[1::2].max())
    assert torch.equal(rows.tokens[:, 0], c.tokens[:, 0].expand(16, -1))  # the begin token stays
    assert report.text().startswith("Height: tall 8 (pictures 1, 3, 5")
    assert "asked for tall 50 %, short 50 %" in report.text()


def test_a_seed_gives_the_same_row_alone_and_in_a_batch(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a drawing of a pilot at work"])
    batch, _ = balance.apply(c, range(7, 15))
    for i in range(8):
        alone, _ = balance.apply(c, [7 + i])
        assert torch.equal(alone.tokens[0], batch.tokens[i]) and torch.equal(alone.pooled[0], batch.pooled[i])


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("a photo of a boat", "no person in it"),
        ("tower", "no person in it"),
        ("a photo of a tall nurse", "the prompt says it already"),
        ("a smallgrown clerk in a kitchen", "the prompt says it already"),
        ("crowd in a kitchen", "more than one person"),
        ("divers", "more than one person"),
    ],
)
def test_what_a_gate_holds_back_is_the_very_same(
    balance: Balance, encode: PeopleEncoder, prompt: str, why: str
) -> None:
    c = encode([prompt])
    for text in (None, prompt):
        same, report = balance.apply(c, range(4), text)
        assert same is c
        assert why in report.text() and report.balanced == ()
        assert report.to_dict()["groups"] == [{}] * 4


def test_the_text_holds_back_what_the_embedding_lets_through(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a photo of a nurse"])
    assert balance.apply(c, [0])[1].balanced == ("height",)
    for text in ("a photo of a (tall:1.2) nurse", "a nurse and a pilot", "two nurses by a window"):
        same, report = balance.apply(c, [0], text)
        assert same is c and report.held["height"][0].by == "text", text
    assert balance.apply(c, [0], "a photo of a nurse with a lamp")[1].balanced == ("height",)


def test_shares_of_the_user_s_own(library: Library, encode: PeopleEncoder) -> None:
    uneven = balance_of(library, [Wanted("my/height", {"tall": 75, "short": 25})], encode)
    c = encode(["a baker by a window"])
    for n in range(1, 21):
        seen = Counter(groups(uneven, c, range(50, 50 + n)))
        assert abs(seen["tall"] - 0.75 * n) <= 1
    assert Counter(groups(uneven, c, range(16))) == {"tall": 12, "short": 4}


def test_recorded_groups_come_back(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a baker by a window"])
    wanted = [{"height": "short"}, {"height": "short"}, {"elsewhere": "x"}]
    rows, report = balance.apply(c, [0, 1, 2], fixed=wanted)
    assert [g["height"] for g in report.groups] == ["short", "short", "tall"]
    assert torch.equal(rows.tokens[0], rows.tokens[1])
    with pytest.raises(BalanceError, match="no group 'wide'; its groups are tall, short"):
        balance.apply(c, [0], fixed=[{"height": "wide"}])


def test_the_strength_is_how_far(library: Library, encode: PeopleEncoder) -> None:
    c = encode(["a baker by a window"])
    one, two, none = (balance_of(library, [Wanted("my/height")], encode, strength=s) for s in (1.0, 2.0, 0.0))
    moved = [(b.apply(c, [0])[0].tokens - c.tokens).norm() for b in (none, one, two)]
    assert float(moved[0]) == 0 and float(moved[2]) == pytest.approx(2 * float(moved[1]), rel=1e-3)
    with pytest.raises(BalanceError, match="number from 0 to 3"):
        balance_of(library, [Wanted("my/height")], encode, strength=4)


def test_half_precision_stays(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a baker by a window"])
    half = Conditioning(c.tokens.half(), c.mask, c.pooled.half())
    before = half.tokens.clone()
    rows, _ = balance.apply(half, [0, 1])
    assert rows.tokens.dtype == rows.pooled.dtype == torch.float16
    assert torch.equal(half.tokens, before)


def test_a_conditioning_of_another_encoder_is_refused(balance: Balance, encode: PeopleEncoder) -> None:
    c = encode(["a baker"])
    other = PeopleEncoder(seed=9)
    with pytest.raises(EncoderMismatchError):
        balance.apply(Conditioning(c.tokens, c.mask, c.pooled, encoder=replace_fingerprint(other)), [0])
    with pytest.raises(BalanceError, match="at least one picture"):
        balance.apply(c, [])


def replace_fingerprint(encode: PeopleEncoder):  # type: ignore[no-untyped-def]
    from saferegion import Fingerprint

    return Fingerprint.of(encode)


def test_it_is_compiled_once(library: Library, folder: Path, balance: Balance) -> None:
    fresh = PeopleEncoder()
    again = balance_of(library, [Wanted("my/height")], fresh)
    assert fresh.prompts == 5  # the fingerprint's
    c = fresh(["a baker by a window"])
    assert torch.equal(again.apply(c, [3])[0].tokens, balance.apply(c, [3])[0].tokens)
    files = sorted((folder / "cache").glob("*.safetensors"))
    kinds = Counter(load_directions(f).kind for f in files)
    assert kinds == {"gate": 3, "balance": 2}
    assert all(load_directions(f).meta.calibration["accuracy"] >= 0.8 for f in files)


def test_gates_and_groups_cannot_be_kept_out(folder: Path, balance: Balance) -> None:
    for file in (folder / "cache").glob("*.safetensors"):
        with pytest.raises(SafeRegionError, match="is for Balance"):
            SafeRegion([load_directions(file)])


def test_an_axis_that_the_encoder_does_not_know_is_refused_with_its_accuracy(folder: Path) -> None:
    blind = PeopleEncoder(themes={k: v for k, v in THEMES.items() if v not in ("tall", "short")})
    library = Library((folder,), folder / "blind")
    for _ in range(2):
        before = blind.prompts
        with pytest.raises(NotSeparableError, match=r"'height' does not separate on this encoder: .* accuracy of \d+%"):
            balance_of(library, [Wanted("my/height")], blind)
    assert blind.prompts - before <= 5  # what failed is remembered


def test_a_gate_that_the_encoder_does_not_know_refuses_all(folder: Path) -> None:
    blind = PeopleEncoder(themes={k: v for k, v in THEMES.items() if v != "somebody"})
    with pytest.raises(NotSeparableError, match="'person' does not separate on this encoder"):
        balance_of(Library((folder,), folder / "nobody"), [Wanted("my/height")], blind)


def test_balance_then_a_guard(balance: Balance, encode: PeopleEncoder) -> None:
    pairs = [(f"a {w} {r}", f"a calm {r}") for w in ("burning", "blazing", "flaming") for r in ROLES[:8]]
    burning = PeopleEncoder(themes={**THEMES, **dict.fromkeys(("burning", "blazing", "flaming"), "fire")})
    fire = compile(Concept.from_pairs("fire", pairs), burning, neutral=benign_prompts(80))
    rows, shared = balance.apply(burning(["a burning nurse in a kitchen"]), range(4))
    assert shared.balanced
    guarded, report = SafeRegion([fire]).apply(rows)
    assert report.moved_prompts() == [True] * 4 and not report.unresolved
    assert not torch.equal(guarded.tokens[0], guarded.tokens[1])


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_bundled_recipes_are_whole() -> None:
    gates = bundled_gates()
    assert [g.name for g in gates if g.opens] == ["person"] and gates[0].name == "person"
    assert {g.name for g in gates} == {"person", "one", "grown", "named", "era", "nation"}
    library = Library()
    assert axis_names(library) == ["age", "body-type", "gender", "skin-tone"]
    whole = recipes_of(library, ["gender"])
    assert [a.name for a in whole.axes] == axis_names(library)
    for recipe in (*gates, *(a.stated for a in whole.axes)):
        holds, spares = recipe.said()
        assert len(holds) >= 120 and len(spares) >= 120
        assert not {s.text for s in holds} & {s.text for s in spares}, recipe.name
    assert len(whole.texts()) <= 4000


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "axis-height.yaml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("format: saferegion-axis/1", "format: saferegion-recipe/1", "first line must be 'format: saferegion-axis/1'"),
        ("title: Height\n", "", "the key 'title' is missing"),
        ("title: Height\n", "title: Height\nfoo: 1\n", "unknown key 'foo'"),
        ("name: short\n", "name: tall\n", "two groups have one name"),
        ('says: ["short {}", "tiny {}", "lowly {}"]', 'says: ["short {}"]', "as many ways to say it"),
        ('"lowly {}"]', '"lowly"]', "holds {} once; got 'lowly'"),
        ("opens: true", "opens: false", "tell whether anybody is to be seen"),
        ("before: [tall, lofty", "beside: [tall, lofty", "words by where they stand"),
        ('["{a}", "a photo', '["a", "a photo', "a frame holds one of"),
        ("roles: [nurse", "roles: ['', nurse", "a word must be text that is not empty"),
    ],
)
def test_a_recipe_that_is_wrong_says_where(broken: Path, old: str, new: str, said: str) -> None:
    assert old in RECIPE
    broken.write_text(RECIPE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_axis(broken)


def test_more_than_eight_groups(broken: Path) -> None:
    nine = "".join(f'  - name: g{i}\n    says: ["g{i} {{}}"]\n' for i in range(9))
    start, end = RECIPE.index("groups:\n") + 8, RECIPE.index("stated:")
    broken.write_text(RECIPE[:start] + nine + RECIPE[end:], encoding="utf-8")
    with pytest.raises(RecipeError, match="2 to 8 groups; got 9"):
        read_axis(broken)


def test_names_that_are_wrong(library: Library, encode: PeopleEncoder) -> None:
    with pytest.raises(
        RecipeError, match="no axis 'race' to balance; there are age, body-type, gender, skin-tone, my/height"
    ):
        find_axis(library, "race")
    with pytest.raises(BalanceError, match="at least one axis"):
        balance_of(library, [], encode)
    with pytest.raises(BalanceError, match="'height' brings its own gates, so it is balanced alone"):
        recipes_of(library, ["my/height", "gender"])
    with pytest.raises(BalanceError, match="add up to 90"):
        balance_of(library, [Wanted("my/height", {"tall": 50, "short": 40})], encode)


def test_axes_and_shares_as_people_write_them() -> None:
    asked = wanted_of("gender: woman 60, man 40 %\n\n# age\nskin-tone\nmy/height: very tall 1, short 0")
    assert asked == [
        Wanted("gender", {"woman": 60, "man": 40}),
        Wanted("skin-tone"),
        Wanted("my/height", {"very tall": 1, "short": 0}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one axis"),
        ("# gender", "at least one axis"),
        ("gender\ngender: woman 1", "'gender' is chosen twice"),
        ("gender: woman", "every group with its share"),
        ("gender: 50, 50", "every group with its share"),
        ("gender: woman many", "every group with its share"),
        ("gender: woman 50, woman 50", "a share of 'woman' twice"),
    ],
)
def test_what_people_write_wrongly(text: str, said: str) -> None:
    with pytest.raises(BalanceError, match=said):
        wanted_of(text)


def test_a_gate_file_is_no_axis(tmp_path: Path) -> None:
    path = tmp_path / "gate-x.yaml"
    path.write_text(
        "format: saferegion-gate/1\nname: x\ntitle: x\nversion: 1\nlicence: MIT\nholds: {}\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError, match="'spares' is missing"):
        read_gate(path)


def test_two_axes_are_free_of_each_other(folder: Path, encode: PeopleEncoder) -> None:
    axis = read_axis(folder / "balance" / "axis-height.yaml")
    other = replace(axis, name="other", groups=tuple(reversed(axis.groups)))
    both = compile_balance(Set.of([axis, other]), encode)
    assert set(both.refused) == {"height", "other"}  # what one adds is what the other adds
    assert all("what another axis adds" in str(e) for e in both.refused.values())
