import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_fakes import FailingFsync, fast_and_patient

from actors.messages import Manifest, StorageError, UnknownVersion, VersionInfo, VersionRefused
from actors.parameter_store import ParameterStore
from actors.settings import StorageSettings, StoreSettings

Open = Callable[[], ParameterStore]


@pytest.fixture
async def open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    fast_and_patient(monkeypatch)
    opened: list[ParameterStore] = []

    def open_it() -> ParameterStore:
        storage = StorageSettings(data_dir=tmp_path, min_free_bytes=0)
        store = ParameterStore(storage, StoreSettings(keep_versions=2), put=dict)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        await store.close()


def manifest() -> Manifest:
    return Manifest(0, 0, 1, (0,), num_items=1, step=1, reason="trained")


async def arrays(value: float) -> dict[str, Any]:
    return {"w": np.full(3, value)}


async def publish(store: ParameterStore, value: float, promote: bool = True) -> VersionInfo:
    return await store.publish(manifest(), [arrays(value), arrays(-value)], promote)


async def served(store: ParameterStore) -> tuple[int, float]:
    answer = await store.wait_after(-1, 1.0)
    assert answer is not None
    head, [payload] = answer
    return head.manifest.version, float(payload["w"][0])


def versions(infos: list[VersionInfo]) -> list[int]:
    return [info.manifest.version for info in infos]


async def test_a_published_version_is_served_and_an_unpromoted_one_is_not(
    open_store: Open,
) -> None:
    store = open_store()
    assert await store.wait_after(0, 0.0) is None
    assert (await publish(store, 1.0)).is_head
    assert not (await publish(store, 2.0, promote=False)).is_head
    assert await served(store) == (1, 1.0)
    head = await store.head()
    assert head is not None
    assert await store.wait_after(head.sequence, 0.01) is None
    assert (await store.read(2))["w"].tolist() == [2.0] * 3
    assert (await store.read_trainer(2))["w"].tolist() == [-2.0] * 3


async def test_publishes_at_the_same_time_queue_and_get_numbers_of_their_own(
    open_store: Open,
) -> None:
    store = open_store()
    infos = await asyncio.gather(*(publish(store, n) for n in range(5)))
    assert sorted(versions(infos)) == [1, 2, 3, 4, 5]


async def test_everyone_who_waits_is_told_of_a_new_head(open_store: Open) -> None:
    store = open_store()
    await store.head()
    waiting = [asyncio.create_task(store.wait_after(0, 30.0)) for _ in range(3)]
    await asyncio.sleep(0)
    await publish(store, 1.0)
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert all(answer is not None and answer[0].manifest.version == 1 for answer in answers)


async def test_head_numbers_and_pins_are_the_same_after_a_restart(open_store: Open) -> None:
    store = open_store()
    for value in (1.0, 2.0, 3.0):
        await publish(store, value)
    await store.pin(2)
    before = await store.head()
    await store.close()
    store = open_store()
    assert await store.head() == before
    assert await served(store) == (3, 3.0)
    assert versions([v for v in await store.list_versions() if v.is_pinned]) == [2]
    assert (await publish(store, 4.0)).manifest.version == 4


async def test_a_number_is_not_used_again_after_a_failed_publish_or_a_deletion(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    await publish(store, 1.0)
    with pytest.raises(VersionRefused, match="'w' is not finite"):
        await publish(store, np.nan)
    await store.close()
    store = open_store()
    assert (await publish(store, 2.0)).manifest.version == 3


async def test_a_failed_write_leaves_the_head_as_it_was(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    await publish(store, 1.0)
    fsync = FailingFsync(monkeypatch)
    for num_failures in (1, 2):
        fsync.fail_next = num_failures
        with pytest.raises(StorageError):
            await publish(store, 2.0)
        fsync.fail_next = 0
        assert await served(store) == (1, 1.0)
    assert await publish(store, 3.0)
    assert (await served(store))[1] == 3.0


async def test_a_publish_whose_any_fsync_fails_leaves_no_version_that_looks_rejected(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    await publish(store, 1.0)
    fsync = FailingFsync(monkeypatch)
    await publish(store, 2.0)
    for num_before in range(fsync.num_calls):
        fsync.succeed_before, fsync.fail_next = num_before, 1
        with pytest.raises(StorageError):
            await publish(store, 3.0)
        assert fsync.fail_next == 0
        assert versions(await store.list_versions()) == [2, 1]
        assert await served(store) == (2, 2.0)
        await store.close()
        store = open_store()
        assert versions(await store.list_versions()) == [2, 1]
        assert await served(store) == (2, 2.0)
    assert num_before > 5
    await publish(store, 4.0)
    assert (await served(store))[1] == 4.0


async def test_old_versions_go_but_not_the_pinned_the_head_and_the_one_before(
    open_store: Open,
) -> None:
    store = open_store()
    for value in (1.0, 2.0, 3.0):
        await publish(store, value)
    await store.pin(2)
    for value in (4.0, 5.0, 6.0):
        await publish(store, value, promote=False)
    assert versions(await store.list_versions()) == [6, 5, 3, 2]
    await store.unpin(2)
    assert versions(await store.list_versions()) == [6, 5, 3, 2], "2 is the head before 3"
    await store.promote(6, "by hand")
    await publish(store, 7.0)
    assert versions(await store.list_versions()) == [7, 6]


async def test_rollback_goes_to_the_head_before_and_promotion_forward(open_store: Open) -> None:
    store = open_store()
    await publish(store, 1.0)
    await publish(store, 2.0)
    back = await store.rollback("worse")
    assert (back.manifest.version, back.reason) == (1, "worse")
    assert await served(store) == (1, 1.0)
    with pytest.raises(UnknownVersion):
        await store.rollback("further")
    assert await store.promote(1, "the same") == back
    forward = await store.promote(2, "again")
    assert forward.sequence > back.sequence
    assert await served(store) == (2, 2.0)
    with pytest.raises(UnknownVersion, match="9"):
        await store.promote(9, "no such")


async def test_a_damaged_head_gives_way_to_the_newest_good_version_and_the_status_says_so(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    await publish(store, 1.0)
    await publish(store, 2.0)
    before = await store.head()
    await store.close()
    path = tmp_path / "models" / "versions" / "00000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    store = open_store()
    assert await served(store) == (1, 1.0)
    after = await store.head()
    assert before is not None
    assert after is not None
    assert after.sequence > before.sequence
    status = await store.status()
    assert (status.state, "00000002" in status.warning) == ("ready", True)
    assert (await publish(store, 3.0)).manifest.version == 3


async def test_a_damaged_head_does_not_give_way_to_a_version_that_was_never_served(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    await publish(store, 1.0)
    await publish(store, 2.0)
    await publish(store, 3.0, promote=False)
    await store.close()
    (tmp_path / "models" / "versions" / "00000002" / "model.safetensors").unlink()
    store = open_store()
    assert await served(store) == (1, 1.0)


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_lost_record_of_the_head_gives_way_to_the_newest_version(
    open_store: Open, tmp_path: Path, is_gone: bool
) -> None:
    store = open_store()
    await publish(store, 1.0)
    await publish(store, 2.0)
    await store.close()
    record = tmp_path / "models" / "head.json"
    if is_gone:
        record.unlink()
    else:
        record.write_text("{")
    store = open_store()
    assert await served(store) == (2, 2.0)
    assert "head.json" in (await store.status()).warning
    assert (await publish(store, 3.0)).manifest.version == 3
