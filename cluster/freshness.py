"""How long it takes from an acknowledgement until every replica answers with what it taught.

Measured from outside, on nothing but answers: an event counts as learned (or counted) once every
replica that answered lately has said so in an answer of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class _Kind:
    """One of the two promises: what is still open, and the times of what is not."""

    open: dict[int, deque[tuple[int, float, float]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class FreshnessProbe:
    """Collects acknowledgements and answers; gives percentiles in seconds.

    A replica that has not answered for `forget_after_s` no longer counts: it may be gone.
    """

    def __init__(
        self, *, forget_after_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._kinds = {"learning": _Kind(), "counters": _Kind()}
        self._replicas: dict[str, tuple[float, dict[str, Sequence[int]]]] = {}

    @property
    def num_replicas(self) -> int:
        """Replicas that answered lately."""
        return len(self._replicas)

    def acknowledged(self, offsets: Mapping[str, int], num_events: int) -> None:
        """Some events were acknowledged just now, up to these offsets of their shards."""
        now_s = self._clock()
        weight = num_events / max(1, len(offsets))  # the answer does not say which went where
        for kind in self._kinds.values():
            for shard, offset in offsets.items():
                kind.open.setdefault(int(shard), deque()).append((offset, now_s, weight))

    def answered(
        self, replica: str, trained_through: Sequence[int], counters_through: Sequence[int]
    ) -> None:
        """A replica answered, and said how far its weights and its counters are."""
        now_s = self._clock()
        self._replicas[replica] = (
            now_s,
            {"learning": trained_through, "counters": counters_through},
        )
        for name, (seen_s, _) in list(self._replicas.items()):
            if now_s - seen_s > self._forget_after_s:
                del self._replicas[name]
        for name, kind in self._kinds.items():
            self._close(name, kind, now_s)

    def _close(self, name: str, kind: _Kind, now_s: float) -> None:
        for shard, waiting in kind.open.items():
            through = min(
                marks[name][shard] if shard < len(marks[name]) else -1
                for _, marks in self._replicas.values()
            )
            while waiting and waiting[0][0] <= through:
                _, acknowledged_s, weight = waiting.popleft()
                kind.seconds.append(now_s - acknowledged_s)
                kind.weights.append(weight)

    def num_open(self, name: str) -> int:
        """Acknowledged batches that not every replica has answered with yet."""
        return sum(len(waiting) for waiting in self._kinds[name].open.values())

    def percentiles(self, name: str, *, last: int | None = None) -> dict[str, float | None]:
        """`p50` and `p99` in seconds over events (the last batches only), None without any."""
        seconds = np.array(self._kinds[name].seconds[-last if last else None :])
        weights = np.array(self._kinds[name].weights[-last if last else None :])
        if not len(seconds):
            return {"p50": None, "p99": None}
        order = np.argsort(seconds)
        share = np.cumsum(weights[order]) / weights.sum()
        at = {p: int(np.searchsorted(share, q)) for p, q in (("p50", 0.50), ("p99", 0.99))}
        return {p: float(seconds[order][min(i, len(order) - 1)]) for p, i in at.items()}
