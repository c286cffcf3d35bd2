"""The event buffer as it runs: one process a shard, killed while it works."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections import Counter

import numpy as np
import pytest
from actor_tools import Starter, kill_process, process_of, wait_until

from actors.checked_segment import read_segment
from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.event_log import LOG_SCHEMA
from actors.messages import BufferFull, ShardUnavailable
from actors.settings import BufferSettings, StorageSettings
from recommender.events import Event

pytestmark = pytest.mark.actor


def event(number: int, user: str = "u") -> Event:
    return Event(f"e-{number}", user, f"i-{number % 7}", "click", 1.0, 1_000 * number)


def buffer_of(
    start: Starter, storage: StorageSettings, num_shards: int = 1, timeout_s: float = 5.0
) -> tuple[EventBufferClient, list[object]]:
    settings = BufferSettings(num_shards=num_shards)
    shards = [start(EventBuffer, shard, storage, settings) for shard in range(num_shards)]
    return EventBufferClient(shards, timeout_s), shards


async def is_ready(client: EventBufferClient) -> bool:
    return all(status.state == "ready" for status in await client.statuses())


async def test_an_event_is_in_the_history_when_its_append_returns(
    start: Starter, storage: StorageSettings
) -> None:
    client, _ = buffer_of(start, storage, num_shards=2)
    await wait_until(lambda: is_ready(client), 20)
    for number in range(100):
        user = f"u-{number % 10}"
        result = await client.append([event(number, user)])
        history = await client.history(user)
        assert result.accepted == 1
        assert history.item_ids[-1] == f"i-{number % 7}"
        assert history.through_offset >= result.offsets[client.shard_of(user)]


async def test_acknowledged_events_survive_kills_and_count_once(
    start: Starter, storage: StorageSettings
) -> None:
    client, [shard] = buffer_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    acknowledged: set[str] = set()
    kills = 0

    async def send(sender: int) -> None:
        for batch in range(60):
            events = [event(sender * 10_000 + batch * 10 + i) for i in range(10)]
            while True:
                try:
                    await client.append(events)
                    break
                except ShardUnavailable:
                    await asyncio.sleep(0.05)
            acknowledged.update(e.event_id for e in events)

    async def has_passed(mark: int) -> bool:
        return len(acknowledged) > mark

    async def kill() -> None:
        nonlocal kills
        for mark in (300, 1_200):
            await wait_until(functools.partial(has_passed, mark), 20)
            await asyncio.to_thread(kill_process, shard)
            kills += 1

    await asyncio.gather(kill(), *(send(sender) for sender in range(4)))
    [status] = await client.statuses()
    assert kills == 2
    assert len(acknowledged) == 2_400
    assert status.num_events == 2_400
    assert status.recovered_events > 1_200
    [segment] = (storage.data_dir / "events" / "shard-0" / "open").glob("*.arrow")
    contents = read_segment(segment, LOG_SCHEMA, 0, is_last=False)
    logged = Counter(i for batch in contents.batches for i in batch.column("event_id").to_pylist())
    assert set(logged) == acknowledged
    assert set(logged.values()) == {1}


async def test_a_hanging_shard_is_unavailable_in_time_and_fails_only_its_own_users(
    start: Starter, storage: StorageSettings
) -> None:
    client, shards = buffer_of(start, storage, num_shards=2, timeout_s=1.0)
    await wait_until(lambda: is_ready(client), 20)
    users = {client.shard_of(user): user for user in map(str, range(20))}
    process = process_of(shards[0])
    process.send_signal(signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        with pytest.raises(ShardUnavailable):
            await client.history(users[0])
        result = await client.append([event(1, users[0]), event(2, users[1])])
        assert time.monotonic() - started_s < 4.0
        assert result.accepted == 1
        assert list(result.failed_shards) == [0]
        assert [s.state for s in await client.statuses()] == ["unavailable", "ready"]
    finally:
        process.send_signal(signal.SIGCONT)


async def test_a_long_poll_returns_when_an_event_comes_and_is_empty_when_none_does(
    start: Starter, storage: StorageSettings
) -> None:
    client, _ = buffer_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    _, nothing = await client.fresh(0, -1, 10, wait_s=0.2)
    assert len(nothing) == 0
    poll = asyncio.create_task(client.fresh(0, -1, 10, wait_s=20.0))
    await asyncio.sleep(0)
    await client.append([event(1), event(2)])
    boot_id, fresh = await asyncio.wait_for(poll, 5)
    assert boot_id == (await client.statuses())[0].boot_id
    assert fresh.offsets_N.tolist() == [0, 1]
    assert await client.vocabulary(0, 0) == ["i-1", "i-2"]


async def test_samples_come_from_every_shard_in_proportion(
    start: Starter, storage: StorageSettings
) -> None:
    client, _ = buffer_of(start, storage, num_shards=2)
    await wait_until(lambda: is_ready(client), 20)
    users = {client.shard_of(user): user for user in map(str, range(20))}
    await client.append([event(i, users[0]) for i in range(90)])
    await client.append([event(100 + i, users[1]) for i in range(10)])
    sampled = await client.sample(400, "uniform", 100.0, seed=1, through=(89, 9))
    sizes = {shard: len(windows) for shard, _, windows in sampled}
    assert sum(sizes.values()) == 400
    assert 20 <= sizes[1] <= 70
    again = await client.sample(400, "uniform", 100.0, seed=1, through=(89, 9))
    assert np.array_equal(sampled[0][2].items_BT, again[0][2].items_BT)


async def test_a_typed_error_crosses_the_process_border(
    start: Starter, storage: StorageSettings
) -> None:
    shard = start(EventBuffer, 0, storage, BufferSettings(num_shards=1, max_pending_events=1))
    client = EventBufferClient([shard], timeout_s=5.0)
    await wait_until(lambda: is_ready(client), 20)
    with pytest.raises(BufferFull, match="bound of 1"):
        await client.append([event(1), event(2)])
