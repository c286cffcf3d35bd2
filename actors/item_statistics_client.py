"""The client of ItemStatistics."""

from __future__ import annotations

from typing import Any

from actors.asking import ask
from actors.messages import CounterSnapshot, CounterUpdates
from actors.naming import ITEM_STATISTICS, find_actor


class ItemStatisticsClient:
    """Asks the counters, every wait bounded."""

    def __init__(self, actor: Any, timeout_s: float) -> None:
        self._actor = actor
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, timeout_s: float) -> ItemStatisticsClient:
        """A client of the running actor.

        Raises:
            ValueError: If there is none.
        """
        return cls(find_actor(ITEM_STATISTICS), timeout_s)

    async def snapshot(self) -> CounterSnapshot:
        """The whole state, for a new follower."""
        answer: CounterSnapshot = await ask(
            self._actor, "snapshot", timeout_s=self._timeout_s, retry=True
        )
        return answer

    async def updates_after(self, boot_id: str, sequence: int, wait_s: float) -> CounterUpdates:
        """What was counted after `sequence`; an empty `boot_id` asks for a snapshot."""
        answer: CounterUpdates = await ask(
            self._actor,
            "updates_after",
            boot_id,
            sequence,
            wait_s,
            timeout_s=self._timeout_s + wait_s,
            retry=True,
        )
        return answer

    async def status(self) -> dict[str, Any]:
        """State in words and numbers."""
        answer: dict[str, Any] = await ask(
            self._actor, "status", timeout_s=self._timeout_s, retry=True
        )
        return answer
