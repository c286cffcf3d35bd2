"""Events that left a shard's memory, read from its log again."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from actors.event_log import EventLog
from actors.shard_memory import ShardMemory
from recommender.replay import ReplayMemory
from recommender.windows import FreshEvents

_SLICE_EVENTS = 1_000


class LogReplay:
    """Answers `fresh` for old offsets from a scratch memory that is fed from the log.

    It keeps its place, so that reading the whole log in order costs one pass; a step back costs a
    new one. The scratch memory goes when the reader has caught up.
    """

    def __init__(
        self,
        log: EventLog,
        memory: ShardMemory,
        *,
        window: int,
        history_length: int,
        recent_window: int,
    ) -> None:
        self._log = log
        self._memory = memory
        self._window = window
        self._history_length = history_length
        self._recent_window = recent_window
        self._scratch: ReplayMemory | None = None
        self._slices: Iterator[pa.RecordBatch] = iter(())

    def fresh(self, after_offset: int, limit: int, include_seen: bool) -> FreshEvents:
        """As `ReplayMemory.fresh`, for any offset. One caller at a time.

        Raises:
            CorruptStorage: If the log is not what was written.
        """
        scratch = self._scratch
        if scratch is None or after_offset + 1 < scratch.first_recent_offset:
            scratch = self._scratch = self._new_scratch()
            self._slices = self._read(0)
        # Never past what the memory has taken in: those events have no codes yet.
        limit = min(limit, self._recent_window)
        stop = min(after_offset + 1 + limit, self._memory.replay.next_offset)
        while scratch.next_offset < stop:
            batch = next(self._slices, None)
            if batch is None:  # the log has grown since it was read
                self._slices = self._read(scratch.next_offset)
                batch = next(self._slices)
            self._memory.apply_again(batch, scratch)
        fresh = scratch.fresh(after_offset, limit, include_seen)
        if stop > self._memory.replay.first_recent_offset:
            self._scratch = None
        return fresh

    def _new_scratch(self) -> ReplayMemory:
        return ReplayMemory(
            window=self._window,
            history_length=self._history_length,
            recent_window=self._recent_window + _SLICE_EVENTS,
            reservoir_size=0,
        )

    def _read(self, first_offset: int) -> Iterator[pa.RecordBatch]:
        for batch in self._log.read(first_offset):
            for start in range(0, batch.num_rows, _SLICE_EVENTS):
                yield batch.slice(start, _SLICE_EVENTS)
