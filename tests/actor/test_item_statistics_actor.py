"""The counters as they run: fed by real shards and a catalogue, killed while they count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import ray
from actor_tools import kill_process, wait_until
from numpy.typing import NDArray

from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.item_catalog import Encoder, ItemCatalog
from actors.item_catalog_client import ItemCatalogClient
from actors.item_statistics import ItemStatistics
from actors.item_statistics_client import ItemStatisticsClient
from actors.messages import CounterSnapshot, ShardUnavailable
from actors.naming import ITEM_CATALOG, ITEM_STATISTICS, event_buffer_name, start_actor
from actors.settings import BufferSettings, StorageSettings
from recommender.counters import Counters
from recommender.events import Event, Item

pytestmark = pytest.mark.actor

HALF_LIVES = (50.0, 500.0)
NUM_SHARDS = 2
NUM_ITEMS = 20
WINDOW = 5


def length_encoder(pause_s: float) -> Callable[[], Encoder]:
    """A factory of encoders that take their time over each batch of texts; pickles by value."""

    class SlowLengthEncoder:
        name = "slow-length"

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            time.sleep(pause_s)
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    return SlowLengthEncoder


class World:
    """The actors that count, under the names by which they find each other."""

    def __init__(self, storage: StorageSettings, encoding_s: float) -> None:
        settings = BufferSettings(num_shards=NUM_SHARDS)
        shards = [
            start_actor(
                EventBuffer, event_buffer_name(shard), shard, storage, settings, window=WINDOW
            )
            for shard in range(NUM_SHARDS)
        ]
        catalog = start_actor(ItemCatalog, ITEM_CATALOG, storage, length_encoder(encoding_s))
        self.statistics = start_actor(ItemStatistics, ITEM_STATISTICS, NUM_SHARDS, HALF_LIVES)
        self.actors = [*shards, catalog, self.statistics]
        self.buffer = EventBufferClient.connect(NUM_SHARDS, 10.0)
        self.catalog = ItemCatalogClient.connect(10.0)
        self.client = ItemStatisticsClient.connect(10.0)

    async def is_ready(self) -> bool:
        states = [status.state for status in await self.buffer.statuses()]
        return {*states, (await self.catalog.status()).state} == {"ready"}

    async def append_one_by_one(self, events: Sequence[Event]) -> None:
        """In an order that the clocks of the shards can tell, so that it is the order counted."""
        for event in events:
            await self.buffer.append([event])
            await asyncio.sleep(0.002)

    async def snapshot_at(self, sequence: int, timeout_s: float = 20.0) -> CounterSnapshot:
        async def has_counted() -> bool:
            return (await self.client.snapshot()).sequence >= sequence

        await wait_until(has_counted, timeout_s)
        snapshot = await self.client.snapshot()
        assert snapshot.sequence == sequence
        return snapshot


@pytest.fixture
def make(storage: StorageSettings) -> Iterator[Callable[[float], World]]:
    worlds: list[World] = []

    def make_it(encoding_s: float = 0.0) -> World:
        worlds.append(World(storage, encoding_s))
        return worlds[-1]

    yield make_it
    for world in worlds:
        for actor in world.actors:
            ray.kill(actor)


def stream(first: int, number: int) -> list[Event]:
    """Clicks of eight users; every seventh is on an item that there is not."""
    return [
        Event(
            event_id=f"e-{n}",
            user_id=f"u-{n * n % 8}",
            item_id="nothing" if n % 7 == 3 else f"i-{n * 5 % NUM_ITEMS}",
            event_type="click",
            value=1.0,
            timestamp_ms=1_000 * n,
        )
        for n in range(first, first + number)
    ]


def counted_plainly(events: Sequence[Event]) -> Counters:
    """What the log says, without actors: each known event after the known items of its window.

    As the trainer reads it: an item that is not in the catalogue leaves no gap.
    """
    counters = Counters(HALF_LIVES)
    histories: dict[str, list[int]] = {}
    for event in events:
        is_known = event.item_id.startswith("i-")
        row = int(event.item_id[2:]) if is_known else -1
        history = histories.setdefault(event.user_id, [])
        if is_known:
            previous = [seen for seen in history[-WINDOW:][::-1] if seen != -1]
            padded = [*previous, *[-1] * (WINDOW - len(previous))]
            counters.update(np.array([row], np.int32), np.array([padded], np.int32))
        history.append(row)
    return counters


def assert_same(counters: Counters, expected: Counters) -> None:
    assert counters.num_events == expected.num_events
    np.testing.assert_allclose(counters.popularity(), expected.popularity(), rtol=1e-6)
    for row in range(expected.num_items):
        history = np.array([row], np.int32)
        np.testing.assert_allclose(
            counters.rule_scores(history), expected.rule_scores(history), rtol=1e-5, atol=1e-7
        )


async def test_counters_over_two_shards_are_plain_counters_also_after_a_kill(
    make: Callable[[], World],
) -> None:
    world = make()
    await wait_until(world.is_ready, 30.0)
    await world.catalog.put([Item(f"i-{n}", f"text {n}") for n in range(NUM_ITEMS)])
    events = stream(0, 150)
    await world.append_one_by_one(events)
    expected = counted_plainly(events)
    before = await world.snapshot_at(expected.num_events)
    assert_same(Counters.from_state(before.state), expected)
    assert sum(before.through) == len(events) - NUM_SHARDS

    await asyncio.to_thread(kill_process, world.statistics)
    after = await world.snapshot_at(expected.num_events)
    assert after.boot_id != before.boot_id
    assert after.through == before.through
    assert after.acknowledged_ms == before.acknowledged_ms
    assert_same(Counters.from_state(after.state), expected)
    assert (await world.client.updates_after(before.boot_id, 5, 0.0)).boot_id == ""


async def test_a_follower_hears_of_each_event_in_time_over_a_long_poll(
    make: Callable[[], World],
) -> None:
    world = make()
    await wait_until(world.is_ready, 30.0)
    await world.catalog.put([Item(f"i-{n}", f"text {n}") for n in range(NUM_ITEMS)])
    snapshot = await world.client.snapshot()
    follower = Counters.from_state(snapshot.state)
    sequence, events = snapshot.sequence, [e for e in stream(0, 40) if e.item_id != "nothing"]
    for number, event in enumerate(events, start=1):
        await world.buffer.append([event])
        appended_s = time.monotonic()
        while sequence < number:
            update = await world.client.updates_after(snapshot.boot_id, sequence, 5.0)
            follower.update(update.rows_N, update.previous_NP)
            sequence = update.sequence
        assert time.monotonic() - appended_s < 2.0
    assert_same(follower, counted_plainly(events))


async def test_an_event_of_an_item_put_before_its_text_is_encoded_is_counted(
    make: Callable[[float], World],
) -> None:
    world = make(3.0)
    await wait_until(world.is_ready, 30.0)
    await world.catalog.put([Item("i-0", "a text that takes long to read")])
    assert (await world.catalog.status()).num_pending == 1
    await world.buffer.append([Event("e", "u", "i-0", "click", 1.0, 1)])
    await world.snapshot_at(1)
    assert (await world.catalog.status()).num_pending == 1, "it was encoded first"


async def test_counting_goes_on_after_a_shard_was_killed_and_nothing_counts_twice(
    make: Callable[[], World],
) -> None:
    world = make()
    await wait_until(world.is_ready, 30.0)
    await world.catalog.put([Item(f"i-{n}", f"text {n}") for n in range(NUM_ITEMS)])
    events = [event for event in stream(0, 60) if event.item_id != "nothing"]
    await world.append_one_by_one(events[:30])
    await world.snapshot_at(30)
    await asyncio.to_thread(kill_process, world.actors[0])
    for event in events[30:]:
        while True:
            try:
                await world.buffer.append([event])
                break
            except ShardUnavailable:
                await asyncio.sleep(0.05)
    snapshot = await world.snapshot_at(len(events))
    popularity_V = Counters.from_state(snapshot.state).popularity()[0]
    assert (popularity_V > 0).sum() == len({event.item_id for event in events})
