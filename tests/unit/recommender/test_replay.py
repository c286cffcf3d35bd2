import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.events import gap_code
from recommender.replay import ReplayMemory, Strategy, UserSequence, windows_before, windows_of
from recommender.windows import PAD, Windows

Stream = list[tuple[int, int]]
"""User and timestamp in seconds; the item of an event is its offset."""

streams: st.SearchStrategy[Stream] = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=60
)


def memory_of(stream: Stream, **sizes: int) -> ReplayMemory:
    memory = ReplayMemory(**sizes)
    for offset, (user, timestamp_s) in enumerate(stream):
        memory.append(user, offset, offset % 7, timestamp_s * 1_000, acknowledged_ms=offset + 5)
    return memory


def used(windows: Windows, row: int) -> list[int]:
    length = int(windows.lengths_B[row])
    assert (windows.items_BT[row, length:] == PAD).all()
    assert (windows.items_BT[row, :length] != PAD).all()
    return [int(item) for item in windows.items_BT[row, :length]]


def known_at(stream: Stream, offset: int) -> list[int]:
    """Offsets of the user's events that were there when `offset` came in, in history order."""
    user = stream[offset][0]
    mine = [o for o in range(offset + 1) if stream[o][0] == user]
    return sorted(mine, key=lambda o: (stream[o][1], o))


@given(stream=streams, length=st.integers(1, 70))
def test_a_history_is_the_newest_items_by_timestamp_and_offset(stream: Stream, length: int) -> None:
    memory = memory_of(stream, history_length=length)
    for user in range(4):
        mine = [o for o, event in enumerate(stream) if event[0] == user]
        ordered = sorted(mine, key=lambda o: (stream[o][1], o))
        history = memory.history(user)
        assert len(history.items) <= length
        if len(mine) <= length:
            assert history.items.tolist() == ordered
            assert history.feedback.tolist() == [o % 7 for o in ordered]
            assert history.timestamps_ms.tolist() == [stream[o][1] * 1_000 for o in ordered]


def test_a_history_longer_than_its_limit_drops_the_oldest() -> None:
    memory = memory_of([(0, t) for t in range(100)], history_length=10)
    assert memory.history(0).items.tolist() == list(range(90, 100))
    assert memory.num_events == 100


@given(
    stream=streams, window=st.integers(1, 5), after=st.integers(-1, 59), limit=st.integers(0, 60)
)
def test_fresh_events_say_what_was_known_when_each_came_in(
    stream: Stream, window: int, after: int, limit: int
) -> None:
    fresh = memory_of(stream, window=window).fresh(after, limit)
    expected = list(range(len(stream)))[after + 1 :][:limit]
    assert fresh.offsets_N.tolist() == expected
    assert fresh.items_N.tolist() == expected
    assert fresh.users_N.tolist() == [stream[o][0] for o in expected]
    assert fresh.acknowledged_ms_N.tolist() == [o + 5 for o in expected]
    for row, offset in enumerate(expected):
        known = known_at(stream, offset)
        until = known[: known.index(offset) + 1]
        assert used(fresh.windows, row) == until[-window - 1 :]
        seen = fresh.seen_values[fresh.seen_splits[row] : fresh.seen_splits[row + 1]]
        assert seen.tolist() == [o for o in known if o != offset]


def test_gaps_are_to_the_item_before_even_where_that_is_not_shown() -> None:
    memory = memory_of([(0, 100), (0, 101), (0, 105), (0, 105), (0, 1_100)], window=2)
    windows = memory.fresh(-1, 5).windows
    assert windows.gaps_BT[0].tolist() == [0, 0, 0]
    assert windows.gaps_BT[1].tolist() == [0, gap_code(1), 0]
    assert windows.gaps_BT[4].tolist() == [gap_code(4), 0, gap_code(995)]


