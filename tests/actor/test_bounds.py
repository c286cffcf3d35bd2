"""What bounds a running shard: one user with very many events, and a disk that is slow."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray
from actor_tools import Starter
from shard_traffic import Traffic, logged_ids, started_shard, traffic_on

from actors.settings import StorageSettings
from recommender.events import Event

pytestmark = pytest.mark.actor

_FSYNC_S = 0.3
_SENDERS = 40
_ONE_USERS_EVENTS = int(os.environ.get("RHEOS_ONE_USERS_EVENTS", "20000"))


@contextmanager
def slow_fsync(shard: Any, delay_s: float) -> Iterator[None]:
    """Every fsync of a shard's process takes longer."""
    delays(shard, delay_s)
    try:
        yield
    finally:
        delays(shard, 0.0)


def delays(shard: Any, delay_s: float) -> None:
    def set_delay(_: Any) -> None:
        fsync = os.fdatasync  # not the one that was replaced before

        def late(descriptor: Any) -> None:
            time.sleep(delay_s)
            fsync(descriptor)

        os.fsync = late  # type: ignore[assignment]

    ray.get(shard.__ray_call__.remote(set_delay), timeout=20)


async def test_a_user_with_very_many_events_takes_no_more_memory_than_others(
    start: Starter, storage: StorageSettings
) -> None:
    sizes = {"recent_window": 20_000, "reservoir_size": 5_000, "history_length": 500}
    client, _ = await started_shard(start, storage, **sizes)
    counted = []
    for first in range(0, _ONE_USERS_EVENTS, 1_000):
        events = [
            Event(f"e-{n}", "one", f"i-{n % 50}", "click", 1.0, n)
            for n in range(first, first + 1_000)
        ]
        assert (await client.append(events)).accepted == 1_000
        counted.append((await client.statuses())[0].counted_bytes)
    started_s = time.monotonic()
    history = await client.history("one")
    assert time.monotonic() - started_s < 1.0
    assert len(history.item_ids) == 500
    assert history.through_offset == _ONE_USERS_EVENTS - 1
    # From here on only the ids grow: 150 bytes, and their text.
    growth = np.diff(counted) / 1_000
    assert growth.max() < 160 + 24 * 1.25, growth
    assert growth[1:].mean() < 160, growth


async def test_a_slow_disk_slows_answers_then_refuses_and_loses_nothing(
    start: Starter, storage: StorageSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    client, shard = await started_shard(
        start, storage, timeout_s=20.0, max_pending_events=400, segment_bytes=1 << 24
    )
    async with traffic_on(client) as traffic:
        quiet_s = [await seconds_to_recommend(traffic) for _ in range(100)]
        accepted_s: list[float] = []
        recommended_s: list[float] = []
        with slow_fsync(shard, _FSYNC_S):
            async with asyncio.timeout(40), asyncio.TaskGroup() as group:
                for _ in range(_SENDERS):
                    group.create_task(send(traffic, accepted_s))
                for _ in range(150):
                    recommended_s.append(await seconds_to_recommend(traffic))
                    await asyncio.sleep(0.02)
        started_s = time.monotonic()
        assert await traffic.post()
        quick_again_s = time.monotonic() - started_s
    assert np.median(accepted_s) > 0.5 * _FSYNC_S
    assert set(traffic.refused) == {(429, "/problems/buffer-full", "1")}
    assert set(traffic.recommended) == {(200, False)}
    assert quick_again_s < 2.0
    start.end_all()
    assert logged_ids(storage.data_dir) == Counter(traffic.acknowledged)
    with capsys.disabled():
        print(
            f"\nfsync of {_FSYNC_S:g} s: {len(traffic.acknowledged)} events accepted, batches "
            f"after {np.median(accepted_s):.2f} s; refused {dict(traffic.refused)}; "
            f"recommendations p99 {np.quantile(recommended_s, 0.99) * 1e3:.0f} ms, without "
            f"{np.quantile(quiet_s, 0.99) * 1e3:.0f} ms"
        )


async def send(traffic: Traffic, accepted_s: list[float]) -> None:
    """Batches of one sender, each as soon as the one before is answered."""
    for _ in range(4):
        started_s = time.monotonic()
        if await traffic.post():
            accepted_s.append(time.monotonic() - started_s)
        else:
            await asyncio.sleep(0.1)


async def seconds_to_recommend(traffic: Traffic) -> float:
    started_s = time.monotonic()
    await traffic.recommend()
    return time.monotonic() - started_s


async def test_without_file_handles_events_are_refused_until_there_are_some(
    start: Starter, storage: StorageSettings
) -> None:
    client, shard = await started_shard(start, storage, segment_bytes=4_096)
    async with traffic_on(client) as traffic:
        assert await traffic.run(3) == 3
        allow_files(shard, 3)
        assert await traffic.run(10) == 0
        allow_files(shard, 4_096)
        assert await traffic.run(3) == 3
    assert set(traffic.refused) == {(503, "/problems/storage-error", "1")}
    assert set(traffic.recommended) == {(200, False)}
    start.end_all()
    assert logged_ids(storage.data_dir) == Counter(traffic.acknowledged)


def allow_files(shard: Any, number: int) -> None:
    """Let a shard's process have so many files open; 3 are fewer than it has."""

    def set_limit(_: Any) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))

    ray.get(shard.__ray_call__.remote(set_limit), timeout=20)
