import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recommender.counters import Counters, previous_items
from recommender.windows import Windows

NO_PREVIOUS = np.zeros((1, 0), np.int32)


def rows(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def count_one(counters: Counters, row: int, *previous_newest_first: int) -> None:
    counters.update(rows(row), rows(*previous_newest_first)[None, :])


class PlainCounters:
    """The definitions, word for word: dense, one event at a time, float64."""

    def __init__(self, half_lives: list[float], num_items: int) -> None:
        self.half_lives = half_lives
        self.popularity = np.zeros((len(half_lives), num_items))
        self.rules = np.zeros((num_items, num_items))
        self.events = np.zeros(num_items)

    def update(self, row: int, previous: list[int]) -> None:
        for counts, half_life in zip(self.popularity, self.half_lives, strict=True):
            counts *= 0.5 ** (1 / half_life)
            counts[row] += 1
        for distance, source in enumerate(previous, start=1):
            self.rules[source, row] += 1 / distance
        self.events[row] += 1

    def rule_scores(self, history: list[int]) -> NDArray[np.float64]:
        scores = np.zeros(len(self.events))
        for age, source in enumerate(history[::-1][:20]):
            weight = 0.9**age / (self.events[source] + 1) ** 0.3
            scores += weight * self.rules[source] / (self.events + 5) ** 0.3
        return scores


streams = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(0, 6), max_size=5)), min_size=1, max_size=80
)


def padded(previous: list[list[int]]) -> NDArray[np.int32]:
    array = np.full((len(previous), 5), -1, np.int32)
    for row, items in zip(array, previous, strict=True):
        row[: len(items)] = items
    return array


