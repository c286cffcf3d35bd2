"""Disk and handle faults under a running shard and a running store, injected from outside.

The replica is the real one over the real event buffer, so that the answers are what clients see.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from actor_tools import Starter, kill_process, process_of, wait_until
from disk_faults import Trace, injected, limited, standard_error
from serving_fakes import event
from shard_traffic import Traffic, logged_ids, started_shard, traffic_on
from small_disk import SmallDisk, small_disk

from actors.event_buffer_client import EventBufferClient
from actors.messages import Manifest, StorageError, StorageFull
from actors.parameter_store import ParameterStore
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import StorageSettings, StoreSettings
from recommender.events import Event

pytestmark = pytest.mark.actor

_BACK_WITHIN_S = 10.0
_FSYNC_S = 2.0
_STORAGE_ERROR = (503, "/problems/storage-error", "1")
_STORAGE_FULL = (503, "/problems/storage-full", "10")
_BUFFER_FULL = (429, "/problems/buffer-full", "1")
_BATCH = 20

Fault = Callable[[psutil.Process, Path], AbstractContextManager[Trace | None]]


@contextmanager
def short_write(process: psutil.Process, file: Path) -> Iterator[None]:
    """A file may grow by 100 bytes, and then no more."""
    with limited(process, psutil.RLIMIT_FSIZE, file.stat().st_size + 100):
        yield


def one_error(call: str) -> Fault:
    """The next such call on the file fails, once."""
    return lambda process, file: injected(process, f"{call}:error=EIO:when=1", path=file)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_mib=16, num_inodes=200) as disk:
        yield disk


def open_segments(data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob("events/shard-0/open/*.arrow"))


async def is_shard_ready(client: EventBufferClient) -> bool:
    return (await client.statuses())[0].state == "ready"


async def is_store_ready(store: ParameterStoreClient) -> bool:
    return (await store.status()).state == "ready"


async def seconds_until_accepted(traffic: Traffic) -> float:
    started_s = time.monotonic()
    await wait_until(traffic.post, _BACK_WITHIN_S)
    return time.monotonic() - started_s


def batch_of(numbers: range) -> list[Event]:
    bodies = [event(number) for number in numbers]
    return [Event(**{"value": 1.0, "request_id": None, **body}) for body in bodies]


def tell(capsys: pytest.CaptureFixture[str], what: str) -> None:
    with capsys.disabled():
        print(f"\n{what}")


@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        pytest.param(one_error("fsync"), _STORAGE_ERROR, id="fsync fails"),
        pytest.param(one_error("write"), _STORAGE_ERROR, id="write fails"),
        pytest.param(short_write, _STORAGE_FULL, id="write is short"),
    ],
)
async def test_a_failed_write_refuses_its_batch_whole_and_the_shard_goes_on_in_a_new_segment(
    start: Starter,
    storage: StorageSettings,
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
    refusal: tuple[int, str, str],
) -> None:
    client, shard = await started_shard(start, storage, segment_bytes=1 << 20)
    process = await asyncio.to_thread(process_of, shard)
    async with traffic_on(client) as traffic:
        assert await traffic.run(5) == 5
        [segment] = open_segments(storage.data_dir)
        with fault(process, segment) as trace:
            assert await traffic.run(1) == 0
            assert await traffic.run(3) == 3
        again_fsynced = trace.fsyncs_after_a_failure() if trace else []
        num_failed = trace.num_failed() if trace else 1
        assert open_segments(storage.data_dir)[-1].stem == f"{5 * _BATCH:020d}", "the old segment"
        await asyncio.to_thread(kill_process, shard)
        await wait_until(lambda: is_shard_ready(client), 20)
        assert await traffic.run(1) == 1
        result = await client.append(batch_of(range(5 * _BATCH, 6 * _BATCH)))
    assert (num_failed, again_fsynced) == (1, [])
    assert traffic.refused == {refusal: 1}
    assert set(traffic.recommended) == {(200, False)}
    assert (result.accepted, result.duplicates) == (_BATCH, 0), "something refused was kept"
    [status] = await client.statuses()
    assert (status.recovered_events, status.cut_bytes) == (8 * _BATCH, 0)
    start.end_all()
    refused = {f"e-{number}" for number in range(5 * _BATCH, 6 * _BATCH)}
    assert logged_ids(storage.data_dir) == Counter(traffic.acknowledged | refused)
    tell(capsys, f"refused {dict(traffic.refused)}, {len(traffic.acknowledged)} events kept once")


async def test_a_disk_on_which_no_fsync_works_makes_the_shard_say_so_until_it_is_opened_again(
    start: Starter, storage: StorageSettings
) -> None:
    client, shard = await started_shard(start, storage, segment_bytes=1 << 20)
    process = await asyncio.to_thread(process_of, shard)
    async with traffic_on(client) as traffic:
        assert await traffic.run(5) == 5
        with injected(process, "fsync:error=EIO") as trace:
            assert await traffic.run(3) == 0
            assert (await client.statuses())[0].state == "failed"
            assert (await client.recover(0)).state != "ready"
        assert trace.num_failed() >= 2
        assert trace.fsyncs_after_a_failure() == []
        await client.recover(0)
        await wait_until(lambda: is_shard_ready(client), _BACK_WITHIN_S)
        assert await traffic.run(3) == 3
    assert traffic.refused[_STORAGE_ERROR] == 1
    assert {status for status, _ in traffic.recommended} == {200}
    start.end_all()
    assert logged_ids(storage.data_dir) == Counter(traffic.acknowledged)


@contextmanager
def no_inodes(disk: SmallDisk, _: psutil.Process) -> Iterator[None]:
    """No new file on the disk."""
    disk.fill_inodes()
    yield
    disk.empty_inodes()


@contextmanager
def no_handles(_: SmallDisk, process: psutil.Process) -> Iterator[None]:
    """The process has more files open than it may open now."""
    with limited(process, psutil.RLIMIT_NOFILE, 3):
        yield


@contextmanager
def no_space(disk: SmallDisk, _: psutil.Process) -> Iterator[None]:
    """Not a byte."""
    disk.fill()
    yield
    disk.empty()


@pytest.mark.parametrize(
    ("lack", "refusal"),
    [
        pytest.param(no_inodes, _STORAGE_FULL, id="inodes"),
        pytest.param(no_handles, _STORAGE_ERROR, id="file handles"),
        pytest.param(no_space, _STORAGE_FULL, id="space"),
    ],
)
async def test_what_lacks_is_refused_told_once_and_accepted_when_it_is_there(
    start: Starter,
    disk: SmallDisk,
    capsys: pytest.CaptureFixture[str],
    lack: Callable[[SmallDisk, psutil.Process], AbstractContextManager[None]],
    refusal: tuple[int, str, str],
) -> None:
    storage = StorageSettings(data_dir=disk.path, min_free_bytes=0)
    client, shard = await started_shard(start, storage, segment_bytes=16_384)
    process = await asyncio.to_thread(process_of, shard)
    async with traffic_on(client) as traffic:
        assert await traffic.run(3) == 3
        logged_before = len(standard_error(process))
        with lack(disk, process):
            while await traffic.post():  # what the open segment has room for
                pass
            assert await traffic.run(40) == 0
        accepted_after_s = await seconds_until_accepted(traffic)
        assert await traffic.run(3) == 3
        told = standard_error(process)[logged_before:]
    assert set(traffic.refused) == {refusal}
    assert set(traffic.recommended) == {(200, False)}
    assert told.count("commit failed") == 1, told
    assert told.count("not noted") <= 1, told
    start.end_all()
    assert logged_ids(disk.path) == Counter(traffic.acknowledged)
    tell(
        capsys,
        f"{lack.__name__}: {traffic.refused.total()} batches refused, accepted "
        f"{accepted_after_s * 1e3:.0f} ms after; logged {len(told.splitlines())} lines",
    )


async def test_a_slow_fsync_delays_acknowledgements_and_nothing_else(
    start: Starter, storage: StorageSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    client, shard = await started_shard(
        start, storage, timeout_s=20.0, max_pending_events=3 * _BATCH, segment_bytes=1 << 20
    )
    process = await asyncio.to_thread(process_of, shard)
    read_s: list[float] = []
    async with traffic_on(client) as traffic:
        assert await traffic.run(3) == 3
        slow = f"fsync:delay_enter={_FSYNC_S * 1e6:.0f}"
        with injected(process, slow, path=open_segments(storage.data_dir)[0]):
            started_s = time.monotonic()
            posts = [asyncio.create_task(traffic.post()) for _ in range(8)]
            while not any(post.done() and post.result() for post in posts):
                asked_s = time.monotonic()
                await asyncio.gather(client.history("anna"), client.statuses(), traffic.recommend())
                read_s.append(time.monotonic() - asked_s)
            accepted_s = time.monotonic() - started_s
            num_accepted = sum(await asyncio.gather(*posts))
    assert accepted_s >= _FSYNC_S
    assert num_accepted == 3
    assert traffic.refused == {_BUFFER_FULL: 5}
    assert set(traffic.recommended) == {(200, False)}
    assert len(read_s) >= 10
    assert np.median(read_s) < _FSYNC_S / 4, "reads waited for the disk"
    start.end_all()
    assert logged_ids(storage.data_dir) == Counter(traffic.acknowledged)
    tell(
        capsys,
        f"fsync of {_FSYNC_S:g} s: first batch after {accepted_s:.2f} s; meanwhile {len(read_s)} "
        f"reads of three kinds, median {np.median(read_s) * 1e3:.0f} ms, longest "
        f"{max(read_s) * 1e3:.0f} ms",
    )


def weights(value: float) -> dict[str, Any]:
    return {"w": np.full(50_000, value, np.float32)}


async def publish(store: ParameterStoreClient, value: float) -> int:
    manifest = Manifest(0, 0, 0, (0,), 0, 0, "test")
    return (await store.publish(manifest, weights(value), weights(value))).manifest.version


async def served(store: ParameterStoreClient) -> tuple[int, float]:
    answer = await store.wait_after(0, 5.0)
    assert answer is not None
    return answer[0].manifest.version, float(answer[1]["w"][0])


async def test_a_shard_and_a_store_that_start_without_a_byte_left_serve_what_they_have(
    start: Starter, disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = StorageSettings(data_dir=disk.path, min_free_bytes=0)
    client, shard = await started_shard(start, storage)
    actor = start(ParameterStore, storage, StoreSettings())
    store = ParameterStoreClient(actor, timeout_s=20.0)
    async with traffic_on(client) as traffic:
        assert await traffic.run(30) == 30
        assert [await publish(store, 1.0), await publish(store, 2.0)] == [1, 2]
        before = await client.history("anna")
        disk.fill()
        for one in (shard, actor):
            await asyncio.to_thread(kill_process, one)
        await wait_until(lambda: is_shard_ready(client), 20)
        await wait_until(lambda: is_store_ready(store), 20)
        assert (await client.history("anna")).item_ids == before.item_ids
        assert await served(store) == (2, 2.0)
        traffic.recommended.clear()
        assert await traffic.run(20) == 0
        for change in (publish(store, 3.0), store.rollback("test"), store.pin(1)):
            with pytest.raises(StorageFull):
                await change
        assert await served(store) == (2, 2.0)
        assert disk.temporaries() == []
        disk.empty()
        accepted_after_s = await seconds_until_accepted(traffic)
        assert await publish(store, 3.0) == 3
        assert (await store.rollback("test")).manifest.version == 2
        await asyncio.to_thread(kill_process, shard)
        await seconds_until_accepted(traffic)
    assert set(traffic.refused) - {_STORAGE_FULL} <= {(503, "/problems/shard-unavailable", "1")}
    assert traffic.refused[_STORAGE_FULL] == 20
    assert set(traffic.recommended) == {(200, False)}
    start.end_all()
    assert logged_ids(disk.path) == Counter(traffic.acknowledged)
    tell(
        capsys,
        f"started on a full disk: {len(before.item_ids)} items of history, version 2; 20 batches "
        f"refused, accepted {accepted_after_s * 1e3:.0f} ms after there was space",
    )


@pytest.mark.parametrize(
    ("fault", "name", "error"),
    [
        pytest.param(one_error("fsync"), "model.safetensors", StorageError, id="fsync of a model"),
        pytest.param(one_error("write"), "trainer.safetensors", StorageError, id="write"),
        pytest.param(one_error("fsync"), "manifest.json", StorageError, id="fsync of a manifest"),
        pytest.param(one_error("fsync"), "", StorageError, id="fsync of the folder"),
        pytest.param(None, "", StorageFull, id="write is short"),
    ],
)
async def test_a_publish_that_fails_midway_is_refused_and_leaves_nothing(
    start: Starter,
    storage: StorageSettings,
    fault: Fault | None,
    name: str,
    error: type[StorageError],
) -> None:
    actor = start(ParameterStore, storage, StoreSettings())
    store = ParameterStoreClient(actor, timeout_s=20.0)
    assert await publish(store, 1.0) == 1
    process = await asyncio.to_thread(process_of, actor)
    file = storage.data_dir / "models" / "versions" / "00000002.tmp" / name
    failing = fault(process, file) if fault else limited(process, psutil.RLIMIT_FSIZE, 50_000)
    with failing as trace, pytest.raises(error) as refused:
        await publish(store, 2.0)
    assert trace is None or trace.num_failed() == 1
    assert trace is None or trace.fsyncs_after_a_failure() == []
    assert type(refused.value) is error
    assert await served(store) == (1, 1.0)
    await asyncio.to_thread(kill_process, actor)
    await wait_until(lambda: is_store_ready(store), 20)
    assert await served(store) == (1, 1.0)
    assert list(storage.data_dir.rglob("*.tmp")) == []
    assert await publish(store, 3.0) == 3
    assert await served(store) == (3, 3.0)
    assert [info.manifest.version for info in await store.list_versions()] == [3, 1]
