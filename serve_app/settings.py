"""Settings of the HTTP service. A section of `rheos.toml`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from recommender.settings import BlendSettings, ModelSettings, Section


def replica_deadline_s(deadline_s: float) -> float:
    """When a replica answers 504 by itself; the rest of the time is for HAProxy, if it hangs."""
    return 0.9 * deadline_s


class ServingSettings(Section):
    """The Serve deployment and its HTTP limits."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Port to listen on."""
    min_replicas: int = Field(default=2, ge=1, le=1_000)
    """Replicas that always run."""
    max_replicas: int = Field(default=4, ge=1, le=1_000)
    """Replicas under load."""
    target_ongoing_requests: float = Field(default=4.0, gt=0.0)
    """Requests in flight per replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Complete requests a replica works on at once; beyond it answers 503 `overloaded`."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that may wait in front of the replicas."""
    cpus_per_replica: float = Field(default=1.0, gt=0.0)
    """Logical CPUs a replica reserves."""
    deadline_s: float = Field(default=2.0, gt=0.0, le=60.0)
    """Time within which a request is answered, 504 at the latest."""
    items_deadline_s: float = Field(default=10.0, gt=0.0, le=600.0)
    """The same for `PUT /v1/items`, which waits a moment for BERT to read the texts."""
    actor_timeout_s: float = Field(default=10.0, gt=0.0, le=600.0)
    """Bound on one call of an actor beyond what it waits for on purpose."""
    history_timeout_s: float = Field(default=1.5, gt=0.0, le=60.0)
    """Time after which a recommendation goes on without the user's history, flagged `degraded`."""
    max_body_bytes: int = Field(default=1_048_576, ge=1_024)
    """Largest request body; beyond it 413."""
    header_timeout_s: float = Field(default=5.0, gt=0.0, le=60.0)
    """Time a client may take to send a request's headers, and to send a small body (HAProxy)."""
    max_connections_per_address: int = Field(default=512, ge=1)
    """Connections one address may hold (HAProxy). Behind an edge, all have the edge's address."""
    max_batch: int = Field(default=1_000, ge=1)
    """Most events or items in one request."""
    max_k: int = Field(default=1_000, ge=1)
    """Most recommendations in one answer."""
    max_candidates: int = Field(default=10_000, ge=1)
    """Most candidates a request may name."""
    exploration_slots: int = Field(default=0, ge=0, le=5)
    """Of every 10 places in an answer, how many show items that nobody has had an event on yet."""
    upscale_delay_s: float = Field(default=5.0, ge=0.0)
    """How long the load must last before a replica is added."""
    downscale_delay_s: float = Field(default=60.0, ge=0.0)
    """How long the load must be gone before a replica is taken away."""
    graceful_shutdown_s: float = Field(default=10.0, gt=0.0)
    """How long a replica that is taken away may finish its requests."""


class AppSettings(Section):
    """What `build_app` takes: as nested values from a Serve config, or as `serving.port=8001`."""

    serving: ServingSettings = ServingSettings()
    """The deployment and its HTTP limits."""
    model: ModelSettings = ModelSettings()
    """Shape of the towers, for versions whose manifest does not tell it."""
    blend: BlendSettings = BlendSettings()
    """The blend and its guard."""
    num_shards: int = Field(default=2, ge=1, le=256)
    """Shards of the event buffer."""

    @model_validator(mode="before")
    @classmethod
    def _join_dotted_keys(cls, values: Any) -> Any:
        """`serve run` gives flat `key=value` pairs; a dot leads into a section."""
        if not isinstance(values, dict):
            return values
        tree: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = str(key).partition(".")
            if name:
                tree[section] = {**tree.get(section, {}), name: value}
            else:
                tree[section] = value
        return tree
