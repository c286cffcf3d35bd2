"""The client of the event buffer: finds a user's shard, asks all shards at once, names errors."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.asking import ask
from actors.messages import (
    ActorsError,
    AppendResult,
    ShardStatus,
    ShardUnavailable,
    UserHistory,
    Watermark,
)
from actors.naming import event_buffer_name, find_actor
from recommender.events import Event
from recommender.hold_out import EVERYTHING, LeaveOut
from recommender.replay import Strategy
from recommender.windows import FreshEvents, Windows

_PART_EVENTS = 100
"""An event has less than 1 KB, and from 100 KB on an argument goes through shared memory."""


class EventBufferClient:
    """Every call is bounded by `timeout_s`; a shard that does not answer is `ShardUnavailable`."""

    def __init__(self, shards: Sequence[Any], timeout_s: float = 2.0) -> None:
        self._shards = list(shards)
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, num_shards: int, timeout_s: float = 2.0) -> EventBufferClient:
        """A client of the running shards.

        Raises:
            ValueError: If one of them does not exist.
        """
        names = [event_buffer_name(shard) for shard in range(num_shards)]
        return cls([find_actor(name) for name in names], timeout_s)

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def shard_of(self, user_id: str) -> int:
        """The shard a user lives in, the same in every process and for ever."""
        digest = hashlib.blake2b(user_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % len(self._shards)

    async def append(self, events: Sequence[Event]) -> AppendResult:
        """Accept events in their users' shards, all shards at once.

        Not atomic over shards: `failed_shards` says which refused and why. Sending the whole batch
        again is safe.

        Raises:
            ActorsError: The first shard's error, if no shard accepted anything.
        """
        by_shard: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            by_shard[self.shard_of(event.user_id)].append(event)
        answers = await asyncio.gather(
            *(self._ask(shard, "append", *_parts(own)) for shard, own in by_shard.items()),
            return_exceptions=True,
        )
        accepted = duplicates = 0
        offsets: dict[int, int] = {}
        failed: dict[int, ActorsError] = {}
        for shard, answer in zip(by_shard, answers, strict=True):
            match answer:
                case AppendResult():
                    accepted += answer.accepted
                    duplicates += answer.duplicates
                    offsets.update(answer.offsets)
                case ActorsError():
                    failed[shard] = answer
                case _:
                    raise answer
        if failed and not offsets:
            raise next(iter(failed.values()))
        reasons = {shard: f"{type(error).__name__}: {error}" for shard, error in failed.items()}
        return AppendResult(accepted, duplicates, offsets, reasons)

    async def history(self, user_id: str) -> UserHistory:
        """What the user did, with everything acknowledged so far; empty if unknown."""
        answer: UserHistory = await self._ask(
            self.shard_of(user_id), "history", user_id, retry=True
        )
        return answer

    async def fresh(
        self,
        shard: int,
        after_offset: int,
        limit: int,
        wait_s: float = 0.0,
        include_seen: bool = True,
    ) -> tuple[str, FreshEvents]:
        """A shard's boot id and up to `limit` events after an offset, under the shard's codes.

        Waits up to `wait_s` for the first one; empty if there is none.
        """
        answer: tuple[str, FreshEvents] = await self._ask(
            shard, "fresh", after_offset, limit, wait_s, include_seen, wait_s=wait_s, retry=True
        )
        return answer

    async def vocabulary(self, shard: int, num_known: int) -> list[str]:
        """Item ids of a shard by code, from code `num_known` on."""
        answer: list[str] = await self._ask(shard, "vocabulary", num_known, retry=True)
        return answer

    async def sample(
        self,
        n: int,
        strategy: Strategy,
        half_life: float,
        seed: int,
        through: Watermark,
        leave_out: Sequence[LeaveOut] | None = None,
    ) -> list[tuple[int, str, Windows]]:
        """`n` sampled windows as (shard, boot id, windows), none of which ends after `through`.

        Shards come in proportion to their events up to there, and what has come since changes
        nothing. `leave_out` has one for each shard; nothing is left out without it.
        """
        num_events = np.array(through) + 1
        if not num_events.any():
            return []
        shares = num_events / num_events.sum()
        sizes = np.random.default_rng(seed).multinomial(n, shares).tolist()
        rules = leave_out or [EVERYTHING] * len(sizes)
        answers = await asyncio.gather(
            *(
                self._ask(shard, "sample", size, strategy, half_life, seed, rule, last, retry=True)
                for shard, (size, rule, last) in enumerate(zip(sizes, rules, through, strict=True))
            )
        )
        return [
            (shard, boot_id, windows)
            for shard, (boot_id, windows) in enumerate(answers)
            if len(windows)
        ]

    async def statuses(self) -> list[ShardStatus]:
        """How each shard is; one that does not answer has the state `unavailable`."""
        shards = range(len(self._shards))
        return list(await asyncio.gather(*(self._status(shard) for shard in shards)))

    async def recover(self, shard: int) -> ShardStatus:
        """Let a failed shard try to open its folder again."""
        answer: ShardStatus = await self._ask(shard, "recover")
        return answer

    async def _status(self, shard: int) -> ShardStatus:
        try:
            answer: ShardStatus = await self._ask(shard, "status", retry=True)
        except ShardUnavailable as error:
            return ShardStatus(shard, "unavailable", str(error), "", 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return answer

    async def _ask(
        self, shard: int, method: str, *args: Any, wait_s: float = 0.0, retry: bool = False
    ) -> Any:
        timeout_s = self._timeout_s + wait_s
        return await ask(self._shards[shard], method, *args, timeout_s=timeout_s, retry=retry)


def _parts(events: Sequence[Event]) -> list[Sequence[Event]]:
    """The events in parts that Ray sends along with a call, whatever room shared memory has."""
    return [events[first : first + _PART_EVENTS] for first in range(0, len(events), _PART_EVENTS)]
