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

    Puts `request_id` into the request's state; a client's `X-Request-ID` is taken only if it cannot
    do harm in a log line.
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
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits.max_body_bytes)
        gated = scope["path"] not in _UNGATED_PATHS
        if gated and self._ongoing >= self._limits.max_ongoing_requests:
            await exchange.refuse(
                Problem("overloaded", "the replica is busy", headers={"Retry-After": "1"})
            )
        else:
            self._ongoing += gated
            try:
                await self._run(exchange)
            finally:
                self._ongoing -= gated
        self._on_answer(scope["path"], exchange.status, exchange.duration_s)

    async def _run(self, exchange: _Exchange) -> None:
        limits = self._limits
        is_slow = (exchange.scope["method"], exchange.scope["path"]) in limits.slow_requests
        deadline_s = limits.slow_deadline_s if is_slow else limits.deadline_s
        timer = asyncio.timeout(deadline_s)
        try:
            async with timer:
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
        except Exception:  # the last place where an answer can still be given
            logger.exception("request failed request_id=%s", exchange.request_id)
            await exchange.refuse(Problem("internal", "internal error"))


class _Exchange:
    """One request and its answer, with what the gate adds to both."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
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
        self._started_s = asyncio.get_running_loop().time()

    @property
    def duration_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s

    async def receive(self) -> Message:
        """The client's next message; counts, because chunked bodies announce no length."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > self._max_body_bytes:
                raise body_too_large(self._max_body_bytes)
        return message

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
