import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.baselines import Ease, ItemNeighbours

# Users by items; every baseline sees it one event at a time.
MATRIX = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]], np.float64)


def rows(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def replay(baseline: ItemNeighbours | Ease) -> None:
    for user, taken in enumerate(MATRIX):
        seen: list[int] = []
        for row in np.flatnonzero(taken).tolist():
            baseline.update(user, row, rows(*seen))
            seen.append(row)


def test_neighbours_score_by_cosine_faded_with_age() -> None:
    baseline = ItemNeighbours(4)
    replay(baseline)
    scores = baseline.scores(rows(2, 0))
    # Item 1: with item 0 (latest) 2 common users of 3 and 3; with item 2, 2 of 3 and 2.
    assert scores[1] == pytest.approx(2 / 3 + 0.9 * 2 / np.sqrt(6))
    assert scores[3] == pytest.approx(1 / np.sqrt(3))


def test_neighbours_of_nothing_are_nothing() -> None:
    baseline = ItemNeighbours(4)
    assert baseline.scores(rows()).tolist() == [0, 0, 0, 0]
    assert baseline.scores(rows(1)).tolist() == [0, 0, 0, 0]


def test_a_repeat_is_no_second_user() -> None:
    baseline, once = ItemNeighbours(2), ItemNeighbours(2)
    for each, num_repeats in ((baseline, 2), (once, 0)):
        each.update(7, 0, rows())
        each.update(7, 1, rows(0))
        for _ in range(num_repeats):
            each.update(7, 1, rows(0, 1))
    np.testing.assert_array_equal(baseline.scores(rows(0)), once.scores(rows(0)))


def test_ease_solves_its_ridge_regression_without_self_weights() -> None:
    baseline = Ease(4, refit_every=9, regularisation=2.0)
    replay(baseline)
    weights = np.stack([baseline.scores(rows(row)) for row in range(4)])
    np.testing.assert_array_equal(weights.diagonal(), 0)
    # Column j is the ridge regression of item j on the other items.
    for item in range(4):
        others = [row for row in range(4) if row != item]
        x = MATRIX[:, others]
        expected = np.linalg.solve(x.T @ x + 2.0 * np.eye(3), x.T @ MATRIX[:, item])
        np.testing.assert_allclose(weights[others, item], expected, rtol=1e-5)


def test_ease_adds_up_a_users_items_once_each() -> None:
    baseline = Ease(4, refit_every=9, regularisation=2.0)
    replay(baseline)
    both = baseline.scores(rows(0)) + baseline.scores(rows(1))
    np.testing.assert_allclose(baseline.scores(rows(0, 1, 1)), both, rtol=1e-6)


def test_ease_knows_nothing_before_its_first_fit() -> None:
    baseline = Ease(4, refit_every=10)
    replay(baseline)  # nine events
    assert baseline.scores(rows(0)).tolist() == [0, 0, 0, 0]


def test_ease_fits_again_when_it_is_asked_after_enough_events() -> None:
    baseline = Ease(4, refit_every=9, regularisation=2.0)
    replay(baseline)
    first = baseline.scores(rows(0))
    baseline.update(9, 3, rows(1))
    np.testing.assert_array_equal(baseline.scores(rows(0)), first)
    replay(baseline)
    assert baseline.scores(rows(0)).tolist() != first.tolist()
