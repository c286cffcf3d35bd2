import numpy as np

from recommender.hold_out import EVERYTHING, LeaveOut, Quarantine
from recommender.replay import ReplayMemory


def last_items(memory: ReplayMemory, leave_out: LeaveOut) -> set[int]:
    windows = memory.sample(500, "uniform", 1.0, np.random.default_rng(0), leave_out)
    assert len(windows) == 500
    return set(windows.items_BT[np.arange(500), windows.lengths_B - 1].tolist())


def memory_of_one_event_a_user(num_users: int = 20) -> ReplayMemory:
    memory = ReplayMemory(window=5)
    for user in range(num_users):
        memory.append(user, user, 5, user)  # user, item and offset are the same number
    return memory


def test_one_user_in_so_many_is_held_out_and_nobody_by_default() -> None:
    users_N = np.arange(10)
    assert LeaveOut(users_every=4).held_out(users_N).nonzero()[0].tolist() == [3, 7]
    assert not EVERYTHING.held_out(users_N).any()
    assert EVERYTHING.may_learn(users_N, users_N).all()


def test_a_held_out_user_is_never_sampled() -> None:
    assert last_items(memory_of_one_event_a_user(), LeaveOut(5)) == set(range(20)) - {4, 9, 14, 19}


def test_what_is_in_quarantine_is_never_sampled() -> None:
    memory = memory_of_one_event_a_user()
    spared = last_items(memory, LeaveOut(spans=((2, 4), (19, 30))))
    assert spared == set(range(20)) - {2, 3, 4, 19}


def test_nothing_comes_when_everything_is_left_out() -> None:
    memory = memory_of_one_event_a_user()
    rng = np.random.default_rng(0)
    assert len(memory.sample(8, "mix", 5.0, rng, LeaveOut(spans=((0, 19),)))) == 0


def test_the_newest_windows_skip_what_is_left_out_too() -> None:
    memory = memory_of_one_event_a_user()
    windows = memory.latest_windows(4, 9, LeaveOut(5, ((17, 17),)))
    assert windows.items_BT[:, 0].tolist() == [18, 16, 15, 13]


def test_spans_that_touch_become_one_and_empty_ones_none() -> None:
    quarantine = Quarantine([(0, 5, 9), (0, 20, 30)])
    quarantine.add(0, 10, 12)
    quarantine.add(0, 25, 40)
    quarantine.add(1, 7, 6)
    assert quarantine.spans() == ((0, 5, 12), (0, 20, 40))
    assert quarantine.of(0) == ((5, 12), (20, 40))
    assert quarantine.of(1) == ()


def test_what_lies_between_two_watermarks_is_put_away_log_by_log() -> None:
    quarantine = Quarantine()
    quarantine.add_between((4, 9, -1), (6, 9, 0))
    assert quarantine.spans() == ((0, 5, 6), (2, 0, 0))
    assert Quarantine(quarantine.spans()).spans() == quarantine.spans()


def test_only_the_latest_spans_are_kept() -> None:
    quarantine = Quarantine(((0, 10 * n, 10 * n) for n in range(9)), max_spans=3)
    assert quarantine.of(0) == ((60, 60), (70, 70), (80, 80))
