import asyncio
import errno
import math
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_fakes import FailingFsync, event, fast_and_patient

from actors.event_buffer import EventBuffer
from actors.messages import (
    BufferFull,
    MemoryFull,
    ShardStatus,
    ShardUnavailable,
    StorageError,
    StorageFull,
)
from actors.settings import BufferSettings, StorageSettings
from recommender.events import Event
from recommender.replay import ReplayMemory

DAY_MS = 86_400_000
Open = Callable[..., EventBuffer]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def buffer_in(data_dir: Path, clock: Clock, min_free_bytes: int = 0, **sizes: int) -> EventBuffer:
    storage = StorageSettings(data_dir=data_dir, min_free_bytes=min_free_bytes)
    return EventBuffer(0, storage, BufferSettings(num_shards=1, **sizes), window=4, now_ms=clock)


@pytest.fixture
async def open_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    fast_and_patient(monkeypatch)
    opened: list[EventBuffer] = []

    def open_it(clock: Clock | None = None, **sizes: int) -> EventBuffer:
        buffer = buffer_in(tmp_path, clock or Clock(), **sizes)
        opened.append(buffer)
        return buffer

    yield open_it
    for buffer in opened:
        await buffer.close()


async def restarted(buffer: EventBuffer, open_buffer: Open, **sizes: int) -> EventBuffer:
    await buffer.close()
    return open_buffer(**sizes)


def compacted(data_dir: Path) -> list[Path]:
    return sorted(data_dir.rglob("*.parquet"))


async def until(buffer: EventBuffer, is_so: Callable[[ShardStatus], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so(await buffer.status()):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


async def test_an_acknowledged_event_is_in_the_history_ordered_by_time_then_offset(
    open_buffer: Open,
) -> None:
    buffer = open_buffer()
    for place, number in enumerate((5, 3, 4, 3)):
        await buffer.append([Event(f"e-{place}", "u", f"i-{number}", "like", 1, 9)])
    await buffer.append([Event("late", "u", "first", "like", 1, 8)])
    history = await buffer.history("u")
    assert history.item_ids == ("first", "i-5", "i-3", "i-4", "i-3")
    assert history.timestamps_ms.tolist() == [8, 9, 9, 9, 9]
    assert history.through_offset == 4
    assert (await buffer.history("nobody")).item_ids == ()


async def test_duplicates_count_once_within_a_batch_between_batches_and_over_a_restart(
    open_buffer: Open,
) -> None:
    buffer = open_buffer()
    first = await buffer.append([event(1), event(2), event(1, item="another")])
    assert (first.accepted, first.duplicates, first.offsets) == (2, 1, {0: 1})
    racing = await asyncio.gather(*(buffer.append([event(2), event(3)]) for _ in range(5)))
    assert sum(result.accepted for result in racing) == 1
    buffer = await restarted(buffer, open_buffer)
    again = await buffer.append([event(1), event(2), event(3), event(4)])
    assert (again.accepted, again.duplicates) == (1, 3)
    assert (await buffer.history("u")).item_ids == ("i-1", "i-2", "i-3", "i-4")
    assert (await buffer.status()).num_duplicates == 3


async def test_an_id_is_forgotten_after_the_window_also_over_a_restart(open_buffer: Open) -> None:
    clock = Clock()
    buffer = open_buffer(clock)
    await buffer.append([event(1)])
    clock.now_ms += 6 * DAY_MS
    await buffer.append([event(2)])
    clock.now_ms += 2 * DAY_MS
    await buffer.append([event(3)])
    await buffer.close()
    buffer = open_buffer(clock)
    result = await buffer.append([event(1), event(2)])
    assert (result.accepted, result.duplicates) == (1, 1)


async def test_appends_that_wait_at_the_same_time_share_an_fsync(
    open_buffer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = open_buffer()
    await buffer.append([event(0)])
    fsync = FailingFsync(monkeypatch)
    results = await asyncio.gather(*(buffer.append([event(n)]) for n in range(1, 101)))
    assert sum(result.accepted for result in results) == 100
    assert fsync.num_calls <= 2


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EIO, StorageError), (errno.ENOSPC, StorageFull)]
)
async def test_a_failed_fsync_acknowledges_nothing_shows_nothing_and_loses_nothing(
    open_buffer: Open,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[StorageError],
) -> None:
    buffer = open_buffer()
    await buffer.append([event(0)])
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next, fsync.error = 1, number
    results = await asyncio.gather(
        *(buffer.append([event(n)]) for n in range(1, 4)), return_exceptions=True
    )
    assert [type(result) for result in results] == [error] * 3
    assert (await buffer.history("u")).item_ids == ("i-0",)
    assert (await buffer.status()).pending_events == 0
    assert (await buffer.append([event(1), event(2)])).accepted == 2
    buffer = await restarted(buffer, open_buffer)
    assert (await buffer.history("u")).item_ids == ("i-0", "i-1", "i-2")


