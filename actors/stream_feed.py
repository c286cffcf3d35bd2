"""The stream as the training loop reads it: fresh events, replay, the catalogue, the counters.

Lives on the first worker of the training group, which shares what the others need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from actors.event_buffer_client import EventBufferClient
from actors.factor_lane import FactorLane
from actors.item_catalog_client import ItemCatalogClient
from actors.item_rows import CatalogRows, ItemRows
from actors.messages import ShardUnavailable, Watermark
from recommender.counters import Counters, previous_items
from recommender.fresh_filters import Recent, keep, known_events, screen, without_repeats
from recommender.hold_out import LeaveOut
from recommender.replay import Strategy
from recommender.settings import NO_FILTERS, FilterSettings
from recommender.windows import (
    FreshEvents,
    Windows,
    concatenate,
    select,
    without_unknown,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
_POLL_S = 0.1
_READ_LIMIT = 5_000
_ENCODING_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class FreshPart:
    """Fresh events of one shard, over catalogue rows, that may teach.

    Events of unknown items are not among them, nor what the filters left out, which `left_out`
    counts by reason. `through` is the last offset that was read and `num_read` how many events
    were.
    """

    shard: int
    through: int
    num_read: int
    events: FreshEvents
    left_out: Mapping[str, int] = field(default_factory=dict)

    def users_among(self, num_shards: int) -> NDArray[np.int64]:
        """A number for the user of each event; their codes are those of their shard alone."""
        return self.events.users_N.astype(np.int64) * num_shards + self.shard


@dataclass(frozen=True)
class CatalogGrowth:
    """Pretrained text vectors of new rows, in row order, and of rows whose text changed."""

    new_VD: NDArray[np.float32]
    changed_rows: NDArray[np.int64]
    changed_VD: NDArray[np.float32]
    new_texts: tuple[str, ...] = ()
    changed_texts: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not len(self.new_VD) and not len(self.changed_rows)


class StreamFeed:
    """Reads the shards in log order from a watermark on, each event once.

    `watermark` is moved by `take` alone: what it covers has been handed out.
    """

    def __init__(
        self,
        num_shards: int,
        counters: Counters,
        *,
        filters: FilterSettings = NO_FILTERS,
        factors: FactorLane | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._runner = asyncio.Runner()
        self._timeout_s = timeout_s
        self._num_shards = num_shards
        self._filters = filters
        # What the filters remember of each shard; its codes are those of one boot of the shard.
        self._recent: list[tuple[str, Recent]] = [("", Recent.nothing())] * num_shards
        self.counters = counters
        self.factors = factors or FactorLane(None, num_shards)
        self.watermark: list[int] = [-1] * num_shards
        self._read_to: list[int] = [-1] * num_shards
        self._waiting: list[FreshPart] = []
        self._revision = 0
        self._num_rows = 0
        self._buffer = EventBufferClient.connect(num_shards, timeout_s)
        self._catalog = ItemCatalogClient.connect(timeout_s)
        self._item_rows = ItemRows(self._buffer, CatalogRows(self._catalog))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of a client to its end; the clients' one event loop in this process."""
        return self._runner.run(work)

    def num_events(self) -> int:
        """Events in all logs."""
        return sum(s.next_offset for s in self.run(self._buffer.statuses()))

    def catalog_growth(self) -> CatalogGrowth:
        """What the catalogue gained since the last call; waits until all its texts are encoded."""
        return self.run(self._catalog_growth())

    def known_items(self, num_items: int) -> None:
        """The learner has the first `num_items` rows; `catalog_growth` goes on from there."""
        self._revision, self._num_rows = 0, num_items

    def rewind(self, watermark: Watermark) -> None:
        """Go on after `watermark`; counters and factors count again up to there."""
        self._waiting.clear()
        self.counters = Counters(self.counters.half_lives)
        self.factors.rewind()
        self.watermark = [-1] * self._num_shards
        self._read_to = [-1] * self._num_shards
        self._recent = [("", Recent.nothing())] * self._num_shards
        while any(have < want for have, want in zip(self.watermark, watermark, strict=True)):
            if not self.run(self._read(watermark)):
                raise ShardUnavailable(
                    f"the logs end before the watermark {watermark} of the served version"
                )
            for part in self.take():
                self.count(part)

    def wait(self, *, enough: int, interval_s: float, timeout_s: float) -> int:
        """Read until `enough` events wait, or some do after `interval_s`, or `timeout_s` is over.

        Returns:
            How many events wait to be taken.
        """
        started = time.monotonic()
        while True:
            self.run(self._read(None))
            waiting = sum(part.num_read for part in self._waiting)
            elapsed = time.monotonic() - started
            is_due = waiting and elapsed >= interval_s
            if waiting >= enough or is_due or elapsed >= timeout_s:
                return waiting
            time.sleep(_POLL_S)

    def take(self) -> list[FreshPart]:
        """All that was read and not taken, shard by shard; the watermark moves past it.

        Not as the shards happened to answer, so that the same events always teach in one order.
        """
        parts, self._waiting = sorted(self._waiting, key=lambda part: part.shard), []
        for part in parts:
            self.watermark[part.shard] = part.through
        return parts

    def count(self, part: FreshPart) -> None:
        """Let counters and factors see events that were handed out and that nobody scores."""
        events = part.events
        if len(events):
            self.counters.update(events.items_N, previous_items(events.windows))
            self.factors.collect(part.shard, events)

    def replay(
        self,
        num_windows: int,
        strategy: Strategy,
        half_life: float,
        seed: int,
        leave_out: Sequence[LeaveOut] | None = None,
    ) -> Windows | None:
        """Windows sampled from the shards' replay memories, or None if there are none yet.

        They end at events that were handed out: the others are to be predicted before they are
        learned. `leave_out` says for each shard what they may not end at.
        """
        return self.run(self._replay(num_windows, strategy, half_life, seed, leave_out))

    async def _read(self, through: Watermark | None) -> int:
        """Read once from every shard, no further than `through`; returns events read."""
        reads = (
            self._read_shard(shard, None if through is None else through[shard])
            for shard in range(self._num_shards)
        )
        return sum(await asyncio.gather(*reads))

    async def _read_shard(self, shard: int, through: int | None) -> int:
        after = self._read_to[shard]
        limit = _READ_LIMIT if through is None else min(_READ_LIMIT, through - after)
        if limit <= 0:
            return 0
        boot_id, fresh = await self._buffer.fresh(
            shard, after, limit, wait_s=0.0, include_seen=True
        )
        if not len(fresh):
            return 0
        windows = fresh.windows.with_items(
            await self._item_rows.rows(shard, boot_id, fresh.windows.items_BT)
        )
        seen = await self._item_rows.rows(shard, boot_id, fresh.seen_values)
        self._read_to[shard] = int(fresh.offsets_N[-1])
        known = known_events(fresh, windows, seen)
        known_boot_id, recent = self._recent[shard]
        screened = screen(
            known, recent if boot_id == known_boot_id else Recent.nothing(), self._filters
        )
        self._recent[shard] = boot_id, screened.recent
        self._waiting.append(
            FreshPart(
                shard,
                self._read_to[shard],
                len(fresh),
                keep(known, screened.kept_N),
                screened.counts(),
            )
        )
        return len(fresh)

    async def _replay(
        self,
        num_windows: int,
        strategy: Strategy,
        half_life: float,
        seed: int,
        leave_out: Sequence[LeaveOut] | None,
    ) -> Windows | None:
        parts = []
        sampled = await self._buffer.sample(
            num_windows, strategy, half_life, seed, tuple(self.watermark), leave_out
        )
        for shard, boot_id, windows in sampled:
            rows = await self._item_rows.rows(shard, boot_id, windows.items_BT)
            known = without_unknown(windows.with_items(rows))
            known = without_repeats(known, self._filters.max_repeats)
            parts.append(select(known, known.lengths_B > 0))
        merged = concatenate(parts) if parts else None
        return merged if merged is not None and len(merged) else None

    async def _catalog_growth(self) -> CatalogGrowth:
        await self._wait_for_texts()
        changes = await self._catalog.changes_after(self._revision, 0.0)
        is_new = changes.rows >= self._num_rows
        texts = [item.text for item in changes.items]
        growth = CatalogGrowth(
            changes.vectors[is_new],
            changes.rows[~is_new],
            changes.vectors[~is_new],
            new_texts=tuple(compress(texts, is_new)),
            changed_texts=tuple(compress(texts, ~is_new)),
        )
        self._revision = changes.revision
        self._num_rows += int(is_new.sum())
        return growth

    async def _wait_for_texts(self) -> None:
        deadline = time.monotonic() + _ENCODING_TIMEOUT_S
        while (status := await self._catalog.status()).num_pending:
            if time.monotonic() > deadline:
                raise ShardUnavailable(
                    f"{status.num_pending} item texts are not encoded after "
                    f"{_ENCODING_TIMEOUT_S:.0f} s"
                )
            await asyncio.sleep(_POLL_S)
