"""The parameter store as it runs: shared memory, long polls, a killed process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
from actor_tools import Starter, kill_process, wait_until
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError

from actors.messages import Manifest, UnknownVersion, VersionRefused
from actors.parameter_store import ParameterStore
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import StorageSettings, StoreSettings

pytestmark = pytest.mark.actor


def manifest() -> Manifest:
    return Manifest(
        version=0,
        parent=0,
        created_ms=1,
        trained_through=(3, 4),
        num_items=2,
        step=7,
        reason="trained",
    )


def weights(value: float) -> dict[str, NDArray[Any]]:
    return {"w": np.full((400, 400), value, np.float32), "step": np.array(3)}


def store_of(start: Starter, storage: StorageSettings) -> tuple[ParameterStoreClient, Any]:
    actor = start(ParameterStore, storage, StoreSettings())
    return ParameterStoreClient(actor, timeout_s=10.0), actor


async def is_ready(client: ParameterStoreClient) -> bool:
    return (await client.status()).state == "ready"


async def test_a_follower_gets_a_published_head_as_a_view_of_shared_memory(
    start: Starter, storage: StorageSettings
) -> None:
    client, _ = store_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    assert await client.wait_after(0, 0.1) is None
    poll = asyncio.create_task(client.wait_after(0, 20.0))
    info = await client.publish(manifest(), weights(1.0), {"raw": np.ones(3)}, promote=True)
    answer = await asyncio.wait_for(poll, 5)
    assert answer is not None
    head, payload = answer
    assert (info.manifest.version, info.is_head) == (1, True)
    assert head.manifest == info.manifest
    assert not payload["w"].flags.writeable
    assert (payload["w"] == 1.0).all()
    assert payload["step"].shape == ()
    assert (await client.read_trainer(1))["raw"].tolist() == [1.0, 1.0, 1.0]


async def test_a_version_outlives_the_process_that_published_it(
    start: Starter, storage: StorageSettings
) -> None:
    client, actor = store_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    description, arrays = manifest(), weights(2.0)

    def publish_once() -> None:
        publisher = ParameterStoreClient(actor, timeout_s=10.0)
        asyncio.run(publisher.publish(description, arrays, {}, promote=True))

    task = ray.remote(max_calls=1, max_retries=0)(publish_once)
    await asyncio.wait_for(asyncio.wrap_future(task.remote().future()), 20)
    answer = await client.wait_after(0, 5.0)
    assert answer is not None
    assert (answer[1]["w"] == 2.0).all()


async def test_numbers_go_on_and_the_head_is_served_after_a_kill(
    start: Starter, storage: StorageSettings
) -> None:
    client, actor = store_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    await client.publish(manifest(), weights(1.0), {}, promote=True)
    await client.publish(manifest(), weights(2.0), {}, promote=False)
    before = await client.status()
    await asyncio.to_thread(kill_process, actor)
    after = await client.status()
    await wait_until(lambda: is_ready(client), 10)
    answer = await client.wait_after(0, 5.0)
    assert after.boot_id != before.boot_id
    assert answer is not None
    assert answer[0] == before.head
    assert (answer[1]["w"] == 1.0).all()
    info = await client.publish(manifest(), weights(3.0), {}, promote=True)
    assert info.manifest.version == 3
    assert [v.manifest.version for v in await client.list_versions()] == [3, 2, 1]
    assert (await client.rollback("worse")).manifest.version == 1


class DiesAtFirstPublish:
    """A store's handle; its process is killed at the first `publish`, or right after it."""

    def __init__(self, actor: Any, done: str) -> None:
        self._actor = actor
        self._done = done

    def __getattr__(self, method: str) -> Any:
        is_killed = method == "publish" and self._done
        return self if is_killed else getattr(self._actor, method)

    async def remote(self, described: Manifest, references: list[Any], promote: bool) -> None:
        done, self._done = self._done, ""
        if done != "nothing":
            await self._actor.publish.remote(described, references, done == "promoted")
        await asyncio.to_thread(kill_process, self._actor)
        raise ActorUnavailableError("killed", None)


@pytest.mark.parametrize("done", ["nothing", "stored", "promoted"])
async def test_a_version_is_stored_once_and_served_when_the_store_dies_meanwhile(
    start: Starter, storage: StorageSettings, done: str
) -> None:
    first, actor = store_of(start, storage)
    await wait_until(lambda: is_ready(first), 20)
    await first.publish(manifest(), weights(1.0), {}, promote=True)
    client = ParameterStoreClient(DiesAtFirstPublish(actor, done), timeout_s=20.0)
    candidate = replace(manifest(), parent=1, created_ms=2, metrics={"ndcg_at_10": float("nan")})
    info = await client.publish(candidate, weights(2.0), {}, promote=True)
    assert info.manifest.version == 2
    head = await first.head()
    assert head is not None
    assert head.manifest.version == 2
    assert [v.manifest.version for v in await first.list_versions()] == [2, 1]


async def test_refusals_are_typed(start: Starter, storage: StorageSettings) -> None:
    client, _ = store_of(start, storage)
    await wait_until(lambda: is_ready(client), 20)
    bad = {"w": np.array([1.0, np.nan], np.float32)}
    with pytest.raises(VersionRefused, match="'w' is not finite"):
        await client.publish(manifest(), bad, {}, promote=True)
    with pytest.raises(UnknownVersion, match="9"):
        await client.promote(9, "no such")
    assert await client.head() is None
