from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from local_actors import Storage, clicks
from numpy.typing import NDArray

from actors import stream_feed
from actors.messages import ShardUnavailable
from actors.stream_feed import FreshPart, StreamFeed
from recommender.counters import Counters
from recommender.events import Event, Item
from recommender.settings import NO_FILTERS, FilterSettings
from recommender.windows import PAD


class World:
    """Storage and the feeds that read it, all in the event loop of the first feed."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        num_shards: int,
        filters: FilterSettings,
    ) -> None:
        self.storage = Storage(folder, monkeypatch, num_shards=num_shards)
        self.feed = StreamFeed(num_shards, Counters(), filters=filters)

    def put(self, *item_ids: str) -> None:
        self.feed.run(self.storage.put(*item_ids))

    def append(self, shard: int, events: list[Event]) -> None:
        self.feed.run(self.storage.append(shard, events))

    def take(self, enough: int = 1) -> list[FreshPart]:
        self.feed.wait(enough=enough, interval_s=0.0, timeout_s=0.0)
        return self.feed.take()

    def close(self) -> None:
        self.feed.run(self.storage.close())
        self.feed._runner.close()


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    worlds: list[World] = []

    def make_it(num_shards: int = 2, filters: FilterSettings = NO_FILTERS) -> World:
        worlds.append(World(tmp_path, monkeypatch, num_shards, filters))
        return worlds[-1]

    yield make_it
    for world in worlds:
        world.close()


def test_each_event_is_handed_out_once_in_log_order_over_rows_of_the_catalogue(make: Make) -> None:
    world = make()
    world.put("c", "a", "b")
    world.append(0, clicks(0, "a", "b"))
    world.append(1, clicks(0, "c", user="v"))
    parts = {part.shard: part for part in world.take(enough=3)}
    assert parts[0].events.items_N.tolist() == [1, 2]
    assert parts[1].events.items_N.tolist() == [0]
    assert [parts[0].through, parts[1].through] == world.feed.watermark == [1, 0]
    world.append(0, clicks(2, "c"))
    [part] = world.take()
    assert part.events.offsets_N.tolist() == [2]
    assert part.events.windows.items_BT.tolist() == [[1, 2, 0, PAD]]
    assert world.take() == []


def test_what_is_read_and_not_taken_is_behind_no_watermark(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a")
    world.append(0, clicks(0, "a", "a"))
    assert world.feed.wait(enough=2, interval_s=0.0, timeout_s=0.0) == 2
    assert world.feed.watermark == [-1]
    assert world.feed.wait(enough=2, interval_s=0.0, timeout_s=0.0) == 2
    world.feed.take()
    assert world.feed.watermark == [1]


def test_events_of_unknown_items_are_passed_by_and_leave_no_trace_in_other_windows(
    make: Make,
) -> None:
    world = make(num_shards=1)
    world.put("a", "b")
    world.append(0, clicks(0, "a", "nothing", "b", "nothing"))
    [part] = world.take(enough=4)
    assert (part.num_read, part.through) == (4, 3)
    events = part.events
    assert events.offsets_N.tolist() == [0, 2]
    assert events.items_N.tolist() == [0, 1]
    assert events.windows.items_BT.tolist() == [[0, PAD, PAD, PAD], [0, 1, PAD, PAD]]
    assert events.windows.lengths_B.tolist() == [1, 2]
    assert events.seen_splits.tolist() == [0, 0, 1]
    assert events.seen_values.tolist() == [0]


def test_a_part_without_one_known_item_still_moves_the_watermark(make: Make) -> None:
    world = make(num_shards=1)
    world.append(0, clicks(0, "nothing"))
    [part] = world.take()
    assert (len(part.events), part.num_read, world.feed.watermark) == (0, 1, [0])
    world.feed.count(part)
    assert world.feed.counters.num_events == 0


def test_seen_items_stay_with_their_event_when_events_between_are_left_out(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a", "b", "c")
    world.append(0, clicks(0, "a", "b"))
    world.append(0, clicks(0, "nothing", "c", "a", user="v"))
    [part] = world.take(enough=5)
    events = part.events
    seen = [
        events.seen_values[start:stop].tolist()
        for start, stop in zip(events.seen_splits, events.seen_splits[1:], strict=False)
    ]
    assert events.items_N.tolist() == [0, 1, 2, 0]
    assert seen == [[], [0], [], [2]]


def counted(world: World, shard_events: list[tuple[NDArray[np.int32], list[list[int]]]]) -> None:
    expected = Counters()
    for rows_N, previous in shard_events:
        expected.update(rows_N, np.array(previous, np.int32))
    popularity_MV = world.feed.counters.popularity()
    assert popularity_MV.tolist() == expected.popularity().tolist()
    for row in range(expected.num_items):
        history = np.array([row], np.int32)
        scores_V = world.feed.counters.rule_scores(history)
        assert scores_V.tolist() == expected.rule_scores(history).tolist()


def test_counting_is_what_plain_counters_do_on_the_same_events(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a", "b")
    world.append(0, clicks(0, "a", "b", "a"))
    for part in world.take(enough=3):
        world.feed.count(part)
    rows_N = np.array([0, 1, 0], np.int32)
    counted(world, [(rows_N, [[-1, -1, -1], [0, -1, -1], [1, 0, -1]])])


def test_a_rewind_counts_up_to_the_watermark_and_goes_on_right_behind_it(make: Make) -> None:
    world = make()
    world.put("a", "b")
    world.append(0, clicks(0, "a", "b", "a"))
    world.append(1, clicks(0, "b", "b", user="v"))
    for part in world.take(enough=5):
        world.feed.count(part)
    world.feed.rewind((1, -1))
    assert world.feed.watermark == [1, -1]
    counted(world, [(np.array([0, 1], np.int32), [[-1, -1, -1], [0, -1, -1]])])
    offsets = {part.shard: part.events.offsets_N.tolist() for part in world.take(enough=3)}
    assert offsets == {0: [2], 1: [0, 1]}


def test_a_rewind_forgets_what_was_read_and_not_taken(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a")
    world.append(0, clicks(0, "a", "a", "a"))
    assert world.feed.wait(enough=3, interval_s=0.0, timeout_s=0.0) == 3
    world.feed.rewind((0,))
    assert world.feed.counters.num_events == 1
    assert [part.events.offsets_N.tolist() for part in world.take(enough=2)] == [[1, 2]]


def test_a_rewind_goes_over_many_reads_and_over_what_has_left_the_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_feed, "_READ_LIMIT", 400)
    world = make(num_shards=1)
    world.put("a")
    for start in range(0, 2_500, 500):  # the shard keeps 1,000 in memory
        world.append(0, clicks(start, *["a"] * 500, user=f"u-{start}"))
    world.feed.rewind((2_449,))
    assert (world.feed.counters.num_events, world.feed.watermark) == (2_450, [2_449])
    assert sum(part.num_read for part in world.take(enough=50)) == 50


def test_a_watermark_beyond_the_log_is_an_error_and_no_endless_wait(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a")
    world.append(0, clicks(0, "a"))
    with pytest.raises(ShardUnavailable, match=r"end before the watermark \(5,\)"):
        world.feed.rewind((5,))


def test_waiting_ends_at_enough_events_or_at_the_interval_with_any_or_when_time_is_over(
    make: Make,
) -> None:
    world = make(num_shards=1)
    world.put("a")
    assert world.feed.wait(enough=1, interval_s=9.0, timeout_s=0.15) == 0
    world.append(0, clicks(0, "a", "a"))
    assert world.feed.wait(enough=2, interval_s=9.0, timeout_s=9.0) == 2
    assert world.feed.wait(enough=9, interval_s=0.05, timeout_s=9.0) == 2
    assert world.feed.wait(enough=9, interval_s=9.0, timeout_s=0.05) == 2


def test_the_catalogue_grows_by_new_rows_and_by_texts_that_changed(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a", "bb")
    first = world.feed.catalog_growth()
    assert first.new_VD[:, 0].tolist() == [1.0, 2.0]
    assert world.feed.catalog_growth().is_empty
    world.put("ccc")
    world.feed.run(world.storage.catalog.actor.put([Item("a", "longer")]))
    second = world.feed.catalog_growth()
    assert second.new_VD[:, 0].tolist() == [3.0]
    assert second.changed_rows.tolist() == [0]
    assert second.changed_VD[:, 0].tolist() == [6.0]


def test_a_learner_that_knows_some_rows_gets_those_anew_and_the_others_as_new(make: Make) -> None:
    world = make(num_shards=1)
    world.put("a", "bb", "ccc")
    world.feed.catalog_growth()
    world.feed.known_items(2)
    growth = world.feed.catalog_growth()
    assert growth.changed_rows.tolist() == [0, 1]
    assert growth.new_VD[:, 0].tolist() == [3.0]


def test_replay_is_over_known_rows_and_none_before_there_is_anything(make: Make) -> None:
    world = make()
    assert world.feed.replay(8, "uniform", 100.0, seed=0) is None
    world.append(0, clicks(0, "nothing"))
    assert world.feed.replay(8, "uniform", 100.0, seed=0) is None
    world.put("a", "b")
    world.append(0, clicks(1, "a", "nothing", "b"))
    assert world.feed.replay(8, "uniform", 100.0, seed=0) is None, "nothing was handed out yet"
    world.take(enough=4)
    windows = world.feed.replay(64, "uniform", 100.0, seed=1)
    assert windows is not None
    world.append(0, clicks(4, "b", "b"))
    again = world.feed.replay(64, "uniform", 100.0, seed=1)
    assert again is not None
    assert again.items_BT.tolist() == windows.items_BT.tolist(), "those came later"
    kinds = {tuple(row) for row in windows.items_BT.tolist()}
    assert kinds == {(0, PAD, PAD, PAD), (0, 1, PAD, PAD)}


def test_all_events_of_all_logs_are_counted(make: Make) -> None:
    world = make()
    world.append(0, clicks(0, "a", "b"))
    world.append(1, clicks(0, "a", user="v"))
    assert world.feed.num_events() == 3


def test_what_the_filters_leave_out_is_read_but_teaches_neither_now_nor_after_a_restart(
    make: Make,
) -> None:
    world = make(num_shards=1, filters=FilterSettings(max_repeats=1))
    world.put("a", "b")
    world.append(0, clicks(0, "a", "a"))
    [first] = world.take(enough=2)
    world.append(0, clicks(2, "a", "b"))
    [second] = world.take(enough=2)
    assert [part.events.offsets_N.tolist() for part in (first, second)] == [[0], [3]]
    assert (second.num_read, second.through) == (2, 3)
    assert second.left_out["repeat"] == 1
    world.feed.rewind((3,))
    assert world.feed.counters.num_events == 2
    replayed = world.feed.replay(20, "uniform", 1.0, seed=0)
    assert replayed is not None
    assert not (replayed.items_BT[:, 1:] == replayed.items_BT[:, :1]).any(), "an item twice"
