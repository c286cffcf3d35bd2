"""Actors as plain objects in this process, found by name and asked as their clients ask Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from storage_fakes import LengthEncoder, fast_and_patient

from actors import event_buffer_client, item_catalog_client
from actors.event_buffer import EventBuffer, wall_clock_ms
from actors.item_catalog import Encoder, ItemCatalog
from actors.messages import ShardUnavailable
from actors.naming import ITEM_CATALOG, event_buffer_name
from actors.settings import BufferSettings, StorageSettings
from recommender.events import Event, Item


class LocalActor:
    """A handle of an object in this process, which may be out of reach or slow."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.is_away = False
        self.is_released = asyncio.Event()
        self.is_released.set()

    def __getattr__(self, method: str) -> _Method:
        return _Method(self, method)


class _Method:
    def __init__(self, handle: LocalActor, method: str) -> None:
        self._handle = handle
        self._method = method

    def remote(self, *args: Any) -> Coroutine[Any, Any, Any]:
        return self._call(args)

    async def _call(self, args: tuple[Any, ...]) -> Any:
        if self._handle.is_away:
            raise ShardUnavailable("away on purpose")
        await self._handle.is_released.wait()
        return await getattr(self._handle.actor, self._method)(*args)


class Storage:
    """Shards and a catalogue in a folder, over which the clients' `connect` works."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        num_shards: int = 2,
        window: int = 3,
        recent_window: int = 1_000,
        encoder: Callable[[], Encoder] = LengthEncoder,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        fast_and_patient(monkeypatch)
        storage = StorageSettings(data_dir=folder, min_free_bytes=0)
        settings = BufferSettings(num_shards=num_shards, recent_window=recent_window)
        self.shards = [
            LocalActor(EventBuffer(shard, storage, settings, window=window, now_ms=now_ms))
            for shard in range(num_shards)
        ]
        self.catalog = LocalActor(ItemCatalog(storage, encoder))
        self._actors = {event_buffer_name(n): shard for n, shard in enumerate(self.shards)}
        self._actors[ITEM_CATALOG] = self.catalog
        for module in (event_buffer_client, item_catalog_client):
            monkeypatch.setattr(module, "find_actor", self._actors.__getitem__)

    async def put(self, *item_ids: str) -> None:
        """Put items; the text of each is its id."""
        await self.catalog.actor.put([Item(item_id, item_id) for item_id in item_ids])

    async def append(self, shard: int, events: Sequence[Event]) -> None:
        """Append to a shard of the test's choice, whoever the user is."""
        await self.shards[shard].actor.append(events)

    async def close(self) -> None:
        """Give the folders back."""
        for handle in (*self.shards, self.catalog):
            await handle.actor.close()


def clicks(first: int, *item_ids: str, user: str = "u") -> list[Event]:
    """One click for each item, numbered from `first` on."""
    return [
        Event(f"e-{user}-{number}", user, item_id, "click", 1.0, 1_000 * number)
        for number, item_id in enumerate(item_ids, start=first)
    ]
