"""How an actor opens its folder: on a thread, so that its constructor never raises."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from actors.messages import FolderInUse, Recovering, ShardUnavailable
from actors.once_a_minute import OnceAMinute

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
_WAIT_S = 1.0
_IN_USE_S = 10.0


class Opening(Generic[T]):
    """What an actor works on, once it is opened and for as long as it is well.

    Ray makes a named actor dead for good when its constructor raises during a restart, so an actor
    that cannot open its folder is up, says `failed`, and refuses. If another process still holds it
    the actor first waits, and says so. The thread that opens is the one that writes later, through
    `write`.
    """

    def __init__(
        self, name: str, open_it: Callable[[], T], failure_of: Callable[[T], str] = lambda _: ""
    ) -> None:
        """Begin to open.

        Args:
            name: What it is called in errors.
            open_it: Reads and checks everything.
            failure_of: Why the opened thing cannot be written any more; empty while it can.
        """
        self._name = name
        self._open_it = open_it
        self._failure_of = failure_of
        self._failures = OnceAMinute()
        self._waits_because = ""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-writer")
        self._future = self._begin()

    @property
    def opened(self) -> T | None:
        """What was opened, also if it failed since; None before and after a failure to open."""
        if not self._future.done() or self._future.exception():
            return None
        return self._future.result()

    def state(self) -> tuple[str, str]:
        """One of recovering, ready, failed; and why."""
        if not self._future.done():
            return "recovering", self._waits_because or "what is on disk is being read"
        error = self._future.exception()
        if error:
            return "failed", f"{type(error).__name__}: {error}"
        failure = self._failure_of(self._future.result())
        return ("failed", failure) if failure else ("ready", "")

    async def ready(self) -> T:
        """What was opened; waits a second for it.

        Raises:
            Recovering: If it is not open yet.
            ShardUnavailable: If it is not well.
        """
        if not self._future.done():
            await asyncio.wait([asyncio.wrap_future(self._future)], timeout=_WAIT_S)
        state, reason = self.state()
        if state == "recovering":
            raise Recovering(f"{self._name} is {state}: {reason}")
        if state != "ready":
            raise ShardUnavailable(f"{self._name} is {state}: {reason}")
        return self._future.result()

    async def write(self, work: Callable[..., R], *args: Any) -> R:
        """Run blocking work on the one writer thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *args)

    def again(self) -> None:
        """Open once more, after a failure."""
        self._future = self._begin()

    def shutdown(self) -> None:
        """End the thread once its work is done."""
        self._writer.shutdown()

    def _begin(self) -> Future[T]:
        future = self._writer.submit(self._open_once_free)
        future.add_done_callback(self._log_failure)
        return future

    def _open_once_free(self) -> T:
        deadline_s = time.monotonic() + _IN_USE_S
        try:
            while True:
                try:
                    return self._open_it()
                except FolderInUse as error:
                    self._waits_because = str(error)
                    if time.monotonic() >= deadline_s:
                        raise
        finally:
            self._waits_because = ""

    def _log_failure(self, future: Future[T]) -> None:
        error = future.exception()
        if error and (num := self._failures.num_to_tell()):
            logger.error("cannot open name=%s times=%d error=%r", self._name, num, error)
