"""The replica's metrics. Ray ships them to Prometheus; without Ray they count nothing.

No user, item or request id is ever a tag: tags are few and known before the first request.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util import metrics

_LATENCY_BOUNDS_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0]


class ReplicaTelemetry:
    """Everything a replica measures, declared together."""

    def __init__(self) -> None:
        self._enabled = ray.is_initialized()
        if not self._enabled:
            return
        self._requests = metrics.Counter(
            "rheos_replica_requests", "Answered requests.", ("route", "status")
        )
        self._latency_ms = metrics.Histogram(
            "rheos_replica_latency_ms", "Time to answer.", _LATENCY_BOUNDS_MS, ("route",)
        )
        self._events = metrics.Counter("rheos_replica_events", "Events received.", ("outcome",))
        self._degraded = metrics.Counter(
            "rheos_replica_degraded_answers", "Recommendations without the user's history."
        )
        self._served = metrics.Counter(
            "rheos_replica_recommendations", "Recommendations by what was served.", ("served",)
        )
        self._explored = metrics.Counter(
            "rheos_replica_explored_items", "Recommended items that nobody had an event on."
        )
        self._follow_failures = metrics.Counter(
            "rheos_replica_follow_failures", "Failed attempts to follow an actor.", ("what",)
        )
        self._version = metrics.Gauge("rheos_replica_model_version", "Version that is served.")
        self._staleness_ms = metrics.Gauge(
            "rheos_replica_weight_staleness_ms", "Age of the oldest event not learned from."
        )

    def answered(self, route: str, status: int, duration_s: float) -> None:
        """One request was answered; `route` is a template, never a path with an id in it."""
        if self._enabled:
            self._requests.inc(1.0, {"route": route, "status": str(status)})
            self._latency_ms.observe(duration_s * 1_000.0, {"route": route})

    def received_events(self, accepted: int, duplicates: int) -> None:
        for outcome, number in (("accepted", accepted), ("duplicate", duplicates)):
            if self._enabled and number:
                self._events.inc(float(number), {"outcome": outcome})

    def recommended(self, served: str, degraded: bool, staleness_ms: int) -> None:
        if self._enabled:
            self._served.inc(1.0, {"served": served})
            self._staleness_ms.set(float(staleness_ms))
            if degraded:
                self._degraded.inc(1.0)

    def explored(self, num_items: int) -> None:
        if self._enabled and num_items:
            self._explored.inc(float(num_items))

    def follow_failed(self, what: str) -> None:
        if self._enabled:
            self._follow_failures.inc(1.0, {"what": what})

    def serving_version(self, version: int) -> None:
        if self._enabled:
            self._version.set(float(version))


def replica_name() -> str:
    """Serve's id of this replica; `local` outside of Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        context: Any = serve.get_replica_context()
    except RayServeException:
        return "local"
    return str(context.replica_id.unique_id)
