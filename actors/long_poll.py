"""Waiting for something to change, for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LongPoll:
    """Lets any number of callers of an async actor wait until a condition holds."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Let everyone who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(self, condition: Callable[[], bool], wait_s: float) -> None:
        """Until the condition holds or `wait_s` seconds are over. Looks after each `notify`."""
        try:
            async with asyncio.timeout(wait_s):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return  # the caller looks at what there is