async def test_a_shard_that_cannot_take_a_write_back_fails_and_recovers_on_request(
    open_buffer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = open_buffer()
    await buffer.append([event(0)])
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next = 2
    with pytest.raises(StorageError):
        await buffer.append([event(1)])
    with pytest.raises(ShardUnavailable, match="failed"):
        await buffer.append([event(1)])
    assert (await buffer.status()).state == "failed"
    await buffer.recover()
    await buffer.append([event(1)])  # accepted now, or what was not taken back: once either way
    assert (await buffer.history("u")).item_ids == ("i-0", "i-1")


async def test_more_than_may_wait_is_refused(open_buffer: Open) -> None:
    buffer = open_buffer(max_pending_events=10)
    with pytest.raises(BufferFull, match="11 more are over the bound of 10"):
        await buffer.append([event(n) for n in range(11)])
    assert (await buffer.append([event(n) for n in range(10)])).accepted == 10


async def test_a_shard_that_remembers_all_it_may_refuses_until_ids_expire(
    open_buffer: Open,
) -> None:
    clock = Clock()
    sizes = {"max_memory_bytes": 1 << 20, "recent_window": 1_000, "reservoir_size": 0}
    buffer = open_buffer(clock, **sizes)
    number = 0
    while (status := await buffer.status()).counted_bytes < 1 << 20:
        await buffer.append([event(n) for n in range(number, number + 100)])
        number += 100
    with pytest.raises(MemoryFull, match="the bound is 1048576"):
        await buffer.append([event(number)])
    assert 0 <= status.counted_bytes - (1 << 20) < 100 * 200
    again = await restarted(buffer, open_buffer, **sizes)
    assert (await again.history("u")).through_offset == number - 1
    with pytest.raises(MemoryFull):
        await again.append([event(number)])
    await again.close()
    clock.now_ms += 8 * DAY_MS
    assert (await open_buffer(clock, **sizes).append([event(number)])).accepted == 1


async def test_too_little_disk_space_is_refused_before_anything_is_written(
    open_buffer: Open,
) -> None:
    buffer = open_buffer(min_free_bytes=1 << 60)
    with pytest.raises(StorageFull):
        await buffer.append([event(1)])
    assert (await buffer.status()).num_events == 0


async def test_a_compaction_that_waits_for_space_is_told_and_done_when_there_is_some(
    open_buffer: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = open_buffer(segment_bytes=4_096)
    free_bytes = 4_000  # enough for an append, not for a second copy of a segment
    monkeypatch.setattr(
        "actors.durable_files.shutil.disk_usage", lambda _: SimpleNamespace(free=free_bytes)
    )
    for first in range(0, 80, 10):
        await buffer.append([event(n) for n in range(first, first + 10)])
    await until(buffer, lambda status: "must stay free" in status.warning)
    assert compacted(tmp_path) == []
    free_bytes = 1 << 30
    await buffer.append([event(80)])
    await until(buffer, lambda status: not status.warning)
    assert compacted(tmp_path)


async def test_a_damaged_shard_is_up_says_failed_and_refuses(
    open_buffer: Open, tmp_path: Path
) -> None:
    buffer = open_buffer()
    await buffer.append([event(1)])
    await buffer.append([event(2)])
    await buffer.close()
    [path] = (tmp_path / "events" / "shard-0" / "open").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    buffer = open_buffer()
    with pytest.raises(ShardUnavailable, match=path.name):
        await buffer.append([event(3)])
    status = await buffer.status()
    assert (status.state, path.name in status.reason) == ("failed", True)


async def test_bad_text_is_refused_alone(open_buffer: Open) -> None:
    buffer = open_buffer()
    results = await asyncio.gather(
        buffer.append([event(1, user="\ud800")]),
        buffer.append([event(2)]),
        return_exceptions=True,
    )
    assert isinstance(results[0], ValueError)
    assert (await buffer.history("u")).item_ids == ("i-2",)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("event_type", ["rating", "click"])
async def test_an_event_whose_value_is_no_number_is_refused_alone_and_never_on_disk(
    open_buffer: Open, event_type: str, value: float
) -> None:
    buffer = open_buffer()
    bad = replace(event(1), event_type=event_type, value=value)
    results = await asyncio.gather(
        buffer.append([event(0), bad]), buffer.append([event(2)]), return_exceptions=True
    )
    assert isinstance(results[0], ValueError)
    assert f"number 1 of the batch has value {value}" in str(results[0])
    buffer = await restarted(buffer, open_buffer)
    assert (await buffer.history("u")).item_ids == ("i-2",)
    assert (await buffer.append([event(3)])).accepted == 1


async def test_a_wait_for_fresh_events_is_bounded_and_ends_with_the_next_append(
    open_buffer: Open,
) -> None:
    buffer = open_buffer()
    _, fresh = await buffer.fresh(-1, 10, wait_s=0.02)
    assert len(fresh) == 0
    waiting = asyncio.create_task(buffer.fresh(-1, 10, wait_s=30.0))
    await asyncio.sleep(0)
    await buffer.append([event(1)])
    assert len((await asyncio.wait_for(waiting, 5))[1]) == 1


async def test_events_older_than_the_memory_are_read_from_the_log_in_one_pass(
    open_buffer: Open,
) -> None:
    buffer = open_buffer(recent_window=1_000, segment_bytes=16_384)
    whole = ReplayMemory(window=4)
    for first in range(0, 4_000, 250):
        events = [event(n, user=f"u-{n % 9}") for n in range(first, first + 250)]
        await buffer.append(events)
        for number, e in enumerate(events, first):
            whole.append(number % 9, number % 7, 7, e.timestamp_ms, 1_000_000, number)
    after = -1
    while after < 3_999:
        _, fresh = await buffer.fresh(after, 300)
        expected = whole.fresh(after, 300)
        for name in ("offsets_N", "users_N", "items_N", "seen_values", "acknowledged_ms_N"):
            assert np.array_equal(getattr(fresh, name), getattr(expected, name)), name
        assert np.array_equal(fresh.windows.items_BT, expected.windows.items_BT)
        after = int(fresh.offsets_N[-1])
    _, again = await buffer.fresh(-1, 5_000)
    assert again.offsets_N.tolist() == list(range(1_000)), "no more than the memory can hold"


async def test_samples_depend_on_the_seed_alone(open_buffer: Open) -> None:
    buffer = open_buffer()
    _, none = await buffer.sample(5, "mix", 10.0, seed=1)
    assert len(none) == 0
    await buffer.append([event(n) for n in range(50)])
    one, same, other = [
        (await buffer.sample(20, "mix", 10.0, seed=seed))[1].items_BT for seed in (1, 1, 2)
    ]
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


Step = tuple[str, list[int]]
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "restart", "fail"]),
        st.lists(st.integers(0, 60), max_size=20),
    ),
    max_size=12,
)


