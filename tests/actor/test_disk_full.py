"""The disk fills up under running actors, and there is space again.

The replica is the real one over the real event buffer, so that the answers are what clients see.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from actor_tools import Starter, kill_process, wait_until
from shard_traffic import Traffic, logged_ids, started_shard, traffic_on
from small_disk import SmallDisk, small_disk

from actors.messages import Manifest, StorageFull
from actors.parameter_store import ParameterStore
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import StorageSettings, StoreSettings

pytestmark = pytest.mark.actor

RESERVE_BYTES = 2 << 20
_BACK_WITHIN_S = 10.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_mib=16) as disk:
        yield disk


async def seconds_until_accepted(traffic: Traffic) -> float:
    started_s = time.monotonic()
    await wait_until(traffic.post, _BACK_WITHIN_S)
    return time.monotonic() - started_s


def closed_segments(disk: SmallDisk) -> list[Path]:
    return sorted(disk.path.glob("events/shard-0/closed/*.parquet"))


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
    assert logged_ids(disk.path) == Counter(traffic.acknowledged)
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
    assert logged_ids(disk.path) == Counter(traffic.acknowledged)
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
