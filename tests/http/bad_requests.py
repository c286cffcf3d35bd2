"""How the lines of the matrix of bad requests are written, sent and checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from serving_fakes import FakeActors, event, eventually

from recommender.events import EVENT_TYPES
from serve_app.answers import ProblemDocument
from serve_app.problem_types import PROBLEM_TYPES

Route = tuple[str, str]
Headers = Sequence[tuple[str, str]]

EVENTS: Route = ("POST", "/v1/events")
ITEMS: Route = ("PUT", "/v1/items")
RECOMMEND: Route = ("POST", "/v1/recommend")
ROLLBACK: Route = ("POST", "/v1/model/rollback")
PROMOTE: Route = ("POST", "/v1/model/versions/1/promote")
MODEL: Route = ("GET", "/v1/model")
GOOD: Mapping[Route, Any] = {
    EVENTS: event(1),
    ITEMS: {"item_id": "new-1", "text": "A comedy"},
    RECOMMEND: {"user_id": "anna"},
    ROLLBACK: {"reason": "worse"},
    PROMOTE: {"reason": "better"},
}
"""Every route that reads a body, with a body that it takes."""
JSON: Headers = (("content-type", "application/json"),)
MISSING: Any = ...


@dataclass
class World:
    """A replica over actors of this process."""

    actors: FakeActors
    client: httpx.AsyncClient
    waiting: list[asyncio.Task[httpx.Response]] = field(default_factory=list)

    def written(self) -> tuple[Any, ...]:
        """All that a request can change."""
        actors = self.actors
        events, items = list(actors.buffer.events), list(actors.catalog.items)
        return events, items, actors.store.head, len(actors.store.versions)

    async def close(self) -> None:
        """Give up the requests that still wait."""
        for task in self.waiting:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def nothing(_: World) -> None:
    """Most lines need no preparation."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A request of the matrix, and the status of its answer.

    Attributes:
        row: Its number in the matrix.
        body: Bytes as they are, or what is sent as JSON.
        prepare: Brings the world about in which it is sent.
        settings: Of serving, where they are not the defaults.
        answered: Headers of the answer, exactly.
        members: Members of the answer, exactly.
    """

    row: int
    name: str
    status: int
    route: Route = EVENTS
    body: Any = MISSING
    headers: Headers = JSON
    prepare: Callable[[World], Awaitable[None]] = nothing
    settings: Mapping[str, Any] = field(default_factory=dict)
    answered: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> bytes | None:
        """The bytes of the body."""
        if self.body is MISSING or isinstance(self.body, bytes):
            return None if self.body is MISSING else self.body
        return json.dumps(self.body).encode()

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        """Send it, its path as it is written."""
        method, path = self.route
        url = httpx.URL("http://replica").copy_with(raw_path=path.encode())
        return await client.request(method, url, content=self.content, headers=list(self.headers))

    def check(self, answer: httpx.Response) -> None:
        """Check status, headers and members."""
        assert answer.status_code == self.status, answer.text
        assert "location" not in answer.headers
        assert {name: answer.headers[name] for name in self.answered} == self.answered
        assert {name: answer.json()[name] for name in self.members} == self.members


@dataclass(frozen=True, kw_only=True)
class Refused(Line):
    """A request that is refused with the problem `slug`, and changes nothing.

    Attributes:
        pointers: Where its faults are, all of them.
        code: Code of each fault.
        says: A part of the detail, or of the message of each fault.
    """

    slug: str
    pointers: tuple[str, ...] = ()
    code: str = ""
    says: str = ""

    def check(self, answer: httpx.Response) -> None:
        """Check the whole answer, and that it repeats no value of the request."""
        super().check(answer)
        document = is_problem(answer, self.status, self.slug)
        faults = document.errors or []
        assert tuple(fault.pointer for fault in faults) == self.pointers
        assert all(fault.code == self.code for fault in faults if self.code)
        texts = [fault.message for fault in faults] or [document.detail]
        assert all(self.says in text for text in texts), texts
        for value in self._values():
            assert value not in answer.text, f"it repeats {value!r}"

    def _values(self) -> Iterator[str]:
        """What the request says that an answer could repeat: not names, which pointers name."""
        path, _, query = self.route[1].partition("?")
        texts = [path, query]
        if isinstance(self.body, bytes):
            texts.append(self.body.decode("latin-1"))
        elif self.body is not MISSING:
            texts += (json.dumps(leaf).strip('"') for leaf in leaves(self.body))
        return (
            t for t in texts if len(t) >= 4 and t not in ("true", "false", "null", *EVENT_TYPES)
        )


@dataclass(frozen=True, kw_only=True)
class Accepted(Line):
    """A request that only looks bad. So many events and items are new after it."""

    status: int = 200
    num_events: int = 0
    num_items: int = 0


def is_problem(answer: httpx.Response, status: int, slug: str) -> ProblemDocument:
    """Check that an answer is this problem document in every respect that all of them share."""
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.content) <= 4_096
    problem = ProblemDocument.model_validate(answer.json())
    assert (problem.title, problem.status) == (PROBLEM_TYPES[slug].title, status)
    assert problem.instance == f"/requests/{problem.request_id}"
    return problem


def leaves(value: Any) -> Iterator[Any]:
    """Every text, number and truth value of a document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from leaves(child)
    else:
        yield value


