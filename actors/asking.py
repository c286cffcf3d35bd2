"""Asking an actor: with a deadline, and with errors of our own types."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    ObjectStoreFullError,
    OutOfDiskError,
    PendingCallsLimitExceeded,
    RayActorError,
    RayTaskError,
)

from actors.messages import ActorsError, Recovering, ShardUnavailable, StorageFull
from actors.naming import NamedActor

_PAUSE_S = 0.1


async def ask(actor: Any, method: str, *args: Any, timeout_s: float, retry: bool = False) -> Any:
    """Call a method of an actor and wait for its answer.

    Args:
        actor: Handle of the actor.
        method: Name of the method.
        *args: Its arguments.
        timeout_s: Bound on the whole wait.
        retry: Ask again, until time is up, after `ActorUnavailableError` and `Recovering`: what
            calls get between the death of a process and its restart, and then until it has read
            its folder. Only for calls that may run twice.

    Raises:
        ShardUnavailable: If the actor is dead, restarting or late.
        StorageFull: If an argument or the answer needs shared memory (from 100 KB on) and there is
            no room, also not on the disk behind it. With an answer, the work was done.
        ActorsError: What the method raised, of its own type.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await _typed(getattr(actor, method).remote(*args))
                except (ActorUnavailableError, Recovering):
                    if not retry:
                        raise
                    await asyncio.sleep(_PAUSE_S)
    except TimeoutError as error:
        raise ShardUnavailable(f"{method} was not answered within {timeout_s} s") from error
    except (RayActorError, PendingCallsLimitExceeded) as error:
        if isinstance(actor, NamedActor):
            actor.find_again()
        raise ShardUnavailable(f"{method} failed: {error}") from error
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise StorageFull(f"shared memory, {method}: {error}") from error


async def _typed(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except RayTaskError as error:
        if isinstance(error.cause, ActorsError):
            raise error.cause from None
        raise
