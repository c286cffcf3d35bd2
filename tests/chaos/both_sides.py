"""Traffic onto one shard from both sides of a partition: a client's, and one beside the shard."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ledger import Ledger

from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.log_export import export_log
from actors.messages import ActorsError
from cluster.http_client import event_body
from recommender.events import Event

_BATCH = 3
_PAUSE_S = 0.05


def _batch(side: str, number: int) -> list[Event]:
    now_ms = time.time_ns() // 1_000_000
    return [
        Event(f"{side}-{number}-{place}", f"{side}-user-{number % 9}", "tea", "click", 1.0, now_ms)
        for place in range(_BATCH)
    ]


@dataclass
class NearSide:
    """A client on the side of the control store. It sends a batch until it is acknowledged.

    Attributes:
        refused: How often, by type of error.
    """

    ledger: Ledger = field(default_factory=Ledger)
    refused: Counter[str] = field(default_factory=Counter)

    def acknowledged_s(self, after_s: float) -> float | None:
        """When the first batch was acknowledged after that time, by `time.monotonic()`."""
        told_s = (a.told_s for a in self.ledger.acknowledgements if a.told_s > after_s)
        return next(told_s, None)

    @asynccontextmanager
    async def on(self, client: EventBufferClient) -> AsyncIterator[None]:
        """Send for as long as the block."""
        stopped = asyncio.Event()
        sending = asyncio.create_task(self._send_all(client, stopped))
        try:
            yield
        finally:
            stopped.set()
            await sending

    async def _send_all(self, client: EventBufferClient, stopped: asyncio.Event) -> None:
        for number in itertools.count():
            events = _batch("near", number)
            bodies = [event_body(event) for event in events]
            self.ledger.send(bodies)
            first_asked_s = time.monotonic()
            while not stopped.is_set():
                try:
                    result = await client.append(events)
                except ActorsError as error:
                    self.refused[type(error).__name__] += 1
                else:
                    answer = {"accepted": result.accepted, "offsets": result.offsets}
                    self.ledger.acknowledge(bodies, answer, first_asked_s, time.monotonic())
                    break
                await asyncio.sleep(_PAUSE_S)
            if stopped.is_set():
                return
            await asyncio.sleep(_PAUSE_S)


@dataclass(frozen=True)
class Told:
    """What a caller was told: an error's type, or nothing if the events were acknowledged."""

    event_ids: list[str]
    error: str

    @property
    def is_acknowledged(self) -> bool:
        """Whether they are on disk, for all that the caller knows."""
        return not self.error


@dataclass(frozen=True)
class FarSide:
    """A caller that was cut off together with the shard: it is in the shard's own process.

    What it asks reaches that process, whoever the name of the shard leads to by then.
    """

    path: Path

    def begin(self, shard: Any) -> None:
        """From now on, for as long as the process lives."""
        self.path.touch()
        ray.get(shard.__ray_call__.remote(_call_from_now_on, self.path), timeout=20)

    def told(self) -> list[Told]:
        """All answers so far."""
        return [Told(*json.loads(line)) for line in self.path.read_text().splitlines()]


def slow_fsync(shard: Any, delay_s: float) -> None:
    """From now on each fsync of the shard's process takes longer, and so most of each write."""
    ray.get(shard.__ray_call__.remote(_slow_fsync, delay_s), timeout=20)


def stored_ids(data_dir: Path) -> list[str]:
    """Ids of all events of the one shard in their order; no process may be at work on it.

    Fails the test if their offsets are not 0, 1, 2 and so on.
    """
    [(path, _)] = export_log(data_dir, data_dir / "exported")
    table = pq.read_table(path, columns=["event_id", "offset"])
    assert table["offset"].to_pylist() == list(range(table.num_rows))
    ids: list[str] = table["event_id"].to_pylist()
    return ids


def _slow_fsync(_: EventBuffer, delay_s: float) -> None:
    def late(descriptor: Any) -> None:
        time.sleep(delay_s)
        os.fdatasync(descriptor)

    os.fsync = late  # type: ignore[assignment]


def _call_from_now_on(buffer: EventBuffer, path: Path) -> None:
    committing = buffer._committing
    assert committing, "nothing was appended yet"
    asyncio.run_coroutine_threadsafe(_call(buffer, path), committing.get_loop())


async def _call(buffer: EventBuffer, path: Path) -> None:
    with path.open("a", buffering=1) as notes:
        for number in itertools.count():
            events = _batch("far", number)
            error = ""
            try:
                await buffer.append(events)
            except ActorsError as refusal:
                error = type(refusal).__name__
            notes.write(json.dumps([[event.event_id for event in events], error]) + "\n")
            await asyncio.sleep(_PAUSE_S)
