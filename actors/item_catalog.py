"""The item catalogue: durable items, a row for each, and the vector of its text."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from actors.durable_files import require_free_space
from actors.high_water import HighWater
from actors.item_log import (
    ITEM_SCHEMA,
    AppendOnlyFile,
    VectorCache,
    item_batch,
    items_of,
    vector_key,
)
from actors.item_table import ItemTable
from actors.long_poll import LongPoll
from actors.messages import CatalogChanges, PutItemsResult, StorageError
from actors.opening import Opening
from actors.settings import StorageSettings
from actors.storage_folder import StorageFolder
from recommender.events import Item

logger = logging.getLogger(__name__)

_ENCODE_ITEMS = 64
_ENCODING_WAIT_S = 1.0
_ENCODING_RETRY_S = 5.0


class Encoder(Protocol):
    """`recommender.text_encoder.TextEncoder`, as far as the catalogue needs it."""

    name: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32 [N, dim]."""


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    """How the catalogue is: `state` as in `ShardStatus`; `reason` also says why encoding fails."""

    state: str
    reason: str
    boot_id: str
    revision: int
    num_items: int
    num_pending: int
    encoder: str
    memory_bytes: int
    cut_bytes: int


@dataclass(frozen=True)
class Catalog:
    """The opened catalogue."""

    folder: StorageFolder
    log: AppendOnlyFile
    cache: VectorCache
    cached: dict[str, NDArray[np.float32]]
    table: ItemTable


