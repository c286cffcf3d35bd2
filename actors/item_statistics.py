"""ItemStatistics: the live counters, merged from the shards and shipped to every replica.

The counters are a pure function of the logs: each event is counted once, in the order in which it
was acknowledged. Followers (replicas, the trainer) take one snapshot and then the same updates,
so all of them hold the same numbers within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
from numpy.typing import NDArray

from actors.event_buffer_client import EventBufferClient
from actors.item_catalog_client import ItemCatalogClient
from actors.item_rows import CatalogRows, ItemRows
from actors.messages import ActorsError, CounterSnapshot, CounterUpdates, Watermark
from recommender.counters import Counters, previous_items
from recommender.fresh_filters import Recent, keep, known_events, screen
from recommender.settings import NO_FILTERS, FilterSettings
from recommender.windows import PAD, FreshEvents, Windows

logger = logging.getLogger(__name__)

READ_LIMIT = 4_000
"""Events one read of a shard brings at most."""


@dataclass
class _Tail:
    """What was read of one shard and not counted yet."""

    after_offset: int = -1
    boot_id: str = ""
    recent: Recent = field(default_factory=Recent.nothing)
    is_at_end: bool = False
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    times: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rows: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    previous: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))

    def keep_from(self, start: int) -> None:
        self.offsets, self.times = self.offsets[start:], self.times[start:]
        self.rows, self.previous = self.rows[start:], self.previous[start:]


class ItemStatistics:
    """Counts every event of every shard once and tells its followers.

    Promises: `updates_after` brings a follower everything that was counted, in order, within
    `publish_interval_s`. Never counts an event of an item the catalogue does not have, or one that
    the filters keep from teaching. A restart loses nothing that the logs hold: it counts them
    again, and its new `boot_id` says so.
    """

    def __init__(
        self,
        num_shards: int,
        half_lives: Sequence[float],
        *,
        filters: FilterSettings = NO_FILTERS,
        timeout_s: float = 10.0,
        publish_interval_s: float = 0.1,
        kept_events: int = 50_000,
    ) -> None:
        self.boot_id = uuid.uuid4().hex
        self._timeout_s = timeout_s
        self._publish_interval_s = publish_interval_s
        self._kept_events = kept_events
        self._counters = Counters(half_lives)
        self._sequence = 0
        self._num_unknown = 0
        self._filters = filters
        self._left_out: Counter[str] = Counter()
        self._tails = [_Tail() for _ in range(num_shards)]
        self._through: list[int] = [-1] * num_shards
        self._acknowledged_ms: list[int] = [0] * num_shards
        self._log: deque[tuple[int, NDArray[np.int32], NDArray[np.int32]]] = deque()
        self._log_events = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_error = ""

    async def snapshot(self) -> CounterSnapshot:
        """The whole state, for a new follower."""
        self._start()
        return CounterSnapshot(
            boot_id=self.boot_id,
            sequence=self._sequence,
            state=self._counters.state(),
            through=self._watermark(),
            acknowledged_ms=tuple(self._acknowledged_ms),
        )

    async def updates_after(self, boot_id: str, sequence: int, wait_s: float) -> CounterUpdates:
        """What was counted after `sequence`; waits up to `wait_s` for something.

        A follower of another boot, or one that fell behind what is kept, gets an update with an
        empty `boot_id`: it must take a snapshot.
        """
        self._start()
        is_known = boot_id == self.boot_id and self._sequence - self._log_events <= sequence
        if is_known and sequence >= self._sequence:
            through = self._watermark()
            deadline = asyncio.get_running_loop().time() + wait_s
            while sequence >= self._sequence and through == self._watermark():
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    break
        rows, previous = self._since(sequence) if is_known else _nothing()
        return CounterUpdates(
            boot_id=self.boot_id if is_known else "",
            sequence=self._sequence,
            rows_N=rows,
            previous_NP=previous,
            through=self._watermark(),
            acknowledged_ms=tuple(self._acknowledged_ms),
        )

    async def status(self) -> dict[str, object]:
        """State in words and numbers: for `rheos status` and the keeper's heartbeat."""
        self._start()
        return {
            "boot_id": self.boot_id,
            "num_counted": self._sequence,
            "num_unknown": self._num_unknown,
            "num_left_out": dict(self._left_out),
            "num_items": self._counters.num_items,
            "counters_through": list(self._through),
            "last_error": self._last_error,
            "memory_bytes": psutil.Process().memory_info().rss,
        }

    def _watermark(self) -> Watermark:
        return tuple(self._through)

    def _since(self, sequence: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        parts = []
        for first, rows, previous in self._log:
            if first + len(rows) > sequence:
                skip = max(0, sequence - first)
                parts.append((rows[skip:], previous[skip:]))
        if not parts:
            return _nothing()
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _start(self) -> None:
        # Not in the constructor: it runs outside the actor's event loop.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                buffer = EventBufferClient.connect(len(self._tails), self._timeout_s)
                catalog = ItemCatalogClient.connect(self._timeout_s)
                item_rows = ItemRows(buffer, CatalogRows(catalog))
                while True:
                    # To the end of all: a read that is left alone would bring its events twice.
                    failures = await asyncio.gather(
                        *(self._read(n, buffer, item_rows) for n in range(len(self._tails))),
                        return_exceptions=True,
                    )
                    if self._count():
                        self._changed.set()
                        self._changed.clear()
                    for failure in filter(None, failures):
                        raise failure
                    await asyncio.sleep(self._publish_interval_s)
            except ActorsError as error:
                self._last_error = repr(error)
                logger.warning("counters wait for a shard or the catalogue error=%r", error)
                await asyncio.sleep(0.5)

    async def _read(self, shard: int, buffer: EventBufferClient, item_rows: ItemRows) -> None:
        tail = self._tails[shard]
        if len(tail.offsets) >= READ_LIMIT:
            return  # wait until the other shards have caught up
        boot_id, fresh = await buffer.fresh(
            shard, tail.after_offset, READ_LIMIT, wait_s=0.0, include_seen=False
        )
        tail.is_at_end = len(fresh) < READ_LIMIT
        if not len(fresh):
            return
        windows = fresh.windows.with_items(
            await item_rows.rows(shard, boot_id, fresh.windows.items_BT)
        )
        rows, previous = self._counted(tail, boot_id, fresh, windows)
        tail.offsets = np.concatenate([tail.offsets, fresh.offsets_N])
        # The clock of a machine may be set back; in a shard the log's order is the one that counts.
        times = np.concatenate([tail.times, fresh.acknowledged_ms_N])
        tail.times = np.maximum.accumulate(times)
        tail.rows = np.concatenate([tail.rows, rows])
        tail.previous = np.concatenate([tail.previous.reshape(-1, previous.shape[1]), previous])
        tail.after_offset = int(fresh.offsets_N[-1])

    def _counted(
        self, tail: _Tail, boot_id: str, fresh: FreshEvents, windows: Windows
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Rows and previous items of events; PAD for those that are not to be counted."""
        known = known_events(fresh, windows, fresh.seen_values)
        if boot_id != tail.boot_id:  # user codes are those of one boot of a shard
            tail.boot_id, tail.recent = boot_id, Recent.nothing()
        screened = screen(known, tail.recent, self._filters)
        tail.recent = screened.recent
        self._num_unknown += len(fresh) - len(known)
        self._left_out.update(screened.counts())
        kept = keep(known, screened.kept_N)
        places = np.searchsorted(fresh.offsets_N, kept.offsets_N)
        previous = previous_items(kept.windows)
        rows = np.full(len(fresh), PAD, np.int32)
        rows[places] = kept.items_N
        all_previous = np.full((len(fresh), previous.shape[1]), PAD, np.int32)
        all_previous[places] = previous
        return rows, all_previous

    def _count(self) -> bool:
        """Count, in order of acknowledgement, all that no shard can still precede."""
        open_ends = [t.times[-1] if len(t.times) else -1 for t in self._tails if not t.is_at_end]
        bound = min(open_ends, default=np.iinfo(np.int64).max)
        taken = [int(np.searchsorted(t.times, bound, side="right")) for t in self._tails]
        if not sum(taken):
            return False
        pairs = list(zip(self._tails, taken, strict=True))
        order = np.argsort(np.concatenate([t.times[:n] for t, n in pairs]), kind="stable")
        rows = np.concatenate([t.rows[:n] for t, n in pairs])[order]
        width = max(t.previous.shape[1] for t in self._tails)
        previous = np.concatenate([t.previous[:n].reshape(-1, width) for t, n in pairs])[order]
        self._publish(rows, previous)
        for shard, (tail, number) in enumerate(pairs):
            if number:
                self._through[shard] = int(tail.offsets[number - 1])
                self._acknowledged_ms[shard] = int(tail.times[number - 1])
                tail.keep_from(number)
        return True

    def _publish(self, rows: NDArray[np.int32], previous: NDArray[np.int32]) -> None:
        is_known = rows != PAD
        rows, previous = rows[is_known], previous[is_known]
        if not len(rows):
            return
        self._counters.update(rows, previous)
        self._log.append((self._sequence, rows, previous))
        self._sequence += len(rows)
        self._log_events += len(rows)
        while self._log_events - len(self._log[0][1]) >= self._kept_events:
            self._log_events -= len(self._log.popleft()[1])


def _nothing() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return np.empty(0, np.int32), np.empty((0, 0), np.int32)
