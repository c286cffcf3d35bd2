"""A small client of the HTTP service: retries what is safe to retry, and says what was refused."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from recommender.events import Event, Item

T = TypeVar("T")
_RETRIED = frozenset({429, 502, 503, 504})
_MAX_PAUSE_S = 5.0


class ServiceError(RuntimeError):
    """The service refused a request or could not be reached."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.detail}" if self.status else self.detail


class ServiceClient:
    """Talks to one rheos service. All its calls are safe to repeat, so it repeats them.

    Recommendations change nothing, items are put, and events carry an `event_id` that makes a
    second copy a counted duplicate.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, num_connections: int = 32) -> None:
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=num_connections),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )
        self.num_retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def post_events(self, events: Sequence[Event]) -> dict[str, Any]:
        """Post at most 1,000 events; returns the acknowledgement."""
        return await self.request(
            "POST", "/v1/events", {"events": [event_body(event) for event in events]}
        )

    async def recommend(self, **body: Any) -> dict[str, Any]:
        """`POST /v1/recommend`."""
        return await self.request("POST", "/v1/recommend", body)

    async def model(self) -> dict[str, Any]:
        """`GET /v1/model`."""
        return await self.request("GET", "/v1/model")

    async def request(
        self, method: str, path: str, body: Any = None, *, num_tries: int = 8
    ) -> dict[str, Any]:
        """One request, tried again with growing pauses while the service is busy or away.

        Raises:
            ServiceError: If it is refused, or still away after the last try.
        """
        pause_s, asked_s = 0.1, 0.0
        failure = ServiceError(0, "not tried")
        for attempt in range(num_tries):
            if attempt:
                self.num_retries += 1
                await asyncio.sleep(max(asked_s, pause_s * random.uniform(0.5, 1.5)))
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            asked_s = 0.0
            try:
                async with self._session.request(method, self._url + path, json=body) as response:
                    text = await response.text()
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                failure = ServiceError(0, f"{self._url} does not answer: {error!r}")
                continue
            answer = _parsed(text)
            if response.status < 400 and isinstance(answer, dict):
                return answer
            failure = ServiceError(response.status, _detail(answer))
            if response.status not in _RETRIED:
                raise failure
            asked_s = _retry_after_s(response.headers.get("Retry-After", ""))
        raise failure


def batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` values, in order."""
    iterator = iter(values)
    while part := list(islice(iterator, size)):
        yield part


def event_body(event: Event) -> dict[str, Any]:
    """An event as `POST /v1/events` takes it."""
    body = {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "event_type": event.event_type,
        "value": event.value,
        "timestamp_ms": event.timestamp_ms,
    }
    return body | ({"request_id": event.request_id} if event.request_id else {})


def item_body(item: Item) -> dict[str, Any]:
    """An item as `PUT /v1/items` takes it."""
    return {
        "item_id": item.item_id,
        "text": item.text,
        "title": item.title,
        "categories": list(item.categories),
        "attributes": dict(item.attributes),
    }


def _parsed(text: str) -> Any:
    """The JSON document, or the text itself: a proxy in between may answer in HTML."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _retry_after_s(header: str) -> float:
    """Seconds that the service asks to wait, within bounds; 0 for none and for a date."""
    return min(float(header), _MAX_PAUSE_S) if header.isdecimal() else 0.0


def _detail(answer: Any) -> str:
    if not isinstance(answer, dict):
        return f"{answer!r:.200}"
    errors = "; ".join(f"{e.get('pointer')}: {e.get('message')}" for e in answer.get("errors", []))
    return f"{answer.get('title')}: {answer.get('detail')}" + (f" ({errors})" if errors else "")