@given(steps)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_each_acknowledged_event_is_there_once_in_order(
    script: list[Step],
) -> None:
    asyncio.run(run_script(script))


async def run_script(script: list[Step]) -> None:
    model: dict[int, None] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        fast_and_patient(patch)
        fsync = FailingFsync(patch)
        buffer = buffer_in(Path(folder), Clock(), segment_bytes=4_096)
        for kind, numbers in script:
            if kind == "restart":
                await buffer.close()
                buffer = buffer_in(Path(folder), Clock(), segment_bytes=4_096)
            batch = [event(n, user=f"u-{n % 2}") for n in numbers]
            new = set(numbers) - set(model)
            await buffer.history("u-0")  # opened
            if kind == "fail" and new:
                fsync.fail_next = 1
                with pytest.raises(StorageError):
                    await buffer.append(batch)
                assert fsync.fail_next == 0
                continue
            result = await buffer.append(batch)
            assert (result.accepted, result.duplicates) == (len(new), len(numbers) - len(new))
            model.update(dict.fromkeys(numbers))
        offsets = {n: offset for offset, n in enumerate(model)}
        for user in (0, 1):
            expected = sorted(n for n in model if n % 2 == user)
            history = await buffer.history(f"u-{user}")
            assert history.timestamps_ms.tolist() == [1_000 * n for n in expected]
        _, fresh = await buffer.fresh(-1, 1_000)
        ids = await buffer.vocabulary(0)
        assert [ids[i] for i in fresh.items_N.tolist()] == [f"i-{n % 7}" for n in offsets]
        await buffer.close()
