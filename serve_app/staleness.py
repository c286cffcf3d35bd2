"""How old the oldest event is that the served weights have not learned from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

_MAX_MARKS = 4_096


class StalenessClock:
    """Remembers when events were acknowledged, one mark per shard and counter update.

    A mark stands for every event since the one before it, and gives the time of the last of them,
    so the staleness is understated by at most the time between two updates (tens of milliseconds).
    Bounded: a shard's marks are thinned by half when there are too many, keeping the oldest, so the
    older a mark the rougher it is.
    """

    def __init__(self) -> None:
        self._offsets: dict[int, list[int]] = {}
        self._acknowledged_ms: dict[int, list[int]] = {}

    def mark(self, through: Sequence[int], acknowledged_ms: Sequence[int]) -> None:
        """Note that each shard's event at `through` was acknowledged at that time (0: no event)."""
        for shard, (offset, time_ms) in enumerate(zip(through, acknowledged_ms, strict=True)):
            offsets = self._offsets.setdefault(shard, [])
            times_ms = self._acknowledged_ms.setdefault(shard, [])
            if offset < 0 or time_ms <= 0 or (offsets and offset <= offsets[-1]):
                continue
            offsets.append(offset)
            times_ms.append(time_ms)
            if len(offsets) > _MAX_MARKS:
                del offsets[1::2], times_ms[1::2]

    def staleness_ms(self, trained_through: Sequence[int], now_ms: int) -> int:
        """Age of the oldest known event beyond the watermark; 0 if there is none."""
        oldest_ms = now_ms
        for shard, offsets in self._offsets.items():
            trained = trained_through[shard] if shard < len(trained_through) else -1
            first = bisect_right(offsets, trained)
            if first < len(offsets):
                oldest_ms = min(oldest_ms, self._acknowledged_ms[shard][first])
        return max(0, now_ms - oldest_ms)
