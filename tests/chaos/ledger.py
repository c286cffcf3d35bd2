"""What clients sent and what they were told: the oracle of the chaos tests, outside the system."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
"""An event as `POST /v1/events` takes it."""


@dataclass(frozen=True)
class Acknowledgement:
    """A batch was acknowledged. Times are `time.monotonic()`, in seconds.

    Attributes:
        first_asked_s: When it was sent for the first time.
        told_s: When the acknowledgement came.
        offsets: Last offset of each shard that took part.
    """

    first_asked_s: float
    told_s: float
    offsets: Mapping[int, int]


class Ledger:
    """Every event that was sent, and whether a client was told that it is stored.

    Any thread may write. It believes answers alone and never looks into the system.
    """

    def __init__(self) -> None:
        self.sent: dict[str, Event] = {}
        self.acknowledged: set[str] = set()
        self.acknowledgements: list[Acknowledgement] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._by_user: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def send(self, events: Iterable[Event]) -> None:
        """These are about to be sent, perhaps not for the first time."""
        with self._lock:
            self.sent.update((event["event_id"], event) for event in events)

    def acknowledge(
        self,
        events: Sequence[Event],
        answer: Mapping[str, Any],
        first_asked_s: float,
        told_s: float,
    ) -> None:
        """These were acknowledged with this answer."""
        offsets = {int(shard): offset for shard, offset in answer["offsets"].items()}
        with self._lock:
            new = [event for event in events if event["event_id"] not in self.acknowledged]
            self.acknowledged.update(event["event_id"] for event in events)
            for event in new:
                self._by_user[event["user_id"]] += 1
            self.acknowledgements.append(Acknowledgement(first_asked_s, told_s, offsets))
            if answer["accepted"] > len(new):
                self.violations.append(
                    f"{answer['accepted']} events accepted of which {len(new)} are new: {answer}"
                )

    def num_acknowledged(self, user_id: str) -> int:
        """Acknowledged events of a user."""
        with self._lock:
            return self._by_user[user_id]

    def acknowledged_after(self, at_s: float) -> list[Acknowledgement]:
        """Batches that were sent for the first time since then, in the order of their answers."""
        with self._lock:
            return [a for a in self.acknowledgements if a.first_asked_s >= at_s]

    def count(self, what: str, number: int = 1) -> None:
        """Count something that happened."""
        with self._lock:
            self.counts[what] += number

    def violated(self, what: str) -> None:
        """A client was told something that cannot be."""
        with self._lock:
            self.violations.append(what)
