"""What is known of the user of a request: from the event buffer, or from the request itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.messages import ShardUnavailable, StorageFull
from recommender.events import feedback_code
from recommender.ranking import History
from serve_app.catalog_view import CatalogView
from serve_app.ports import EventBuffer
from serve_app.schemas import HistoryEntry

logger = logging.getLogger(__name__)

EMPTY_HISTORY = History(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0, np.int64))


class HistoryReader:
    """Histories over catalogue rows. Items that the catalogue does not have are left out."""

    def __init__(
        self,
        buffer: EventBuffer,
        catalog: CatalogView,
        *,
        timeout_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        """`timeout_s` is how long a recommendation waits for the user's shard."""
        self._buffer = buffer
        self._catalog = catalog
        self._timeout_s = timeout_s
        self._now_ms = now_ms

    async def of_user(self, user_id: str) -> History | None:
        """Everything acknowledged so far, on any replica; None if the shard does not answer."""
        try:
            async with asyncio.timeout(self._timeout_s):
                known = await self._buffer.history(user_id)
        except (ShardUnavailable, StorageFull, TimeoutError) as error:
            logger.debug("history unavailable error=%r", error)
            return None
        return self._over_rows(known.item_ids, known.feedback, known.timestamps_ms)

    def of_entries(self, entries: Sequence[HistoryEntry]) -> History:
        """An entry without a time is taken to follow on the one before it at once."""
        times_ms: list[int] = []
        for entry in entries:
            before_ms = times_ms[-1] if times_ms else self._now_ms()
            times_ms.append(before_ms if entry.timestamp_ms is None else entry.timestamp_ms)
        return self._over_rows(
            [entry.item_id for entry in entries],
            [feedback_code(entry.event_type, entry.value) for entry in entries],
            times_ms,
        )

    def _over_rows(self, item_ids: Sequence[str], feedback: Any, timestamps_ms: Any) -> History:
        rows = [self._catalog.row(item_id) for item_id in item_ids]
        rows_H = np.array([-1 if row is None else row for row in rows], np.int32)
        known_H = rows_H >= 0
        return History(
            rows_H=rows_H[known_H],
            feedback_H=np.asarray(feedback, np.int8)[known_H],
            timestamps_ms_H=np.asarray(timestamps_ms, np.int64)[known_H],
        )
