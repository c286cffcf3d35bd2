"""The item catalogue as it runs, with a small encoder in place of BERT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from actor_tools import Starter, kill_process, wait_until
from numpy.typing import NDArray

from actors.event_buffer import EventBuffer
from actors.event_buffer_client import EventBufferClient
from actors.item_catalog import Encoder, ItemCatalog
from actors.item_catalog_client import ItemCatalogClient
from actors.item_rows import CatalogRows, ItemRows
from actors.settings import BufferSettings, StorageSettings
from recommender.events import Event, Item

pytestmark = pytest.mark.actor


def length_encoder() -> Callable[[], Encoder]:
    """A factory of encoders whose vector is the length of the text; pickles by value."""

    class LengthEncoder:
        name = "length"

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    return LengthEncoder


async def is_ready(client: Any) -> bool:
    return bool((await client.status()).state == "ready")


async def test_rows_revisions_and_vectors_are_the_same_after_a_kill(
    start: Starter, storage: StorageSettings
) -> None:
    actor = start(ItemCatalog, storage, length_encoder())
    client = ItemCatalogClient(actor, timeout_s=10.0)
    await wait_until(lambda: is_ready(client), 20)
    result = await client.put([Item(f"i-{n}", "x" * n) for n in range(100)])
    await client.put([Item("i-3", "longer text", attributes={"price": 2.5})])
    before = await client.changes_after(0, 5.0)
    await asyncio.to_thread(kill_process, actor)
    await client.status()
    await wait_until(lambda: is_ready(client), 10)
    after = await client.changes_after(100, 5.0)
    whole = await client.changes_after(0, 0.0)
    assert (result.created, result.revision, before.revision) == (100, 100, 101)
    assert after.rows.tolist() == [3]
    assert whole.items == before.items
    assert np.array_equal(whole.vectors, before.vectors)
    assert whole.vectors[3].tolist() == [11.0, 1.0]


async def test_codes_become_rows_also_for_items_that_come_later(
    start: Starter, storage: StorageSettings
) -> None:
    catalog = ItemCatalogClient(start(ItemCatalog, storage, length_encoder()), timeout_s=10.0)
    shard = start(EventBuffer, 0, storage, BufferSettings(num_shards=1))
    buffer = EventBufferClient([shard], timeout_s=10.0)
    await wait_until(lambda: is_ready(catalog), 20)
    await catalog.put([Item("b", "b"), Item("a", "a")])
    items = ["a", "later", "b"]
    await buffer.append(
        [Event(f"e-{n}", "u", item, "click", 1.0, n) for n, item in enumerate(items)]
    )
    boot_id, fresh = await buffer.fresh(0, -1, 10)
    rows = ItemRows(buffer, CatalogRows(catalog))
    assert (await rows.rows(0, boot_id, fresh.items_N)).tolist() == [1, -1, 0]
    await catalog.put([Item("later", "c")])
    mapped_BT = await rows.rows(0, boot_id, fresh.windows.items_BT)
    assert mapped_BT[:, :4].tolist() == [[1, -1, -1, -1], [1, 2, -1, -1], [1, 2, 0, -1]]
