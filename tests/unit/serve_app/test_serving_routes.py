"""What each route answers when all is well, and what it promises."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_fakes import NOW_MS, FakeActors, event, eventually, film, films, replica

from actors.messages import BufferFull, MemoryFull, ShardUnavailable, StorageError, StorageFull
from serve_app import answers


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors(films(12))


async def _recommend(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("has_version", [False, True])
async def test_every_answer_has_its_documented_shape(actors: FakeActors, has_version: bool) -> None:
    async with replica(actors) as (service, client):
        if has_version:
            await actors.store.publish(actors.catalog)
            await eventually(lambda: service.state.model_version == 1)
        calls: list[tuple[str, str, Any, type[answers.Answer]]] = [
            ("POST", "/v1/events", event(1), answers.EventsAnswer),
            ("PUT", "/v1/items", {"items": [{"item_id": "n", "text": ""}]}, answers.ItemsPutAnswer),
            ("GET", "/v1/items/film-1", None, answers.ItemAnswer),
            ("GET", "/v1/items?limit=2", None, answers.ItemsAnswer),
            ("POST", "/v1/recommend", {"user_id": "anna"}, answers.RecommendAnswer),
            ("POST", "/v1/recommend", {"user_id": "x", "candidates": []}, answers.RecommendAnswer),
            (
                "POST",
                "/v1/recommend",
                {"history": [{"item_id": "film-2"}], "rank_of": ["film-3", "?"]},
                answers.RecommendAnswer,
            ),
            (
                "POST",
                "/v1/recommend",
                {"user_id": "a", "explain": True},
                answers.RecommendAnswer,
            ),
            ("GET", "/v1/items/film-1/similar?k=3", None, answers.SimilarAnswer),
            ("GET", "/v1/model", None, answers.ModelAnswer),
            ("GET", "/v1/model/versions", None, answers.VersionsAnswer),
            ("GET", "/healthz", None, answers.StateAnswer),
            ("GET", "/readyz", None, answers.StateAnswer),
        ]
        if has_version:
            calls.append(("POST", "/v1/model/versions/1/promote", None, answers.HeadAnswer))
        for method, path, body, shape in calls:
            answer = await client.request(method, path, json=body)
            assert answer.status_code in (200, 202), answer.text
            found = shape.model_validate(answer.json())
            assert found.model_version == int(has_version)


async def test_a_click_is_in_the_very_next_recommendation(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        for number in range(10):
            before = await _recommend(client, user_id="anna")
            clicked = _ids(before)[0]
            await client.post("/v1/events", json=event(number, item_id=clicked))
            after = await _recommend(client, user_id="anna")
            assert clicked not in _ids(after)
            assert after["history_length"] == number + 1


async def test_a_click_of_one_user_moves_the_item_up_for_another(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        before = await _recommend(client, user_id="ben", rank_of=["film-7"])
        await actors.statistics.count(7, 7, 7)
        await eventually(lambda: service.state.counters_sequence == 3)
        after = await _recommend(client, user_id="ben", rank_of=["film-7"])
        assert after["ranks"]["film-7"]["blend"] == 1.0 < before["ranks"]["film-7"]["blend"]
        assert after["counters_through"] == [2]


async def test_an_item_with_text_and_no_click_is_recommended_at_once(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model_version == 1)
        put = await client.put("/v1/items", json={"item_id": "new", "text": "A comedy, new"})
        assert (put.json()["created"], put.json()["pending"]) == (1, 0)
        only_new = await _recommend(client, user_id="anna", candidates=["new"])
        assert _ids(only_new) == ["new"]
        likes = [{"item_id": f"film-{number}"} for number in (0, 2, 4)]
        ranks = await _recommend(client, history=likes, rank_of=["new"])
        assert ranks["ranks"]["new"]["content"] <= 4.0, "comedies are near to a user of comedies"


async def test_an_item_nobody_clicked_is_less_popular_than_any_that_was(
    actors: FakeActors,
) -> None:
    await actors.statistics.count(*range(12))
    async with replica(actors) as (_, client):
        await client.put("/v1/items", json={"item_id": "new", "text": "A comedy, new"})
        answer = await _recommend(client, user_id="x", rank_of=["new", "film-0"])
        assert answer["ranks"]["film-0"]["popularity"] == 12.0, "clicked longest ago"
        assert answer["ranks"]["new"]["popularity"] == 13.0


async def test_seen_items_are_left_out_unless_asked_for(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        history = [{"item_id": "film-1"}, {"item_id": "gone"}]
        unseen = await _recommend(client, history=history, k=12)
        assert set(_ids(unseen)) == {f"film-{number}" for number in range(12)} - {"film-1"}
        assert unseen["history_length"] == 1, "what is not in the catalogue says nothing"
        everything = await _recommend(client, history=history, k=12, exclude_seen=False)
        assert len(_ids(everything)) == 12


async def test_candidates_categories_and_exclusions_narrow_the_choice(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        comedies = await _recommend(client, user_id="x", categories=["comedy"], k=12)
        assert set(_ids(comedies)) == {f"film-{n}" for n in range(0, 12, 2)}
        answer = await _recommend(
            client,
            user_id="x",
            candidates=["film-0", "film-0", "film-1", "film-2", "nix"],
            categories=["comedy", "western"],
            exclude=["film-2", "nada"],
        )
        assert _ids(answer) == ["film-0"]
        assert answer["unknown_ids"] == 2
        assert "reason" not in answer


@pytest.mark.parametrize(
    "body", [{"exclude": [f"film-{n}" for n in range(12)]}, {"candidates": ["nix"]}]
)
async def test_nothing_to_recommend_is_an_answer_with_a_reason(
    actors: FakeActors, body: dict[str, Any]
) -> None:
    async with replica(actors) as (_, client):
        answer = await _recommend(client, user_id="x", rank_of=["film-1"], **body)
        assert answer["items"] == []
        assert answer["served"] == "none"
        assert answer["reason"]
        assert answer["ranks"] == {"film-1": None}


async def test_an_empty_catalogue_is_ready_and_recommends_nothing() -> None:
    async with replica(FakeActors()) as (_, client):
        answer = await _recommend(client, user_id="x")
        assert (answer["items"], answer["reason"]) == ([], "the catalogue is empty")
        assert (await client.get("/readyz")).status_code == 200


async def test_an_unknown_user_gets_popular_items_as_a_cold_start(actors: FakeActors) -> None:
    await actors.statistics.count(5, 5, 3)
    async with replica(actors) as (_, client):
        answer = await _recommend(client, user_id="nobody", k=2)
        assert answer["cold_start"]
        assert _ids(answer) == ["film-5", "film-3"]


async def test_ranks_are_among_the_eligible_and_ties_share_their_mean(actors: FakeActors) -> None:
    await actors.statistics.count(0, 0, 2)
    async with replica(actors) as (_, client):
        answer = await _recommend(
            client,
            history=[{"item_id": "film-0"}],
            categories=["comedy"],
            rank_of=["film-2", "film-4", "film-0", "film-1", "nix"],
        )
        assert answer["ranks"]["film-2"]["popularity"] == 1.0
        assert answer["ranks"]["film-4"]["popularity"] == 3.5, "four of five comedies tie"
        assert answer["ranks"]["film-0"] is None, "seen"
        assert answer["ranks"]["film-1"] is None, "not a comedy"
        assert answer["ranks"]["nix"] is None


async def test_shares_say_which_component_put_an_item_there(actors: FakeActors) -> None:
    await actors.statistics.count(5)
    async with replica(actors) as (_, client):
        [item] = (await _recommend(client, user_id="x", k=1))["items"]
        assert item["item_id"] == "film-5"
        assert item["shares"] == {"rules": 0.0, "popularity": 1.0, "content": 0.0}


async def test_without_the_history_shard_the_answer_is_degraded_and_still_comes(
    actors: FakeActors,
) -> None:
    async with replica(actors, history_timeout_s=0.05) as (_, client):
        await client.post("/v1/events", json=event(1))
        actors.buffer.error = ShardUnavailable("gone")
        answer = await _recommend(client, user_id="anna")
        assert (answer["degraded"], answer["history_length"]) == (True, 0)
        actors.buffer.error, actors.buffer.hanging = None, True
        answer = await _recommend(client, user_id="anna")
        assert (answer["degraded"], len(answer["items"])) == (True, 10)
        actors.buffer.hanging = False
        assert not (await _recommend(client, user_id="anna"))["degraded"]


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (BufferFull("full"), 429, "buffer-full"),
        (MemoryFull("full"), 503, "memory-full"),
        (ShardUnavailable("gone"), 503, "shard-unavailable"),
        (StorageFull("disk"), 503, "storage-full"),
        (StorageError("fsync"), 503, "storage-error"),
    ],
)
async def test_a_refusal_of_the_buffer_says_when_to_try_again(
    actors: FakeActors, error: Exception, status: int, slug: str
) -> None:
    async with replica(actors) as (_, client):
        actors.buffer.error = error
        answer = await client.post("/v1/events", json=event(1))
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_batch_stored_in_part_says_which_part(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        actors.buffer.failed_shards = {1: "ShardUnavailable: secret path"}
        answer = await client.post("/v1/events", json=event(1))
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/shard-unavailable")
        assert answer.json()["accepted"] == 1
        assert answer.json()["failed_shards"] == [1]
        assert "secret" not in answer.text


async def test_a_version_that_does_not_exist_is_not_found(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        answer = await client.post("/v1/model/versions/7/promote")
        assert answer.status_code == 404
        assert (await client.post("/v1/model/versions/x/promote")).status_code == 404
        assert (await client.post("/v1/model/rollback")).status_code == 415


async def test_a_rollback_is_served(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await actors.store.publish(actors.catalog)
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model_version == 2)
        answer = await client.post("/v1/model/rollback", json={"reason": "clicks fell"})
        assert (answer.json()["head"], answer.json()["reason"]) == (1, "clicks fell")
        await eventually(lambda: service.state.model_version == 1)
        assert (await client.get("/v1/model")).json()["sequence"] == 3


async def test_metrics_that_could_not_be_measured_are_null(actors: FakeActors) -> None:
    async with replica(actors) as (service, client):
        await actors.store.publish(actors.catalog)
        await eventually(lambda: service.state.model_version == 1)
        model = (await client.get("/v1/model")).json()
        assert model["progressive"] == {"ndcg_at_10": 0.1, "loss": None}


async def test_pages_of_items_are_the_whole_catalogue_once(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        after, seen = "", []
        while after is not None:
            query = f"&after={after}" if after else ""
            page = (await client.get(f"/v1/items?limit=5{query}")).json()
            seen += [item["item_id"] for item in page["items"]]
            after = page["next_after"]
        assert seen == [f"film-{number}" for number in range(12)]


async def test_an_item_too_new_for_this_replica_is_asked_of_the_catalogue(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (_, client):
        actors.catalog.items.append(film(77))  # without telling the followers
        actors.catalog.revisions.append(0)
        assert (await client.get("/v1/items/film-77")).json()["title"] == "Film 77"
        assert (await client.get("/v1/items/film-78")).status_code == 404


async def test_similar_items_are_those_with_a_like_text(actors: FakeActors) -> None:
    async with replica(actors) as (_, client):
        answer = (await client.get("/v1/items/film-2/similar?k=5")).json()
        assert {item["item_id"] for item in answer["items"]} == {
            f"film-{number}" for number in (0, 4, 6, 8, 10)
        }
        assert (await client.get("/v1/items/nix/similar")).status_code == 404


async def test_staleness_is_the_age_of_the_oldest_event_not_learned_from(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, client):
        actors.statistics.acknowledged_ms = NOW_MS - 5_000
        await actors.statistics.count(1)
        await eventually(lambda: service.state.counters_sequence == 1)
        actors.statistics.acknowledged_ms = NOW_MS - 2_000
        await actors.statistics.count(2)
        await eventually(lambda: service.state.counters_sequence == 2)
        for trained_through, staleness_ms in ((-1, 5_000), (0, 2_000), (1, 0)):
            await actors.store.publish(actors.catalog, trained_through)
            await eventually(lambda: service.state.trained_through == (trained_through,))  # noqa: B023
            assert (await client.get("/v1/model")).json()["staleness_ms"] == staleness_ms


async def test_a_replica_that_has_not_caught_up_is_healthy_but_not_ready(
    actors: FakeActors,
) -> None:
    async with replica(actors) as (service, client):
        service.follower.follows["counters"].caught_up = False
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("has_version", [False, True])
async def test_an_explanation_names_the_history_items_that_pull(
    actors: FakeActors, has_version: bool
) -> None:
    async with replica(actors) as (service, client):
        await actors.statistics.count(0, 2, 4)
        await eventually(lambda: service.state.counters.num_events == 3)
        if has_version:
            await actors.store.publish(actors.catalog)
            await eventually(lambda: service.state.model_version == 1)
        plain = await _recommend(client, history=[{"item_id": "film-2"}], k=3)
        told = await _recommend(client, history=[{"item_id": "film-2"}], k=3, explain=True)
        assert _ids(told) == _ids(plain)
        assert "explained" not in plain
        assert "explanation" not in plain["items"][0]
        assert told["explained"]["counted_events"] == 3
        best = told["items"][0]["explanation"]
        assert set(best["lifts"]) == set(told["weights"])
        assert [influence["item_id"] for influence in best["because"]] == ["film-2"]
        assert best["because"][0]["by"]["content"] > 0


async def test_exploration_shows_marked_unseen_items_in_the_last_places(
    actors: FakeActors,
) -> None:
    async with replica(actors, exploration_slots=2) as (service, client):
        await actors.statistics.count(*range(11))  # nobody has had film 11
        await eventually(lambda: service.state.counters.num_events == 11)
        answer = await _recommend(client, user_id="anna", rank_of=["film-11", "film-0"])
        assert answer["items"][-1]["item_id"] == "film-11"
        assert [item.get("exploration", False) for item in answer["items"]] == [False] * 9 + [True]
        short = await _recommend(client, user_id="anna", k=4)
        assert not any("exploration" in item for item in short["items"])
    async with replica(actors) as (service, client):
        await eventually(lambda: service.state.counters.num_events == 11)
        without = await _recommend(client, user_id="anna", rank_of=["film-11", "film-0"])
        assert without["ranks"] == answer["ranks"], "exploring moves no rank"
        assert not any("exploration" in item for item in without["items"])


async def test_a_request_sent_again_explores_the_same(actors: FakeActors) -> None:
    async with replica(actors, exploration_slots=5) as (_, client):
        shown = []
        for request_id in ("r-1", "r-1", "r-2", "r-3", "r-4"):
            headers = {"x-request-id": request_id}
            body = {"history": [{"item_id": "film-2"}]}
            answer = (await client.post("/v1/recommend", json=body, headers=headers)).json()
            assert answer["request_id"] == request_id
            shown.append(_ids(answer))
        assert shown[0] == shown[1]
        assert len({tuple(ids) for ids in shown}) > 1
