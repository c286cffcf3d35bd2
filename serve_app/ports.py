"""What the replica asks of the actors' clients; a test puts its own in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from actors.messages import (
    AppendResult,
    CatalogChanges,
    CounterSnapshot,
    CounterUpdates,
    Head,
    PutItemsResult,
    UserHistory,
    VersionInfo,
)
from recommender.events import Event, Item


class EventBuffer(Protocol):
    """`actors.event_buffer.EventBufferClient`, as far as serving needs it."""

    async def append(self, events: Sequence[Event]) -> AppendResult:
        """Store events; raises `BufferFull`, `ShardUnavailable` or `StorageError`."""

    async def history(self, user_id: str) -> UserHistory:
        """What a user did, read from the shard; raises `ShardUnavailable`."""


class ItemCatalog(Protocol):
    """`actors.item_catalog.ItemCatalogClient`, as far as serving needs it."""

    async def put(self, items: Sequence[Item]) -> PutItemsResult:
        """Store items and give new ones a row."""

    async def get(self, item_ids: Sequence[str]) -> list[Item | None]:
        """The items as stored, None where there is none."""

    async def changes_after(self, revision: int, wait_s: float) -> CatalogChanges:
        """What changed after a revision; waits up to `wait_s` for something to change."""


class ItemStatistics(Protocol):
    """`actors.item_statistics.ItemStatisticsClient`, as far as serving needs it."""

    async def snapshot(self) -> CounterSnapshot:
        """The whole state of the counters."""

    async def updates_after(self, boot_id: str, sequence: int, wait_s: float) -> CounterUpdates:
        """Events counted after a sequence number; another `boot_id` asks for a new snapshot."""


class ParameterStore(Protocol):
    """`actors.parameter_store.ParameterStoreClient`, as far as serving needs it."""

    async def wait_after(
        self, sequence: int, wait_s: float
    ) -> tuple[Head, Mapping[str, NDArray[Any]]] | None:
        """The head if it moved after `sequence`, within `wait_s`."""

    async def list_versions(self) -> list[VersionInfo]:
        """Every version that is kept."""

    async def promote(self, version: int, reason: str) -> Head:
        """Make a version the head; raises `UnknownVersion`."""

    async def rollback(self, reason: str) -> Head:
        """Make the head's predecessor the head."""
