"""A shard of the event buffer: durable appends, histories, fresh and replayed events."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from actors.durable_files import require_free_space
from actors.event_log import EventLog, event_batch
from actors.log_replay import LogReplay
from actors.long_poll import LongPoll
from actors.messages import (
    AppendResult,
    BufferFull,
    CorruptStorage,
    MemoryFull,
    ShardStatus,
    StorageError,
    UserHistory,
)
from actors.once_a_minute import OnceAMinute
from actors.opening import Opening
from actors.settings import BufferSettings, StorageSettings
from actors.shard_memory import RecentIds, ShardMemory
from actors.storage_folder import StorageFolder
from recommender.events import Event
from recommender.hold_out import EVERYTHING, LeaveOut
from recommender.replay import ReplayMemory, Strategy
from recommender.windows import FreshEvents, Windows

logger = logging.getLogger(__name__)

_GROUP_EVENTS = 5_000
_MS_PER_DAY = 86_400_000


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Shard:
    """An opened shard: its folder, its log, and what it remembers."""

    folder: StorageFolder
    log: EventLog
    memory: ShardMemory
    replay: LogReplay
    recovered_events: int


@dataclass(frozen=True)
class _Request:
    """Events of one `append` that wait for the disk."""

    events: pa.RecordBatch
    done: asyncio.Future[AppendResult]


class EventBuffer:
    """Accepts the events of its users and gives them back to learn from.

    Promises that what `append` acknowledged is on disk and in the user's history, and that an
    `event_id` seen within the window counts once. Appends that wait at the same time share one
    fsync. Refuses instead of dropping. A restart loses no event: memory is rebuilt from the log, by
    a thread, so that the constructor never raises and `status` always answers.
    """

    def __init__(
        self,
        shard: int,
        storage: StorageSettings,
        settings: BufferSettings,
        *,
        window: int = 50,
        seed: int = 0,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.boot_id = uuid.uuid4().hex
        self._shard_number = shard
        self._data_dir = Path(storage.data_dir)
        self._installation = storage.installation
        self._min_free_bytes = storage.min_free_bytes
        self._settings = settings
        self._window = window
        self._seed = seed
        self._now_ms = now_ms
        self._requests: deque[_Request] = deque()
        self._num_pending = 0
        self._num_duplicates = 0
        self._appended = LongPoll()
        self._committing: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[None] | None = None
        self._warning = ""
        self._failures = OnceAMinute()
        self._replaying = asyncio.Lock()
        self._opening = Opening(f"shard {shard}", self._open, lambda opened: opened.log.failure)

    async def recover(self) -> ShardStatus:
        """Try again to open a shard that failed to; does nothing to one that is well."""
        if self._compacting:
            await self._compacting  # it works on the folder that may be given back
        if self._opening.state()[0] == "failed":
            self._release()
            self._opening.again()
        return await self.status()

    async def append(self, *parts: Sequence[Event]) -> AppendResult:
        """Accept events; returns once they are on disk and in the histories.

        Args:
            *parts: The events of one batch. In parts, since Ray passes a large argument through
                shared memory, which may be full.

        Raises:
            ShardUnavailable: If the shard is recovering or failed.
            BufferFull: If too many events wait for the disk.
            MemoryFull: If users, items and ids take as much memory as they may.
            StorageFull: If too little disk space is left.
            StorageError: If the write failed; then none of the events was accepted.
            ValueError: If a text is not valid Unicode or a number does not fit.
        """
        events = [event for part in parts for event in part]
        shard = await self._opening.ready()
        self._check_there_is_room(shard.memory, len(events))
        request = _Request(event_batch(events), asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self._num_pending += len(events)
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_all(shard))
        return await request.done

    async def history(self, user_id: str) -> UserHistory:
        """What the user did, with everything acknowledged so far; empty if unknown."""
        memory = (await self._opening.ready()).memory
        user = memory.users.find(user_id)
        sequence = memory.replay.history(-1 if user is None else user)
        return UserHistory(
            item_ids=tuple(memory.items.text(item) for item in sequence.items.tolist()),
            feedback=sequence.feedback,
            timestamps_ms=sequence.timestamps_ms,
            shard=self._shard_number,
            through_offset=memory.replay.next_offset - 1,
        )

    async def fresh(
        self, after_offset: int, limit: int, wait_s: float = 0.0, include_seen: bool = True
    ) -> tuple[str, FreshEvents]:
        """Up to `limit` events after an offset, with the boot id; waits for one up to `wait_s`.

        Events that left the memory are read from the log again.
        """
        shard = await self._opening.ready()
        replay = shard.memory.replay
        await self._appended.wait_until(lambda: replay.next_offset > after_offset + 1, wait_s)
        try:
            return self.boot_id, replay.fresh(after_offset, limit, include_seen)
        except LookupError:
            async with self._replaying:
                fresh = await asyncio.to_thread(
                    shard.replay.fresh, after_offset, limit, include_seen
                )
            return self.boot_id, fresh

    async def vocabulary(self, num_known: int) -> list[str]:
        """Item ids by code, from code `num_known` on. Codes are the same after a restart."""
        return (await self._opening.ready()).memory.items.after(num_known)

    async def sample(
        self,
        n: int,
        strategy: Strategy,
        half_life: float,
        seed: int,
        leave_out: LeaveOut = EVERYTHING,
        through: int | None = None,
    ) -> tuple[str, Windows]:
        """The boot id, and windows that end at `n` sampled events, none after `through`."""
        replay = (await self._opening.ready()).memory.replay
        rng = np.random.default_rng([seed, self._shard_number])
        return self.boot_id, replay.sample(n, strategy, half_life, rng, leave_out, through)

    async def status(self) -> ShardStatus:
        """How the shard is; answers in every state."""
        state, reason = self._opening.state()
        shard = self._opening.opened
        return ShardStatus(
            shard=self._shard_number,
            state=state,
            reason=reason,
            boot_id=self.boot_id,
            next_offset=shard.memory.replay.next_offset if shard else 0,
            num_events=shard.memory.replay.num_events if shard else 0,
            num_duplicates=self._num_duplicates,
            num_users=len(shard.memory.users) if shard else 0,
            num_items=len(shard.memory.items) if shard else 0,
            pending_events=self._num_pending,
            memory_bytes=psutil.Process().memory_info().rss,
            recovered_events=shard.recovered_events if shard else 0,
            cut_bytes=shard.log.cut_bytes if shard else 0,
            warning=self._warning,
            counted_bytes=shard.memory.nbytes if shard else 0,
        )

    async def close(self) -> None:
        """Finish what waits for the disk and give the folder back; the end of the shard."""
        while self._committing and not self._committing.done():
            await self._committing
        if self._compacting:
            await self._compacting
        self._opening.shutdown()
        self._release()

    def _open(self) -> Shard:
        """Claim the folder, check the log, rebuild the memory. Runs on the writer thread."""
        started_s = time.monotonic()
        # Arrow's own keeps what a thread once needed, up to a quarter of all that a shard holds.
        pa.set_memory_pool(pa.system_memory_pool())
        folder = StorageFolder.claim(
            self._data_dir,
            f"events/shard-{self._shard_number}",
            {"shard": self._shard_number, "num_shards": self._settings.num_shards},
            installation=self._installation,
        )
        try:
            log = EventLog(
                folder.path,
                segment_bytes=self._settings.segment_bytes,
                epoch=folder.epoch,
                check_is_ours=folder.check_is_ours,
            )
            dedup_window_ms = int(self._settings.dedup_window_days * _MS_PER_DAY)
            memory = ShardMemory(
                ReplayMemory(
                    window=self._window,
                    history_length=self._settings.history_length,
                    recent_window=self._settings.recent_window,
                    reservoir_size=self._settings.reservoir_size,
                    seed=self._seed + self._shard_number,
                ),
                dedup_window_ms,
            )
            memory.apply_all(log.read())
            pa.default_memory_pool().release_unused()  # of segments that were read
        except BaseException:
            folder.close()
            raise
        logger.info(
            "shard recovered shard=%d events=%d cut_bytes=%d seconds=%.1f",
            self._shard_number,
            log.next_offset,
            log.cut_bytes,
            time.monotonic() - started_s,
        )
        replay = LogReplay(
            log,
            memory,
            window=self._window,
            history_length=self._settings.history_length,
            recent_window=self._settings.recent_window,
        )
        return Shard(folder, log, memory, replay, recovered_events=log.next_offset)

    def _release(self) -> None:
        if shard := self._opening.opened:
            shard.log.close()
            shard.folder.close()

    async def _commit_all(self, shard: Shard) -> None:
        """Write what waits, group by group, until nothing does."""
        while self._requests:
            group = self._take_group()
            try:
                results = await self._commit(shard, [request.events for request in group])
            except Exception as error:  # every caller gets it
                if num := self._failures.num_to_tell():
                    logger.exception("commit failed shard=%d times=%d", self._shard_number, num)
                for request in group:
                    request.done.set_exception(error)
            else:
                for request, result in zip(group, results, strict=True):
                    request.done.set_result(result)
            self._num_pending -= sum(request.events.num_rows for request in group)
            self._compact_if_due(shard.log)

    def _check_there_is_room(self, memory: ShardMemory, num_events: int) -> None:
        bound = self._settings.max_pending_events
        if self._num_pending + num_events > bound:
            raise BufferFull(
                f"{self._num_pending} events wait for the disk and {num_events} more are over the "
                f"bound of {bound}"
            )
        memory.event_ids.forget_old(self._now_ms())
        if memory.nbytes >= self._settings.max_memory_bytes:
            raise MemoryFull(
                f"{memory.nbytes} bytes are remembered, the bound is "
                f"{self._settings.max_memory_bytes}"
            )
        require_free_space(self._data_dir, self._min_free_bytes)

    def _take_group(self) -> list[_Request]:
        """The requests that share the next fsync: all that wait, within a bound, at least one."""
        group = [self._requests.popleft()]
        num_events = group[0].events.num_rows
        while self._requests:
            num_events += self._requests[0].events.num_rows
            if num_events > _GROUP_EVENTS:
                break
            group.append(self._requests.popleft())
        return group

    async def _commit(self, shard: Shard, requests: Sequence[pa.RecordBatch]) -> list[AppendResult]:
        """Write the new events of the requests with one fsync, then let everyone see them."""
        new_requests = _without_duplicates(requests, shard.memory.event_ids)
        new_events = pa.concat_batches(new_requests)
        if new_events.num_rows:
            batch = await self._opening.write(shard.log.append, new_events, self._now_ms())
            shard.memory.apply(batch)
            self._appended.notify()
        offsets = {self._shard_number: shard.memory.replay.next_offset - 1}
        results = [
            AppendResult(new.num_rows, request.num_rows - new.num_rows, offsets)
            for new, request in zip(new_requests, requests, strict=True)
        ]
        self._num_duplicates += sum(result.duplicates for result in results)
        return results

    def _compact_if_due(self, log: EventLog) -> None:
        is_running = self._compacting is not None and not self._compacting.done()
        if not is_running and not log.failure and log.compactable():
            self._compacting = asyncio.create_task(self._compact(log))

    async def _compact(self, log: EventLog) -> None:
        for segment in log.compactable():
            try:
                await asyncio.to_thread(log.compact, segment, self._min_free_bytes)
            except (StorageError, CorruptStorage) as error:
                # Nothing is lost: the Arrow file stays, and the next commit tries again.
                if not self._warning:
                    logger.error("compaction failed shard=%d error=%s", self._shard_number, error)
                self._warning = f"compaction failed: {error}"
                return
        self._warning = ""


def _without_duplicates(
    requests: Sequence[pa.RecordBatch], known: RecentIds
) -> list[pa.RecordBatch]:
    """Each request's events whose id is neither known nor came earlier."""
    seen: set[str] = set()
    kept = []
    for request in requests:
        rows = []
        for row, event_id in enumerate(request.column("event_id").to_pylist()):
            if event_id not in known and event_id not in seen:
                seen.add(event_id)
                rows.append(row)
        kept.append(request.take(pa.array(rows, pa.int64())))
    return kept
