from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from storage_fakes import FailingFsync, LengthEncoder, fast_and_patient

from actors import item_catalog
from actors.item_catalog import Encoder, ItemCatalog
from actors.messages import CatalogChanges, ShardUnavailable, StorageError
from actors.settings import StorageSettings
from recommender.events import Item

Open = Callable[..., ItemCatalog]


@pytest.fixture
async def open_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    fast_and_patient(monkeypatch)
    opened: list[ItemCatalog] = []

    def open_it(encoder: Encoder | None = None) -> ItemCatalog:
        storage = StorageSettings(data_dir=tmp_path, min_free_bytes=0)
        chosen = encoder or LengthEncoder()
        catalog = ItemCatalog(storage, lambda: chosen)
        opened.append(catalog)
        return catalog

    yield open_it
    for catalog in opened:
        await catalog.close()


def items(*numbers: int) -> list[Item]:
    return [Item(f"i-{n}", "x" * n, categories=("c",), attributes={"n": n}) for n in numbers]


class BrokenEncoder(LengthEncoder):
    """Fails as often as it is told to."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError("out of memory")
        return super().encode(texts)


class DizzyEncoder(LengthEncoder):
    """The first of each batch of texts gets a number that is none, as often as it is told to."""

    def __init__(self, num_times: int, value: float = np.nan) -> None:
        super().__init__()
        self.num_times = num_times
        self.value = value

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors_ND = super().encode(texts)
        if self.num_times:
            self.num_times -= 1
            vectors_ND[0, 1] = self.value
        return vectors_ND


async def test_put_gives_dense_rows_in_order_and_vectors_of_the_texts(open_catalog: Open) -> None:
    catalog = open_catalog()
    result = await catalog.put(items(3, 1, 2))
    assert (result.created, result.updated, result.unchanged) == (3, 0, 0)
    assert (result.revision, result.num_items) == (3, 3)
    changes = await catalog.changes_after(0)
    assert changes.rows.tolist() == [0, 1, 2]
    assert list(changes.items) == items(3, 1, 2)
    assert changes.vectors.tolist() == [[3, 1], [1, 1], [2, 1]]
    assert await catalog.get(["i-1", "none"]) == [*items(1), None]
    assert await catalog.item_ids_from(1) == ["i-1", "i-2"]


async def test_unchanged_items_cost_nothing(
    open_catalog: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LengthEncoder()
    catalog = open_catalog(encoder)
    first = await catalog.put(items(1, 2))
    fsync = FailingFsync(monkeypatch)
    again = await catalog.put(items(1, 2))
    assert (again.created, again.updated, again.unchanged) == (0, 0, 2)
    assert again.revision == first.revision
    assert (fsync.num_calls, encoder.num_encoded) == (0, 2)


async def test_a_changed_item_keeps_its_row_and_the_same_text_is_not_encoded_again(
    open_catalog: Open,
) -> None:
    encoder = LengthEncoder()
    catalog = open_catalog(encoder)
    await catalog.put(items(1, 2))
    result = await catalog.put([Item("i-2", "xx", title="new title"), Item("i-2", "longer")])
    assert (result.created, result.updated) == (0, 2)
    changes = await catalog.changes_after(2)
    assert changes.rows.tolist() == [1]
    assert changes.items[0].text == "longer"
    assert changes.vectors[0, 0] == 6
    assert (changes.num_items, changes.revision, encoder.num_encoded) == (2, 4, 3)


async def test_a_restart_keeps_rows_and_revisions_and_encodes_nothing(open_catalog: Open) -> None:
    catalog = open_catalog()
    await catalog.put(items(*range(200)))
    await catalog.put([Item("i-5", "changed")])
    before = await all_changes(catalog, 201)
    await catalog.close()
    encoder = LengthEncoder()
    catalog = open_catalog(encoder)
    after = await all_changes(catalog, 201)
    assert (after.revision, after.items) == (before.revision, before.items)
    assert np.array_equal(after.vectors, before.vectors)
    assert encoder.num_encoded == 0
    result = await catalog.put(items(500))
    assert (result.created, result.num_items) == (1, 201)


async def test_another_encoder_encodes_everything_again(open_catalog: Open) -> None:
    catalog = open_catalog()
    await catalog.put(items(1, 2))
    await catalog.close()
    encoder = LengthEncoder("another")
    await all_changes(open_catalog(encoder), 2)
    assert encoder.num_encoded == 2


async def test_a_damaged_cache_of_vectors_is_made_again(open_catalog: Open, tmp_path: Path) -> None:
    catalog = open_catalog()
    await catalog.put(items(1))
    await catalog.put(items(2))
    await catalog.close()
    path = tmp_path / "items" / "vectors.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    catalog = open_catalog()
    assert (await all_changes(catalog, 2)).vectors[:, 0].tolist() == [1.0, 2.0]


async def test_damaged_items_are_refused(open_catalog: Open, tmp_path: Path) -> None:
    catalog = open_catalog()
    await catalog.put(items(1))
    await catalog.put(items(2))
    await catalog.close()
    path = tmp_path / "items" / "items.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    catalog = open_catalog()
    with pytest.raises(ShardUnavailable, match=r"items\.arrow"):
        await catalog.put(items(3))
    assert (await catalog.status()).state == "failed"


async def test_a_failed_write_accepts_nothing(
    open_catalog: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog()
    await catalog.put(items(1))
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next = 1
    with pytest.raises(StorageError):
        await catalog.put(items(2))
    assert await catalog.get(["i-2"]) == [None]
    assert (await catalog.put(items(2))).created == 1
    await catalog.close()
    assert (await open_catalog().get(["i-1", "i-2"])) == items(1, 2)


async def test_an_item_waits_for_an_encoder_that_fails_and_the_status_says_so(
    open_catalog: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_catalog, "_ENCODING_RETRY_S", 0.2)
    monkeypatch.setattr(item_catalog, "_ENCODING_WAIT_S", 0.05)
    catalog = open_catalog(BrokenEncoder(1))
    result = await catalog.put(items(1))
    status = await catalog.status()
    assert (result.revision, status.num_pending, status.num_items) == (0, 1, 1)
    assert "out of memory" in status.reason
    assert await catalog.get(["i-1"]) == items(1)
    changes = await catalog.changes_after(0, wait_s=10.0)
    assert changes.rows.tolist() == [0]
    assert (await catalog.status()).reason == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_text_vector_that_is_not_finite_is_neither_shown_nor_kept(
    open_catalog: Open, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(item_catalog, "_ENCODING_RETRY_S", 0.2)
    monkeypatch.setattr(item_catalog, "_ENCODING_WAIT_S", 0.05)
    catalog = open_catalog(DizzyEncoder(1, value))
    result = await catalog.put(items(1, 2))
    assert (result.revision, (await catalog.status()).num_pending) == (0, 2)
    assert "1 of 2 text vectors of length are not finite" in (await catalog.status()).reason
    assert (await all_changes(catalog, 2)).vectors.tolist() == [[1, 1], [2, 1]]
    assert (await catalog.status()).reason == ""


async def test_a_text_vector_on_disk_that_is_not_finite_is_made_again(
    open_catalog: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unchecked:
        unchecked.setattr(item_catalog, "_check_finite", lambda *_: None)
        catalog = open_catalog(DizzyEncoder(1))
        await catalog.put(items(1, 2))
        await all_changes(catalog, 2)
        await catalog.close()
    encoder = LengthEncoder()
    catalog = open_catalog(encoder)
    assert (await all_changes(catalog, 2)).vectors.tolist() == [[1, 1], [2, 1]]
    assert encoder.num_encoded == 1


async def test_a_wait_for_changes_is_bounded(open_catalog: Open) -> None:
    catalog = open_catalog()
    changes = await catalog.changes_after(0, wait_s=0.02)
    assert (changes.revision, changes.num_items, len(changes.rows)) == (0, 0, 0)


async def all_changes(catalog: ItemCatalog, revision: int) -> CatalogChanges:
    """Everything, once the catalogue is at a revision."""
    assert (await catalog.changes_after(revision - 1, wait_s=10.0)).revision == revision
    return await catalog.changes_after(0)
