"""A version that has factors is served with them, and with those of no other version."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from serving_fakes import FakeActors, eventually, films, replica

from recommender.implicit_factors import ItemFactors
from recommender.settings import FactorSettings
from serve_app.service import RecommenderService

LIKES_ODD = np.where(np.arange(12) % 2, 1.0, -1.0)
SETTINGS = FactorSettings(factors=1, regularisation=0.1)
ODD = ItemFactors.of(LIKES_ODD.astype(np.float32)[:, None], SETTINGS)
TASTE = {"history": [{"item_id": "film-1"}, {"item_id": "film-3"}]}


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors(films(12))


async def _ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/recommend", json={**TASTE, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def _publish(
    actors: FakeActors, service: RecommenderService, factors: ItemFactors | None
) -> None:
    await actors.store.publish(actors.catalog, factors=factors)
    await eventually(lambda: service.state.model_version == len(actors.store.versions))


async def test_a_version_with_factors_has_one_more_component_and_a_rollback_takes_it_away(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, client):
        await _publish(actors, service, None)
        assert "ials" not in (await _ask(client))["weights"]
        await _publish(actors, service, ODD)
        answer = await _ask(client, rank_of=["film-5", "film-6"])
        assert answer["weights"]["ials"] == pytest.approx(0.2)
        # Two odd films were seen, so four share the first places and six even ones the rest.
        assert answer["ranks"]["film-5"]["ials"] == 2.5
        assert answer["ranks"]["film-6"]["ials"] == 7.5
        await client.post("/v1/model/rollback", json={"reason": "test"})
        await eventually(lambda: service.state.model_version == 1)
        assert "ials" not in (await _ask(client))["weights"]


@pytest.mark.parametrize("is_served_first", [True, False])
async def test_an_item_that_came_after_the_version_is_level_with_one_without_factors(
    actors: FakeActors, is_served_first: bool
) -> None:
    async with replica(actors) as (service, client):
        await _publish(actors, service, ODD)
        if not is_served_first:
            await _publish(actors, service, None)
        await actors.catalog_grows()
        await eventually(lambda: service.state.catalog.num_items == 13)
        await actors.store.promote(1, "test")
        await eventually(lambda: service.state.model_version == 1)
        answer = await _ask(client, rank_of=["film-12", "film-5", "film-6"])
        ranks = {name: of["ials"] for name, of in answer["ranks"].items()}
        assert ranks == {"film-5": 2.5, "film-12": 5.0, "film-6": 8.5}


async def test_explained_shares_sum_to_one_and_name_what_ials_makes_of_the_history(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, client):
        await _publish(actors, service, ODD)
        answer = await _ask(client, explain=True, k=10)
        assert answer["explained"]["methods"]["ials"] == "exact"
        for item in answer["items"]:
            assert sum(item["shares"].values()) == pytest.approx(1.0, abs=5e-4)
            assert set(item["shares"]) == set(item["explanation"]["lifts"]) >= {"ials"}
        odd = [i for i in answer["items"] if int(i["item_id"].split("-")[1]) % 2]
        assert len(odd) == 4
        for item in odd:
            assert item["shares"]["ials"] > 0
            pulls = [of["by"]["ials"] for of in item["explanation"]["because"]]
            assert max(pulls) > 0


async def test_factors_that_are_not_finite_are_not_served(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await _publish(actors, service, ODD)
        broken = ItemFactors(ODD.items_VF * np.float32(np.nan), ODD.gram_FF, ODD.alpha)
        await actors.store.publish(actors.catalog, factors=broken)
        await eventually(lambda: service.follower.follows["head"].failures > 0)
        assert service.state.model_version == 1
        assert (await _ask(client))["weights"]["ials"] > 0