@given(gaps=st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_gap_codes_of_a_batch_are_those_of_single_gaps(gaps: list[int]) -> None:
    timestamps_ms = np.cumsum([0, *gaps]) * 1_000
    items = np.arange(len(timestamps_ms), dtype=np.int32)
    sequence = UserSequence(items, items.astype(np.int8), timestamps_ms)
    windows = windows_of([sequence], len(items))
    assert windows.gaps_BT[0].tolist() == [0, *map(gap_code, gaps)]


def test_windows_of_nothing_are_empty_rows() -> None:
    empty = ReplayMemory().history(0)
    windows = windows_of([empty, empty], 3)
    assert windows.lengths_B.tolist() == [0, 0]
    assert (windows.items_BT == PAD).all()
    assert len(windows_of([], 3)) == 0


def test_fresh_refuses_what_has_left_the_recent_window() -> None:
    memory = memory_of([(0, t) for t in range(10)], recent_window=4)
    assert memory.first_recent_offset == 6
    assert memory.fresh(5, 10).offsets_N.tolist() == [6, 7, 8, 9]
    with pytest.raises(LookupError, match="5 is older"):
        memory.fresh(4, 10)


def test_fresh_beyond_the_end_is_empty() -> None:
    memory = memory_of([(0, 1)])
    assert len(memory.fresh(0, 10)) == 0
    assert len(memory.fresh(7, 10)) == 0


def test_fresh_can_leave_out_what_was_seen() -> None:
    fresh = memory_of([(0, 1), (0, 2)]).fresh(-1, 10, include_seen=False)
    assert fresh.seen_values.size == 0
    assert fresh.seen_splits.tolist() == [0, 0, 0]


def test_offsets_go_on_from_the_first_and_may_not_jump() -> None:
    memory = ReplayMemory()
    assert memory.append(0, 1, 0, 0, offset=70) == 70
    assert memory.append(0, 1, 0, 0) == 71
    assert memory.fresh(69, 5).offsets_N.tolist() == [70, 71]
    with pytest.raises(ValueError, match="offset 73 does not follow 71"):
        memory.append(0, 1, 0, 0, offset=73)
    assert memory.next_offset == 72


def test_an_event_that_left_its_users_history_has_a_window_of_itself() -> None:
    memory = memory_of([(0, t) for t in range(100)], history_length=10)
    windows = memory.fresh(2, 1).windows
    assert used(windows, 0) == [3]
    assert windows.feedback_BT[0, 0] == 3


@given(stream=streams, strategy=st.sampled_from(["uniform", "recency", "mix"]))
def test_every_sampled_window_ends_at_an_event_and_is_its_users(
    stream: Stream, strategy: Strategy
) -> None:
    memory = memory_of(stream, window=3, recent_window=8, reservoir_size=4)
    windows = memory.sample(16, strategy, 5.0, np.random.default_rng(0))
    assert len(windows) == 16
    for row in range(16):
        *_, last = items = used(windows, row)
        known = known_at(stream, last)
        assert items == known[: known.index(last) + 1][-4:]


def test_sampling_an_empty_memory_gives_no_windows() -> None:
    assert len(ReplayMemory().sample(8, "mix", 5.0, np.random.default_rng(0))) == 0
    assert len(ReplayMemory().latest_windows(8, -1)) == 0


def last_items(windows: Windows) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    ends = windows.items_BT[np.arange(len(windows)), windows.lengths_B - 1]
    return np.asarray(ends, np.int32).reshape(-1)


def test_half_of_the_recent_samples_are_younger_than_the_half_life() -> None:
    memory = memory_of([(o, o) for o in range(4_000)])
    windows = memory.sample(20_000, "recency", 100.0, np.random.default_rng(0))
    ages = 3_999 - last_items(windows)
    assert np.mean(ages < 100) == pytest.approx(0.5, abs=0.015)
    assert np.mean(ages < 200) == pytest.approx(0.75, abs=0.015)


def test_uniform_samples_reach_evenly_back_beyond_the_recent_window() -> None:
    memory = memory_of([(o, o) for o in range(4_000)], recent_window=1_000, reservoir_size=1_000)
    items = last_items(memory.sample(20_000, "uniform", 1.0, np.random.default_rng(0)))
    for start in range(0, 4_000, 1_000):
        share = np.mean((items >= start) & (items < start + 1_000))
        assert share == pytest.approx(0.25, abs=0.05)


def test_without_a_reservoir_only_recent_events_are_sampled() -> None:
    memory = memory_of([(o, o) for o in range(100)], recent_window=10, reservoir_size=0)
    items = last_items(memory.sample(500, "uniform", 1.0, np.random.default_rng(0)))
    assert set(items.tolist()) == set(range(90, 100))


def test_the_mix_is_half_uniform_and_half_recent() -> None:
    memory = memory_of([(o, o) for o in range(1_000)])
    items = last_items(memory.sample(2_000, "mix", 1.0, np.random.default_rng(0)))
    assert np.mean(items < 980) == pytest.approx(0.49, abs=0.03)


def test_the_same_generator_draws_the_same_windows() -> None:
    memory = memory_of([(o % 3, o) for o in range(50)])
    first, second = (memory.sample(9, "mix", 9.0, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.items_BT, second.items_BT)


def test_latest_windows_take_each_active_users_newest_event_first() -> None:
    #            offset: 0  1  2  3  4  5
    memory = memory_of([(9, 0), (0, 1), (1, 2), (1, 3), (0, 4), (1, 5)])
    assert last_items(memory.latest_windows(5, after_offset=0)).tolist() == [5, 4, 3, 2, 1]
    assert last_items(memory.latest_windows(99, after_offset=1)).tolist() == [5, 4, 3, 2, 1, 0]
    assert last_items(memory.latest_windows(3, after_offset=-1)).tolist() == [5, 4, 0]
    assert last_items(memory.latest_windows(1, after_offset=-1)).tolist() == [5]
    assert last_items(memory.latest_windows(2, after_offset=5)).tolist() == [5, 4]


def test_windows_before_leave_the_event_out() -> None:
    memory = memory_of([(0, 0), (0, 1), (0, 2)], window=2)
    before = windows_before(memory.fresh(-1, 3).windows)
    assert [used(before, row) for row in range(3)] == [[], [0], [0, 1]]
    assert before.items_BT.shape == (3, 2)
    assert before.gaps_BT[2].tolist() == [0, gap_code(1)]


@given(
    stream=streams,
    cuts=st.lists(st.integers(0, 60)),
    length=st.integers(1, 20),
    recent=st.integers(1, 20),
    reservoir=st.integers(0, 10),
)
def test_many_events_at_once_are_the_same_as_one_after_the_other(
    stream: Stream, cuts: list[int], length: int, recent: int, reservoir: int
) -> None:
    sizes = {"history_length": length, "recent_window": recent, "reservoir_size": reservoir}
    one_by_one = memory_of(stream, **sizes)
    at_once = ReplayMemory(**sizes)
    offsets_N = np.arange(len(stream))
    users_N, timestamps_s_N = np.array(stream).T
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        at_once.extend(
            users_N[part],
            offsets_N[part],
            offsets_N[part] % 7,
            timestamps_s_N[part] * 1_000,
            offsets_N[part] + 5,
            start,
        )
    assert at_once.nbytes == one_by_one.nbytes
    assert at_once.num_events == one_by_one.num_events
    for user in range(4):
        assert np.array_equal(np.stack(at_once.history(user)), np.stack(one_by_one.history(user)))
    after = at_once.first_recent_offset - 1
    assert at_once.fresh(after, 60).windows.items_BT.tolist() == (
        one_by_one.fresh(after, 60).windows.items_BT.tolist()
    )
    drawn, others = (
        memory.sample(40, "uniform", 5.0, np.random.default_rng(0))
        for memory in (at_once, one_by_one)
    )
    assert drawn.items_BT.tolist() == others.items_BT.tolist()


def test_events_at_once_may_not_leave_a_gap() -> None:
    memory = memory_of([(0, 1), (0, 2)])
    one = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="offset 3 does not follow 1"):
        memory.extend(one, one, one, one, one, 3)


def test_memory_is_bounded_however_many_events_come() -> None:
    memory = memory_of([], history_length=20, recent_window=50, reservoir_size=30)
    sizes = []
    for offset in range(5_000):
        memory.append(offset % 4, offset, 0, offset)
        sizes.append(memory.nbytes)
    assert max(sizes[200:]) == max(sizes[1_000:])
    assert memory.num_users == 4
