"""The follower: takes what comes, survives what does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from serving_fakes import FakeActor, FakeActors, eventually, film, films, replica, service_over

from actors.messages import ShardUnavailable
from serve_app.follower import CATALOG, HEAD
from serve_app.routes import build_api


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors(films(6))


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.follower._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("serve_app.follower._LONGEST_PAUSE_S", 0.01)


@pytest.mark.usefixtures("quick_pauses")
@pytest.mark.parametrize("error", [ShardUnavailable("gone"), ValueError("odd"), TimeoutError()])
async def test_a_failing_actor_leaves_the_last_good_state(
    actors: FakeActors, error: Exception
) -> None:
    async with replica(actors) as (service, client):
        await actors.store.publish(actors.catalog)
        await actors.statistics.count(1)
        await eventually(
            lambda: service.state.model_version == 1 and service.state.counters_sequence == 1
        )
        for actor in actors.followed():
            actor.error = error
            await actor.notify()
        # What the tasks were waiting for answers once more; the next attempts fail.
        await actors.store.publish(actors.catalog)
        await actors.statistics.count(1)
        await actors.catalog_grows()
        await eventually(lambda: all(f.failures >= 3 for f in service.follower.follows.values()))
        answer = (await client.post("/v1/recommend", json={"user_id": "x"})).json()
        assert answer["items"]
        assert answer["counters_behind"]
        assert service.follower.is_alive
        assert (await client.get("/healthz")).status_code == 200
        for actor in actors.followed():
            actor.error = None
        await eventually(lambda: not service.follower.counters_behind)
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model_version == 3)


async def test_counters_are_taken_whole_again_after_their_actor_restarted(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, _):
        await actors.statistics.count(1, 2)
        await eventually(lambda: service.state.counters_sequence == 2)
        actors.statistics.boot_id = "boot-2"
        actors.statistics.rows = [3, 3, 3]
        await actors.statistics.notify()
        await eventually(lambda: service.state.counters_boot_id == "boot-2")
        popular = service.state.counters.popularity()[0]
        assert popular[3] > 2.9
        assert popular[1] == 0.0


async def test_replicas_that_started_at_different_times_have_the_same_counters(
    actors: FakeActors,
) -> None:
    rows = np.random.default_rng(0).integers(0, 6, 40).tolist()
    async with replica(actors) as (early, _):
        for row in rows:
            await actors.statistics.count(row)
        async with replica(actors) as (late, _):
            await eventually(lambda: early.state.counters_sequence == 40)
            np.testing.assert_array_equal(
                early.state.counters.popularity(), late.state.counters.popularity()
            )


@pytest.mark.usefixtures("quick_pauses")
async def test_counts_of_items_not_known_yet_wait_for_the_catalogue(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await actors.statistics.count(8)
        await asyncio.sleep(0.02)
        assert service.state.counters_sequence == 0
        assert (await client.post("/v1/recommend", json={"user_id": "x"})).status_code == 200
        await actors.catalog.put([film(6), film(7), film(8)])
        await eventually(lambda: service.state.counters_sequence == 1)
        assert service.follower.follows["counters"].failures == 0, "waiting is not failing"


async def test_a_version_from_before_the_newest_items_ranks_them_too(actors: FakeActors) -> None:
    await actors.store.publish(actors.catalog)
    await actors.catalog.put([film(6), film(7)])
    async with replica(actors) as (service, client):
        await eventually(lambda: service.state.model is not None)
        assert service.state.model is not None
        assert service.state.model.scorer.num_items == 8
        answer = await client.post(
            "/v1/recommend", json={"user_id": "x", "rank_of": ["film-7"], "k": 20}
        )
        assert len(answer.json()["items"]) == 8
        assert answer.json()["ranks"]["film-7"]["net"] >= 1.0


async def test_a_version_that_cannot_be_read_leaves_the_one_before(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model_version == 1)
        manifest, payload = actors.store.versions[0]
        actors.store.versions.append((manifest, {}))
        actors.store.versions[0] = (manifest, {})
        await actors.store.move(1, "broken on disk")
        await eventually(lambda: service.follower.follows["head"].failures >= 1)
        assert service.state.head_sequence == 1
        assert (await client.post("/v1/recommend", json={"user_id": "x"})).status_code == 200
        actors.store.versions[0] = (manifest, payload)
        await eventually(lambda: service.state.head_sequence == 2)


async def test_versions_are_swapped_under_load_without_a_failed_request(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, client):
        seen: set[int] = set()

        async def ask() -> None:
            while service.state.model_version < 20:
                answer = await client.post("/v1/recommend", json={"user_id": "x"})
                assert answer.status_code == 200
                seen.add(answer.json()["model_version"])

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for version in range(1, 21):
            await actors.store.publish(actors.catalog)
            await eventually(lambda: service.state.model_version == version)  # noqa: B023
        await asyncio.gather(*asking)
        assert len(seen) > 5


async def test_a_stopped_follower_is_unhealthy(actors: FakeActors) -> None:
    async with replica(actors) as (service, _):
        service.check_health()
        await service.follower.stop()
        with pytest.raises(RuntimeError, match="stopped"):
            service.check_health()


async def test_a_version_that_is_not_finite_is_not_taken(actors: FakeActors) -> None:
    async with replica(actors) as (service, _):
        manifest = await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.head_sequence == 1)
        payload = dict(actors.store.versions[0][1])
        payload["model.item_bias"] = np.full(manifest.num_items, np.nan, np.float32)
        actors.store.versions[0] = (manifest, payload)
        await actors.store.move(1, "again")
        await eventually(lambda: service.follower.follows["head"].failures >= 1)
        assert service.state.head_sequence == 1
        service.check_health()


async def test_a_replica_that_ranks_nothing_is_unhealthy(actors: FakeActors) -> None:
    async with replica(actors) as (service, _):
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model is not None)
        model = service.state.model
        assert model is not None
        scorer = replace(model.scorer, item_bias=np.full(6, np.nan, np.float32))
        service.state.model = replace(model, scorer=scorer)
        with pytest.raises(RuntimeError, match="ranks nothing"):
            service.check_health()


async def test_a_new_service_answers_nothing_from_before_it_was_started(
    actors: FakeActors,
) -> None:
    service: Any = service_over(actors)
    assert not service.follower.is_ready
    assert not service.follower.is_alive
    assert service.state.model_version == 0


@pytest.mark.usefixtures("quick_pauses")
@pytest.mark.parametrize(("late", "what"), [("catalog", CATALOG), ("store", HEAD)])
async def test_a_new_replica_is_sent_no_request_before_it_has_the_items_and_the_head(
    actors: FakeActors, late: str, what: str
) -> None:
    await actors.store.publish(actors.catalog)
    service = service_over(actors)
    api = build_api(service)
    actor: FakeActor = getattr(actors, late)
    actor.error = ShardUnavailable("starting")
    started = asyncio.Event()

    async def run_until_known() -> None:
        async with api.router.lifespan_context(api):
            started.set()

    running = asyncio.create_task(run_until_known())
    await eventually(lambda: service.follower.follows[what].failures > 2)
    assert not started.is_set()
    actor.error = None
    await asyncio.wait_for(running, 5.0)
    assert service.follower.is_ready
    assert service.state.model_version == 1


@pytest.mark.usefixtures("quick_pauses")
async def test_without_the_catalogue_an_answer_says_that_it_knows_no_history(
    actors: FakeActors,
) -> None:
    service = service_over(actors, actor_timeout_s=0.05)
    api = build_api(service)
    actors.catalog.error = ShardUnavailable("gone")
    transport = httpx.ASGITransport(api)
    async with (
        api.router.lifespan_context(api),  # comes up all the same, after a while
        httpx.AsyncClient(transport=transport, base_url="http://replica") as client,
    ):
        answer = (await client.post("/v1/recommend", json={"user_id": "anna"})).json()
        assert (answer["degraded"], answer["items"]) == (True, [])
        actors.catalog.error = None
        await eventually(lambda: service.follower.is_ready)
        answer = (await client.post("/v1/recommend", json={"user_id": "anna"})).json()
        assert (answer["degraded"], len(answer["items"])) == (False, 6)
