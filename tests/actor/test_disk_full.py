"""The disk fills up under running actors, and there is space again.

The replica is the real one over the real event buffer, so that the answers are what clients see.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from actor_tools import Starter, kill_process, wait_until
from serving_fakes import FakeActors, event, films, replica
from small_disk import SmallDisk, small_disk

from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.event_log import EventLog
from actors.messages import Manifest, StorageFull
from actors.parameter_store import ParameterStore
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import BufferSettings, StorageSettings, StoreSettings

pytestmark = pytest.mark.actor

RESERVE_BYTES = 2 << 20
SEGMENT_BYTES = 1 << 16
_BATCH = 20
_BACK_WITHIN_S = 10.0


@dataclass
class Traffic:
    """Batches of events and recommendations, each answer noted."""

    client: httpx.AsyncClient
    acknowledged: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    refused: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    recommended: Counter[tuple[int, bool]] = field(default_factory=Counter)

    async def post(self) -> bool:
        """One batch of new events; whether it was accepted."""
        events = [event(number) for number in itertools.islice(self.numbers, _BATCH)]
        response = await self.client.post("/v1/events", json={"events": events})
        if response.status_code == 202:
            self.acknowledged.update(body["event_id"] for body in events)
            return True
        retry_after = response.headers["retry-after"]
        self.refused[response.status_code, response.json()["type"], retry_after] += 1
        return False

    async def recommend(self) -> None:
        """Ask for the user of all these events."""
        response = await self.client.post("/v1/recommend", json={"user_id": "anna"})
        self.recommended[response.status_code, response.json()["degraded"]] += 1

    async def run(self, num_batches: int) -> int:
        """A recommendation after each batch; how many batches were accepted."""
        num_accepted = 0
        for _ in range(num_batches):
            num_accepted += await self.post()
            await self.recommend()
        return num_accepted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_mib=16) as disk:
        yield disk


@asynccontextmanager
async def traffic_on(client: EventBufferClient) -> AsyncIterator[Traffic]:
    """Traffic through a replica whose events go to these shards."""
    actors = FakeActors(films(12))
    actors.buffer = client  # type: ignore[assignment]
    async with replica(actors) as (_, http):
        yield Traffic(http)


async def started_shard(
    start: Starter, storage: StorageSettings
) -> tuple[EventBufferClient, object]:
    shard = start(
        EventBuffer, 0, storage, BufferSettings(num_shards=1, segment_bytes=SEGMENT_BYTES)
    )
    client = EventBufferClient([shard], timeout_s=5.0)

    async def is_ready() -> bool:
        return (await client.statuses())[0].state == "ready"

    await wait_until(is_ready, 20)
    return client, shard


async def seconds_until_accepted(traffic: Traffic) -> float:
    started_s = time.monotonic()
    await wait_until(traffic.post, _BACK_WITHIN_S)
    return time.monotonic() - started_s


def closed_segments(disk: SmallDisk) -> list[Path]:
    return sorted(disk.path.glob("events/shard-0/closed/*.parquet"))


def logged_ids(disk: SmallDisk) -> Counter[str]:
    """How often each event is in the log; opens it, so its shard must have ended."""
    log = EventLog(disk.path / "events" / "shard-0", segment_bytes=SEGMENT_BYTES)
    try:
        return Counter(i for batch in log.read() for i in batch.column("event_id").to_pylist())
    finally:
        log.close()


async def publish(store: ParameterStoreClient) -> int:
    weights = {"w": np.zeros(10_000, np.float32)}
    manifest = Manifest(0, 0, 0, (0,), 0, 0, "test")
    return (await store.publish(manifest, weights, {})).manifest.version


async def test_with_the_reserve_reached_events_are_refused_and_all_else_goes_on(
    start: Starter, disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = StorageSettings(data_dir=disk.path, min_free_bytes=RESERVE_BYTES)
    client, _ = await started_shard(start, storage)
    store = ParameterStoreClient(start(ParameterStore, storage, StoreSettings()), timeout_s=20.0)
    async with traffic_on(client) as traffic:
        assert await traffic.run(60) == 60
        assert await publish(store) == 1
        disk.fill(leave_bytes=RESERVE_BYTES - 4_096)
        filled_s = time.monotonic()
        assert not await traffic.post()
        refused_after_s = time.monotonic() - filled_s
        assert await traffic.run(40) == 0
        with pytest.raises(StorageFull):
            await publish(store)
        assert disk.free_bytes == RESERVE_BYTES - 4_096, "something was written"
        assert disk.temporaries() == []
        disk.empty()
        accepted_after_s = await seconds_until_accepted(traffic)
        assert await publish(store) == 2
    assert refused_after_s < 1.0
    assert set(traffic.refused) == {(503, "/problems/storage-full", "10")}
    assert set(traffic.recommended) == {(200, False)}
    [status] = await client.statuses()
    assert status.num_events == len(traffic.acknowledged)
    start.end_all()
    assert logged_ids(disk) == Counter(traffic.acknowledged)
    tell(capsys, "reserve", traffic, refused_after_s, accepted_after_s)


async def test_with_no_byte_left_nothing_is_acknowledged_and_nothing_acknowledged_is_lost(
    start: Starter, disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = StorageSettings(data_dir=disk.path, min_free_bytes=0)
    client, shard = await started_shard(start, storage)
    store = ParameterStoreClient(start(ParameterStore, storage, StoreSettings()), timeout_s=20.0)
    async with traffic_on(client) as traffic:
        assert await traffic.run(60) == 60
        assert [await publish(store), await publish(store)] == [1, 2]
        disk.fill()
        filled_s = time.monotonic()
        while await traffic.post():  # what the last page of the segment has room for
            pass
        refused_after_s = time.monotonic() - filled_s
        await traffic.run(40)
        with pytest.raises(StorageFull):
            await publish(store)
        with pytest.raises(StorageFull):
            await store.rollback("test")
        assert disk.temporaries() == []
        disk.empty()
        accepted_after_s = await seconds_until_accepted(traffic)
        assert (await store.rollback("test")).manifest.version == 1
        assert set(traffic.recommended) == {(200, False)}
        await asyncio.to_thread(kill_process, shard)
        await seconds_until_accepted(traffic)
    assert refused_after_s < 1.0
    assert (503, "/problems/storage-full", "10") in traffic.refused
    [status] = await client.statuses()
    assert status.cut_bytes == 0
    start.end_all()
    assert logged_ids(disk) == Counter(traffic.acknowledged)
    tell(capsys, "no byte left", traffic, refused_after_s, accepted_after_s)


def tell(
    capsys: pytest.CaptureFixture[str],
    what: str,
    traffic: Traffic,
    refused_after_s: float,
    accepted_after_s: float,
) -> None:
    with capsys.disabled():
        print(
            f"\ndisk full, {what}: refused after {refused_after_s * 1_000:.0f} ms, accepted "
            f"{accepted_after_s * 1_000:.0f} ms after there was space; "
            f"{traffic.refused.total()} batches refused, {traffic.recommended.total()} "
            f"recommendations {dict(traffic.recommended)}, {len(traffic.acknowledged):,} events "
            "acknowledged and in the log once"
        )
