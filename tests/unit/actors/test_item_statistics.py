import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_actors import Storage, clicks
from numpy.typing import NDArray
from storage_fakes import LengthEncoder

from actors import item_statistics
from actors.item_statistics import ItemStatistics
from actors.messages import CounterSnapshot, CounterUpdates
from recommender.counters import Counters
from recommender.settings import NO_FILTERS, FilterSettings

HALF_LIVES = (10.0, 100.0)


class Clock:
    """Milliseconds that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


class World:
    """Storage and the counters over it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        kept_events = options.pop("kept_events", 1_000)
        filters = options.pop("filters", NO_FILTERS)
        self.clock = Clock()
        self.storage = Storage(folder, monkeypatch, now_ms=self.clock, **options)
        self.statistics = ItemStatistics(
            len(self.storage.shards),
            HALF_LIVES,
            filters=filters,
            timeout_s=5.0,
            publish_interval_s=0.001,
            kept_events=kept_events,
        )

    async def snapshot_at(self, sequence: int) -> CounterSnapshot:
        """A snapshot of exactly so many counted events, once there is one."""

        async def has_come() -> bool:
            return (await self.statistics.snapshot()).sequence >= sequence

        await wait_until(has_come)
        snapshot = await self.statistics.snapshot()
        assert snapshot.sequence == sequence
        return snapshot

    async def close(self) -> None:
        if self.statistics._task is not None:
            self.statistics._task.cancel()
            await asyncio.wait([self.statistics._task])
        await self.storage.close()


Make = Callable[..., World]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    worlds: list[World] = []

    def make_it(**options: Any) -> World:
        worlds.append(World(tmp_path, monkeypatch, **options))
        return worlds[-1]

    yield make_it
    for world in worlds:
        await world.close()


def plain(*events: tuple[int, Sequence[int]]) -> dict[str, NDArray[np.generic]]:
    """The state of counters that saw (row, previous rows newest first) one after the other."""
    counters = Counters(HALF_LIVES)
    for row, previous in events:
        padded = [*previous, *[-1] * (3 - len(previous))]
        counters.update(np.array([row], np.int32), np.array([padded], np.int32))
    return counters.state()


def assert_same(state: Any, expected: Any) -> None:
    one, other = Counters.from_state(state), Counters.from_state(expected)
    assert one.num_events == other.num_events
    assert one.popularity().tolist() == other.popularity().tolist()
    for row in range(other.num_items):
        history = np.array([row], np.int32)
        np.testing.assert_allclose(one.rule_scores(history), other.rule_scores(history), rtol=1e-6)


async def wait_until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10.0):
        while not await is_so():  # noqa: ASYNC110 - there is no event for every state
            await asyncio.sleep(0.002)


async def test_the_snapshot_is_what_plain_counters_make_of_the_same_events(make: Make) -> None:
    world = make(num_shards=1)
    await world.storage.put("a", "b")
    await world.storage.append(0, clicks(0, "a", "b", "a"))
    world.clock.now_ms = 2_000
    await world.storage.append(0, clicks(0, "b", user="v"))
    snapshot = await world.snapshot_at(4)
    assert_same(snapshot.state, plain((0, []), (1, [0]), (0, [1, 0]), (1, [])))
    assert (snapshot.through, snapshot.acknowledged_ms) == ((3,), (2_000,))


async def test_events_of_two_shards_are_counted_in_order_of_acknowledgement(make: Make) -> None:
    world = make()
    await world.storage.put("a", "b", "c")
    for time_ms, shard, item in ((10, 0, "a"), (20, 1, "b"), (30, 0, "c"), (40, 1, "a")):
        world.clock.now_ms = time_ms
        await world.storage.append(shard, clicks(time_ms, item, user=f"u-{time_ms}"))
    snapshot = await world.snapshot_at(4)
    assert_same(snapshot.state, plain((0, []), (1, []), (2, []), (0, [])))
    assert (snapshot.through, snapshot.acknowledged_ms) == ((1, 1), (30, 40))


async def test_the_order_holds_when_one_shard_has_far_more_to_read_than_one_read_brings(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_statistics, "READ_LIMIT", 3)
    world = make()
    await world.storage.put("a", "b")
    for time_ms in range(10, 20):
        world.clock.now_ms = time_ms
        await world.storage.append(0, clicks(time_ms, "a", user=f"u-{time_ms}"))
    await world.storage.append(1, clicks(0, "b", user="last"))
    snapshot = await world.snapshot_at(11)
    assert_same(snapshot.state, plain(*[(0, [])] * 10, (1, [])))


async def test_a_clock_that_is_set_back_does_not_stop_the_counters(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_statistics, "READ_LIMIT", 4)
    world = make()
    await world.storage.put("a")
    for shard in (0, 1):
        for number, time_ms in enumerate((900, 800, 700, 100 + shard, 50, 60)):
            world.clock.now_ms = time_ms
            await world.storage.append(shard, clicks(number, "a", user=f"u-{shard}-{number}"))
    snapshot = await world.snapshot_at(12)
    assert snapshot.through == (5, 5)


async def test_updates_bring_a_follower_to_the_very_numbers_of_the_snapshot(make: Make) -> None:
    world = make()
    await world.storage.put("a", "b")
    await world.storage.append(0, clicks(0, "a", "b"))
    first = await world.snapshot_at(2)
    follower = Counters.from_state(first.state)
    sequence, through = first.sequence, first.through
    for number in range(2, 6):
        await world.storage.append(number % 2, clicks(number, "b", "a", user=f"u-{number}"))
        while sequence < 2 * number:
            update = await world.statistics.updates_after(first.boot_id, sequence, 5.0)
            follower.update(update.rows_N, update.previous_NP)
            sequence, through = update.sequence, update.through
    last = await world.snapshot_at(10)
    assert through == last.through
    assert_same(follower.state(), last.state)


