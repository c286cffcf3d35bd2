import numpy as np
import pytest

from recommender.fresh_filters import Reason, Recent, keep, known_events, screen, without_repeats
from recommender.replay import ReplayMemory
from recommender.settings import MEASURED_FILTERS, FilterSettings
from recommender.simulator import SimulatorSettings, simulate
from recommender.windows import FreshEvents

OFF = FilterSettings(max_repeats=0, max_user_events=0, max_twins=0, max_growth=0.0, span=100)


def log_of(events: list[tuple[int, int]]) -> FreshEvents:
    """A log of (user, item)."""
    memory = ReplayMemory()
    for number, (user, item) in enumerate(events):
        memory.append(user, item, 0, 1_000 * number)
    return memory.fresh(-1, len(events))


def reasons(events: list[tuple[int, int]], **bounds: float) -> list[int]:
    settings = OFF.model_copy(update=bounds)
    return [int(reason) for reason in screen(log_of(events), Recent.nothing(), settings).reasons_N]


def test_an_item_teaches_a_user_only_so_often() -> None:
    found = reasons([(1, 7), (1, 7), (2, 7), (1, 8), (1, 7), (1, 7)], max_repeats=2)
    assert found == [0, 0, 0, 0, Reason.REPEAT, Reason.REPEAT]


def test_a_user_teaches_only_so_much_in_a_span() -> None:
    flood = [(1, item) for item in range(6)]
    later = [(2, 100 + item) for item in range(9)]
    found = reasons([*flood, (2, 3), *later, (1, 50)], max_user_events=4, span=11)
    assert found[:7] == [0, 0, 0, 0, Reason.USER_CAP, Reason.USER_CAP, 0]
    assert found[-1] == 0, "the flood is over"


def test_the_fourth_user_who_does_exactly_the_same_is_a_bot() -> None:
    army = [(user, item) for user in range(8) for item in (3, 1, 4, 15, 9, 2)]
    found = np.reshape(reasons(army, max_twins=3), (8, 6))
    assert (found[:3] == 0).all()
    assert (found[:, :4] == 0).all(), "four items are too few to tell"
    assert (found[3:, 4:] == Reason.TWIN).all()


def test_shuffling_the_same_items_does_not_hide_an_army() -> None:
    rng = np.random.default_rng(1)
    army = [(user, int(item)) for user in range(12) for item in [*rng.permutation(15), 99]]
    found = np.reshape(reasons(army, max_twins=3, span=1_000), (12, 16))
    assert (found[3:, -1] == Reason.TWIN).all()


def test_users_who_share_half_of_their_items_are_seldom_taken_for_an_army() -> None:
    rng = np.random.default_rng(2)
    crowds = [
        (100 * crowd + user, int(item))
        for crowd in range(20)
        for user in range(10)
        for item in rng.permutation(
            [*(50 * crowd + np.arange(8)), *(10_000 + 80 * crowd + 8 * user + np.arange(8))]
        )
    ]
    assert reasons(crowds, max_twins=3, span=1_000).count(Reason.TWIN) < 0.02 * len(crowds)


def test_an_item_that_nobody_wanted_before_may_not_flood_a_span() -> None:
    rng = np.random.default_rng(3)
    calm = [(user, int(rng.integers(50))) for user in range(500)]
    push = [(1_000 + n // 2, 77 if n % 2 else int(rng.integers(50))) for n in range(80)]
    found = np.array(reasons([*calm, *push], max_growth=3.0))
    is_push = np.array([item == 77 for _, item in [*calm, *push]])
    assert (found[is_push] == 0).sum() == 10
    assert (found[~is_push] == 0).all()


def test_repeats_of_a_bot_do_not_block_the_item_for_others() -> None:
    calm = [(user, user % 50) for user in range(500)]
    flood = [(1_000, 77)] * 40
    found = reasons([*calm, *flood, (1_001, 77)], max_growth=3.0, max_repeats=3)
    assert found[-1] == 0
    assert found[-2] == Reason.REPEAT


@pytest.mark.parametrize("cuts", [[500], [1, 2, 3, 900], list(range(0, 1_500, 7))])
def test_how_the_log_is_cut_decides_nothing(cuts: list[int]) -> None:
    rng = np.random.default_rng(4)
    events = [(int(u), int(i)) for u, i in rng.integers([[60, 60]], size=(1_500, 2))]
    events[900:1_000:4] = [(100 + n, 59) for n in range(25)]
    army = [(1_000 + user, item) for user in range(10) for item in range(40, 48)]
    fresh = log_of([*events[:700], *army, *events[700:]])
    settings = FilterSettings(
        span=100, max_user_events=3, max_growth=3.0, max_repeats=2, max_twins=3
    )
    whole = screen(fresh, Recent.nothing(), settings)
    assert all(number > 0 for number in whole.counts().values()), whole.counts()
    recent, parts = Recent.nothing(), []
    for part in np.split(np.arange(len(fresh)), cuts):
        chosen = np.isin(np.arange(len(fresh)), part)
        screened = screen(keep(fresh, chosen), recent, settings)
        recent = screened.recent
        parts.append(screened.reasons_N)
    np.testing.assert_array_equal(np.concatenate(parts), whole.reasons_N)
    assert len(recent.offsets_N) <= 5 * settings.span


def test_honest_users_are_hardly_ever_left_out() -> None:
    dataset = simulate(SimulatorSettings(num_events=5_000))
    pairs = list(zip(dataset.users_N.tolist(), dataset.rows_N.tolist(), strict=True))
    screened = screen(log_of(pairs), Recent.nothing(), MEASURED_FILTERS)
    assert (~screened.kept_N).mean() < 0.001, screened.counts()


def test_replayed_windows_hold_an_item_only_so_often() -> None:
    windows = log_of([(1, 5), (1, 5), (1, 6), (1, 5), (1, 7)]).windows
    cut = without_repeats(windows, 2)
    assert cut.items_BT[-1, : cut.lengths_B[-1]].tolist() == [5, 5, 6, 7]
    assert without_repeats(windows, 0) is windows


def test_events_of_unknown_items_go_and_what_was_seen_goes_with_them() -> None:
    fresh = log_of([(1, 5), (1, 6), (1, 7), (2, 6)])
    rows = np.array([-1, -1, -1, -1, -1, 3, -1, 4], np.int32)

    def over_rows(codes: np.ndarray) -> np.ndarray:
        return np.where(codes < 0, np.int32(-1), rows[codes])

    known = known_events(
        fresh,
        fresh.windows.with_items(over_rows(fresh.windows.items_BT)),
        over_rows(fresh.seen_values),
    )
    assert known.items_N.tolist() == [3, 4]
    assert known.offsets_N.tolist() == [0, 2]
    assert known.windows.lengths_B.tolist() == [1, 2]
    assert known.seen_values.tolist() == [3]
    assert known.seen_splits.tolist() == [0, 0, 1]
