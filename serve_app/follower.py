"""Keeps a replica's state up to date: three tasks that pull, each from one actor.

Pulled and not pushed: Serve marks a replica unready while it is reconfigured, and no call of its
own reaches every replica. A task never ends by itself. Whatever an actor does, the replica goes on
with the last good state, counts the failure, and asks again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve_app.live_state import CatalogBehind, LiveState
from serve_app.ports import ItemCatalog, ItemStatistics, ParameterStore

logger = logging.getLogger(__name__)

CATALOG, COUNTERS, HEAD = "catalog", "counters", "head"
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class FollowState:
    """How following one actor goes. `updated_s` is `time.monotonic()` of the last answer."""

    caught_up: bool = False
    failures: int = 0
    failures_in_a_row: int = 0
    updated_s: float = 0.0
    last_error: str = ""


class SnapshotFollower:
    """Follows catalogue, counters and head. Start it once, inside the replica's event loop."""

    def __init__(
        self,
        state: LiveState,
        *,
        catalog: ItemCatalog,
        statistics: ItemStatistics,
        store: ParameterStore,
        wait_s: float = 5.0,
        on_failure: Callable[[str], None] = lambda _: None,
        on_model: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`wait_s` bounds each long poll; the two callbacks are told a follow's name, a version."""
        self.follows = {name: FollowState() for name in (CATALOG, COUNTERS, HEAD)}
        self._state = state
        self._catalog = catalog
        self._statistics = statistics
        self._store = store
        self._wait_s = wait_s
        self._on_failure = on_failure
        self._on_model = on_model
        self._tasks: list[asyncio.Task[None]] = []
        self._caught_up = asyncio.Event()
        self._catalog_grew = asyncio.Condition()

    @property
    def is_ready(self) -> bool:
        """Whether catalogue and counters have caught up once. A head is not needed to answer."""
        return self.follows[CATALOG].caught_up and self.follows[COUNTERS].caught_up

    @property
    def knows_items(self) -> bool:
        """Whether the catalogue has caught up once; before that no history can be read."""
        return self.follows[CATALOG].caught_up

    @property
    def is_alive(self) -> bool:
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def counters_behind(self) -> bool:
        """Whether the counters could not be followed at the last attempt."""
        return self.follows[COUNTERS].failures_in_a_row > 0

    def start(self) -> None:
        steps = {
            CATALOG: self._follow_catalog,
            COUNTERS: self._follow_counters,
            HEAD: self._follow_head,
        }
        for name, step in steps.items():
            task = asyncio.create_task(self._repeat(name, step), name=f"follow-{name}")
            self._tasks.append(task)

    async def stop(self) -> None:
        """End the tasks, whatever they are waiting for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def wait_until_caught_up(self, timeout_s: float) -> bool:
        """Whether all three had caught up once in time, the head too if there is one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._caught_up.wait()
        except TimeoutError:
            logger.warning("not caught up after seconds=%.1f", timeout_s)
        return self._caught_up.is_set()

    async def wait_for_revision(self, revision: int, timeout_s: float) -> bool:
        """Whether the catalogue here reached `revision` in time."""
        try:
            async with asyncio.timeout(timeout_s), self._catalog_grew:
                await self._catalog_grew.wait_for(lambda: self._state.catalog.revision >= revision)
        except TimeoutError:
            return False
        return True

    async def _repeat(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        follow = self.follows[name]
        while True:
            try:
                await step()
            except CatalogBehind:
                await self.wait_for_revision(self._state.catalog.revision + 1, _LONGEST_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - a dead task would freeze what is served
                await self._survive(name, error)
            else:
                follow.caught_up = True
                follow.failures_in_a_row = 0
                follow.last_error = ""
                follow.updated_s = time.monotonic()
                if all(each.caught_up for each in self.follows.values()):
                    self._caught_up.set()

    async def _survive(self, name: str, error: Exception) -> None:
        follow = self.follows[name]
        follow.failures += 1
        follow.failures_in_a_row += 1
        follow.last_error = type(error).__name__
        self._on_failure(name)
        logger.warning(
            "follow failed what=%s in_a_row=%d error=%r", name, follow.failures_in_a_row, error
        )
        await asyncio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**follow.failures_in_a_row))

    def _patience_s(self, name: str) -> float:
        """No long poll at first and after a failure: that an actor answers at all is news then."""
        follow = self.follows[name]
        return self._wait_s if follow.caught_up and not follow.failures_in_a_row else 0.0

    async def _follow_catalog(self) -> None:
        changes = await self._catalog.changes_after(
            self._state.catalog.revision, self._patience_s(CATALOG)
        )
        self._state.apply_catalog(changes)
        async with self._catalog_grew:
            self._catalog_grew.notify_all()

    async def _follow_counters(self) -> None:
        state = self._state
        if not state.counters_boot_id:
            state.apply_snapshot(await self._statistics.snapshot())
            return
        updates = await self._statistics.updates_after(
            state.counters_boot_id, state.counters_sequence, self._patience_s(COUNTERS)
        )
        if updates.boot_id != state.counters_boot_id:
            logger.info("counters restarted, taking them as a whole")
            state.apply_snapshot(await self._statistics.snapshot())
        else:
            state.apply_updates(updates)

    async def _follow_head(self) -> None:
        news = await self._store.wait_after(self._state.head_sequence, self._patience_s(HEAD))
        if news is None:
            return
        head, payload = news
        model = await asyncio.to_thread(self._state.build_model, head, payload)
        self._state.apply_model(model)
        self._on_model(head.manifest.version)
        logger.info("serving version=%d sequence=%d", head.manifest.version, head.sequence)
