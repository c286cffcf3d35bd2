import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.implicit_factors import FactorLearner, ItemFactors
from recommender.settings import FactorSettings

NONE = np.zeros(0, np.int32)
SETTINGS = FactorSettings(factors=4, regularisation=1.0, alpha=4.0, sweeps=10, refit_events=1_000)


def rows(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def two_tastes(learner: FactorLearner, num_users: int = 40) -> None:
    """Even users have items 0 to 4, odd ones 5 to 9, each all but one."""
    for user in range(num_users):
        first = 5 * (user % 2)
        for row in range(first, first + 5):
            if row - first != user // 2 % 5:
                learner.update(user, row, NONE)


def test_a_user_is_the_solution_of_the_weighted_least_squares() -> None:
    items = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    factors = ItemFactors.of(items, SETTINGS)
    had = np.array([False, True, False, True, False, False])
    confidence = np.diag(np.where(had, SETTINGS.alpha, 1.0))
    normal = items.T @ confidence @ items + SETTINGS.regularisation * np.eye(4)
    user = np.linalg.solve(normal, items.T @ confidence @ had)
    np.testing.assert_allclose(factors.scores(rows(1, 3, 3)), items @ user, rtol=1e-4)


def test_a_user_without_known_items_is_at_zero() -> None:
    items = np.ones((3, 4), np.float32)
    for history in (rows(), rows(-1, 7)):
        assert ItemFactors.of(items, SETTINGS).scores(history).tolist() == [0, 0, 0]


def test_nothing_is_known_before_the_first_fit() -> None:
    learner = FactorLearner(10, SETTINGS)
    learner.update(0, 3, NONE)
    assert not learner.scores(rows(3)).any()


def test_a_fit_comes_after_the_set_number_of_events() -> None:
    pytest.importorskip("implicit")
    learner = FactorLearner(10, SETTINGS.model_copy(update={"refit_events": 3}))
    for row in range(2):
        learner.update(0, row, NONE)
    assert not learner.factors.items_VF.any()
    learner.update(0, 2, NONE)
    assert learner.factors.items_VF.any()


def test_items_of_the_same_taste_are_recommended() -> None:
    pytest.importorskip("implicit")
    learner = FactorLearner(10, SETTINGS)
    two_tastes(learner)
    learner.refit()
    scores = learner.scores(rows(0, 1))
    assert scores[2:5].min() > scores[5:].max() + 0.2


def test_the_same_seed_fits_the_same_and_a_repeat_adds_nothing() -> None:
    pytest.importorskip("implicit")
    first, second = (FactorLearner(10, SETTINGS, seed=3) for _ in range(2))
    for learner in (first, second):
        two_tastes(learner)
        learner.refit()
    np.testing.assert_array_equal(first.factors.items_VF, second.factors.items_VF)
    repeated = FactorLearner(10, SETTINGS, seed=3)
    two_tastes(repeated)
    two_tastes(repeated)
    repeated.refit()
    np.testing.assert_array_equal(first.factors.items_VF, repeated.factors.items_VF)


def test_a_fit_goes_on_from_the_last_one_and_takes_new_items_and_users_in() -> None:
    pytest.importorskip("implicit")
    learner = FactorLearner(0, SETTINGS)
    two_tastes(learner)
    learner.refit()
    before = learner.factors.items_VF
    for user in range(100, 110):
        learner.update(user, 0, NONE)
        learner.update(user, 12, NONE)
    learner.refit()
    assert len(learner.factors.items_VF) == 13
    change = np.linalg.norm(learner.factors.items_VF[5:10] - before[5:10])
    assert change < 0.3 * np.linalg.norm(before[5:10])
    scores = learner.scores(rows(0))
    assert scores[12] > scores[5:10].max()
