from __future__ import annotations

import pytest
import torch
from regions import Shape, conditioning, detector

from saferegion import Conditioning, Detector, Readout, SafeRegionError, Term
from saferegion.core.detector import Panel

WORD = torch.tensor([[1.0, 0.0, 0.0]])


def one(reduce: str, weight: torch.Tensor = WORD, offset: float = 0.0, threshold: float = 1.0) -> Detector:
    term = Term(
        Readout("pooled" if reduce == "pooled" else "tokens", reduce), weight, torch.full((len(weight), 1), offset)
    )
    return Detector((term,), torch.tensor([threshold]))


GIVEN = Detector(one("token").terms, torch.zeros(1), given=one("token"))


def score(d: Detector, tokens: list[list[float]], mask: list[bool] | None = None) -> float:
    given = None if mask is None else torch.tensor([mask])
    return float(d.scores(Conditioning(torch.tensor([tokens]), given))[0, 0])


def test_a_token_term_takes_the_strongest_token_under_the_mask() -> None:
    tokens = [[5.0, 0, 0], [2.0, 0, 0], [-1.0, 0, 0]]
    assert score(one("token"), tokens) == pytest.approx(4.0)
    assert score(one("token"), tokens, [False, True, True]) == pytest.approx(1.0)


def test_a_pair_term_reads_a_token_with_its_successor() -> None:
    fire, truck, other = [1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]
    d = one("pair", torch.tensor([[4.0, 0, 0, 0, -4.0, 0]]))
    assert score(d, [fire, other]) > 0 and score(d, [fire, truck]) < 0
    assert score(d, [other, fire]) > 0, "the last token stands beside itself"


def test_a_successor_that_may_not_move_is_not_read() -> None:
    fire, truck = [1.0, 0, 0], [0.0, 1, 0]
    d = one("pair", torch.tensor([[4.0, 0, 0, 0, -4.0, 0]]))
    assert score(d, [fire, truck], [True, False]) > 0


def test_a_pair_ends_where_its_chunk_ends() -> None:
    term = Term(Readout("tokens", "pair"), torch.tensor([[1.0, 10.0]]), torch.zeros(1, 2))
    d = Detector((term,), torch.zeros(1))
    tokens = torch.tensor([[[0.0], [1.0], [5.0], [0.0]]])  # two chunks of two tokens
    assert float(d.scores(Conditioning(tokens))[0, 0]) == 11.0, "1 stands beside itself, not beside the 5 of the next"


def test_a_mean_term_reads_the_mean_and_a_pooled_term_the_pooled_vector() -> None:
    assert score(one("mean"), [[4.0, 0, 0], [2.0, 0, 0]]) == pytest.approx(2.0)
    assert score(one("mean"), [[4.0, 0, 0], [2.0, 0, 0]], [False, True]) == pytest.approx(1.0)
    c = Conditioning(torch.zeros(1, 2, 3), None, torch.tensor([[3.0, 9, 9]]))
    assert float(one("pooled").scores(c)[0, 0]) == pytest.approx(2.0)
    assert float(one("pooled").scores(Conditioning(torch.zeros(1, 2, 3)))[0, 0]) == -torch.inf


def test_offsets_belong_to_positions() -> None:
    term = Term(Readout("tokens", "token"), WORD, torch.tensor([[0.0, 10.0]]))
    d = Detector((term,), torch.zeros(1))
    assert score(d, [[1.0, 0, 0], [3.0, 0, 0]]) == pytest.approx(1.0)
    assert score(d, [[1.0, 0, 0], [12.0, 0, 0], [2.5, 0, 0], [0, 0, 0]]) == pytest.approx(2.5), "positions repeat"


def test_a_joint_term_is_over_where_the_sum_is() -> None:
    terms = (one("token").terms[0], one("mean").terms[0])
    d = Detector(terms, torch.tensor([9.0, 9.0]), ((0, 1),), torch.tensor([3.0]))
    panel = Panel([d])
    far = panel.distances(
        panel.scores(panel.read(Conditioning(torch.tensor([[[2.5, 0, 0], [2.5, 0, 0]], [[0.5, 0, 0]] * 2]))))
    )
    assert float(far[0, 0]) == pytest.approx(2.0) and float(far[1, 0]) == pytest.approx(-2.0)


