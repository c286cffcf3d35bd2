"""The gate: bounds of time and concurrency, and an answer whatever happens behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from serving_fakes import FakeActors, event, eventually, films, replica

_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors(films(3))


async def test_a_request_that_takes_too_long_is_told_so(actors: FakeActors) -> None:
    async with replica(actors, deadline_s=0.05) as (_, client):
        actors.buffer.hanging = True
        answer = await client.post("/v1/events", json=event(1))
        assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
        actors.buffer.hanging = False
        assert (await client.post("/v1/events", json=event(1))).status_code == 202


async def test_an_item_put_has_a_deadline_of_its_own(actors: FakeActors) -> None:
    async with replica(actors, deadline_s=10.0, items_deadline_s=0.05) as (_, client):
        actors.catalog.hanging = True
        answer = await client.put("/v1/items", json={"item_id": "x", "text": ""})
        assert (answer.status_code, answer.json()["detail"]) == (504, "no answer within 0.045 s")


async def test_a_client_cannot_move_the_deadline(actors: FakeActors) -> None:
    async with replica(actors, deadline_s=0.05) as (_, client):
        actors.buffer.hanging = True
        answer = await client.post(
            "/v1/events", json=event(1), headers={"x-request-timeout-seconds": "0"}
        )
        assert answer.status_code == 504


async def test_beyond_its_limit_a_replica_refuses_and_stays_alive(actors: FakeActors) -> None:
    async with replica(actors, max_ongoing_requests=3, deadline_s=1.0) as (_, client):
        actors.buffer.hanging = True
        waiting = [
            asyncio.create_task(client.post("/v1/events", json=event(number)))
            for number in range(3)
        ]
        await asyncio.sleep(0)
        refused = await _until_refused(client)
        assert refused.json()["type"] == "/problems/overloaded"
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200, "health is not gated"
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {504}
        assert (await client.get("/v1/model")).status_code == 200, "its place is given back"


async def test_a_body_that_is_still_to_come_takes_nobodys_place(actors: FakeActors) -> None:
    arrive = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b'{"user_id": '
        await arrive.wait()
        yield b'"anna"}'

    async with replica(actors, max_ongoing_requests=1) as (_, client):
        waiting = [
            asyncio.create_task(client.post("/v1/recommend", content=slow_body(), headers=_JSON))
            for _ in range(5)
        ]
        await asyncio.sleep(0.05)
        answer = await client.post("/v1/recommend", json={"user_id": "anna"})
        assert answer.status_code == 200
        arrive.set()
        statuses = {late.status_code for late in await asyncio.gather(*waiting)}
        assert 200 in statuses
        assert statuses <= {200, 503}
        assert (await client.get("/v1/model")).status_code == 200, "all places are given back"


async def test_an_unexpected_error_is_told_without_its_text(
    actors: FakeActors, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(actors) as (_, client):
        actors.buffer.error = ValueError("secret")
        answer = await client.post("/v1/events", json=event(1))
        assert (answer.status_code, answer.json()["detail"]) == (500, "internal error")
        assert "secret" not in answer.text
        assert answer.json()["request_id"] in caplog.text
        actors.buffer.error = None
        assert (await client.post("/v1/events", json=event(1))).status_code == 202


async def test_each_request_is_measured_once_under_a_route_without_ids(
    actors: FakeActors, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, int]] = []
    async with replica(actors) as (service, client):
        monkeypatch.setattr(
            service.telemetry, "answered", lambda route, status, _: measured.append((route, status))
        )
        await client.post("/v1/events", json=event(1))
        await client.get("/v1/items/film-1")
        await client.get("/secret-user-id")
        await eventually(lambda: len(measured) == 3)
    assert measured == [("/v1/events", 202), ("/v1/items/*", 200), ("other", 404)]


async def _until_refused(client: httpx.AsyncClient) -> httpx.Response:
    for _ in range(100):
        answer = await client.get("/v1/model")
        if answer.status_code == 503:
            return answer
        await asyncio.sleep(0.001)
    raise AssertionError("the replica took more requests than it may")
