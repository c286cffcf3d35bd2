"""What is never learned from: users who are measured instead, and events that did harm.

The model has no parameter of a user: one who is held out is served like everybody else, from the
history that comes with the request. So holding users out costs their share of the lessons alone,
and gives a measure of quality that no lesson has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LeaveOut:
    """Which events of one log no lesson may end at.

    They stay in histories and counters: only the weights do not learn to predict them.

    Attributes:
        users_every: One user in so many, by code, is held out; 0 is nobody. Codes are given in the
            order of first sight, so new users are held out as often as old ones, and who was once
            held out always is.
        spans: First and last offsets of what is in quarantine.
    """

    users_every: int = 0
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether every event may be learned."""
        return not self.users_every and not self.spans

    def held_out(self, users_N: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which events are of users who are measured."""
        if not self.users_every:
            return np.zeros(len(users_N), np.bool_)
        return np.asarray(users_N % self.users_every == self.users_every - 1)

    def may_learn(
        self, users_N: NDArray[np.integer], offsets_N: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which events a lesson may end at."""
        may_N = ~self.held_out(users_N)
        for first, last in self.spans:
            may_N &= (offsets_N < first) | (offsets_N > last)
        return may_N


EVERYTHING = LeaveOut()
"""Nothing is left out."""


class Quarantine:
    """Spans of the logs that were learned by a version that had to go, or was never served.

    They are not learned again: neither as fresh events nor by replay. Of each log the latest
    `max_spans` spans are kept; touching ones are one.
    """

    def __init__(self, spans: Iterable[tuple[int, int, int]] = (), *, max_spans: int = 64) -> None:
        """Take spans over, each a log's number, its first and its last offset."""
        self._max_spans = max_spans
        self._spans: dict[int, list[tuple[int, int]]] = {}
        for log, first, last in spans:
            self.add(log, first, last)

    def add(self, log: int, first: int, last: int) -> None:
        """Put a span into quarantine; nothing happens if it is empty."""
        if last < first:
            return
        merged: list[tuple[int, int]] = []
        for start, stop in sorted([*self._spans.get(log, []), (first, last)]):
            if merged and start <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            else:
                merged.append((start, stop))
        self._spans[log] = merged[-self._max_spans :]

    def add_between(self, before: Sequence[int], through: Sequence[int]) -> None:
        """Put into quarantine what lies after one watermark, up to another."""
        for log, (start, stop) in enumerate(zip(before, through, strict=True)):
            self.add(log, start + 1, stop)

    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """All spans as (log, first, last), for a manifest."""
        return tuple((log, *span) for log, spans in sorted(self._spans.items()) for span in spans)

    def of(self, log: int) -> tuple[tuple[int, int], ...]:
        """The spans of one log."""
        return tuple(self._spans.get(log, ()))