def refused(row: int, name: str, status: int, slug: str, **more: Any) -> list[Refused]:
    """Any refusal."""
    return [Refused(row=row, name=name, status=status, slug=slug, **more)]


def raw(row: int, name: str, body: bytes, slug: str, says: str = "") -> list[Refused]:
    """Bytes that are not acceptable JSON, to every route that reads a body."""
    return [
        line
        for route in GOOD
        if body or route != PROMOTE  # which may go without
        for line in refused(row, f"{name}-{route[1]}", 400, slug, route=route, body=body, says=says)
    ]


def whole(row: int, name: str, body: Any) -> list[Refused]:
    """A document that is no object, to every route that reads a body."""
    more: dict[str, Any] = {"body": body, "pointers": ("",)}
    return [
        line
        for route in GOOD
        for line in refused(row, f"{name}-{route[1]}", 422, "validation", route=route, **more)
    ]


def bad(
    row: int,
    name: str,
    *pointers: str,
    route: Route = RECOMMEND,
    code: str = "",
    slug: str = "validation",
    says: str = "",
    **changes: Any,
) -> list[Refused]:
    """A good body with these changes, and where its faults are."""
    body = with_changes(GOOD[route], changes)
    more: dict[str, Any] = {"pointers": pointers, "code": code, "says": says}
    return refused(row, name, 422, slug, route=route, body=body, **more)


def bad_event(row: int, name: str, *pointers: str, slug: str = "validation", **more: Any) -> Any:
    """An event with these faults, alone and between two good ones."""
    return _alone_and_in_a_batch(row, name, pointers, slug, EVENTS, "events", more)


def bad_item(row: int, name: str, *pointers: str, slug: str = "validation", **more: Any) -> Any:
    """An item with these faults, alone and between two good ones."""
    return _alone_and_in_a_batch(row, f"item-{name}", pointers, slug, ITEMS, "items", more)


def _alone_and_in_a_batch(
    row: int,
    name: str,
    pointers: Iterable[str],
    slug: str,
    route: Route,
    member: str,
    more: dict[str, Any],
) -> list[Refused]:
    common = {key: more.pop(key, "") for key in ("code", "says")} | {"route": route}
    entry = with_changes(GOOD[route], more)
    batch = {member: [GOOD[route], entry, GOOD[route]]}
    inside = tuple(f"/{member}/1{pointer}" for pointer in pointers)
    return [
        *refused(row, name, 422, slug, body=entry, pointers=tuple(pointers), **common),
        *refused(row, f"{name}-in-a-batch", 422, slug, body=batch, pointers=inside, **common),
    ]


def bad_query(
    row: int, query: str, *pointers: str, path: str = "/v1/items/film-1/similar"
) -> list[Refused]:
    """Query parameters with these faults."""
    route = ("GET", f"{path}?{query}")
    more: dict[str, Any] = {"route": route, "headers": (), "pointers": pointers}
    return refused(row, route[1], 422, "validation", **more)


def not_read(row: int, name: str, *headers: tuple[str, str], **more: Any) -> list[Refused]:
    """A body that is not read, because of these headers, by any route that reads a body."""
    more = {"body": b"hunter2", "headers": headers} | more
    status, slug = more.pop("status", 415), more.pop("slug", "unsupported-media-type")
    return [
        line
        for route in GOOD
        for line in refused(row, f"{name}-{route[1]}", status, slug, route=route, **more)
    ]


def not_found(row: int, method: str, path: str) -> list[Refused]:
    """A path that leads nowhere, whatever is sent there."""
    return refused(row, f"{method} {path}", 404, "not-found", route=(method, path), body={})


def not_allowed(row: int, method: str, path: str, allow: str) -> list[Refused]:
    """A method that the path does not know."""
    answered = {"allow": allow}
    route = (method, path)
    return refused(
        row, f"{method} {path}", 405, "method-not-allowed", route=route, answered=answered
    )


def fails(
    row: int, error: Exception, *routes: Route, status: int, slug: str, retry_after: str = ""
) -> list[Refused]:
    """What routes make of an error of the actors behind them."""

    async def prepare(world: World) -> None:
        for actor in (world.actors.buffer, world.actors.catalog, world.actors.store):
            actor.error = error

    more: dict[str, Any] = {"prepare": prepare}
    if retry_after:
        more["answered"] = {"retry-after": retry_after}
    return [
        line
        for route in routes
        for line in refused(
            row,
            f"{type(error).__name__}-{route[1]}",
            status,
            slug,
            route=route,
            body=GOOD[route],
            **more,
        )
    ]


def with_changes(body: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The body with other values, and without those that are MISSING."""
    return {name: value for name, value in {**body, **changes}.items() if value is not MISSING}


async def actors_hang(world: World) -> None:
    """Nothing behind the replica answers."""
    actors = world.actors
    actors.buffer.hanging = actors.catalog.hanging = actors.store.hanging = True


async def shard_is_down(world: World) -> None:
    """The event buffer refuses."""
    from actors.messages import ShardUnavailable

    world.actors.buffer.error = ShardUnavailable("shard 0 does not answer")


async def one_place_is_taken(world: World) -> None:
    """A request waits for the event buffer until the world is closed."""
    world.actors.buffer.hanging = True
    world.waiting.append(asyncio.create_task(world.client.post("/v1/events", json=event(1))))
    await eventually(lambda: world.actors.buffer.num_hanging == 1)


async def no_head(world: World) -> None:
    """Nothing has been published yet."""
    world.actors.store.head = None
