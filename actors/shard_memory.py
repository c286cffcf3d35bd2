"""What a shard knows, fed by its log: vocabularies, ids seen, the replay memory."""

from __future__ import annotations

import pyarrow as pa

from recommender.events import feedback_code
from recommender.replay import ReplayMemory

_COLUMNS = (
    "event_id",
    "user_id",
    "item_id",
    "event_type",
    "value",
    "timestamp_ms",
    "acknowledged_ms",
    "offset",
)


class Vocabulary:
    """Texts and their codes: 0, 1, 2... in the order of their first sight; a code never changes."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """The code of a text, a new one if need be."""
        code = self._codes.setdefault(text, len(self._texts))
        if code == len(self._texts):
            self._texts.append(text)
        return code

    def find(self, text: str) -> int | None:
        """The code of a text, None if it has none."""
        return self._codes.get(text)

    def text(self, code: int) -> str:
        """The text of a code."""
        return self._texts[code]

    def after(self, num_known: int) -> list[str]:
        """The texts of the codes from `num_known` on."""
        return self._texts[num_known:]


class RecentIds:
    """Ids seen within a window of time, exactly."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._seen_ms: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._seen_ms)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._seen_ms

    def add(self, event_id: str, now_ms: int) -> None:
        """Remember an id; ids must come in the order of their times to be forgotten in time."""
        self._seen_ms[event_id] = now_ms

    def forget_old(self, now_ms: int) -> None:
        """Drop the ids seen more than the window ago."""
        while self._seen_ms:
            oldest = next(iter(self._seen_ms))
            if self._seen_ms[oldest] >= now_ms - self._window_ms:
                return
            del self._seen_ms[oldest]


class ShardMemory:
    """Everything a shard derives from its log, the same after a restart as before it."""

    def __init__(self, replay: ReplayMemory, dedup_window_ms: int) -> None:
        self.replay = replay
        self.users = Vocabulary()
        self.items = Vocabulary()
        self.event_ids = RecentIds(dedup_window_ms)

    def apply(self, batch: pa.RecordBatch) -> None:
        """Take in a batch of the log (`event_log.LOG_SCHEMA`), in order."""
        ids, *columns = (batch.column(name).to_pylist() for name in _COLUMNS)
        for event_id, acknowledged_ms in zip(ids, columns[-2], strict=True):
            self.event_ids.add(event_id, acknowledged_ms)
        self._append_to(self.replay, columns)
        if ids:
            self.event_ids.forget_old(columns[-2][-1])

    def apply_again(self, batch: pa.RecordBatch, replay: ReplayMemory) -> None:
        """Take a batch that was applied before into another replay memory, under the same codes."""
        self._append_to(replay, [batch.column(name).to_pylist() for name in _COLUMNS[1:]])

    def _append_to(self, replay: ReplayMemory, columns: list[list[object]]) -> None:
        user, item = self.users.add, self.items.add
        for user_id, item_id, event_type, value, timestamp_ms, acknowledged_ms, offset in zip(
            *columns, strict=True
        ):
            replay.append(
                user(user_id),
                item(item_id),
                feedback_code(event_type, value),
                timestamp_ms,
                acknowledged_ms,
                offset,
            )
