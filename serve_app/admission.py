"""The gate in front of the routes: request id, bounds of body, time and concurrency.

Serve has limits of its own, but answers them in plain text, and a client's header can switch its
timeout off. These sit below Serve's, so they are the ones that a client meets.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.problems import Problem, problem_response

logger = logging.getLogger(__name__)

_CLIENT_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CLIENT_LEFT = 499  # what nginx logs when there is nobody left to answer
_UNGATED_PATHS = frozenset({"/healthz", "/readyz"})


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds for every request. `slow_requests` (method, path) may take `slow_deadline_s`."""

    max_ongoing_requests: int
    max_body_bytes: int
    deadline_s: float
    slow_requests: frozenset[tuple[str, str]] = frozenset()
    slow_deadline_s: float = 30.0


class AdmissionGate:
    """ASGI middleware. Each request ends in one answer: the route's, or a problem of ours.

    A request takes one of `max_ongoing_requests` places once its body is there: whoever sends one
    slowly keeps nobody else out. Puts `request_id` into the request's state; a client's
    `X-Request-ID` is taken only if it cannot do harm in a log line.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: AdmissionLimits,
        on_answer: Callable[[str, int, float], None],
    ) -> None:
        """`on_answer(path, status, duration_s)` is called once for each request."""
        self._app = app
        self._limits = limits
        self._on_answer = on_answer
        self._places = _Places(limits.max_ongoing_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        places = None if scope["path"] in _UNGATED_PATHS else self._places
        exchange = _Exchange(scope, receive, send, self._limits.max_body_bytes, places)
        try:
            await self._run(exchange)
        finally:
            exchange.leave()
        self._on_answer(scope["path"], exchange.status, exchange.duration_s)

    async def _run(self, exchange: _Exchange) -> None:
        limits = self._limits
        is_slow = (exchange.scope["method"], exchange.scope["path"]) in limits.slow_requests
        deadline_s = limits.slow_deadline_s if is_slow else limits.deadline_s
        timer = asyncio.timeout(deadline_s)
        try:
            async with timer:
                exchange.enter()
                await self._app(exchange.scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not timer.expired():
                raise
            await exchange.refuse(
                Problem("deadline-exceeded", f"no answer within {deadline_s:g} s")
            )
        except ClientDisconnect:
            logger.debug("client left request_id=%s", exchange.request_id)
            exchange.status = _CLIENT_LEFT
        except Problem as refusal:
            await exchange.refuse(refusal)
        except Exception:  # the last place where an answer can still be given
            logger.exception("request failed request_id=%s", exchange.request_id)
            await exchange.refuse(Problem("internal", "internal error"))


class _Places:
    """How many requests may still be worked on."""

    def __init__(self, number: int) -> None:
        self.num_free = number

    def check(self) -> None:
        """Raise `Problem` if there is no place."""
        if not self.num_free:
            raise Problem("overloaded", "the replica is busy", headers={"Retry-After": "1"})


class _Exchange:
    """One request and its answer, with what the gate adds to both."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_body_bytes: int,
        places: _Places | None,
    ) -> None:
        """`places` is None for a request that needs none."""
        self.request_id = _request_id(scope)
        self.status = 0
        self.scope: Scope = {
            **scope,
            "path": _routed_path(scope),
            "state": {**scope.get("state", {}), "request_id": self.request_id},
        }
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._received_bytes = 0
        self._places = places
        self._has_place = False
        self._started_s = asyncio.get_running_loop().time()

    @property
    def duration_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s

    def enter(self) -> None:
        """Take a place, or see that there is one for when the body has come.

        Raises:
            Problem: If there is none.
        """
        if self._places is None:
            return
        self._places.check()
        if not _has_body(self.scope):
            self._take_place()

    def leave(self) -> None:
        """Give the place back."""
        if self._places is not None and self._has_place:
            self._places.num_free += 1

    async def receive(self) -> Message:
        """The client's next message; counts, because chunked bodies announce no length."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > self._max_body_bytes:
                raise body_too_large(self._max_body_bytes)
            if not message.get("more_body", False):
                self._take_place()
        return message

    def _take_place(self) -> None:
        if self._places is not None and not self._has_place:
            self._places.check()
            self._places.num_free -= 1
            self._has_place = True

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with the problem, unless an answer is already under way and must be cut off."""
        if self.status:
            raise problem
        await problem_response(problem, self.request_id)(self.scope, self._receive, self.send)


def body_too_large(max_body_bytes: int) -> Problem:
    """The refusal of a body; closes the connection, since the rest of it was not read."""
    return Problem(
        "body-too-large",
        f"a body has at most {max_body_bytes} bytes",
        headers={"Connection": "close"},
    )


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return uuid.uuid4().hex


def _routed_path(scope: Scope) -> str:
    """The path as sent, not decoded: an id with an encoded slash stays one path segment."""
    raw: bytes | None = scope.get("raw_path")
    if not raw or scope.get("root_path"):
        return str(scope["path"])
    return raw.partition(b"?")[0].decode("latin-1")