async def test_a_follower_that_begins_in_the_middle_of_an_update_gets_the_rest_of_it(
    make: Make,
) -> None:
    world = make(num_shards=1)
    await world.storage.put("a", "b", "c")
    await world.storage.append(0, clicks(0, "a", "b", "c"))
    snapshot = await world.snapshot_at(3)
    update = await world.statistics.updates_after(snapshot.boot_id, 1, 0.0)
    assert update.rows_N.tolist() == [1, 2]
    assert update.previous_NP.tolist() == [[0, -1, -1], [1, 0, -1]]


async def test_a_follower_waits_for_news_and_goes_with_nothing_when_there_is_none(
    make: Make,
) -> None:
    world = make(num_shards=1)
    await world.storage.put("a")
    boot_id = (await world.snapshot_at(0)).boot_id
    nothing = await world.statistics.updates_after(boot_id, 0, 0.05)
    assert (nothing.boot_id, nothing.sequence, len(nothing.rows_N)) == (boot_id, 0, 0)
    poll = asyncio.create_task(world.statistics.updates_after(boot_id, 0, 30.0))
    await asyncio.sleep(0)
    await world.storage.append(0, clicks(0, "a"))
    update = await asyncio.wait_for(poll, 5.0)
    assert (update.sequence, update.rows_N.tolist(), update.through) == (1, [0], (0,))


async def test_a_follower_of_another_boot_or_far_behind_has_to_take_a_snapshot(
    make: Make,
) -> None:
    world = make(num_shards=1, kept_events=4)
    await world.storage.put("a")
    boot_id = (await world.statistics.snapshot()).boot_id
    for number in range(8):
        await world.storage.append(0, clicks(number, "a"))
        await world.snapshot_at(number + 1)

    async def ask(boot: str, sequence: int) -> CounterUpdates:
        return await world.statistics.updates_after(boot, sequence, 0.0)

    assert (await ask("another boot", 8)).boot_id == ""
    assert (await ask(boot_id, 3)).boot_id == ""
    kept = await ask(boot_id, 4)
    assert (kept.boot_id, len(kept.rows_N)) == (boot_id, 4)


async def test_events_of_unknown_items_are_not_counted_but_move_the_watermark(make: Make) -> None:
    world = make(num_shards=1)
    await world.storage.put("a")
    boot_id = (await world.statistics.snapshot()).boot_id
    poll = asyncio.create_task(world.statistics.updates_after(boot_id, 0, 30.0))
    await asyncio.sleep(0)
    await world.storage.append(0, clicks(0, "nothing"))
    update = await asyncio.wait_for(poll, 5.0)
    assert (update.sequence, len(update.rows_N), update.through) == (0, 0, (0,))
    await world.storage.append(0, clicks(1, "a"))
    snapshot = await world.snapshot_at(1)
    assert snapshot.through == (1,)
    assert (await world.statistics.status())["num_unknown"] == 1
    # An unknown item keeps its place among the user's previous items, but says nothing.
    assert_same(snapshot.state, plain((0, [])))


class HeldEncoder(LengthEncoder):
    """An encoder that does not come back before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        assert self.let_go.wait(10.0)
        return super().encode(texts)


async def test_an_event_of_an_item_whose_text_is_not_encoded_yet_is_counted(make: Make) -> None:
    encoder = HeldEncoder()
    world = make(num_shards=1, encoder=lambda: encoder)
    putting = asyncio.create_task(world.storage.put("a"))
    catalog = world.storage.catalog.actor

    async def is_pending() -> bool:
        return bool((await catalog.status()).num_pending == 1)

    try:
        await wait_until(is_pending)
        await world.storage.append(0, clicks(0, "a"))
        await world.snapshot_at(1)
        assert await is_pending()
    finally:
        encoder.let_go.set()
    await putting


async def test_while_a_shard_is_away_the_others_are_counted_and_afterwards_nothing_twice(
    make: Make,
) -> None:
    world = make()
    await world.storage.put("a", "b")
    for shard in (0, 1):  # a shard that was never read holds all others up: it may come first
        await world.storage.append(shard, clicks(0, "a", user=f"first-{shard}"))
        await world.snapshot_at(shard + 1)
    away, slow = world.storage.shards
    away.is_away = True
    slow.is_released.clear()  # its read is under way when the other one fails
    await world.storage.append(0, clicks(0, "a", user="v"))
    await world.storage.append(1, clicks(0, "b"))
    await asyncio.sleep(1.2)  # two rounds of the loop: time is what the fault needs
    slow.is_released.set()
    await world.snapshot_at(3)
    assert "away on purpose" in str((await world.statistics.status())["last_error"])
    away.is_away = False
    snapshot = await world.snapshot_at(4)
    assert_same(snapshot.state, plain((0, []), (0, []), (1, []), (0, [])))


async def test_what_the_filters_keep_from_teaching_is_not_counted_but_moves_the_watermark(
    make: Make,
) -> None:
    world = make(num_shards=1, filters=FilterSettings(max_repeats=2))
    await world.storage.put("a", "b")
    await world.storage.append(0, clicks(0, "a", "a", "a", "a", "a", "b"))
    snapshot = await world.snapshot_at(3)
    assert snapshot.through == (5,)
    left_out = (await world.statistics.status())["num_left_out"]
    assert left_out == {"repeat": 3, "twin": 0, "user_cap": 0, "surge": 0}
