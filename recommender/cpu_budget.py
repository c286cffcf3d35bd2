"""How much of a process's CPU time a part of it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CpuBudget:
    """A share of all CPU time since this was made. Only says whether; never blocks.

    Args:
        share: In (0, 1]; 1 always allows.
        clock: CPU seconds of the process so far.
    """

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share = share
        self._clock = clock
        self._started_s = clock()
        self.spent_s = 0.0

    def allows(self) -> bool:
        """Whether no more than the share was spent so far."""
        return self.spent_s <= self._share * (self._clock() - self._started_s)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """A context whose CPU time is spent, also when it raises."""
        entered_s = self._clock()
        try:
            yield
        finally:
            self.spent_s += self._clock() - entered_s
