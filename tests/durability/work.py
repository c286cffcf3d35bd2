"""The pieces of work that are crashed: small, and with every kind of change that the code knows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from item_oracle import ItemLedger, open_items
from log_oracle import SEGMENT_BYTES, LogLedger, event, open_log, rows_of, sent_fields
from store_oracle import StoreLedger, open_store

from actors.event_buffer import EventBuffer
from actors.event_log import EventLog
from actors.settings import BufferSettings, StorageSettings


def write_log(data_dir: Path, ledger: LogLedger) -> None:
    """Appends over three openings: new segments, full ones, compaction of one and of several."""
    with open_log(data_dir) as log:
        for size in (1, 3):
            ledger.append(log, size)
    with open_log(data_dir) as log:
        for size in (10, 10, 2, 10, 10):
            ledger.append(log, size)
        compact_all(log)
        for size in (10, 10, 10, 10):
            ledger.append(log, size)
    with open_log(data_dir) as log:
        compact_all(log)
        ledger.append(log, 1)


def go_on_with_log(data_dir: Path, ledger: LogLedger) -> None:
    """What the next process does: send again, send more, compact."""
    with open_log(data_dir) as log:
        ledger.go_on(log)
        ledger.append(log, 1)
        compact_all(log)


def compact_all(log: EventLog) -> None:
    """Turn every full segment into Parquet."""
    for segment in log.compactable():
        log.compact(segment)


def write_versions(data_dir: Path, ledger: StoreLedger) -> None:
    """Publish, promote, pin, roll back, prune and delete, over two openings."""
    with open_store(data_dir) as store:
        versions = store.versions
        ledger.publish(store)
        ledger.publish(store)
        ledger.publish(store, promote=False)
        ledger.change(store, lambda: versions.set_pinned(1, True))
        ledger.publish(store)
    with open_store(data_dir) as store:
        again = store.versions
        ledger.change(store, lambda: again.rollback("back"))
        ledger.change(store, lambda: again.promote(1, "again"))
        ledger.publish(store)
        ledger.change(store, lambda: again.set_pinned(1, False))
        ledger.publish(store)


def go_on_with_versions(data_dir: Path, ledger: StoreLedger) -> None:
    """What the next process does: promote the newest version it sees, and publish one."""
    with open_store(data_dir) as store:
        ledger.go_on(store)
        numbers = store.files.numbers()
        if numbers:
            ledger.change(store, lambda: store.versions.promote(numbers[-1], "newest"))
        ledger.publish(store)


def write_items(data_dir: Path, ledger: ItemLedger) -> None:
    """Put items over two openings."""
    for _ in range(2):
        with open_items(data_dir) as opened:
            for size in (1, 3, 2):
                ledger.put(opened, size)


def go_on_with_items(data_dir: Path, ledger: ItemLedger) -> None:
    """What the next process does: put again, put more."""
    with open_items(data_dir) as opened:
        ledger.go_on(opened)
        ledger.put(opened, 1)


@dataclass
class GroupLedger:
    """Events that were sent to a whole shard at the same time: (sent at, acknowledged at)."""

    now: Any = None
    sent: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def position(self, moment: int) -> Any:
        """As `Ledger.position`: the ids that must be there and those that may."""
        done = {event_id for event_id, at in self.acknowledged.items() if at <= moment}
        return sorted(done), sorted(event_id for event_id, at in self.sent.items() if at <= moment)

    def check(self, data_dir: Path, moment: int) -> None:
        """Raise if an acknowledged event is missing, one is there twice or was never sent."""
        done, sent = self.position(moment)
        with open_log(data_dir) as log:
            rows = rows_of(log)
            ids = [row[0] for row in rows]
            assert len(set(ids)) == len(ids), "an event is there twice"
            assert set(done) <= set(ids), f"missing: {sorted(set(done) - set(ids))}"
            assert set(ids) <= set(sent), f"never sent: {sorted(set(ids) - set(sent))}"
            assert [row[-2] for row in rows] == list(range(len(rows))), "offsets have a gap"
            for row in rows:
                sent_row = sent_fields(event(int(row[0].removeprefix("e-"))))
                assert row[: len(sent_row)] == sent_row, f"{row} is changed"


def write_groups(data_dir: Path, ledger: GroupLedger) -> None:
    """A shard with many clients at a time, which compacts beside it; some send twice."""
    asyncio.run(_write_groups(data_dir, ledger))


async def _write_groups(data_dir: Path, ledger: GroupLedger) -> None:
    storage = StorageSettings(data_dir=data_dir, min_free_bytes=0)
    settings = BufferSettings(num_shards=1, segment_bytes=SEGMENT_BYTES)
    for opening in range(2):
        buffer = EventBuffer(0, storage, settings, window=4, now_ms=lambda: 9)

        async def send(first: int, size: int, buffer: EventBuffer = buffer) -> None:
            events = [event(number) for number in range(first, first + size)]
            for e in events:
                ledger.sent.setdefault(e.event_id, ledger.now())
            await buffer.append(events)
            for e in events:
                ledger.acknowledged.setdefault(e.event_id, ledger.now())

        for place in range(3):
            first = 100 * opening + 30 * place
            await asyncio.gather(*(send(first + 5 * n, 7) for n in range(5)))
        await buffer.close()
