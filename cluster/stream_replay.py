"""Replays a stream over HTTP as its users would live it, and measures what they are served.

Every scored event is first asked for ("where does this item stand for this user now?") and only
then posted. Users are spread over lanes; within a lane everything happens in order, so each of a
user's requests comes after the acknowledgement of all that user did before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.freshness import FreshnessProbe
from cluster.http_client import ServiceClient, ServiceError
from recommender.counters import DEFAULT_HALF_LIVES, Counters
from recommender.datasets import Dataset
from recommender.events import Event
from recommender.ranking import eligible_items, ranks_of
from recommender.replay import ReplayMemory, windows_of
from recommender.scorer import Scorer

SCORED_EVERY = 5
FIRST_SCORED = 2
RANKING_NAMES = {"popularity": "popularity", "rules": "rules", "net": "learning", "blend": "blend"}
"""Rankings of an answer by the service's names, and what reports call them."""


@dataclass
class ReplayCounts:
    """What was sent and what came back."""

    sent: int = 0
    acknowledged: int = 0
    duplicates: int = 0
    ok: int = 0
    failed: int = 0
    reads_checked: int = 0
    reads_violated: int = 0
    reads_degraded: int = 0
    violations: list[str] = field(default_factory=list)
    skew_checked: int = 0
    skew_violated: int = 0
    skipped: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class ScoredStream:
    """Ranks by ranking, one entry for each scored event, and the events' stream offsets."""

    offsets: list[int] = field(default_factory=list)
    ranks: dict[str, list[float]] = field(default_factory=dict)

    def add(self, offset: int, ranks: dict[str, float]) -> None:
        """Note the ranks one event got."""
        self.offsets.append(offset)
        for name, rank in ranks.items():
            self.ranks.setdefault(name, []).append(rank)


class FrozenModel:
    """The first version, never updated, with live histories and counters: what learning must beat.

    Sees exactly the events and histories that the service sees, in this process.
    """

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        num_warm: int,
        *,
        window: int,
        half_lives: Sequence[float] = DEFAULT_HALF_LIVES,
        history_length: int = 1_000,
    ) -> None:
        self._scorer = scorer
        self._dataset = dataset
        self._window = window
        self._memory = ReplayMemory(window=window, history_length=history_length)
        self._counters = Counters(half_lives)
        self.observe(range(num_warm))

    def observe(self, indices: Sequence[int] | range) -> None:
        """Let events of the dataset join histories and popularity."""
        data = self._dataset
        for index in indices:
            self._memory.append(
                int(data.users_N[index]),
                int(data.rows_N[index]),
                int(data.feedback_N[index]),
                int(data.timestamps_ms_N[index]),
            )
        rows_N = data.rows_N[np.asarray(indices, np.int64)]
        self._counters.update(rows_N, np.empty((len(rows_N), 0), np.int32))

    def seen(self, user: int) -> NDArray[np.int32]:
        """Rows of all items the user had."""
        return self._memory.history(user).items

    def rank(self, user: int, target: int) -> float:
        """Average-tie rank of the target among what the user has not had."""
        history = self._memory.history(user)
        windows = windows_of([history], self._window)
        scores_V = self._scorer.net_scores(windows, self._counters.popularity())[0]
        eligible_V = eligible_items(self._scorer.num_items, history.items)
        return float(ranks_of(scores_V, eligible_V, np.array([target]))[0])


