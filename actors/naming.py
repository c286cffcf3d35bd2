"""Names of the actors, and the one place where a plain class becomes a Ray actor."""

from __future__ import annotations

from typing import Any

import ray

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
    that is harmless.
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
    }


def start_actor(actor_class: type, name: str, *args: Any, **kwargs: Any) -> Any:
    """The actor of that name; started with these arguments if there is none."""
    return ray.remote(actor_class).options(**actor_options(name)).remote(*args, **kwargs)


def find_actor(name: str) -> Any:
    """The actor of that name.

    Raises:
        ValueError: If there is none.
    """
    return ray.get_actor(name, namespace=NAMESPACE)
