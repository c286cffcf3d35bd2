import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.beyond_accuracy import LIST_LENGTH, ListObserver, ListQuality

EVERY = np.ones(20, np.bool_)


def ranking(*best: int) -> NDArray[np.float32]:
    """Scores that put these items first, in this order, and all others level."""
    scores = np.zeros(20, np.float32)
    for place, row in enumerate(best):
        scores[row] = 100.0 - place
    return scores


def unit(angles: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def observe(*lists: NDArray[np.float32], counts: NDArray[np.float64] | None = None) -> ListQuality:
    observer = ListObserver(unit(np.zeros(20)))
    for scores in lists:
        observer.observe({"net": scores}, EVERY, np.zeros(20) if counts is None else counts)
    return observer.result()["net"]


def test_coverage_is_the_share_of_the_catalogue_in_any_list() -> None:
    first, last = ranking(*range(10)), ranking(*range(5, 15))
    assert observe(first).coverage == 0.5
    assert observe(first, first).coverage == 0.5
    assert observe(first, last).coverage == 0.75


def test_novelty_is_the_mean_surprise_in_bits() -> None:
    assert observe(ranking(*range(10))).novelty == pytest.approx(np.log2(20))
    counts = np.zeros(20)
    counts[:10] = 3.0  # with one more for each item: 4 of 50
    assert observe(ranking(*range(10)), counts=counts).novelty == pytest.approx(np.log2(50 / 4))
    assert observe(ranking(*range(10, 20)), counts=counts).novelty == pytest.approx(np.log2(50))


def test_the_popular_tenth_is_that_with_the_most_events() -> None:
    counts = np.arange(20.0)
    assert observe(ranking(*range(10)), counts=counts).popularity_share == 0.0
    assert observe(ranking(*range(10, 20)), counts=counts).popularity_share == 0.2


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    angles = np.linspace(0.0, 3.0, 20)
    observer = ListObserver(unit(angles))
    observer.observe({"net": ranking(*range(10))}, EVERY, np.zeros(20))
    shown = angles[:LIST_LENGTH]
    distances = [1 - np.cos(a - b) for i, a in enumerate(shown) for b in shown[:i]]
    assert observer.result()["net"].diversity == pytest.approx(np.mean(distances), rel=1e-5)


def test_only_what_may_be_recommended_is_in_a_list() -> None:
    eligible = np.zeros(20, np.bool_)
    eligible[3] = True
    observer = ListObserver(unit(np.zeros(20)))
    observer.observe({"net": ranking(1, 2, 3)}, eligible, np.zeros(20))
    figures = observer.result()["net"]
    assert (figures.coverage, figures.diversity) == (0.05, 0.0)


def test_rankings_are_told_apart_and_nothing_is_known_before_the_first_list() -> None:
    observer = ListObserver(unit(np.zeros(20)))
    assert observer.result() == {}
    observer.observe({"a": ranking(1), "b": ranking(*range(10, 20))}, EVERY, np.arange(20.0))
    result = observer.result()
    assert result["a"].popularity_share < result["b"].popularity_share
