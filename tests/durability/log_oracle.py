"""Appending to a shard's log, what the clients were told, and whether a disk agrees with that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.event_log import EVENT_SCHEMA, EventLog, event_batch
from actors.messages import StorageError
from actors.storage_folder import StorageFolder
from recommender.events import Event

SHARD = "events/shard-0"
SEGMENT_BYTES = 4_096

Row = tuple[Any, ...]


def event(number: int) -> Event:
    """An event that its number determines."""
    return Event(
        event_id=f"e-{number}",
        user_id=f"u-{number % 3}",
        item_id=f"i-{number % 7}",
        event_type="click",
        value=1.0,
        timestamp_ms=1_000 * number,
        request_id=f"r-{number}" if number % 2 else None,
    )


@contextmanager
def open_log(data_dir: Path, segment_bytes: int = SEGMENT_BYTES) -> Iterator[EventLog]:
    """The log of a shard, opened as the shard opens it, and closed as it closes it."""
    folder = StorageFolder.claim(data_dir, SHARD, {"shard": 0, "num_shards": 1}, lock_wait_s=0.0)
    try:
        log = EventLog(
            folder.path,
            segment_bytes=segment_bytes,
            epoch=folder.epoch,
            check_is_ours=folder.check_is_ours,
        )
        yield log
        log.close()
    finally:
        folder.close()


def rows_of(log: EventLog) -> list[Row]:
    """Every row of the log."""
    return [tuple(row.values()) for batch in log.read() for row in batch.to_pylist()]


@dataclass
class Group:
    """Events that were sent together; the times are numbers of operations on the disk."""

    events: Sequence[Event]
    sent_at: int
    acknowledged_at: int | None = None
    refused_at: int | None = None

    def rows(self, first_offset: int) -> list[Row]:
        """What the log must have of them."""
        return [
            (*sent_fields(e), offset, acknowledged_ms(first_offset))
            for offset, e in enumerate(self.events, first_offset)
        ]


def sent_fields(event: Event) -> Row:
    """What the log must have of an event as it was sent."""
    return tuple(getattr(event, name) for name in EVENT_SCHEMA.names)


def acknowledged_ms(first_offset: int) -> int:
    """The time that a group which begins at an offset is given."""
    return 5_000 + first_offset


@dataclass
class LogLedger:
    """What clients sent and were told, kept where no crash reaches."""

    now: Callable[[], int] = lambda: 0
    groups: list[Group] = field(default_factory=list)
    next_number: int = 0

    def append(self, log: EventLog, size: int) -> None:
        """Send new events and keep what became of them."""
        numbers = range(self.next_number, self.next_number + size)
        self.next_number += size
        self.send(log, Group([event(number) for number in numbers], self.now()))

    def send(self, log: EventLog, group: Group) -> None:
        """Send events; they are acknowledged when this returns."""
        self.groups.append(group)
        log.append(event_batch(group.events), acknowledged_ms(log.next_offset))
        group.acknowledged_at = self.now()

    def insist(self, log: EventLog, size: int) -> None:
        """Send new events, and once more if they are refused.

        Raises:
            StorageError: If they are refused again.
        """
        try:
            self.append(log, size)
        except StorageError:
            if log.failure:
                raise
            self.groups[-1].refused_at = self.now()
            self.send(log, Group(self.groups[-1].events, self.now()))

    def go_on(self, log: EventLog) -> None:
        """What a client does when the service is back: it sends again what was not acknowledged.

        Events that are in the log are duplicates, and so acknowledged by that.
        """
        found = rows_of(log)
        assert found in self.outcomes(self.now()), "the log is not what a crash may leave"
        last = self.groups[-1] if self.groups else None
        if last is None or last.acknowledged_at is not None:
            return
        if len(found) > self.num_acknowledged(self.now()):
            last.acknowledged_at = self.now()
        else:
            self.groups.pop()
            self.send(log, Group(last.events, self.now()))

    def outcomes(self, moment: int) -> list[list[Row]]:
        """What the log may hold after a crash at a moment: all acknowledged, and a group more."""
        rows: list[Row] = []
        under_way: list[Group] = []
        for group in self.groups:
            if group.acknowledged_at is not None and group.acknowledged_at <= moment:
                rows.extend(group.rows(len(rows)))
            elif group.sent_at <= moment and moment < (group.refused_at or moment + 1):
                under_way.append(group)
        return [rows, *(rows + group.rows(len(rows)) for group in under_way)]

    def position(self, moment: int) -> Any:
        """As `Ledger.position`."""
        return [len(rows) for rows in self.outcomes(moment)]

    def num_acknowledged(self, moment: int) -> int:
        """Events acknowledged by a moment."""
        return len(self.outcomes(moment)[0])

    def check(self, data_dir: Path, moment: int) -> None:
        """Open a disk after a crash at a moment; raise if it breaks a promise.

        Nothing acknowledged is missing, nothing is there twice or was never sent, groups are whole,
        offsets have no gap, and the log goes on.
        """
        with open_log(data_dir) as log:
            found = rows_of(log)
            assert found in self.outcomes(moment), (
                f"{len(found)} rows, acknowledged {self.num_acknowledged(moment)}"
            )
            log.append(event_batch([event(1_000_000)]), 7)
            for segment in log.compactable():
                log.compact(segment)
        with open_log(data_dir) as log:
            again = rows_of(log)
            assert again[:-1] == found, "the log changed when it went on"
            assert again[-1][0] == "e-1000000", "what was appended after the crash is missing"
        left = [str(path) for path in (data_dir / SHARD).rglob("*.tmp")]
        assert not left, f"left behind: {left}"
