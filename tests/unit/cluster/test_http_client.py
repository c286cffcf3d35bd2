import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cluster.http_client import ServiceClient, ServiceError, batches, event_body, item_body
from recommender.events import Event, Item
from serve_app.schemas import EventBody, ItemBody, RequestLimits, validate_body

Answer = Callable[[], web.StreamResponse]


class Service:
    """Answers one request after the other as the test says, the last answer for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [lambda: web.json_response({"ok": True})]
        self.requests: list[tuple[str, str, Any]] = []
        self.num_broken = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.path, body))
        if self.num_broken and request.transport is not None:
            self.num_broken -= 1
            request.transport.abort()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.handle)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/"))
        yield made


@pytest.fixture
async def client(service: Service) -> AsyncIterator[ServiceClient]:
    async with ServiceClient(service.url, timeout_s=5.0) as made:
        yield made


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(pause_s: float) -> None:
        slept.append(pause_s)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return slept


def status(code: int, *, retry_after: str | None = None, **document: Any) -> Answer:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda: web.json_response(
        document, status=code, headers=headers, content_type="application/problem+json"
    )


@pytest.mark.parametrize("code", [429, 502, 503, 504])
async def test_a_busy_service_is_asked_again_until_it_answers(
    service: Service, client: ServiceClient, pauses_s: list[float], code: int
) -> None:
    service.answers = [status(code), status(code), *service.answers]
    assert await client.request("POST", "/v1/x", {"a": 1}) == {"ok": True}
    assert service.requests == [("POST", "/v1/x", {"a": 1})] * 3
    assert client.num_retries == len(pauses_s) == 2


@pytest.mark.parametrize("code", [400, 404, 413, 422, 500])
async def test_a_refusal_is_final_and_says_what_is_wrong(
    service: Service, client: ServiceClient, code: int
) -> None:
    errors = [
        {"pointer": "/events/3/value", "code": "finite", "message": "Not a finite number"},
        {"pointer": "/events/9/user_id", "code": "missing", "message": "Field required"},
    ]
    service.answers = [
        status(code, title="Bad", detail="2 fields", errors=errors),
        *service.answers,
    ]
    with pytest.raises(ServiceError) as caught:
        await client.request("POST", "/v1/events", {})
    assert caught.value.status == code
    assert str(caught.value) == (
        f"HTTP {code}: Bad: 2 fields "
        "(/events/3/value: Not a finite number; /events/9/user_id: Field required)"
    )
    assert len(service.requests) == 1


async def test_the_last_refusal_is_told_when_all_tries_are_used(
    service: Service, client: ServiceClient, pauses_s: list[float]
) -> None:
    service.answers = [status(503, title="Overloaded", detail="64 requests")]
    with pytest.raises(ServiceError, match="HTTP 503: Overloaded: 64 requests"):
        await client.request("GET", "/v1/model", num_tries=3)
    assert len(service.requests) == 3
    assert len(pauses_s) == 2


async def test_pauses_grow_up_to_a_bound(
    service: Service, client: ServiceClient, pauses_s: list[float]
) -> None:
    service.answers = [status(503)]
    with pytest.raises(ServiceError):
        await client.request("GET", "/v1/model", num_tries=12)
    for number, pause_s in enumerate(pauses_s):
        mean_s = min(0.1 * 2**number, 5.0)
        assert 0.5 * mean_s <= pause_s <= 1.5 * mean_s


async def test_the_client_waits_at_least_as_long_as_it_is_asked_to_and_never_for_ever(
    service: Service, client: ServiceClient, pauses_s: list[float]
) -> None:
    service.answers = [
        status(503, retry_after="2"),
        status(429, retry_after="3600"),
        status(503, retry_after="Wed, 21 Oct 2065 07:28:00 GMT"),
        *service.answers,
    ]
    assert await client.request("GET", "/v1/model") == {"ok": True}
    assert pauses_s[:2] == [2.0, 5.0]
    assert pauses_s[2] < 1.0


async def test_a_proxy_that_answers_in_html_is_busy_and_not_gone(
    service: Service, client: ServiceClient, pauses_s: list[float]
) -> None:
    page = "<html>503 Service Unavailable</html>"
    service.answers = [lambda: web.Response(text=page, status=503, content_type="text/html")]
    with pytest.raises(ServiceError, match="HTTP 503: '<html>503 Service"):
        await client.request("GET", "/v1/model", num_tries=2)
    assert len(service.requests) == 2


async def test_an_answer_that_is_no_document_is_an_error_and_not_asked_for_again(
    service: Service, client: ServiceClient
) -> None:
    service.answers = [lambda: web.Response(text="hello", content_type="text/plain")]
    with pytest.raises(ServiceError, match="HTTP 200: 'hello'"):
        await client.request("GET", "/v1/model")
    assert len(service.requests) == 1


async def test_a_connection_that_breaks_is_tried_again(
    service: Service, client: ServiceClient, pauses_s: list[float]
) -> None:
    service.num_broken = 2
    assert await client.request("POST", "/v1/x", {"a": 1}) == {"ok": True}
    assert service.requests == [("POST", "/v1/x", {"a": 1})] * 3


async def test_a_service_that_is_not_there_is_named(pauses_s: list[float]) -> None:
    async with ServiceClient("http://127.0.0.1:9/", timeout_s=5.0) as client:
        with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
            await client.request("GET", "/v1/model", num_tries=3)
    assert caught.value.status == 0
    assert len(pauses_s) == 2


async def test_a_service_that_hangs_is_given_up_within_the_timeout(service: Service) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    application = web.Application()
    application.router.add_get("/slow", hang)
    async with (
        TestServer(application) as server,
        ServiceClient(str(server.make_url("/")), timeout_s=0.05) as client,
    ):
        with pytest.raises(ServiceError, match="does not answer: TimeoutError"):
            await asyncio.wait_for(client.request("GET", "/slow", num_tries=1), 5.0)


async def test_events_and_requests_arrive_as_the_service_takes_them(
    service: Service, client: ServiceClient
) -> None:
    event = Event("e", "u", "i", "rating", 4.5, 17, request_id="r")
    await client.post_events([event, Event("f", "u", "j", "click", 1.0, 18)])
    await client.recommend(user_id="u", k=3)
    await client.model()
    (_, _, events), recommend, model = service.requests
    assert events["events"][0] == {
        "event_id": "e",
        "user_id": "u",
        "item_id": "i",
        "event_type": "rating",
        "value": 4.5,
        "timestamp_ms": 17,
        "request_id": "r",
    }
    assert "request_id" not in events["events"][1]
    assert recommend == ("POST", "/v1/recommend", {"user_id": "u", "k": 3})
    assert model == ("GET", "/v1/model", None)


def test_bodies_are_what_the_schemas_of_the_service_read() -> None:
    item = Item("i", "text", "title", ("a", "b"), {"price": 2.5, "new": True, "by": "x"})
    event = Event("e", "u", "i", "click", 1.0, 1_700_000_000_000, request_id="r")
    limits = RequestLimits(now_ms=1_700_000_000_000)
    assert validate_body(ItemBody, item_body(item), limits).item() == item
    assert validate_body(EventBody, event_body(event), limits).event(0) == event


def test_batches_are_all_values_in_order() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []
