"""Shared memory is full, and the disk behind it: another process holds all of it.

How Ray treats a full disk is told to it when it starts, so each test runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_TESTS = Path(__file__).parents[1]
_REFUSALS = 20

pytestmark = [pytest.mark.actor, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    "scenario",
    [
        "a_publish_without_room_changes_nothing_and_goes_through_when_there_is_room",
        "a_store_that_starts_again_without_room_serves_its_head_and_readers_follow_on",
        "events_are_acknowledged_without_room_in_shared_memory",
    ],
)
def test_full(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, scenario, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print("\nshared memory full:", done.stdout.splitlines()[-1])


async def a_publish_without_room_changes_nothing_and_goes_through_when_there_is_room(
    folder: Path,
) -> str:
    import ray

    from actors.asking import ask
    from actors.messages import StorageFull

    store, actor = start_store(folder)
    manifest, arrays = await version()
    await store.publish(manifest, arrays, {"raw": np.ones(9)})
    sent = [ray.put(arrays), ray.put({"raw": np.ones(9)})]  # room for these, not for the store's
    before = replace(await store.status(), memory_bytes=0)
    files = files_of(folder)
    hog = await full()
    refused_s: list[float] = []
    answered_s: list[float] = []

    async def ask_on() -> None:
        while len(refused_s) < 2 * _REFUSALS:
            started_s = time.monotonic()
            await store.status()
            answered_s.append(time.monotonic() - started_s)

    async def is_refused(publishing: Awaitable[object]) -> None:
        started_s = time.monotonic()
        with pytest.raises(StorageFull, match="shared memory"):
            await publishing
        refused_s.append(time.monotonic() - started_s)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(ask_on())
        for step in range(_REFUSALS):
            new = replace(manifest, step=step)
            await is_refused(store.publish(new, arrays, {}))
            await is_refused(ask(actor, "publish", new, sent, True, timeout_s=20.0))
    assert replace(await store.status(), memory_bytes=0) == before
    assert files_of(folder) == files
    news = await store.wait_after(0, 0.0)
    assert news is not None
    assert news[1].keys() == arrays.keys(), "the head's arrays are there as before"
    await empty(hog)
    info = await until_there_is_room(lambda: store.publish(replace(manifest, step=7), arrays, {}))
    assert (info.manifest.version, info.is_head) == (2, True)
    return (
        f"{len(refused_s)} publishes refused, each after at most {max(refused_s) * 1e3:.0f} ms; "
        f"meanwhile the store answered {len(answered_s)} times, after at most "
        f"{max(answered_s) * 1e3:.0f} ms"
    )


async def a_store_that_starts_again_without_room_serves_its_head_and_readers_follow_on(
    folder: Path,
) -> str:
    from actor_tools import kill_process, wait_until
    from serving_fakes import FakeActors, films, replica

    from actors.messages import StorageFull

    store, actor = start_store(folder)
    manifest, arrays = await version()
    actors, late = FakeActors(films(12)), FakeActors(films(12))
    actors.store = late.store = store
    await store.publish(manifest, arrays, {})
    answers: Counter[tuple[int, int]] = Counter()

    async def served(http: Any) -> int:
        response = await http.post("/v1/recommend", json={"user_id": "anna"})
        number: int = response.json()["model_version"]
        answers[response.status_code, number] += 1
        return number

    async with replica(actors) as (_, http):

        async def serves(number: int) -> bool:
            return await served(http) == number

        await wait_until(lambda: serves(1), 20)
        answers.clear()
        hog = await full()
        boot_id = (await store.status()).boot_id
        kill_process(actor)

        async def is_back() -> bool:
            await served(http)
            status = await store.status()
            return bool(status.state == "ready" and status.boot_id != boot_id)

        await wait_until(is_back, 30)
        head = await store.head()
        assert head is not None
        assert head.manifest.version == 1
        with pytest.raises(StorageFull, match="shared memory, read"):
            await store.wait_after(0, 0.0)  # by one who has no arrays yet
        async with replica(late) as (late_service, late_http):
            await wait_until(lambda: failed(late_service), 20)
            assert await served(late_http) == 0, "it answers without the net"
            for _ in range(50):
                assert await served(http) == 1, "what is held is served"
            assert set(answers) == {(200, 1), (200, 0)}
            await empty(hog)

            async def late_serves(number: int) -> bool:
                return await served(late_http) == number

            await wait_until(lambda: late_serves(1), 20)  # from the store's disk
            await until_there_is_room(lambda: store.publish(manifest, arrays, {}))
            await wait_until(lambda: serves(2), 20)
            await wait_until(lambda: late_serves(2), 20)
    assert {status for status, _ in answers} == {200}
    return f"{answers.total()} recommendations {dict(answers)} by (status, version)"


async def failed(service: Any) -> bool:
    """Whether a replica has tried in vain to follow the head."""
    return bool(service.follower.follows["head"].last_error == "StorageFull")


async def events_are_acknowledged_without_room_in_shared_memory(folder: Path) -> str:
    from actor_tools import Starter, kill_process, wait_until
    from shard_traffic import logged_ids, started_shard, traffic_on

    from actors.messages import StorageFull
    from actors.settings import StorageSettings
    from recommender.events import Event

    # As long as ids may be: 256 bytes of UTF-8, an event_id of 64.
    user, items = "ü" * 128, [f"{number:06d}" + "ß" * 125 for number in range(1_000)]
    longest = [
        Event(f"{n:064d}", user, item, "add_to_cart", 1.0, n, "r" * 64)
        for n, item in enumerate(items)
    ]
    start = Starter()
    storage = StorageSettings(data_dir=folder, min_free_bytes=0)
    client, shard = await started_shard(start, storage, timeout_s=20.0)
    async with traffic_on(client) as traffic:
        await traffic.run(5)
        hog = await full()
        assert await traffic.run(40) == 40
        assert (await client.append(longest)).accepted == 1_000
        assert (await client.append(longest)).duplicates == 1_000
        with pytest.raises(StorageFull, match="shared memory, history"):
            await client.history(user)  # a quarter of a megabyte
        assert set(traffic.recommended) == {(200, False)}
        answer = await traffic.client.post("/v1/recommend", json={"user_id": user})
        assert (answer.status_code, answer.json()["degraded"]) == (200, True)
        kill_process(shard)
        await wait_until(traffic.post, 20)
        await empty(hog)

        async def has_room() -> bool:
            again = await traffic.client.post("/v1/recommend", json={"user_id": user})
            return not again.json()["degraded"]

        await wait_until(has_room, 20)
        assert len((await client.history(user)).item_ids) == 1_000
    start.end_all()
    expected = traffic.acknowledged | {event.event_id for event in longest}
    logged = logged_ids(folder)
    assert {i: n for i, n in logged.items() if i in expected} == dict.fromkeys(expected, 1)
    return f"{len(expected):,} events acknowledged, each in the log once"


def start_store(folder: Path) -> tuple[Any, Any]:
    """A store's client and its handle."""
    from actors.naming import start_actor
    from actors.parameter_store import ParameterStore
    from actors.parameter_store_client import ParameterStoreClient
    from actors.settings import StorageSettings, StoreSettings

    storage = StorageSettings(data_dir=folder, min_free_bytes=0)
    actor = start_actor(ParameterStore, "store", storage, StoreSettings())
    return ParameterStoreClient(actor, timeout_s=20.0), actor


