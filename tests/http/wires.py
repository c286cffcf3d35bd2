"""A replica behind a real HTTP server, and raw bytes to and from it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from serving_fakes import FakeActors, films, service_over
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.processes import wait_until
from serve_app.routes import build_api


@dataclass
class Answer:
    """One answer as it came, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class ServedReplica:
    """A replica over fakes, behind uvicorn as Ray Serve configures it.

    Attributes:
        port: Where it listens.
        seen: Method and path of every request that came through to the application.
        measured: Status of every answer, as it was counted.
    """

    actors: FakeActors
    port: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)


@contextmanager
def served_replica(**changes: Any) -> Iterator[ServedReplica]:
    """Serve until the block ends; `changes` are serving settings."""
    replica = ServedReplica(FakeActors(films(12)))
    service = service_over(replica.actors, **changes)

    def measured(route: str, status: int, duration_s: float) -> None:
        replica.measured.append(status)

    service.telemetry.answered = measured  # type: ignore[method-assign]
    api = build_api(service)

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/healthz":  # Serve's, for HAProxy
            await Response()(scope, receive, send)
            return
        if scope["type"] == "http":
            replica.seen.append((scope["method"], scope["raw_path"].decode("latin-1")))
        await api(scope, receive, send)

    config = uvicorn.Config(recorded, host="127.0.0.1", port=0, log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        assert wait_until(lambda: server.started and service.follower.is_ready, 10.0, 0.02)
        replica.port = server.servers[0].sockets[0].getsockname()[1]
        yield replica
    finally:
        server.should_exit = True
        thread.join(10.0)


def exchange(port: int, sent: bytes, *, end_when: Callable[[], bool] | None = None) -> list[Answer]:
    """Send bytes and read until the connection is closed, or nothing comes for a second.

    Args:
        port: On this machine.
        sent: As they are.
        end_when: Once this is true (5 s at most), say that nothing more will be sent.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
        connection.settimeout(1.0)
        try:
            connection.sendall(sent)
            if end_when is not None:
                assert wait_until(end_when, 5.0, 0.01)
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass  # what came before it is the answer
    return list(answers_in(received))


def answers_in(received: bytes) -> Iterator[Answer]:
    """Take what came apart into answers; interim ones (1xx) are answers too."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1."), head
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        body, received = received[:length], received[length:]
        yield Answer(int(status_line.split()[1]), headers, body)


def request_bytes(
    body: bytes = b"",
    *,
    line: bytes = b"POST /v1/events HTTP/1.1",
    headers: tuple[bytes, ...] = (
        b"Host: rheos",
        b"Content-Type: application/json",
        b"Connection: close",
    ),
    more: tuple[bytes, ...] = (),
    length: bool = True,
) -> bytes:
    """The bytes of a request; `more` are headers beside the usual ones."""
    announced = (f"Content-Length: {len(body)}".encode(),) if length else ()
    return b"\r\n".join([line, *headers, *more, *announced, b"", body])
