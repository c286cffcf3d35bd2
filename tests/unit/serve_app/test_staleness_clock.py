"""How old the oldest event is that was not learned from, by hand-worked numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.staleness import StalenessClock


def test_nothing_known_is_nothing_stale() -> None:
    clock = StalenessClock()
    assert clock.staleness_ms((-1, -1), 1_000) == 0
    clock.mark((-1, -1), (0, 0))
    assert clock.staleness_ms((-1, -1), 1_000) == 0


def test_the_oldest_event_of_any_shard_counts() -> None:
    clock = StalenessClock()
    clock.mark((3, 7), (100, 200))
    clock.mark((5, 7), (300, 200))
    assert clock.staleness_ms((-1, -1), 1_000) == 900
    assert clock.staleness_ms((3, -1), 1_000) == 800
    assert clock.staleness_ms((3, 7), 1_000) == 700
    assert clock.staleness_ms((4, 7), 1_000) == 700, "the event at offset 5 is not learned yet"
    assert clock.staleness_ms((5, 7), 1_000) == 0


def test_a_rollback_makes_old_events_stale_again() -> None:
    clock = StalenessClock()
    for offset in range(10):
        clock.mark((offset,), (100 + offset,))
    assert clock.staleness_ms((9,), 1_000) == 0
    assert clock.staleness_ms((4,), 1_000) == 1_000 - 105


@pytest.fixture(scope="module")
def long_run() -> StalenessClock:
    clock = StalenessClock()
    for offset in range(20_000):
        clock.mark((offset,), (1_000 + offset,))
    return clock


@given(trained=st.integers(-1, 19_999))
def test_a_thinned_clock_is_nearly_right_and_never_makes_an_event_look_older(
    long_run: StalenessClock, trained: int
) -> None:
    truth_ms = 20_000 - trained - 1
    shown_ms = long_run.staleness_ms((trained,), 21_000)
    assert 0.95 * truth_ms - 16 <= shown_ms <= truth_ms


def test_the_oldest_mark_is_kept(long_run: StalenessClock) -> None:
    assert long_run.staleness_ms((-1,), 21_000) == 20_000
