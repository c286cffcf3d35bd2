"""What the tests of running actors share."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import ray

from actors.naming import actor_options


class Starter:
    """Starts actor classes as production does, under names of their own, and ends them."""

    def __init__(self) -> None:
        self._started: list[Any] = []

    def __call__(self, actor_class: type, *args: Any, **kwargs: Any) -> Any:
        """A running actor."""
        options = actor_options(f"{actor_class.__name__}-{uuid.uuid4().hex}")
        actor = ray.remote(actor_class).options(**options).remote(*args, **kwargs)
        self._started.append(actor)
        return actor

    def end_all(self) -> None:
        """Kill what was started, for good."""
        for actor in self._started:
            ray.kill(actor)


def process_of(actor: Any) -> psutil.Process:
    """The process an actor runs in now."""
    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=20))


def kill_process(actor: Any) -> None:
    """End an actor's process with SIGKILL; Ray starts a new one."""
    process_of(actor).send_signal(signal.SIGKILL)


async def wait_until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    """Wait for a condition, not for time; `TimeoutError` when the time is over."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.02)
