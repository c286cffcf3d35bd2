from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recommender.counters import Counters
from recommender.implicit_factors import ItemFactors
from recommender.ranking import (
    History,
    component_scores,
    content_scores,
    eligible_items,
    fit_items,
    nearest_half_life,
    ranks_of,
    top_k,
    window_scores,
)
from recommender.settings import FactorSettings
from recommender.windows import Windows

EMPTY = History(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0, np.int64))


def history_of(*rows: int) -> History:
    count = len(rows)
    return History(
        np.array(rows, np.int32), np.zeros(count, np.int8), np.arange(count, dtype=np.int64)
    )


@dataclass(frozen=True)
class FakeScorer:
    """Scores item v by v plus the length of the window plus all popularity."""

    num_items: int
    text_unit: NDArray[np.float32]

    def net_scores(
        self, windows: Windows, popularity_MV: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        base = np.arange(self.num_items, dtype=np.float32)
        lengths_B1 = windows.lengths_B[:, None].astype(np.float32)
        return np.asarray(base + lengths_B1 + popularity_MV.sum(), np.float32)


def fake_scorer(num_items: int) -> FakeScorer:
    return FakeScorer(num_items, np.eye(num_items, 4, dtype=np.float32))


scores_and_mask = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40)


@given(rows=scores_and_mask)
def test_a_rank_is_the_mean_place_among_level_items(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    eligible = np.array([is_eligible for _, is_eligible in rows])
    targets = np.flatnonzero(eligible)
    for target, rank in zip(targets, ranks_of(scores, eligible, targets), strict=True):
        better = int((scores[eligible] > scores[target]).sum())
        level = int((scores[eligible] == scores[target]).sum())
        assert rank == np.mean([better + place for place in range(1, level + 1)])


def test_a_constant_ranking_puts_the_target_in_the_middle() -> None:
    ranks = ranks_of(np.zeros(5, np.float32), np.ones(5, bool), np.array([3]))
    assert ranks.tolist() == [3.0]


def test_the_rank_of_a_left_out_item_is_refused() -> None:
    eligible = np.array([True, False])
    with pytest.raises(ValueError, match=r"\[1\]"):
        ranks_of(np.zeros(2, np.float32), eligible, np.array([1]))


@given(rows=scores_and_mask, k=st.integers(0, 50))
def test_top_k_is_the_head_of_a_full_sort_with_ties_by_row(
    rows: list[tuple[int, bool]], k: int
) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    eligible = np.array([is_eligible for _, is_eligible in rows])
    ordered = sorted(np.flatnonzero(eligible).tolist(), key=lambda row: (-scores[row], row))
    assert top_k(scores, eligible, k).tolist() == ordered[:k]


def test_left_out_rows_are_not_eligible_and_rows_outside_are_ignored() -> None:
    eligible = eligible_items(4, np.array([2, -1, 9], np.int32))
    assert eligible.tolist() == [True, True, False, True]


def test_without_a_version_only_counters_speak() -> None:
    scores = component_scores(None, Counters(num_items=3), EMPTY, half_life_index=0)
    assert set(scores) == {"rules", "popularity"}
    assert all(len(values) == 3 for values in scores.values())


def test_with_a_version_all_four_components_cover_the_same_items() -> None:
    counters = Counters([10.0, 100.0], num_items=5)
    counters.update(np.array([1, 1], np.int32), np.array([[-1], [0]], np.int32))
    scores = component_scores(fake_scorer(5), counters, history_of(0, 2), half_life_index=1)
    total = counters.popularity().sum()
    np.testing.assert_allclose(scores["net"], np.arange(5) + 2 + total)
    np.testing.assert_array_equal(scores["popularity"], counters.popularity()[1])
    np.testing.assert_array_equal(scores["rules"], counters.rule_scores(np.array([0, 2], np.int32)))
    np.testing.assert_allclose(scores["content"], [0.9, 0, 1, 0, 0])


def test_an_item_that_a_component_does_not_know_gets_its_lowest_score() -> None:
    counters = Counters([10.0], num_items=3)
    counters.update(np.array([0, 1, 2], np.int32), np.zeros((3, 0), np.int32))
    scores = component_scores(fake_scorer(2), counters, EMPTY, half_life_index=0, num_items=5)
    assert scores["net"][2:].tolist() == [scores["net"].min()] * 3
    assert scores["popularity"][3:].tolist() == [scores["popularity"][0]] * 2


def test_fitting_cuts_fills_and_gives_zeros_where_nothing_is_known() -> None:
    scores = np.array([3.0, 1.0, 2.0], np.float32)
    assert fit_items(scores, 2).tolist() == [3.0, 1.0]
    assert fit_items(scores, 4).tolist() == [3.0, 1.0, 2.0, 1.0]
    assert fit_items(scores[:0], 2).tolist() == [0.0, 0.0]


def test_window_scores_are_those_of_the_history_they_come_from() -> None:
    counters = Counters([10.0], num_items=4)
    counters.update(np.array([1], np.int32), np.array([[0]], np.int32))
    history = history_of(3, 0)
    by_history = component_scores(fake_scorer(4), counters, history, half_life_index=0)
    by_window = window_scores(
        fake_scorer(4), counters, history.window(50), history.rows_H, half_life_index=0
    )
    for name, scores in by_history.items():
        np.testing.assert_array_equal(by_window[name], scores)


def test_window_scores_are_for_one_user() -> None:
    windows = Windows(
        np.zeros((2, 1), np.int32), np.zeros((2, 1), np.int8), np.zeros((2, 1), np.int8),
        np.ones(2, np.int32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="got 2"):
        window_scores(None, Counters(num_items=1), windows, EMPTY.rows_H, half_life_index=0)


def test_content_likes_texts_like_the_latest_items_best() -> None:
    text = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    scores = content_scores(text, np.array([0, 1], np.int32))
    np.testing.assert_allclose(scores, [0.9, 1.0, 0.9 * 0.6 + 0.8], rtol=1e-6)
    assert content_scores(text, np.array([-1, 9], np.int32)).tolist() == [0, 0, 0]


def test_the_nearest_half_life_is_nearest_as_a_ratio() -> None:
    assert nearest_half_life((500.0, 2_000.0, 10_000.0), 2_000.0) == 1
    assert nearest_half_life((100.0, 10_000.0), 1_100.0) == 1


def test_an_item_that_came_after_the_factors_is_level_with_one_that_had_no_event() -> None:
    items_VF = np.array([[1, 0], [-1, 0], [0, 0]], np.float32)
    components = component_scores(
        None,
        Counters(num_items=5),
        history_of(0),
        half_life_index=0,
        num_items=5,
        factors=ItemFactors.of(items_VF, FactorSettings()),
    )
    scores_V = components["ials"]
    assert scores_V[0] > 0 > scores_V[1]
    assert scores_V[2:].tolist() == [0, 0, 0]
