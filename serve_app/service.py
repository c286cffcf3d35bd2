"""What each route does, on plain values: reads and writes through the clients, ranks, answers.

Every answer is a dict that is ready for JSON. `RecommenderService` holds all that a replica has;
HTTP is in `routes`, the Serve deployment in `replica`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.messages import AppendResult, Head, Manifest
from recommender.events import Event, Item
from recommender.exploration import seed_of
from recommender.ranking import History
from serve_app.follower import SnapshotFollower
from serve_app.history_reading import EMPTY_HISTORY, HistoryReader
from serve_app.live_state import LiveState
from serve_app.ports import EventBuffer, ItemCatalog, ItemStatistics, ParameterStore
from serve_app.problems import Problem
from serve_app.ranker import Query, rank, similar_rows
from serve_app.recommendation_answers import explained_answer, recommendation_answer, titled
from serve_app.schemas import RecommendBody
from serve_app.settings import ServingSettings
from serve_app.telemetry import ReplicaTelemetry

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clients:
    """The four actors as the replica sees them."""

    buffer: EventBuffer
    catalog: ItemCatalog
    statistics: ItemStatistics
    store: ParameterStore


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class RecommenderService:
    """One replica's work. Everything that waits is bounded; ranking (1 to 3 ms) runs inline."""

    def __init__(
        self,
        state: LiveState,
        clients: Clients,
        settings: ServingSettings,
        *,
        replica: str = "local",
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.state = state
        self.settings = settings
        self.telemetry = ReplicaTelemetry()
        self.now_ms = now_ms
        self.replica = replica
        self._clients = clients
        self._histories = HistoryReader(
            clients.buffer,
            state.catalog,
            timeout_s=settings.history_timeout_s,
            now_ms=now_ms,
        )
        self.follower = SnapshotFollower(
            state,
            catalog=clients.catalog,
            statistics=clients.statistics,
            store=clients.store,
            on_failure=self.telemetry.follow_failed,
            on_model=self.telemetry.serving_version,
        )

    def provenance(self, request_id: str) -> Answer:
        """What every answer carries: which knowledge it comes from, and how old that is."""
        state = self.state
        return {
            "model_version": state.model_version,
            "trained_through": state.trained_through,
            "counters_through": state.counters_through,
            "counters_behind": self.follower.counters_behind,
            "staleness_ms": state.staleness_ms(self.now_ms()),
            "request_id": request_id,
            "replica": self.replica,
        }

    async def append(self, events: Sequence[Event], request_id: str) -> Answer:
        """Store events.

        Raises:
            Problem: 503 if some shards did not take their part; the others did.
            ActorsError: If nothing was stored.
        """
        result = await self._clients.buffer.append(events)
        self.telemetry.received_events(result.accepted, result.duplicates)
        if result.failed_shards:
            raise _partly_stored(result)
        return {
            **_stored(result),
            "unknown_items": sum(self.state.catalog.row(e.item_id) is None for e in events),
            **self.provenance(request_id),
        }

    async def put_items(self, items: Sequence[Item], request_id: str) -> Answer:
        """Store items. Returns when this replica can recommend them; the others follow at once.

        Encoding many texts takes longer than a client waits: `pending` counts the items that are
        stored but whose vectors are still to come.
        """
        result = await self._clients.catalog.put(items)
        await self.follower.wait_for_revision(result.revision, timeout_s=1.0)
        pending = sum(self.state.catalog.row(item.item_id) is None for item in items)
        return {**asdict(result), "pending": pending, **self.provenance(request_id)}

    async def get_item(self, item_id: str, request_id: str) -> Answer:
        """One item; asks the catalogue itself if it is too new to be known here."""
        row = self.state.catalog.row(item_id)
        if row is not None:
            item: Item | None = self.state.catalog.items[row]
        else:
            [item] = await self._clients.catalog.get([item_id])
        if item is None:
            raise Problem("not-found", "there is no such item")
        return {**_item(item), **self.provenance(request_id)}

    def list_items(self, after: str | None, limit: int, request_id: str) -> Answer:
        """A page of items in the order of their creation; `next_after` asks for the next one."""
        page = self.state.catalog.page(after, limit)
        return {
            "items": [_item(item) for item in page],
            "num_items": self.state.catalog.num_items,
            "next_after": page[-1].item_id if len(page) == limit else None,
            **self.provenance(request_id),
        }

    async def recommend(self, body: RecommendBody, request_id: str) -> Answer:
        """Rank for a user, whose history is read now, or for the history in the request."""
        if body.user_id is None:
            known: History | None = self._histories.of_entries(body.history or [])
        else:
            known = await self._histories.of_user(body.user_id)
        degraded = known is None or not self.follower.knows_items
        history = EMPTY_HISTORY if known is None else known
        query = Query(
            k=body.k,
            candidates=body.candidates,
            categories=body.categories,
            exclude=body.exclude,
            exclude_seen=body.exclude_seen,
            rank_of=body.rank_of,
            explain=body.explain,
            exploration_slots=self.settings.exploration_slots,
            exploration_seed=seed_of(request_id),
        )
        ranking = rank(self.state, history, query)
        answer = recommendation_answer(self.state, ranking, history, degraded)
        if body.rank_of:
            answer["ranks"] = ranking.ranks
        if body.explain:
            answer["explained"] = explained_answer(self.state)
        answer.update(self.provenance(request_id))
        self.telemetry.recommended(ranking.served, degraded, answer["staleness_ms"])
        self.telemetry.explored(sum(r.is_exploration for r in ranking.recommendations))
        return answer

    def similar(self, item_id: str, k: int, request_id: str) -> Answer:
        """Items most like one."""
        row = self.state.catalog.row(item_id)
        if row is None:
            raise Problem("not-found", "there is no such item")
        items = [
            {**titled(self.state, other), "similarity": round(cosine, 6)}
            for other, cosine in similar_rows(self.state, row, k)
        ]
        return {"item_id": item_id, "items": items, **self.provenance(request_id)}

    def describe_model(self, request_id: str) -> Answer:
        """The served version, and how following the actors goes."""
        model = self.state.model
        return {
            "head": None if model is None else _manifest(model.head.manifest),
            "sequence": self.state.head_sequence,
            "reason": None if model is None else model.head.reason,
            "progressive": {} if model is None else _finite(model.head.manifest.metrics),
            "blend": {
                "quality": _by_bucket(self.state.blend.quality()),
                "weights": _by_bucket(self.state.blend.weights()),
            },
            "num_items": self.state.catalog.num_items,
            "counted_events": self.state.counters.num_events,
            "follower": {
                name: {
                    "caught_up": follow.caught_up,
                    "failures": follow.failures,
                    "last_error": follow.last_error,
                }
                for name, follow in self.follower.follows.items()
            },
            **self.provenance(request_id),
        }

    async def list_versions(self, request_id: str) -> Answer:
        """Every version that the store keeps, newest first."""
        versions = await self._clients.store.list_versions()
        newest_first = sorted(versions, key=lambda v: v.manifest.version, reverse=True)
        return {
            "versions": [
                {**asdict(info), "manifest": _manifest(info.manifest)} for info in newest_first
            ],
            **self.provenance(request_id),
        }

    async def promote(self, version: int, reason: str, request_id: str) -> Answer:
        """Make a version the head; replicas follow within milliseconds."""
        head = await self._clients.store.promote(version, reason or "promoted by request")
        return self._moved(head, request_id)

    async def rollback(self, reason: str, request_id: str) -> Answer:
        """Go back to the version that was the head before."""
        return self._moved(await self._clients.store.rollback(reason), request_id)

    def check_health(self) -> None:
        """Whether this replica can do its work.

        Raises:
            RuntimeError: If a follow task ended or a fixed request cannot be ranked.
        """
        if not self.follower.is_alive:
            raise RuntimeError("the follower has stopped")
        if self.state.catalog.num_items:
            best = rank(self.state, EMPTY_HISTORY, Query(k=1)).recommendations
            if not best or not math.isfinite(best[0].score):
                raise RuntimeError(f"version {self.state.model_version} ranks nothing")

    def _moved(self, head: Head, request_id: str) -> Answer:
        return {
            "head": head.manifest.version,
            "sequence": head.sequence,
            "reason": head.reason,
            **self.provenance(request_id),
        }


def _item(item: Item) -> Answer:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "text": item.text,
        "categories": item.categories,
        "attributes": dict(item.attributes),
    }


def _manifest(manifest: Manifest) -> Answer:
    return {**asdict(manifest), "metrics": _finite(manifest.metrics)}


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what could not be measured is null."""
    return {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}


def _stored(result: AppendResult) -> Answer:
    return {
        "accepted": result.accepted,
        "duplicates": result.duplicates,
        "offsets": {str(shard): offset for shard, offset in sorted(result.offsets.items())},
    }


def _partly_stored(result: AppendResult) -> Problem:
    failed = sorted(result.failed_shards)
    return Problem(
        "shard-unavailable",
        f"{len(failed)} shard(s) did not take their part; sending the batch again is safe",
        headers={"Retry-After": "1"},
        members={**_stored(result), "failed_shards": failed},
    )


def _by_bucket(values: Any) -> dict[str, list[float]]:
    return {name: [round(float(v), 5) for v in array] for name, array in values.items()}
