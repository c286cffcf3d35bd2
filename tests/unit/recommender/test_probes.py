import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.model import Recommender
from recommender.probes import MemoryProbes, ProbeBook, probe_ndcg
from recommender.scorer import Scorer
from recommender.settings import ModelSettings
from recommender.windows import PAD, Windows, select

SETTINGS = ModelSettings(dim=8, num_layers=1, intermediate=8, window=4, half_lives=(10.0,))
NUM_ITEMS = 12
NO_POPULARITY = np.zeros((1, NUM_ITEMS), np.float32)


def scorer(**changes: NDArray[np.float32]) -> Scorer:
    texts_VD = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    state = Recommender(SETTINGS, texts_VD, seed=0).export_state()
    return Scorer.from_state(state | changes, SETTINGS)


def by_bias(*best_first: int) -> Scorer:
    """A scorer whose ranking is the same for everyone: these items, then all others level."""
    bias_V = np.zeros(NUM_ITEMS, np.float32)
    bias_V[list(best_first)] = np.arange(len(best_first), 0, -1) * 1_000.0
    return scorer(item_bias=bias_V, item_vectors=np.zeros((NUM_ITEMS, 8), np.float32))


def windows(*rows: list[int]) -> Windows:
    items_BT = np.full((len(rows), 5), PAD, np.int32)
    for row, items in zip(items_BT, rows, strict=True):
        row[: len(items)] = items
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.array([len(r) for r in rows], np.int32))


def test_probe_ndcg_is_that_of_the_last_item_among_items_not_had_before() -> None:
    # 3 is second; after 7 was had, nothing stands before it.
    first, second = probe_ndcg(by_bias(7, 3), windows([1, 3], [7, 3]), NO_POPULARITY)
    assert first == pytest.approx(1 / np.log2(3))
    assert second == pytest.approx(1.0)


def test_an_item_that_comes_again_is_still_a_target() -> None:
    [repeated] = probe_ndcg(by_bias(7, 3), windows([3, 5, 3]), NO_POPULARITY)
    assert repeated == pytest.approx(1 / np.log2(3))


def test_ties_share_their_mean_rank() -> None:
    # 12 items, one had before: 11 are level, the mean rank is 6.
    [level] = probe_ndcg(by_bias(), windows([0, 4]), NO_POPULARITY)
    assert level == pytest.approx(1 / np.log2(7))


def test_a_window_of_one_item_is_a_new_users_first_event() -> None:
    [first] = probe_ndcg(by_bias(2, 9), windows([9]), NO_POPULARITY)
    assert first == pytest.approx(1 / np.log2(3))


def test_each_window_is_judged_on_its_own() -> None:
    batch = windows([1, 3], [7, 3, 2, 5], [4], [0, 11, 6])
    together = probe_ndcg(scorer(), batch, NO_POPULARITY)
    alone = [
        probe_ndcg(scorer(), select(batch, slice(i, i + 1)), NO_POPULARITY)[0] for i in range(4)
    ]
    assert together == pytest.approx(alone)


def book(**options: int) -> ProbeBook:
    return ProbeBook(**{"period_events": 10, "probes_per_period": 3} | options)


def add(probes: ProbeBook, num_events: int, held_out: Windows) -> None:
    """All of different users."""
    probes.add(num_events, held_out, np.arange(len(held_out)))


def test_a_period_is_closed_when_it_is_over_and_named_by_its_end() -> None:
    probes = book()
    add(probes, 9, windows([1, 3]))
    probes.close_period(by_bias(3), NO_POPULARITY)
    assert not probes.slices
    add(probes, 3, windows([2, 3]))
    probes.close_period(by_bias(3), NO_POPULARITY)
    assert list(probes.slices) == [12]
    assert len(probes.slices[12].windows) == 2
    assert probes.slices[12].level_B.tolist() == [1.0, 1.0]


