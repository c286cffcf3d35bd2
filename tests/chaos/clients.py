"""Clients of a system under chaos: writers who read their own writes, and readers at a pace."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from background import Background
from ledger import Event, Ledger

NO_ANSWER = 0
"""The status of a request whose connection was refused, cut or silent for too long."""
_CLIENT_TIMEOUT_S = 10.0
_USERS_OF_A_WRITER = 40
_MAX_BATCH = 6
_RESENT_SHARE = 0.1
_WRITE_PAUSE_S = 0.15
_RETRY_PAUSE_S = 0.1
_READ_PERIOD_S = 0.12


@dataclass(frozen=True)
class Reply:
    """One try of a recommendation. Times are `time.monotonic()`, in seconds."""

    asked_s: float
    told_s: float
    status: int
    is_retry: bool


class Clients(Background):
    """Threads that post events and ask for recommendations until the block is left.

    A writer sends a batch, with the same ids, until it is acknowledged; then it asks for one of the
    users' recommendations, which must know all that was acknowledged to that user. Now and then it
    sends an old batch again. No two writers share a user. A reader asks at a steady pace and, after
    a failure, once more at once.
    """

    def __init__(
        self,
        url: str,
        items: list[str],
        ledger: Ledger,
        *,
        seed: int,
        num_writers: int = 2,
        num_readers: int = 3,
    ) -> None:
        self.replies: list[Reply] = []
        self._url = url
        self._items = items
        self._ledger = ledger
        self._seed = seed
        threads = [
            threading.Thread(target=self._write, args=(number,), name=f"writer-{number}")
            for number in range(num_writers)
        ]
        threads += [
            threading.Thread(target=self._read, args=(number,), name=f"reader-{number}")
            for number in range(num_readers)
        ]
        super().__init__(threads, wait_s=60.0)

    def _never_ended(self, names: list[str]) -> None:
        self._ledger.violated(f"never acknowledged within 60 s: {names}")

    def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed} writer {number}")
        old: list[list[Event]] = []
        new = self._batches(number, rng)
        with httpx.Client(base_url=self._url, timeout=_CLIENT_TIMEOUT_S) as client:
            while not self._stopped.is_set():
                is_old = bool(old) and rng.random() < _RESENT_SHARE
                batch = rng.choice(old) if is_old else next(new)
                self._post(client, batch)
                if is_old:
                    self._ledger.count("batches sent again")
                else:
                    old.append(batch)
                self._read_own_write(client, rng.choice(batch))
                self._stopped.wait(_WRITE_PAUSE_S)

    def _batches(self, number: int, rng: random.Random) -> Iterator[list[Event]]:
        num_events = 0
        while True:
            size = rng.randint(1, _MAX_BATCH)
            yield [
                {
                    "event_id": f"writer-{number}-{num_events + place}",
                    "user_id": f"writer-{number}-user-{rng.randrange(_USERS_OF_A_WRITER)}",
                    "item_id": rng.choice(self._items),
                    "event_type": "click",
                    "timestamp_ms": time.time_ns() // 1_000_000,
                }
                for place in range(size)
            ]
            num_events += size

    def _post(self, client: httpx.Client, batch: list[Event]) -> None:
        """Send a batch until it is acknowledged, whatever happens meanwhile."""
        self._ledger.send(batch)
        first_asked_s = time.monotonic()
        while True:
            status, answer = _ask(client, "/v1/events", {"events": batch})
            self._ledger.count(f"events {status}")
            if status == 202:
                self._ledger.acknowledge(batch, answer, first_asked_s, time.monotonic())
                return
            if 400 <= status < 500 and status not in (408, 429):
                self._ledger.violated(f"events refused for good: {status} {answer}")
                return
            time.sleep(_RETRY_PAUSE_S)

    def _read_own_write(self, client: httpx.Client, event: Event) -> None:
        user_id = event["user_id"]
        status, answer = _ask(client, "/v1/recommend", {"user_id": user_id})
        if status != 200 or answer["degraded"]:
            self._ledger.count("own writes not read: no answer, or degraded")
            return
        self._ledger.count("own writes read")
        expected, found = self._ledger.num_acknowledged(user_id), answer["history_length"]
        if found != expected:
            self._ledger.violated(f"{user_id} has {expected} events and is served with {found}")
        if event["item_id"] in {item["item_id"] for item in answer["items"]}:
            self._ledger.violated(f"{user_id} is recommended {event['item_id']}, just clicked")

    def _read(self, number: int) -> None:
        rng = random.Random(f"{self._seed} reader {number}")
        with httpx.Client(base_url=self._url, timeout=_CLIENT_TIMEOUT_S) as client:
            while not self._stopped.wait(_READ_PERIOD_S):
                user_id = f"writer-0-user-{rng.randrange(_USERS_OF_A_WRITER)}"
                body = {"user_id": user_id, "exclude_seen": False}
                if not self._reply(client, body, is_retry=False):
                    self._reply(client, body, is_retry=True)

    def _reply(self, client: httpx.Client, body: dict[str, Any], *, is_retry: bool) -> bool:
        """Whether a recommendation came."""
        asked_s = time.monotonic()
        status, answer = _ask(client, "/v1/recommend", body)
        self.replies.append(Reply(asked_s, time.monotonic(), status, is_retry))
        self._ledger.count(f"recommend {status}")
        if status == 200 and not answer["items"]:
            self._ledger.violated(f"nothing recommended: {answer}")
        return status == 200


def _ask(client: httpx.Client, path: str, body: Any) -> tuple[int, Any]:
    """Status and document of an answer; `NO_ANSWER` and the reason if none came."""
    try:
        response = client.post(path, json=body)
        return response.status_code, response.json()
    except (httpx.TransportError, ValueError) as error:
        return NO_ANSWER, repr(error)
