"""The matrix of bad requests: each gets exactly one status and one kind of problem."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving_fakes import NOW_MS, FakeActors, event, films, replica

from serve_app.answers import ProblemDocument

JSON = {"content-type": "application/json"}


@pytest.fixture
def actors() -> FakeActors:
    return FakeActors(films(12))


@pytest.fixture
async def client(actors: FakeActors) -> AsyncIterator[httpx.AsyncClient]:
    async with replica(actors, max_body_bytes=300_000, max_batch=50) as (_, client):
        yield client


def _events(*numbers: int, **changes: Any) -> dict[str, Any]:
    return {"events": [event(number, **changes) for number in numbers]}


def _problem(answer: httpx.Response, status: int, slug: str) -> ProblemDocument:
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.content) <= 4_096
    problem = ProblemDocument.model_validate(answer.json())
    assert problem.status == status
    assert problem.instance == f"/requests/{problem.request_id}"
    return problem


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b'{"value": NaN}', "non-finite-number"),
        (b'{"value": 1e400}', "non-finite-number"),
        (b'{"user_id": "a", "user_id": "b"}', "duplicate-key"),
        (b'{"user_id": "\\ud800"}', "invalid-text"),
        (b'{"user_id": "\\u0000"}', "invalid-text"),
        ('{"user_id": "a"}'.encode("utf-16"), "malformed-json"),
    ],
)
async def test_what_is_not_json_is_a_bad_request(
    client: httpx.AsyncClient, body: bytes, slug: str
) -> None:
    for path in ("/v1/events", "/v1/recommend"):
        _problem(await client.post(path, content=body, headers=JSON), 400, slug)


@pytest.mark.parametrize(
    ("changes", "pointer", "slug"),
    [
        ({"is_admin": True}, "/is_admin", "validation"),
        ({"trained_through": [1]}, "/trained_through", "validation"),
        ({"user_id": ...}, "/user_id", "validation"),
        ({"item_id": ...}, "/item_id", "validation"),
        ({"event_type": ...}, "/event_type", "validation"),
        ({"event_id": ...}, "/event_id", "validation"),
        ({"user_id": 1}, "/user_id", "validation"),
        ({"user_id": None}, "/user_id", "validation"),
        ({"value": "1"}, "/value", "validation"),
        ({"value": True}, "/value", "validation"),
        ({"value": 1_000_001}, "/value", "validation"),
        ({"value": -1e7}, "/value", "validation"),
        ({"timestamp_ms": 1764000000000.0}, "/timestamp_ms", "validation"),
        ({"timestamp_ms": True}, "/timestamp_ms", "validation"),
        ({"timestamp_ms": NOW_MS + 300_001}, "/timestamp_ms", "timestamp-range"),
        ({"timestamp_ms": 631_151_999_999}, "/timestamp_ms", "timestamp-range"),
        ({"timestamp_ms": NOW_MS // 1_000}, "/timestamp_ms", "timestamp-range"),
        ({"timestamp_ms": -1}, "/timestamp_ms", "timestamp-range"),
        ({"event_type": "hover"}, "/event_type", "validation"),
        ({"user_id": ""}, "/user_id", "validation"),
        ({"user_id": "x" * 129}, "/user_id", "validation"),
        ({"user_id": "\U0001f600" * 65}, "/user_id", "validation"),
        ({"user_id": " x"}, "/user_id", "validation"),
        ({"user_id": "x\u00a0"}, "/user_id", "validation"),
        ({"user_id": "a\nb"}, "/user_id", "validation"),
        ({"user_id": "a\x1bb"}, "/user_id", "validation"),
        ({"item_id": "a\u202eb"}, "/item_id", "validation"),
        ({"item_id": "a\u200bb"}, "/item_id", "validation"),
        ({"item_id": "a\ue000b"}, "/item_id", "validation"),
        ({"item_id": "a\u0378b"}, "/item_id", "validation"),
        ({"event_id": ""}, "/event_id", "validation"),
        ({"event_id": "e" * 65}, "/event_id", "validation"),
        ({"event_id": "e 1"}, "/event_id", "validation"),
        ({"event_id": "e-1\n"}, "/event_id", "validation"),
        ({"event_id": "é"}, "/event_id", "validation"),
        ({"request_id": 'evil" level=ERROR'}, "/request_id", "validation"),
    ],
)
async def test_a_bad_event_is_refused_with_the_place_of_the_fault(
    client: httpx.AsyncClient,
    actors: FakeActors,
    changes: dict[str, Any],
    pointer: str,
    slug: str,
) -> None:
    bad = {k: v for k, v in {**event(1), **changes}.items() if v is not ...}
    alone = _problem(await client.post("/v1/events", json=bad), 422, slug)
    assert [error.pointer for error in alone.errors or []] == [pointer]
    batch = {"events": [event(2), bad, event(3)]}
    in_batch = _problem(await client.post("/v1/events", json=batch), 422, slug)
    assert [error.pointer for error in in_batch.errors or []] == [f"/events/1{pointer}"]
    assert actors.buffer.events == [], "nothing of a batch with a bad event may be stored"


@pytest.mark.parametrize("body", [None, [], "x", 1])
async def test_a_body_that_is_no_object_is_refused_as_a_whole(
    client: httpx.AsyncClient, body: Any
) -> None:
    for path in ("/v1/events", "/v1/recommend"):
        answer = await client.post(path, content=json.dumps(body), headers=JSON)
        problem = _problem(answer, 422, "validation")
        assert [error.pointer for error in problem.errors or []] == [""]


@pytest.mark.parametrize("number", [0, 51])
async def test_a_batch_of_a_wrong_size_is_told_the_bound(
    client: httpx.AsyncClient, number: int
) -> None:
    answer = await client.post("/v1/events", json=_events(*range(number)))
    problem = _problem(answer, 422, "batch-size")
    assert problem.errors is not None
    assert problem.errors[0].pointer == "/events"
    assert "50" in problem.errors[0].message


@pytest.mark.parametrize(
    "item_id",
    [
        "../../etc/passwd",
        "a/b",
        "C:\\x",
        "%00",
        "." * 128,
        "\U0001f600" * 30,
        "e\u0301",
        "\u00e9",
        "a?b#c",
        "x/similar",
    ],
)
async def test_an_odd_id_is_stored_and_found_again(client: httpx.AsyncClient, item_id: str) -> None:
    answer = await client.post("/v1/events", json=event(1, item_id=item_id))
    assert (answer.status_code, answer.json()["unknown_items"]) == (202, 1)
    assert (
        await client.put("/v1/items", json={"item_id": item_id, "text": "odd"})
    ).status_code == 200
    quoted = "".join(f"%{byte:02X}" for byte in item_id.encode())
    found = await client.get(f"/v1/items/{quoted}")
    assert (found.status_code, found.json()["item_id"]) == (200, item_id)


async def test_a_late_event_is_accepted(client: httpx.AsyncClient) -> None:
    late = event(1, timestamp_ms=NOW_MS - 30 * 86_400_000)
    assert (await client.post("/v1/events", json=late)).status_code == 202


async def test_an_event_sent_again_counts_as_a_duplicate(client: httpx.AsyncClient) -> None:
    await client.post("/v1/events", json=event(1))
    answer = await client.post("/v1/events", json=_events(1, 2, 2))
    assert answer.status_code == 202
    assert (answer.json()["accepted"], answer.json()["duplicates"]) == (1, 2)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-7"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_another_media_type_or_encoding_is_not_read(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await client.post("/v1/events", content=b"{}", headers=headers)
    _problem(answer, 415, "unsupported-media-type")
    expected = "accept-encoding" if "content-encoding" in headers else "accept"
    assert expected in answer.headers


async def test_utf_8_may_be_said_aloud(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/v1/events",
        content=json.dumps(event(1)),
        headers={"content-type": "application/json; charset=UTF-8"},
    )
    assert answer.status_code == 202


async def test_a_large_body_is_refused_by_its_announced_length_unread(
    client: httpx.AsyncClient,
) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body must not be read")
        yield b""

    headers = {**JSON, "content-length": "300001"}
    answer = await client.post("/v1/events", content=unread(), headers=headers)
    problem = _problem(answer, 413, "body-too-large")
    assert "300000" in problem.detail
    assert answer.headers["connection"] == "close"


async def test_a_large_body_without_a_length_is_refused_while_it_comes(
    client: httpx.AsyncClient,
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b" " * 100_000

    answer = await client.post("/v1/events", content=endless(), headers=JSON)
    _problem(answer, 413, "body-too-large")
    assert sent < 10, "the rest of the body must not be read"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"k": 0}, "/k"),
        ({"k": -1}, "/k"),
        ({"k": 1_001}, "/k"),
        ({"k": "abc"}, "/k"),
        ({"k": 1e23}, "/k"),
        ({"k": True}, "/k"),
        ({"candidates": ["x"] * 10_001}, "/candidates"),
        ({"exclude": ["x"] * 10_001}, "/exclude"),
        ({"rank_of": ["x"] * 101}, "/rank_of"),
        ({"categories": [1]}, "/categories/0"),
        ({"history": [{"item_id": "film-1"}]}, ""),
        ({"user_id": None}, ""),
        ({"exclude_seen": 1}, "/exclude_seen"),
    ],
)
async def test_a_bad_recommendation_request_is_refused_with_the_place_of_the_fault(
    client: httpx.AsyncClient, changes: dict[str, Any], pointer: str
) -> None:
    answer = await client.post("/v1/recommend", json={"user_id": "anna", **changes})
    problem = _problem(answer, 422, "validation")
    assert [error.pointer for error in problem.errors or []] == [pointer]


@pytest.mark.parametrize(
    "query", ["k=0", "k=-1", "k=1001", "k=abc", "k=1&k=2", "q=1", "k=+1", "k="]
)
async def test_a_bad_query_parameter_is_refused(client: httpx.AsyncClient, query: str) -> None:
    _problem(await client.get(f"/v1/items/film-1/similar?{query}"), 422, "validation")


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"text": "x" * 20_001}, "/text"),
        ({"text": ...}, "/text"),
        ({"attributes": {str(n): n for n in range(65)}}, "/attributes"),
        ({"attributes": {"a": {"b": 1}}}, "/attributes/a"),
        ({"attributes": {"a/b": None}}, "/attributes/a~1b"),
        ({"categories": ["x"] * 65}, "/categories"),
        ({"row": 3}, "/row"),
    ],
)
async def test_a_bad_item_is_refused_with_the_place_of_the_fault(
    client: httpx.AsyncClient, changes: dict[str, Any], pointer: str
) -> None:
    body = {"item_id": "film-99", "text": "A comedy", **changes}
    body = {k: v for k, v in body.items() if v is not ...}
    problem = _problem(await client.put("/v1/items", json=body), 422, "validation")
    assert [error.pointer for error in problem.errors or []] == [pointer]


@pytest.mark.parametrize(
    "text", ["", "\U0001f600", "<script>alert(1)</script>", "ignore all rules"]
)
async def test_any_text_is_stored_as_it_is(client: httpx.AsyncClient, text: str) -> None:
    await client.put("/v1/items", json={"item_id": "odd", "text": text})
    assert (await client.get("/v1/items/odd")).json()["text"] == text


@pytest.mark.parametrize(
    "path", ["/nix", "//v1/events", "/v1/../admin", "/v1/%2e%2e/admin", "/v1/events/", "/docs"]
)
async def test_an_unknown_path_is_not_found_and_not_redirected(
    client: httpx.AsyncClient, path: str
) -> None:
    url = httpx.URL("http://replica").copy_with(raw_path=path.encode())
    _problem(await client.post(url, json={}), 404, "not-found")


async def test_a_wrong_method_is_told_the_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.request("TRACE", "/v1/events")
    _problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


async def test_many_faults_are_counted_and_not_all_shown(client: httpx.AsyncClient) -> None:
    batch = {"events": [{"nix" * 10: 1} for _ in range(40)]}
    answer = await client.post("/v1/events", json=batch)
    problem = _problem(answer, 422, "validation")
    assert problem.errors is not None
    assert len(problem.errors) == 20
    assert problem.errors_omitted == 40 * 5 - 20


async def test_a_refusal_never_repeats_what_was_sent(client: httpx.AsyncClient) -> None:
    secret = "hunter2" * 30
    body = {"user_id": secret, secret: secret, "k": secret, "candidates": [secret]}
    answer = await client.post("/v1/recommend", json=body)
    _problem(answer, 422, "validation")
    assert "hunter2" not in answer.text


async def test_a_harmless_request_id_is_taken_and_another_is_not(
    client: httpx.AsyncClient,
) -> None:
    kept = await client.get("/nix", headers={"x-request-id": "shop-1.a_b"})
    assert kept.json()["request_id"] == "shop-1.a_b"
    for evil in ('evil" level=ERROR', "x" * 65, ""):
        answer = await client.get("/nix", headers={"x-request-id": evil})
        assert answer.json()["request_id"].isalnum()
        assert answer.json()["request_id"] != evil


async def test_the_type_of_a_problem_leads_to_a_page(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", json={})
    page = await client.get(answer.json()["type"])
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (await client.get("/problems/nix")).status_code == 404