def test_what_is_forgotten_is_the_fall_below_the_level_at_the_periods_end() -> None:
    probes = book()
    add(probes, 10, windows([1, 3], [2, 3]))
    probes.close_period(by_bias(3), NO_POPULARITY)
    now = probes.measure(by_bias(7, 3))  # second now: 1 / log2(3)
    assert probes.changes(now) == {10: pytest.approx(1 / np.log2(3) - 1)}
    metrics = probes.metrics(now)
    assert metrics["probe_10_ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert metrics["probe_change"] == pytest.approx(1 / np.log2(3) - 1)


def test_popularity_is_that_of_the_period_and_not_of_later() -> None:
    popularity_MV = np.zeros((1, NUM_ITEMS), np.float32)
    popularity_MV[0, 3] = 9.0
    probes = book()
    add(probes, 10, windows([1, 3]))
    probes.close_period(scorer(), popularity_MV)
    popularity_MV[:] = 0.0
    assert probes.measure(scorer())[10].tolist() == [1.0]


def test_no_more_than_so_many_probes_of_a_period_and_so_many_newest_are_kept() -> None:
    probes = book(newest=4)
    add(probes, 10, windows(*[[1, item] for item in range(2, 10)]))
    probes.close_period(scorer(), NO_POPULARITY)
    assert len(probes.slices[10].windows) == 3
    assert probes.newest is not None
    assert probes.newest.items_BT[:, 1].tolist() == [6, 7, 8, 9]


def test_a_user_has_a_few_votes_among_the_newest_and_no_more() -> None:
    probes = book(newest=4, newest_per_user=2)
    probes.add(3, windows([1, 2], [1, 3], [1, 4]), np.array([7, 8, 7]))
    probes.add(3, windows([1, 5], [1, 6]), np.array([7, 7]))
    assert probes.newest is not None
    assert probes.newest.items_BT[:, 1].tolist() == [3, 5, 6]


def test_periods_become_longer_and_still_cover_the_stream() -> None:
    probes = book(max_periods=4)
    for _ in range(200):
        probes.add(1, windows([1, 2]), np.array([0]))
        probes.close_period(scorer(), NO_POPULARITY)
    assert 2 <= len(probes.slices) <= 4
    assert min(probes.slices) == 10
    assert max(probes.slices) > 120
    assert probes.period_events > 10


def test_a_period_without_probes_is_no_slice() -> None:
    probes = book()
    add(probes, 10, select(windows([1, 2]), slice(0, 0)))
    probes.close_period(scorer(), NO_POPULARITY)
    assert not probes.slices
    assert probes.newest is None
    assert probes.metrics(probes.measure(scorer())) == {}


def test_slices_come_back_from_a_state() -> None:
    probes, again = book(), book()
    for item in (3, 4):
        add(probes, 10, windows([1, item], [item]))
        probes.close_period(by_bias(3), NO_POPULARITY)
    again.load_state(probes.state())
    assert again.slices.keys() == probes.slices.keys()
    assert again.changes(again.measure(by_bias(7, 3))) == probes.changes(
        probes.measure(by_bias(7, 3))
    )
    again.load_state({})
    assert again.slices.keys() == probes.slices.keys()


def test_memory_is_drawn_anew_after_so_many_comparisons_and_windows_of_one_event_are_left() -> None:
    asked: list[int] = []

    def draw(num_windows: int) -> Windows:
        asked.append(num_windows)
        return windows([1, len(asked)], [5])

    memory = MemoryProbes(draw, num_windows=7, num_rounds=2)
    drawn = [memory.next() for _ in range(5)]
    assert [w.items_BT[:, 1].tolist() for w in drawn if w is not None] == [[1], [1], [2], [2], [3]]
    assert asked == [7, 7, 7]


def test_memory_is_asked_for_until_there_is_some() -> None:
    answers = [None, windows([1, 2])]
    memory = MemoryProbes(lambda _: answers.pop(0))
    assert memory.next() is None
    assert memory.next() is not None
    assert memory.next() is not None