@given(stream=streams, split=st.integers(0, 80), history=st.lists(st.integers(0, 6), max_size=30))
def test_sparse_counters_agree_with_the_dense_definition_however_events_are_split(
    stream: list[tuple[int, list[int]]], split: int, history: list[int]
) -> None:
    half_lives = [0.05, 3.0]  # 0.05 makes the scale overflow many times over a stream
    plain, counters = PlainCounters(half_lives, 7), Counters(half_lives, num_items=7)
    for row, previous in stream:
        plain.update(row, previous)
    for part in (stream[:split], stream[split:]):
        counters.update(rows(*(row for row, _ in part)), padded([p for _, p in part]))
    np.testing.assert_allclose(counters.popularity(), plain.popularity, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(
        counters.rule_scores(rows(*history)), plain.rule_scores(history), rtol=1e-5
    )
    np.testing.assert_array_equal(counters.touched(), plain.events > 0)
    assert counters.num_events == len(stream)


def test_popularity_halves_after_a_half_life_of_other_events() -> None:
    counters = Counters([2.0], num_items=2)
    count_one(counters, 0)
    count_one(counters, 1)
    count_one(counters, 1)
    np.testing.assert_allclose(counters.popularity(), [[0.5, 1 + 0.5**0.5]], rtol=1e-6)


def test_a_rule_weighs_one_over_the_distance_and_is_damped_by_both_counts() -> None:
    counters = Counters(num_items=3)
    count_one(counters, 2, 0, 1)  # 0 was the latest, 1 before it
    scores = counters.rule_scores(rows(1, 0))
    damped = 1 / (1**0.3 * 6**0.3)  # no event of a source yet, one of the target
    assert scores[2] == pytest.approx((1.0 * 1.0 + 0.9 * 0.5) * damped)
    assert scores[:2].tolist() == [0.0, 0.0]


def test_only_the_last_twenty_items_speak() -> None:
    counters = Counters(num_items=30)
    count_one(counters, 1, 0)
    assert counters.rule_scores(rows(0, *range(2, 21)))[1] > 0
    assert counters.rule_scores(rows(0, *range(2, 22)))[1] == 0


def test_unknown_history_rows_say_nothing() -> None:
    counters = Counters(num_items=2)
    count_one(counters, 1, 0)
    known = counters.rule_scores(rows(0))
    np.testing.assert_array_equal(counters.rule_scores(rows(0))[1:], known[1:])
    assert counters.rule_scores(rows(-1, 99)).tolist() == [0.0, 0.0]


def test_counters_grow_with_the_rows_they_see_and_keep_what_they_counted() -> None:
    counters = Counters([10.0])
    count_one(counters, 3, 5)
    assert counters.num_items == 6
    counters.grow(9)
    assert counters.popularity().shape == (1, 9)
    assert counters.touched().tolist() == [False] * 3 + [True] + [False] * 5
    assert counters.rule_scores(rows(5))[3] > 0


@given(stream=streams, more=streams)
def test_restored_counters_go_on_to_the_last_bit(
    stream: list[tuple[int, list[int]]], more: list[tuple[int, list[int]]]
) -> None:
    counters = Counters([0.05, 7.0])
    for row, previous in stream:
        count_one(counters, row, *previous)
    restored = Counters.from_state(counters.state())
    for row, previous in more:
        count_one(counters, row, *previous)
        count_one(restored, row, *previous)
    history = rows(*range(counters.num_items))
    assert restored.num_items == counters.num_items
    np.testing.assert_array_equal(restored.popularity(), counters.popularity())
    np.testing.assert_array_equal(restored.rule_scores(history), counters.rule_scores(history))


def test_a_state_is_a_copy_that_later_events_do_not_touch() -> None:
    counters = Counters([10.0], num_items=2)
    count_one(counters, 1, 0)
    state = counters.state()
    count_one(counters, 1, 0)
    assert Counters.from_state(state).popularity()[0, 1] == 1.0


def test_a_pair_that_repeats_takes_no_more_memory() -> None:
    counters = Counters([10.0], num_items=2)
    for _ in range(3):
        counters.update(np.ones(4_000, np.int32), np.zeros((4_000, 1), np.int32))
    settled = counters.nbytes
    for _ in range(10):
        counters.update(np.ones(4_000, np.int32), np.zeros((4_000, 1), np.int32))
    assert counters.nbytes == settled
    expected = 52_000 / (1**0.3 * 52_005**0.3)
    assert counters.rule_scores(rows(0))[1] == pytest.approx(expected, rel=1e-5)


def test_many_distinct_pairs_stay_below_twenty_bytes_each() -> None:
    counters = Counters([10.0], num_items=300)
    rng = np.random.default_rng(0)
    for _ in range(60):
        counters.update(
            rng.integers(300, size=500, dtype=np.int32),
            rng.integers(300, size=(500, 20), dtype=np.int32),
        )
    assert counters.nbytes < 20 * 300 * 300 + 300 * 100


@pytest.mark.parametrize("half_lives", [[], [0.0], [5.0, -1.0]])
def test_a_half_life_that_is_not_positive_is_refused(half_lives: list[float]) -> None:
    with pytest.raises(ValueError, match="half-lives"):
        Counters(half_lives)


def test_a_negative_row_is_refused_before_anything_is_counted() -> None:
    counters = Counters(num_items=2)
    with pytest.raises(ValueError, match="-1"):
        counters.update(rows(0, -1), np.zeros((2, 0), np.int32))
    assert counters.num_events == 0


def test_no_events_change_nothing() -> None:
    counters = Counters(num_items=2)
    counters.update(rows(), NO_PREVIOUS[:0])
    assert counters.num_events == 0


def test_previous_items_are_newest_first_without_the_event_itself() -> None:
    windows = Windows(
        np.array([[4, 5, 6], [7, -1, -1], [8, 9, -1]], np.int32),
        np.zeros((3, 3), np.int8),
        np.zeros((3, 3), np.int8),
        np.array([3, 1, 2], np.int32),
    )
    assert previous_items(windows).tolist() == [[5, 4], [-1, -1], [8, -1]]