class ItemCatalog:
    """Keeps items and gives each a dense row that never changes.

    Promises that what `put` accepted is on disk, and that an item is visible to followers together
    with its text vector, never without. Texts are encoded in the background, on a thread; a restart
    takes the vectors from disk. Rows and revisions are the same after a restart.
    """

    def __init__(self, storage: StorageSettings, encoder_factory: Callable[[], Encoder]) -> None:
        """Begin to open the folder.

        Args:
            storage: Where items and vectors are kept.
            encoder_factory: Makes the text encoder, when the first text has to be encoded.
        """
        self.boot_id = uuid.uuid4().hex
        self._data_dir = Path(storage.data_dir)
        self._installation = storage.installation
        self._min_free_bytes = storage.min_free_bytes
        self._encoder_factory = encoder_factory
        self._encoder: Encoder | None = None
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")
        self._encoding: asyncio.Task[None] | None = None
        self._encoding_failure = ""
        self._putting = asyncio.Lock()
        self._shown = LongPoll()
        self._opening = Opening("item catalogue", self._open)

    async def recover(self) -> CatalogStatus:
        """Try again to open a catalogue that failed to; does nothing to one that is well."""
        if self._opening.state()[0] == "failed":
            self._opening.again()
        return await self.status()

    async def put(self, items: Sequence[Item]) -> PutItemsResult:
        """Accept items; returns once they are on disk, and visible unless that takes over a second.

        Raises:
            ShardUnavailable: If the catalogue is recovering or failed.
            StorageFull: If too little disk space is left.
            StorageError: If the write failed; then none of the items was accepted.
            ValueError: If a text is not valid Unicode.
        """
        catalog = await self._ready()
        table = catalog.table
        async with self._putting:
            changed, num_new = table.new_or_changed(items)
            if changed:
                require_free_space(self._data_dir, self._min_free_bytes)
                await self._opening.write(_append, catalog, changed)
                table.accept(changed)
            target = table.num_changes
        self._encode_in_background(catalog)
        await self._shown.wait_until(lambda: table.revision >= target, _ENCODING_WAIT_S)
        return PutItemsResult(
            created=num_new,
            updated=len(changed) - num_new,
            unchanged=len(items) - len(changed),
            revision=table.revision,
            num_items=table.num_items,
        )

    async def get(self, item_ids: Sequence[str]) -> list[Item | None]:
        """The items as accepted last, None where there is none."""
        table = (await self._ready()).table
        return [table.get(item_id) for item_id in item_ids]

    async def changes_after(self, revision: int, wait_s: float = 0.0) -> CatalogChanges:
        """What became visible after a revision; waits up to `wait_s` for something."""
        table = (await self._ready()).table
        await self._shown.wait_until(lambda: table.revision > revision, wait_s)
        return table.changes_after(revision)

    async def item_ids_from(self, row: int) -> list[str]:
        """Item ids of the rows from `row` on, also of those whose text is not encoded yet."""
        return (await self._ready()).table.ids_from(row)

    async def status(self) -> CatalogStatus:
        """How the catalogue is; answers in every state."""
        state, reason = self._opening.state()
        catalog = self._opening.opened
        if catalog:
            self._encode_in_background(catalog)
        return CatalogStatus(
            state=state,
            reason=reason or self._encoding_failure,
            boot_id=self.boot_id,
            revision=catalog.table.revision if catalog else 0,
            num_items=catalog.table.num_items if catalog else 0,
            num_pending=catalog.table.num_pending if catalog else 0,
            encoder=self._encoder.name if self._encoder else "",
            memory_bytes=psutil.Process().memory_info().rss,
            cut_bytes=catalog.log.cut_bytes if catalog else 0,
        )

    async def close(self) -> None:
        """Stop encoding and give the folder back; the end of the catalogue."""
        if self._encoding:
            self._encoding.cancel()
            await asyncio.wait([self._encoding])
        self._encoder_thread.shutdown()
        self._opening.shutdown()
        if catalog := self._opening.opened:
            catalog.log.close()
            catalog.cache.close()
            catalog.folder.close()

    def _open(self) -> Catalog:
        """Claim the folder and read it. Runs on the writer thread."""
        folder = StorageFolder.claim(self._data_dir, "items", {}, installation=self._installation)
        try:
            log = AppendOnlyFile(
                folder.path / "items.arrow",
                ITEM_SCHEMA,
                folder.epoch,
                HighWater(folder.path / "high_water.json"),
            )
            table = ItemTable()
            for batch in log.open():
                table.accept(items_of(batch))
            cache = VectorCache(folder.path / "vectors.arrow")
            catalog = Catalog(folder, log, cache, cache.read(), table)
        except BaseException:
            folder.close()
            raise
        logger.info("catalogue opened items=%d cut_bytes=%d", table.num_items, log.cut_bytes)
        return catalog

    async def _ready(self) -> Catalog:
        catalog = await self._opening.ready()
        self._encode_in_background(catalog)
        return catalog

    def _encode_in_background(self, catalog: Catalog) -> None:
        is_running = self._encoding is not None and not self._encoding.done()
        if catalog.table.num_pending and not is_running:
            self._encoding = asyncio.create_task(self._encode_all(catalog))

    async def _encode_all(self, catalog: Catalog) -> None:
        """Encode and show what is pending, in order, until nothing is."""
        while items := catalog.table.next_pending(_ENCODE_ITEMS):
            try:
                vectors_ND = await self._encode(catalog, items)
            except Exception as error:  # the model may fail in any way; items wait, status says so
                logger.exception("encoding failed")
                self._encoding_failure = f"encoding failed: {error}"
                await asyncio.sleep(_ENCODING_RETRY_S)
                continue
            self._encoding_failure = ""
            catalog.table.show(vectors_ND)
            self._shown.notify()
            await asyncio.sleep(0)  # vectors from disk take no other pause
        catalog.cached.clear()  # from here on the table has them all

    async def _encode(self, catalog: Catalog, items: Sequence[Item]) -> NDArray[np.float32]:
        """The vectors of the items' texts: those already shown, those on disk, then new ones.

        Raises:
            ValueError: If the encoder gave a vector that is not finite.
        """
        loop = asyncio.get_running_loop()
        if self._encoder is None:
            self._encoder = await loop.run_in_executor(self._encoder_thread, self._encoder_factory)
        encoder = self._encoder
        keys = [vector_key(encoder.name, item.text) for item in items]
        vectors: dict[str, NDArray[np.float32]] = {}
        texts: dict[str, str] = {}
        for key, item in zip(keys, items, strict=True):
            vector = catalog.cached.get(key)
            if vector is None:
                vector = catalog.table.visible_vector(item)
            if vector is None:
                texts[key] = item.text
            else:
                vectors[key] = vector
        if texts:
            encoded_ND = await loop.run_in_executor(
                self._encoder_thread, encoder.encode, list(texts.values())
            )
            _check_finite(encoded_ND, encoder.name)
            vectors.update(zip(texts, encoded_ND, strict=True))
            await self._keep(catalog, texts, encoded_ND)
        return np.stack([vectors[key] for key in keys])

    async def _keep(
        self, catalog: Catalog, keys: Mapping[str, str], vectors_ND: NDArray[np.float32]
    ) -> None:
        try:
            require_free_space(self._data_dir, self._min_free_bytes, vectors_ND.nbytes)
            await self._opening.write(catalog.cache.add, list(keys), vectors_ND)
        except StorageError as error:
            # Only a cache: a restart encodes these again.
            logger.warning("text vectors not kept error=%s", error)


def _append(catalog: Catalog, items: Sequence[Item]) -> None:
    catalog.folder.check_is_ours()
    catalog.log.append(item_batch(items))


def _check_finite(vectors_ND: NDArray[np.float32], encoder: str) -> None:
    """One vector that is not finite would spoil the moments that all texts are standardised by."""
    num_bad = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {len(vectors_ND)} text vectors of {encoder} are not finite")
