"""Telling of a trouble that comes with every batch, without filling the log with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_SECONDS = 60.0


class OnceAMinute:
    """Says when a trouble is to be told: the first time, and then at most once a minute."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._told_s = -math.inf
        self._num_untold = 0

    def num_to_tell(self) -> int:
        """Count the trouble; how often it came since it was last told, 0 if it is to wait."""
        self._num_untold += 1
        if self._now_s() < self._told_s + _SECONDS:
            return 0
        self._told_s = self._now_s()
        num_untold, self._num_untold = self._num_untold, 0
        return num_untold
