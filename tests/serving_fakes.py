"""A replica without Ray: the real service and routes over actors that live in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from actors.messages import (
    AppendResult,
    CatalogChanges,
    CounterSnapshot,
    CounterUpdates,
    Head,
    Manifest,
    PutItemsResult,
    UnknownVersion,
    UserHistory,
    VersionInfo,
)
from recommender.blend import Blend
from recommender.counters import Counters
from recommender.events import Event, Item, feedback_code
from recommender.implicit_factors import ItemFactors
from recommender.model import Recommender
from recommender.settings import BlendSettings, ModelSettings
from serve_app.live_state import LiveState
from serve_app.routes import build_api
from serve_app.service import Clients, RecommenderService
from serve_app.settings import ServingSettings

NOW_MS = 1_764_000_000_000
TEXT_DIM = 6
SMALL_MODEL = ModelSettings(dim=8, num_layers=1, num_heads=2, intermediate=16, window=10)


class FakeActor:
    """Fails every call while `error` is set; hangs while `hanging` is."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hanging = False
        self.num_hanging = 0
        self.changed = asyncio.Condition()

    async def answer(self) -> None:
        if self.hanging:
            self.num_hanging += 1
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)

    async def wait_until(self, is_true: Callable[[], bool], wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s), self.changed:
                await self.changed.wait_for(is_true)
        except TimeoutError:
            return

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class FakeEventBuffer(FakeActor):
    """One shard, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.failed_shards: Mapping[int, str] = {}

    async def append(self, events: Sequence[Event]) -> AppendResult:
        await self.answer()
        known = {event.event_id for event in self.events}
        new = {event.event_id: event for event in reversed(events) if event.event_id not in known}
        self.events += reversed(new.values())
        return AppendResult(
            accepted=len(new),
            duplicates=len(events) - len(new),
            offsets={0: len(self.events) - 1},
            failed_shards=self.failed_shards,
        )

    async def history(self, user_id: str) -> UserHistory:
        await self.answer()
        own = [event for event in self.events if event.user_id == user_id]
        return UserHistory(
            item_ids=tuple(event.item_id for event in own),
            feedback=np.array([feedback_code(e.event_type, e.value) for e in own], np.int8),
            timestamps_ms=np.array([event.timestamp_ms for event in own], np.int64),
            shard=0,
            through_offset=len(self.events) - 1,
        )


class FakeItemCatalog(FakeActor):
    """Every put makes one revision for each new or changed item."""

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__()
        self.items = list(items)
        self.revisions = list(range(1, len(items) + 1))

    async def put(self, items: Sequence[Item]) -> PutItemsResult:
        await self.answer()
        created = updated = 0
        rows = {item.item_id: row for row, item in enumerate(self.items)}
        for item in items:
            revision = max(self.revisions, default=0) + 1
            if item.item_id not in rows:
                self.items.append(item)
                self.revisions.append(revision)
                created += 1
            elif self.items[rows[item.item_id]] != item:
                self.items[rows[item.item_id]] = item
                self.revisions[rows[item.item_id]] = revision
                updated += 1
        await self.notify()
        return PutItemsResult(
            created, updated, len(items) - created - updated, self.revision, len(self.items)
        )

    async def get(self, item_ids: Sequence[str]) -> list[Item | None]:
        await self.answer()
        by_id = {item.item_id: item for item in self.items}
        return [by_id.get(item_id) for item_id in item_ids]

    async def changes_after(self, revision: int, wait_s: float) -> CatalogChanges:
        await self.answer()
        if revision:
            await self.wait_until(lambda: self.revision > revision, wait_s)
        rows = [row for row, own in enumerate(self.revisions) if own > revision]
        return CatalogChanges(
            revision=self.revision,
            num_items=len(self.items),
            rows=np.array(rows, np.int64),
            items=tuple(self.items[row] for row in rows),
            vectors=text_vectors([self.items[row] for row in rows]),
        )

    @property
    def revision(self) -> int:
        return max(self.revisions, default=0)


class FakeItemStatistics(FakeActor):
    """Counts what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.boot_id = "boot-1"
        self.rows: list[int] = []
        self.acknowledged_ms = NOW_MS

    async def count(self, *rows: int) -> None:
        self.rows += rows
        await self.notify()

    async def snapshot(self) -> CounterSnapshot:
        await self.answer()
        counters = Counters(SMALL_MODEL.half_lives)
        counters.update(np.array(self.rows, np.int32), np.zeros((len(self.rows), 0), np.int32))
        return CounterSnapshot(self.boot_id, len(self.rows), counters.state(), *self.through())

    async def updates_after(self, boot_id: str, sequence: int, wait_s: float) -> CounterUpdates:
        await self.answer()
        if boot_id == self.boot_id:
            await self.wait_until(lambda: len(self.rows) > sequence, wait_s)
        rows = np.array(self.rows[sequence:], np.int32)
        return CounterUpdates(
            self.boot_id,
            len(self.rows),
            rows,
            np.zeros((len(rows), 0), np.int32),
            *self.through(),
        )

    def through(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (len(self.rows) - 1,), (self.acknowledged_ms if self.rows else 0,)


class FakeParameterStore(FakeActor):
    """Versions in a list; the head is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[tuple[Manifest, Mapping[str, NDArray[Any]]]] = []
        self.head: Head | None = None

    async def publish(
        self,
        catalog: FakeItemCatalog,
        trained_through: int = -1,
        factors: ItemFactors | None = None,
    ) -> Manifest:
        """Train nothing, but make the version that it would give."""
        items = catalog.items
        model = Recommender(SMALL_MODEL, text_vectors(items), seed=len(self.versions))
        blend = Blend(BlendSettings())
        manifest = Manifest(
            version=len(self.versions) + 1,
            parent=len(self.versions),
            created_ms=NOW_MS,
            trained_through=(trained_through,),
            num_items=len(items),
            step=0,
            reason="round",
            settings={"model": SMALL_MODEL.model_dump(mode="json")},
            metrics={"ndcg_at_10": 0.1, "loss": float("nan")},
        )
        payload = {
            **{f"model.{name}": array for name, array in model.export_state().items()},
            **{f"blend.{name}": array for name, array in blend.state().items()},
        }
        if factors is not None:
            payload |= {f"ials.{name}": array for name, array in factors.state().items()}
        self.versions.append((manifest, payload))
        await self.move(manifest.version, "published")
        return manifest

    async def wait_after(
        self, sequence: int, wait_s: float
    ) -> tuple[Head, Mapping[str, NDArray[Any]]] | None:
        await self.answer()
        await self.wait_until(
            lambda: self.head is not None and self.head.sequence > sequence, wait_s
        )
        if self.head is None or self.head.sequence <= sequence:
            return None
        return self.head, self.versions[self.head.manifest.version - 1][1]

    async def list_versions(self) -> list[VersionInfo]:
        await self.answer()
        head = 0 if self.head is None else self.head.manifest.version
        return [VersionInfo(m, m.version == head, False, 100) for m, _ in self.versions]

    async def promote(self, version: int, reason: str) -> Head:
        await self.answer()
        if not 1 <= version <= len(self.versions):
            raise UnknownVersion(f"no version {version}")
        if self.head is not None and version == self.head.manifest.version:
            return self.head
        return await self.move(version, reason)

    async def rollback(self, reason: str) -> Head:
        await self.answer()
        version = 0 if self.head is None else self.head.manifest.version - 1
        return await self.promote(version, reason)

    async def move(self, version: int, reason: str) -> Head:
        """Make a version the head, also if it is: its arrays may have been changed."""
        sequence = 1 if self.head is None else self.head.sequence + 1
        self.head = Head(sequence, self.versions[version - 1][0], reason)
        await self.notify()
        return self.head


class FakeActors:
    """The four of them."""

    def __init__(self, items: Sequence[Item] = ()) -> None:
        self.buffer = FakeEventBuffer()
        self.catalog = FakeItemCatalog(items)
        self.statistics = FakeItemStatistics()
        self.store = FakeParameterStore()

    async def catalog_grows(self) -> None:
        """As if another replica had put an item."""
        self.catalog.items.append(film(len(self.catalog.items)))
        self.catalog.revisions.append(self.catalog.revision + 1)
        await self.catalog.notify()

    def followed(self) -> list[FakeActor]:
        return [self.catalog, self.statistics, self.store]


def film(number: int) -> Item:
    """Films 0, 2, 4 ... are comedies, the others dramas."""
    category = "drama" if number % 2 else "comedy"
    return Item(f"film-{number}", f"A {category} of {number}", f"Film {number}", (category,))


def films(number: int) -> list[Item]:
    return [film(index) for index in range(number)]


def text_vectors(items: Sequence[Item]) -> NDArray[np.float32]:
    """Stands for BERT: items of a category are near each other."""
    vectors = np.zeros((len(items), TEXT_DIM), np.float32)
    for row, item in enumerate(items):
        noise = np.random.default_rng(abs(hash_of(item.text))).normal(size=TEXT_DIM)
        vectors[row] = 0.3 * noise
        vectors[row, 0] += 3.0 if "comedy" in item.text else -3.0
    return vectors


def hash_of(text: str) -> int:
    return sum((place + 1) * ord(char) for place, char in enumerate(text))


def event(number: int, **changes: Any) -> dict[str, Any]:
    """A valid event body."""
    return {
        "event_id": f"e-{number}",
        "user_id": "anna",
        "item_id": f"film-{number % 12}",
        "event_type": "click",
        "timestamp_ms": NOW_MS - 1_000_000 + number,
        **changes,
    }


def service_over(actors: FakeActors, **changes: Any) -> RecommenderService:
    """A service that follows these actors once it is started; `changes` are serving settings."""
    return RecommenderService(
        LiveState(SMALL_MODEL, BlendSettings(), num_shards=1),
        Clients(actors.buffer, actors.catalog, actors.statistics, actors.store),
        ServingSettings(**changes),
        now_ms=lambda: NOW_MS,
    )


@asynccontextmanager
async def replica(
    actors: FakeActors, **changes: Any
) -> AsyncIterator[tuple[RecommenderService, httpx.AsyncClient]]:
    """A running replica that is ready, and a client of it."""
    service = service_over(actors, **changes)
    transport = httpx.ASGITransport(build_api(service))
    service.follower.start()  # ASGITransport runs no lifespan
    try:
        await eventually(lambda: service.follower.is_ready)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            yield service, client
    finally:
        await service.follower.stop()


async def eventually(is_true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Return when it is true; fail if it does not come true in time."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not is_true():
        assert asyncio.get_running_loop().time() < deadline_s, "it did not come true in time"
        await asyncio.sleep(0.002)
