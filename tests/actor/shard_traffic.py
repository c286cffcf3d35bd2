"""Traffic through a real replica onto a running shard, each answer noted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from actor_tools import Starter, wait_until
from serving_fakes import FakeActors, event, films, replica

from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.event_log import EventLog
from actors.settings import BufferSettings, StorageSettings

SEGMENT_BYTES = 1 << 16
_BATCH = 20
_PATIENT = {"deadline_s": 60.0, "history_timeout_s": 30.0}
"""What a busy machine delays is no fault of the replica."""


@dataclass
class Traffic:
    """Batches of events and recommendations, each answer noted."""

    client: httpx.AsyncClient
    acknowledged: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    refused: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    recommended: Counter[tuple[int, bool]] = field(default_factory=Counter)

    async def post(self) -> bool:
        """One batch of new events; whether it was accepted."""
        events = [event(number) for number in itertools.islice(self.numbers, _BATCH)]
        response = await self.client.post("/v1/events", json={"events": events})
        if response.status_code == 202:
            self.acknowledged.update(body["event_id"] for body in events)
            return True
        retry_after = response.headers.get("retry-after", "")
        self.refused[response.status_code, response.json()["type"], retry_after] += 1
        return False

    async def recommend(self) -> None:
        """Ask for the user of all these events."""
        response = await self.client.post("/v1/recommend", json={"user_id": "anna"})
        self.recommended[response.status_code, response.json()["degraded"]] += 1

    async def run(self, num_batches: int) -> int:
        """A recommendation after each batch; how many batches were accepted."""
        num_accepted = 0
        for _ in range(num_batches):
            num_accepted += await self.post()
            await self.recommend()
        return num_accepted


@asynccontextmanager
async def traffic_on(client: EventBufferClient) -> AsyncIterator[Traffic]:
    """Traffic through a replica whose events go to these shards."""
    actors = FakeActors(films(12))
    actors.buffer = client  # type: ignore[assignment]
    async with replica(actors, **_PATIENT) as (_, http):
        yield Traffic(http)


async def started_shard(
    start: Starter, storage: StorageSettings, timeout_s: float = 5.0, **sizes: int
) -> tuple[EventBufferClient, Any]:
    """A shard that is ready, and its client."""
    settings = BufferSettings(**{"num_shards": 1, "segment_bytes": SEGMENT_BYTES, **sizes})
    shard = start(EventBuffer, 0, storage, settings)
    client = EventBufferClient([shard], timeout_s)

    async def is_ready() -> bool:
        return (await client.statuses())[0].state == "ready"

    await wait_until(is_ready, 20)
    return client, shard


def logged_ids(data_dir: Path) -> Counter[str]:
    """How often each event is in the log; opens it, so its shard must have ended."""
    log = EventLog(data_dir / "events" / "shard-0", segment_bytes=SEGMENT_BYTES)
    try:
        return Counter(i for batch in log.read() for i in batch.column("event_id").to_pylist())
    finally:
        log.close()
