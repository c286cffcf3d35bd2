import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.implicit_factors import (
    FactorLearner,
    ItemFactors,
    SolverMissing,
    require_solver,
)
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


def random_factors(num_items: int = 8) -> ItemFactors:
    items_VF = np.random.default_rng(1).standard_normal((num_items, 4)).astype(np.float32)
    return ItemFactors.of(items_VF, SETTINGS)


def test_items_that_came_after_the_fit_score_zero_and_say_nothing() -> None:
    factors = random_factors()
    scores = factors.scores(rows(1, 3, 9), num_items=11)
    assert scores[8:].tolist() == [0, 0, 0]
    assert scores[:8].tolist() == factors.scores(rows(1, 3)).tolist()
    assert factors.vectors(11)[8:].tolist() == [[0] * 4] * 3
    assert factors.vectors(5).tolist() == factors.items_VF[:5].tolist()


def test_the_parts_of_a_history_add_up_to_the_scores_and_a_repeat_speaks_last() -> None:
    factors = random_factors()
    history = rows(2, 5, -1, 2, 7, 99)
    parts_HK = factors.contributions(history, factors.items_VF)
    np.testing.assert_allclose(parts_HK.sum(axis=0), factors.scores(history), atol=1e-6)
    assert [bool(part_K.any()) for part_K in parts_HK] == [False, True, False, True, True, False]
    assert factors.contributions(rows(), factors.items_VF).shape == (0, 8)


def test_published_factors_score_the_same_to_the_last_bit() -> None:
    factors = random_factors()
    again = ItemFactors.from_state(factors.state())
    assert again.scores(rows(4, 6)).tolist() == factors.scores(rows(4, 6)).tolist()
    assert again.alpha == factors.alpha


def test_a_fit_is_made_of_the_latest_events_alone_and_older_ones_are_dropped() -> None:
    pytest.importorskip("implicit")
    bounded = FactorLearner(10, SETTINGS.model_copy(update={"max_events": 40}))
    recent = FactorLearner(10, SETTINGS)
    users = np.random.default_rng(2).integers(12, size=400).astype(np.int32)
    items = np.random.default_rng(3).integers(10, size=400).astype(np.int32)
    for user, row in zip(users.tolist(), items.tolist(), strict=True):
        bounded.update(user, row, NONE)
        assert len(bounded._rows) == len(bounded._users) <= 50
    recent.collect(users[-40:], items[-40:])
    for learner in (bounded, recent):
        learner.refit()
    assert bounded.num_events == 400
    assert bounded.factors.items_VF.tolist() == recent.factors.items_VF.tolist()
    assert len(bounded._users_UF) == len(np.unique(users[-40:]))


def test_users_whose_events_were_dropped_do_not_lend_their_factors_to_others() -> None:
    pytest.importorskip("implicit")
    learner = FactorLearner(4, SETTINGS.model_copy(update={"max_events": 4}))
    learner.collect(rows(0, 0, 7, 7), rows(0, 1, 2, 3))
    learner.refit()
    before = learner._factors_of(np.array([7], np.int32))
    assert before.any()
    learner.collect(rows(7, 9, 9, 9), rows(2, 0, 1, 2))
    learner.refit()
    assert not learner._factors_of(np.array([0, 3], np.int32)).any()
    assert np.linalg.norm(learner._factors_of(np.array([7], np.int32)) - before) < 0.5


def collected(settings: FactorSettings = SETTINGS, num_users: int = 40) -> FactorLearner:
    source = FactorLearner(0, SETTINGS)
    two_tastes(source, num_users)
    learner = FactorLearner(0, settings, seed=1)
    learner.collect(np.array(source._users, np.int32), np.array(source._rows, np.int32))
    return learner


def test_what_is_read_in_bulk_is_fitted_once_and_at_the_end() -> None:
    pytest.importorskip("implicit")
    learner = collected(SETTINGS.model_copy(update={"refit_events": 3}))
    assert not learner.factors.items_VF.any()
    learner.catch_up()
    fitted = learner.factors
    scores = learner.scores(rows(0, 1))
    assert scores[2:5].min() > scores[5:].max() + 0.2
    learner.catch_up()
    assert learner.factors is fitted
    nothing = FactorLearner(3, SETTINGS)
    nothing.catch_up()
    assert not nothing.factors.items_VF.any()


def test_a_learner_that_starts_again_has_the_same_factors_and_its_next_fit_is_due_when_it_was() -> (
    None
):
    pytest.importorskip("implicit")
    settings = SETTINGS.model_copy(update={"refit_events": 170, "sweeps": 3})
    first = collected(settings)
    first.catch_up()
    first.collect(rows(1, 3), rows(0, 0))
    again = FactorLearner(0, settings, seed=1)
    again.load_state(first.state())
    again.collect(np.array(first._users, np.int32), np.array(first._rows, np.int32))
    again.catch_up()
    assert again.factors.items_VF.tolist() == first.factors.items_VF.tolist()
    for number in range(168):
        for learner in (first, again):
            assert learner._num_fits == (learner is first)
            learner.update(100 + number // 4, number % 4, NONE)
    assert (first._num_fits, again._num_fits) == (2, 1)
    for history in (rows(0), rows(6, 7)):
        np.testing.assert_allclose(again.scores(history), first.scores(history), atol=0.02)


def test_factors_of_another_size_are_not_taken_over() -> None:
    pytest.importorskip("implicit")
    first = collected()
    first.catch_up()
    again = FactorLearner(0, SETTINGS.model_copy(update={"factors": 5}))
    again.load_state(first.state())
    assert again.factors.items_VF.shape == (0, 5)


def test_after_a_new_count_with_fewer_events_the_next_fit_still_comes() -> None:
    pytest.importorskip("implicit")
    learner = collected(SETTINGS.model_copy(update={"refit_events": 5}))
    learner.catch_up()
    learner.forget_events()
    learner.collect(rows(0, 1), rows(0, 5))
    learner.catch_up()
    for _ in range(5):
        assert learner._num_fits == 1
        learner.update(0, 1, NONE)
    assert learner._num_fits == 2


def test_without_implicit_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    require_solver(FactorSettings())
    with pytest.raises(SolverMissing, match=r"ials\.enabled.*pip install 'rheos\[ials\]'"):
        require_solver(FactorSettings(enabled=True))
    with pytest.raises(ImportError, match="pip install"):
        collected().refit()
