"""What runs beside a test for as long as a block."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class Background:
    """Threads that run until the block is left; they heed `_stopped`."""

    def __init__(self, threads: Sequence[threading.Thread], wait_s: float) -> None:
        """Nothing runs before the block; at its end each thread has `wait_s` to end."""
        self._stopped = threading.Event()
        self._threads = threads
        self._wait_s = wait_s

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(self._wait_s)
        if alive := [thread.name for thread in self._threads if thread.is_alive()]:
            self._never_ended(alive)

    def _never_ended(self, names: list[str]) -> None:
        """Threads run on after all."""
