"""From the item codes of a shard to rows of the catalogue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.event_buffer_client import EventBufferClient
from actors.item_catalog_client import ItemCatalogClient
from recommender.windows import PAD


class CatalogRows:
    """The row of each item id, as far as the catalogue was read; a row never changes."""

    def __init__(self, catalog: ItemCatalogClient) -> None:
        self._catalog = catalog
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row_of(self, item_id: str) -> int:
        """The row of an item, PAD if it has none."""
        return self._rows.get(item_id, PAD)

    async def refresh(self) -> int:
        """Read the rows that are new; how many there were.

        Raises:
            ShardUnavailable: If the catalogue does not answer.
        """
        first = len(self._rows)
        item_ids = await self._catalog.item_ids_from(first)
        # Two refreshes at once read the same rows; neither may count them twice.
        self._rows.update(zip(item_ids, range(first, first + len(item_ids)), strict=True))
        return len(item_ids)


@dataclass
class _ShardCodes:
    """What is known of one shard's codes: the item id of each, and its row (PAD if unknown)."""

    boot_id: str
    item_ids: list[str] = field(default_factory=list)
    rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


class ItemRows:
    """Turns the codes of each shard into catalogue rows.

    A code of an item that entered the catalogue after its first event gets its row as soon as it is
    asked for again.
    """

    def __init__(self, buffer: EventBufferClient, catalog: CatalogRows) -> None:
        self._buffer = buffer
        self._catalog = catalog
        self._shards: dict[int, _ShardCodes] = {}
        self._lock = asyncio.Lock()

    async def rows(self, shard: int, boot_id: str, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows of codes, of any shape; PAD for PAD and for items that are not catalogued.

        Args:
            shard: Whose codes they are.
            boot_id: What came with the codes. Another one than before drops what is remembered.
            codes: int32 codes.

        Raises:
            ShardUnavailable: If the shard or the catalogue does not answer.
        """
        async with self._lock:  # vocabularies are appended to, so one reader at a time
            return await self._rows_of(shard, boot_id, codes)

    async def _rows_of(
        self, shard: int, boot_id: str, codes: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        known = self._shards.get(shard)
        if known is None or known.boot_id != boot_id:
            known = self._shards[shard] = _ShardCodes(boot_id)
        if codes.size and int(codes.max()) >= len(known.item_ids):
            new = await self._buffer.vocabulary(shard, len(known.item_ids))
            known.item_ids.extend(new)
            known.rows = np.concatenate([known.rows, np.full(len(new), PAD, np.int32)])
        used = np.unique(codes[codes != PAD])
        missing = used[known.rows[used] == PAD].tolist()
        if missing and not self._look_up(known, missing) and await self._catalog.refresh():
            self._look_up(known, missing)
        # One more element, so that PAD = -1 finds PAD.
        return np.append(known.rows, np.int32(PAD))[codes]

    def _look_up(self, known: _ShardCodes, codes: list[int]) -> bool:
        """Whether every code has a row now."""
        for code in codes:
            known.rows[code] = self._catalog.row_of(known.item_ids[code])
        return bool((known.rows[codes] != PAD).all())
