"""Names of the actors, and the one place where a plain class becomes a Ray actor."""

from __future__ import annotations

import logging
from typing import Any

import ray

logger = logging.getLogger(__name__)

NAMESPACE = "rheos"
ITEM_CATALOG = "item_catalog"
ITEM_STATISTICS = "item_statistics"
PARAMETER_STORE = "parameter_store"
KEEPER = "keeper"
_MAX_CONCURRENCY = 1_000


def event_buffer_name(shard: int) -> str:
    """Name of a shard of the event buffer."""
    return f"event_buffer_{shard}"


def actor_options(name: str) -> dict[str, Any]:
    """Options of a named actor that outlives its creator and comes back when its process dies.

    Calls are not retried by Ray: a retry may run a call twice, and only its client knows whether
    that is harmless. Nor are they listed by the control store, which would keep 3.3 kB of each of
    the last 100,000.
    """
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": _MAX_CONCURRENCY,
        "num_cpus": 0,
        "enable_task_events": False,
    }


def start_actor(actor_class: type, name: str, *args: Any, **kwargs: Any) -> Any:
    """The actor of that name; started with these arguments if there is none."""
    return ray.remote(actor_class).options(**actor_options(name)).remote(*args, **kwargs)


def find_actor(name: str) -> NamedActor:
    """The actor of that name.

    Raises:
        ValueError: If there is none.
    """
    return NamedActor(name)


class NamedActor:
    """A handle that finds its actor again when one that died for good was replaced by another.

    A handle alone stays with the dead one for ever. Methods are those of the actor.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle = ray.get_actor(name, namespace=NAMESPACE)

    def __getattr__(self, method: str) -> Any:
        return getattr(self._handle, method)

    def find_again(self) -> None:
        """Look the name up again; without an actor of that name nothing changes yet."""
        try:
            self._handle = ray.get_actor(self._name, namespace=NAMESPACE)
        except ValueError:
            logger.warning("there is no actor=%s now", self._name)
