"""Log and memory of a shard hold the first event of each id, in order, whatever happens between."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from crash_runs import scratch_folder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from log_oracle import SEGMENT_BYTES, SHARD, event, sent_fields

from actors import opening
from actors.event_buffer import EventBuffer
from actors.log_scan import read_events, scan_log
from actors.messages import AppendResult
from actors.settings import BufferSettings, StorageSettings
from recommender.events import Event

pytestmark = pytest.mark.timeout(180)

T = TypeVar("T")


class Model:
    """What a shard is to hold: the first event of each id, in the order of arrival."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ids: set[str] = set()

    def append(self, events: Sequence[Event]) -> tuple[int, int]:
        """Take events in; how many were new, and how many were not."""
        before = len(self.events)
        for e in events:
            if e.event_id not in self._ids:
                self._ids.add(e.event_id)
                self.events.append(e)
        num_new = len(self.events) - before
        return num_new, len(events) - num_new

    def history(self, user_id: str) -> tuple[str, ...]:
        """Items of a user, by time and then by arrival."""
        own = [e for e in self.events if e.user_id == user_id]
        return tuple(e.item_id for e in sorted(own, key=lambda e: e.timestamp_ms))


class Shard:
    """A real shard in a folder, asked from outside of its loop."""

    def __init__(self, data_dir: Path, segment_bytes: int) -> None:
        self._data_dir = data_dir
        self._settings = BufferSettings(
            num_shards=1, segment_bytes=segment_bytes, recent_window=1_000, max_pending_events=10**6
        )
        self._loop = asyncio.new_event_loop()
        self.open()

    def open(self) -> None:
        """Start the shard; it has read its log when this returns."""
        storage = StorageSettings(data_dir=self._data_dir, min_free_bytes=0)

        async def start() -> EventBuffer:
            buffer = EventBuffer(0, storage, self._settings, window=4, now_ms=lambda: 9)
            await buffer.vocabulary(0)
            return buffer

        self.buffer = self.run(start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the shard's loop."""
        return self._loop.run_until_complete(work)

    def append_together(self, requests: Sequence[Sequence[Event]]) -> list[AppendResult]:
        """Send requests at the same time, so that they share commits."""

        async def send() -> list[AppendResult]:
            return await asyncio.gather(*(self.buffer.append(events) for events in requests))

        return self.run(send())

    def compact(self) -> None:
        """Wait until every full segment is Parquet."""

        async def wait() -> None:
            while self.buffer._compacting and not self.buffer._compacting.done():
                await self.buffer._compacting

        self.run(wait())

    def restart(self) -> None:
        """Stop and start."""
        self.run(self.buffer.close())
        self.open()

    def die(self) -> None:
        """End as a killed process does, as far as files can tell, and start."""
        self.compact()
        shard = self.buffer._opening.opened
        assert shard is not None
        note = self._data_dir / SHARD / "high_water.json"
        before = note.read_bytes()
        self.run(self.buffer.close())
        note.write_bytes(before)
        self.open()

    def page(self, after: int, size: int) -> list[str]:
        """Items of up to so many events after an offset."""

        async def read() -> list[str]:
            names = await self.buffer.vocabulary(0)
            _, fresh = await self.buffer.fresh(after, size)
            last = after + len(fresh.offsets_N)
            assert fresh.offsets_N.tolist() == list(range(after + 1, last + 1))
            return [names[item] for item in fresh.items_N.tolist()]

        return self.run(read())

    def pages(self, size: int) -> list[str]:
        """Items of all events, page by page from the first."""
        items: list[str] = []
        while page := self.page(len(items) - 1, size):
            items += page
        return items

    def close(self) -> None:
        """The end."""
        self.run(self.buffer.close())
        self._loop.close()


def rows_on_disk(data_dir: Path) -> list[tuple[Any, ...]]:
    """What the files hold, as they were sent."""
    scan = scan_log(data_dir / SHARD)
    assert scan.lost() == []
    rows = [row for batch in read_events(scan) for row in batch.to_pylist()]
    assert [row["offset"] for row in rows] == list(range(len(rows)))
    return [tuple(row.values())[:-2] for row in rows]


class BufferMachine(RuleBasedStateMachine):
    """Any order of sending, sending again, restarting, dying, compacting and reading."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", os.fstat)  # no test here pulls the plug
        self.patch.setattr(opening, "_WAIT_S", 30.0)
        self.folder = scratch_folder().__enter__()
        self.shard = Shard(self.folder / "data", SEGMENT_BYTES)
        self.model = Model()
        self.next_number = 0

    @rule(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), times=st.integers(1, 5))
    def send(self, sizes: list[int], times: int) -> None:
        """New events in requests of these sizes, all of them so many times."""
        requests = []
        for size in sizes:
            numbers = range(self.next_number, self.next_number + size)
            self.next_number += size
            requests.append([event(number) for number in numbers])
        self._send(requests * times)

    @precondition(lambda self: self.next_number > 0)
    @rule(data=st.data(), size=st.integers(1, 30), cut=st.integers(1, 30), is_other=st.booleans())
    def send_again(self, data: st.DataObject, size: int, cut: int, is_other: bool) -> None:
        """Events from before to perhaps new ones, cut otherwise, perhaps with other contents."""
        first = data.draw(st.integers(0, self.next_number - 1))
        events = [event(number) for number in range(first, first + size)]
        self.next_number = max(self.next_number, first + size)
        if is_other:
            events = [replace(e, item_id=f"other-{e.item_id}") for e in events]
        self._send([events[start : start + cut] for start in range(0, size, cut)])

    @rule()
    def restart(self) -> None:
        self.shard.restart()

    @rule()
    def die(self) -> None:
        self.shard.die()

    @rule()
    def compact(self) -> None:
        self.shard.compact()

    @rule(page=st.integers(1, 60))
    def read_from_the_first(self, page: int) -> None:
        assert self.shard.pages(page) == [e.item_id for e in self.model.events]

    @rule(user=st.integers(0, 3))
    def read_a_history(self, user: int) -> None:
        history = self.shard.run(self.shard.buffer.history(f"u-{user}"))
        assert history.item_ids == self.model.history(f"u-{user}")

    @invariant()
    def the_count_is_exact(self) -> None:
        status = self.shard.run(self.shard.buffer.status())
        assert (status.state, status.num_events) == ("ready", len(self.model.events))

    def teardown(self) -> None:
        try:
            self.shard.close()
            expected = [sent_fields(e) for e in self.model.events]
            assert rows_on_disk(self.folder / "data") == expected
        finally:
            shutil.rmtree(self.folder)
            self.patch.undo()

    def _send(self, requests: list[list[Event]]) -> None:
        expected = [self.model.append(events) for events in requests]
        results = self.shard.append_together(requests)
        assert [(result.accepted, result.duplicates) for result in results] == expected


TestBufferModel = BufferMachine.TestCase
TestBufferModel.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_hundred_thousand_events_sent_one_to_five_times_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", os.fstat)
    monkeypatch.setattr(opening, "_WAIT_S", 30.0)
    rng = random.Random(3)
    num_events, num_sent = 100_000, 0
    model, shard = Model(), Shard(tmp_path / "data", segment_bytes=1 << 20)
    first = 0
    learned: list[str] = []  # by a reader that falls behind, so that old events come from the log
    while first < num_events:
        stop = min(num_events, first + rng.randrange(1, 4_000))
        numbers = [n for n in range(first, stop) for _ in range(rng.randrange(1, 6))]
        if rng.random() < 0.5:
            rng.shuffle(numbers)
        events = [event(number) for number in numbers]
        num_sent += len(events)
        requests = []
        while events:
            cut = rng.randrange(1, 1_001)
            requests.append(events[:cut])
            events = events[cut:]
        expected = [model.append(request) for request in requests]
        results = shard.append_together(requests)
        assert [(result.accepted, result.duplicates) for result in results] == expected
        learned += shard.page(len(learned) - 1, 777)
        if rng.random() < 0.1:
            rng.choice([shard.restart, shard.die, shard.compact])()
        first = stop
    shard.compact()
    while page := shard.page(len(learned) - 1, 777):
        learned += page
    assert learned == [e.item_id for e in model.events]
    status = shard.run(shard.buffer.status())
    shard.close()
    assert status.num_events == num_events
    assert rows_on_disk(tmp_path / "data") == [sent_fields(e) for e in model.events]
    num_closed = len(list((tmp_path / "data" / SHARD / "closed").iterdir()))
    with capsys.disabled():
        print(f"\n{num_sent:,} sent, {num_events:,} counted, {num_closed} compacted segments")
    assert num_closed > 3
