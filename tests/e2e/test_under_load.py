"""Swaps of versions and new replicas while requests keep coming: none may fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from live_system import LiveSystem, simulated_stream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@dataclass
class Load:
    """Recommendations and clicks from many users at once, each answer noted."""

    system: LiveSystem
    num_users: int
    statuses: Counter[int] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)
    first_answers: dict[str, tuple[int, int]] = field(default_factory=dict)
    newest: int = 0
    is_over: bool = False

    async def run(self, enough: Callable[[Load], object], timeout_s: float) -> None:
        """Until `enough(self)`, at most `timeout_s`; no retries, so that failures show."""
        async with aiohttp.ClientSession(self.system.url) as session, asyncio.TaskGroup() as group:
            for user in range(self.num_users):
                group.create_task(self._user(session, user))
            group.create_task(self._end_when(enough, timeout_s))

    async def _end_when(self, enough: Callable[[Load], object], timeout_s: float) -> None:
        for _ in range(int(timeout_s / 0.2)):
            if enough(self):
                break
            await asyncio.sleep(0.2)
        self.is_over = True

    async def _user(self, session: aiohttp.ClientSession, user: int) -> None:
        item_ids = [item.item_id for item in simulated_stream().items]
        number = 0
        while not self.is_over:
            number += 1
            click = {
                "event_id": f"load-{id(self)}-{user}-{number}",
                "user_id": f"loader-{user}",
                "item_id": item_ids[(user * 31 + number) % len(item_ids)],
                "event_type": "click",
            }
            await self._send(session, "/v1/events", click)
            await self._send(session, "/v1/recommend", {"user_id": f"loader-{user}"})

    async def _send(self, session: aiohttp.ClientSession, path: str, body: Any) -> None:
        newest_when_sent = self.newest
        async with session.post(path, json=body) as response:
            answer = await response.json()
            self.statuses[response.status] += 1
        if response.status < 400:
            version = answer["model_version"]
            self.versions.add(version)
            self.newest = max(self.newest, version)
            self.first_answers.setdefault(answer["replica"], (version, newest_when_sent))


async def test_twenty_swaps_of_version_fail_no_request(system: LiveSystem) -> None:
    load = Load(system, num_users=3)
    await load.run(lambda run: len(run.versions) > 20, timeout_s=120.0)
    assert len(load.versions) > 20
    assert set(load.statuses) <= {200, 202}, load.statuses
    assert sum(load.statuses.values()) > 500


async def test_a_new_replica_starts_at_the_head_while_requests_keep_coming(
    system: LiveSystem,
) -> None:
    before = system.replicas()
    load = Load(system, num_users=16)
    load.newest = system.model()["model_version"]
    await load.run(lambda run: set(run.first_answers) - before, timeout_s=120.0)
    new = set(load.first_answers) - before
    assert new, f"no replica was added to {before}"
    assert set(load.statuses) <= {200, 202}, load.statuses
    for replica in new:
        version, newest_when_asked = load.first_answers[replica]
        # A version is head a moment before each replica has swapped to it.
        assert version >= newest_when_asked - 1