def test_a_given_detector_must_be_open_too() -> None:
    young = one("token", torch.tensor([[0.0, 1.0, 0.0]]))
    nude = Detector(one("token").terms, torch.ones(1), given=young)
    panel = Panel([nude])

    def far(tokens: list[list[float]]) -> float:
        return float(panel.distances(panel.scores(panel.read(Conditioning(torch.tensor([tokens])))))[0, 0])

    assert (
        far([[3.0, 0, 0], [0, 0, 0]]) <= 0
        and far([[0.0, 3, 0], [0, 0, 0]]) <= 0
        and far([[3.0, 0, 0], [0, 3.0, 0]]) > 0
    )


def test_facets_count_by_the_strongest() -> None:
    d = one("token", torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]))
    assert score(d, [[0.0, 3.0, 0]]) == pytest.approx(5.0) and score(d, [[3.0, 0, 0]]) == pytest.approx(2.0)


def test_many_detectors_score_as_each_alone() -> None:
    shape = Shape(width=8, facets=2, given=True)
    draw = torch.Generator().manual_seed(3)
    some = [detector(torch.randn(8, generator=draw), shape, draw) for _ in range(5)]
    c = conditioning(shape, 4)
    panel = Panel(some)
    together = panel.distances(panel.scores(panel.read(c)))
    for k, d in enumerate(some):
        alone = Panel([d])
        assert torch.allclose(together[:, k], alone.distances(alone.scores(alone.read(c)))[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: one("word"), "A readout is one of"),
        (lambda: one("token", torch.zeros(1, 3)), "tells nothing"),
        (lambda: one("token", torch.full((1, 3), float("nan"))), "NaN"),
        (lambda: one("token", torch.full((1, 3), 1e13)), "overflow"),
        (lambda: one("pair", torch.ones(1, 3)), "twice as wide"),
        (lambda: one("token", threshold=1e9), "nothing reaches it"),
        (lambda: Detector((), torch.zeros(0)), "at least one term"),
        (lambda: Detector(one("token").terms, torch.zeros(2)), "one threshold a term"),
        (lambda: Detector(one("token").terms, torch.zeros(1), ((0, 0),), torch.zeros(1)), "two different terms"),
        (lambda: Detector(one("token").terms, torch.zeros(1), (), torch.zeros(1)), "one sum a joint term"),
        (lambda: Detector(one("token").terms, torch.zeros(1, dtype=torch.float64)), "float32"),
        (lambda: Detector(one("token").terms, torch.zeros(1), given=GIVEN), "cannot have one of its own"),
    ],
)  # fmt: skip
def test_what_is_no_detector_is_refused(change: object, says: str) -> None:
    with pytest.raises(SafeRegionError, match=says):
        change()  # type: ignore[operator]


def test_a_tightened_detector_opens_earlier() -> None:
    d = one("token", threshold=2.0)
    assert float(d.tightened(0.4).thresholds[0]) == pytest.approx(0.8)


def test_the_mean_of_many_tokens_counts_for_more_where_it_varies_less() -> None:
    plain = Term(Readout("tokens", "mean"), WORD, torch.zeros(1, 1))
    grown = Term(Readout("tokens", "mean"), WORD, torch.zeros(1, 1), growth=0.5)
    for length, by in ((10, 1.0), (40, 2.0), (90, 3.0)):
        c = Conditioning(torch.randn(2, length, WORD.shape[1]))
        one, other = (Detector((t,), torch.zeros(1)).scores(c) for t in (plain, grown))
        assert torch.allclose(other, by * one, atol=1e-6)
    masked = Conditioning(torch.randn(1, 40, WORD.shape[1]), torch.arange(40).unsqueeze(0) < 10)
    assert torch.allclose(*(Detector((t,), torch.zeros(1)).scores(masked) for t in (plain, grown)), atol=1e-6)
    for reduce, growth in (("token", 0.5), ("mean", 1.5), ("mean", float("nan"))):
        with pytest.raises(SafeRegionError, match="Only a mean term grows"):
            Term(Readout("tokens", reduce), WORD, torch.zeros(1, 1), growth)


def test_the_mean_is_that_of_the_tokens_that_may_move() -> None:
    tokens = torch.tensor([[[9.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    mask = torch.tensor([[False, True, True, True]])
    assert float(one("mean").scores(Conditioning(tokens, mask))[0, 0]) == pytest.approx(
        float(one("mean").scores(Conditioning(tokens[:, 1:]))[0, 0])
    )