class StreamReplay:
    """One run over the events [start, stop) of a dataset."""

    def __init__(
        self,
        client: ServiceClient,
        dataset: Dataset,
        frozen: FrozenModel,
        *,
        start: int,
        events_per_s: float,
        num_lanes: int = 4,
        resend_every: int = 100,
        k: int = 10,
    ) -> None:
        self.counts = ReplayCounts()
        self.scored = ScoredStream()
        self.freshness = FreshnessProbe()
        self.num_done = 0
        self.model_version = 0
        self._client = client
        self._dataset = dataset
        self._frozen = frozen
        self._start = start
        self._events_per_s = events_per_s
        self._num_lanes = num_lanes
        self._resend_every = resend_every
        self._k = k
        self._num_batches = 0
        self._began_s = 0.0

    async def run(self, stop: int) -> None:
        """Replay up to `stop`; returns when every event was acknowledged or refused."""
        self._began_s = time.monotonic()
        lanes: list[list[int]] = [[] for _ in range(self._num_lanes)]
        for index in range(self._start, stop):
            lanes[int(self._dataset.users_N[index]) % self._num_lanes].append(index)
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._run_lane(lane))

    async def _run_lane(self, lane: list[int]) -> None:
        waiting: list[int] = []
        for index in lane:
            if (index - self._start) % SCORED_EVERY == FIRST_SCORED:
                await self._post(waiting)
                waiting = []
                await self._pace(index)
                await self._ask(index)
            waiting.append(index)
        await self._pace(lane[-1] if lane else self._start)
        await self._post(waiting)

    async def _pace(self, index: int) -> None:
        due_s = self._began_s + (index - self._start) / self._events_per_s
        if (pause_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)

    async def _post(self, indices: list[int]) -> None:
        if not indices:
            return
        events = [next(self._dataset.events(index, index + 1)) for index in indices]
        answer = await self._timed(self._client.post_events(events))
        self.counts.sent += len(events)
        if answer is None:
            return
        # Some may be known already: of a try that stored them but whose answer was lost.
        self.counts.acknowledged += answer["accepted"] + answer["duplicates"]
        self.freshness.acknowledged(answer["offsets"], len(events))
        self._frozen.observe(indices)
        self.num_done += len(indices)
        self._num_batches += 1
        if self._num_batches % self._resend_every == 0:
            await self._resend(events)

    async def _resend(self, events: Sequence[Event]) -> None:
        """As a client that lost the answer would; one that is accepted again is in no count."""
        answer = await self._timed(self._client.post_events(events))
        self.counts.sent += len(events)
        if answer is not None:
            self.counts.duplicates += answer["duplicates"]

    async def _ask(self, index: int) -> None:
        data = self._dataset
        user, row = int(data.users_N[index]), int(data.rows_N[index])
        item_id = data.items[row].item_id
        seen = self._frozen.seen(user)
        answer = await self._timed(
            self._client.recommend(user_id=data.user_ids[user], k=self._k, rank_of=[item_id])
        )
        if answer is None:
            return
        self._check_own_events(answer, seen)
        ranks = answer["ranks"][item_id]
        if ranks is None:  # the user had it already, so it cannot be foreseen
            self.counts.skipped += 1
            return
        self._check_skew(answer, item_id, ranks["blend"])
        named = {ours: ranks[theirs] for theirs, ours in RANKING_NAMES.items() if theirs in ranks}
        named["frozen"] = self._frozen.rank(user, row)
        self.scored.add(index - self._start, named)

    def _check_own_events(self, answer: dict[str, Any], seen: NDArray[np.int32]) -> None:
        """Read your writes: the answer knows every event of this user that was acknowledged.

        An answer that says `degraded` does not claim to: it is counted by itself.
        """
        if answer["degraded"]:
            self.counts.reads_degraded += 1
            return
        self.counts.reads_checked += 1
        had = {self._dataset.items[row].item_id for row in seen.tolist()}
        recommended = {item["item_id"] for item in answer["items"]}
        if answer["history_length"] != len(seen) or had & recommended:
            self.counts.reads_violated += 1
            self.counts.violations.append(
                f"history of {answer['history_length']} items where {len(seen)} were acknowledged, "
                f"{len(had & recommended)} of them recommended, request {answer['request_id']}"
            )

    def _check_skew(self, answer: dict[str, Any], item_id: str, rank: float) -> None:
        """What is measured is what is served: a first-k rank is a place in the list."""
        self.counts.skew_checked += 1
        places = [item["item_id"] for item in answer["items"]]
        is_in = item_id in places
        if is_in != (rank <= len(places)) and rank == int(rank):
            self.counts.skew_violated += 1

    async def _timed(self, request: Any) -> dict[str, Any] | None:
        started_s = time.monotonic()
        try:
            answer: dict[str, Any] = await request
        except ServiceError as error:
            self.counts.failed += 1
            self.counts.errors.append(str(error))
            return None
        self.counts.ok += 1
        self.counts.latencies_ms.append(1_000 * (time.monotonic() - started_s))
        self.model_version = max(self.model_version, answer["model_version"])
        self.freshness.answered(
            answer["replica"], answer["trained_through"], answer["counters_through"]
        )
        return answer