async def version() -> tuple[Any, dict[str, Any]]:
    """A version that can be served, with arrays that are too large to be sent with an answer."""
    from serving_fakes import FakeItemCatalog, FakeParameterStore, films

    made = FakeParameterStore()
    await made.publish(FakeItemCatalog(films(12)))
    manifest, arrays = made.versions[0]
    # Without metrics: one of them is NaN, which is not even equal to itself.
    return replace(manifest, metrics={}), {**arrays, "room": np.ones(1 << 18, np.float32)}


async def full() -> Any:
    """Who holds all of shared memory now."""
    from full_memory import start_hog

    hog = start_hog()
    assert await hog.fill.remote() > 50 << 20
    return hog


async def empty(hog: Any) -> None:
    await hog.empty.remote()


async def until_there_is_room(publish: Callable[[], Awaitable[Any]]) -> Any:
    """What is published; what was given back is free a moment later."""
    from actors.messages import StorageFull

    async with asyncio.timeout(20):
        while True:
            try:
                return await publish()
            except StorageFull:
                await asyncio.sleep(0.1)


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def main() -> None:
    from full_memory import ray_on_a_full_disk

    scenario, folder = sys.argv[1:]
    with ray_on_a_full_disk():
        told = asyncio.run(globals()[scenario](Path(folder)))
    print(told)


if __name__ == "__main__":
    main()
