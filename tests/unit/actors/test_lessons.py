from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.lessons import held_out_events, newest_windows
from actors.stream_feed import FreshPart
from recommender.hold_out import EVERYTHING, LeaveOut
from recommender.windows import PAD, FreshEvents, Windows

Row = tuple[int, int]  # user, acknowledged_ms


def part(shard: int, rows: Sequence[Row], first_item: int = 0) -> FreshPart:
    """A shard's fresh events; the item of each is its place, so that a window can be told."""
    num_rows = len(rows)
    items_N = np.arange(first_item, first_item + num_rows, dtype=np.int32)
    items_BT = np.full((num_rows, 3), PAD, np.int32)
    items_BT[:, 0] = items_N
    zeros_BT = np.zeros((num_rows, 3), np.int8)
    events = FreshEvents(
        offsets_N=np.arange(num_rows, dtype=np.int64),
        users_N=np.array([user for user, _ in rows], np.int32),
        items_N=items_N,
        acknowledged_ms_N=np.array([time for _, time in rows], np.int64),
        windows=Windows(items_BT, zeros_BT, zeros_BT, np.ones(num_rows, np.int32)),
        seen_values=np.empty(0, np.int32),
        seen_splits=np.zeros(num_rows + 1, np.int64),
    )
    return FreshPart(shard, num_rows - 1, num_rows, events)


def order(
    parts: list[FreshPart],
    num_windows: int = 1_000,
    leave_out: Sequence[LeaveOut] = (EVERYTHING, EVERYTHING, EVERYTHING),
) -> list[int]:
    windows = newest_windows(parts, num_windows, leave_out)
    return [] if windows is None else windows.items_BT[:, 0].tolist()


def test_each_users_latest_window_comes_first_and_then_the_others_newest_first() -> None:
    assert order([part(0, [(1, 10), (2, 20), (1, 30), (2, 40), (1, 50)])]) == [4, 3, 2, 1, 0]
    assert order([part(0, [(1, 10), (2, 20), (2, 30), (2, 40)])]) == [3, 0, 2, 1]


def test_of_events_that_were_acknowledged_together_the_last_is_the_latest() -> None:
    assert order([part(0, [(1, 10), (1, 10), (1, 10)])], num_windows=1) == [2]


def test_the_same_user_code_in_two_shards_is_two_users() -> None:
    parts = [part(0, [(1, 10), (1, 30)]), part(1, [(1, 5)], first_item=2)]
    assert order(parts) == [1, 2, 0]


def test_only_as_many_as_asked_for_are_given() -> None:
    assert order([part(0, [(1, 10), (2, 20), (1, 30)])], num_windows=2) == [2, 1]


def test_without_events_there_are_no_windows() -> None:
    assert newest_windows([], 5, [EVERYTHING]) is None
    assert newest_windows([part(0, []), part(1, [])], 5, [EVERYTHING] * 2) is None


rows_in_log_order = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30
).map(lambda rows: sorted(rows, key=lambda row: row[1]))


@settings(deadline=None)
@given(rows_in_log_order)
def test_every_window_comes_once_and_no_user_twice_before_all_users_once(rows: list[Row]) -> None:
    places = order([part(0, rows)])
    assert sorted(places) == list(range(len(rows)))
    users = [rows[place][0] for place in places]
    num_users = len(set(users))
    assert len(set(users[:num_users])) == num_users
    latest = {user: place for place, (user, _) in enumerate(rows)}
    assert set(places[:num_users]) == set(latest.values())


def test_events_that_are_left_out_make_no_lesson_and_those_of_measured_users_make_probes() -> None:
    parts = [part(0, [(3, 10), (2, 20), (1, 30)]), part(1, [(1, 40), (0, 50)], first_item=5)]
    rules = [LeaveOut(users_every=4, spans=((1, 1),)), LeaveOut(users_every=2)]
    assert order(parts, leave_out=rules) == [6, 2]
    (first, first_users), (second, second_users) = (held_out_events(p, rules) for p in parts)
    assert first.items_BT[:, 0].tolist() == [0]
    assert second.items_BT[:, 0].tolist() == [5]
    assert first_users.tolist() == [3 * 2]
    assert second_users.tolist() == [1 * 2 + 1], "the same code in another shard is another user"
    assert order(parts, leave_out=[LeaveOut(spans=((0, 9),))] * 2) == []
