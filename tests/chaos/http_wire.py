"""One HTTP connection, to the byte: what was sent, and whether an answer came whole or in part."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

ANSWER_TIMEOUT_S = 10.0


class NoAnswer(Exception):
    """The connection ended, or nothing came in time; `num_bytes` of an answer had come."""

    def __init__(self, reason: str, num_bytes: int) -> None:
        super().__init__(reason, num_bytes)


class Wire:
    """A connection that is kept for the next request, unless the service says that it ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_answers = 0
        self.is_kept = True
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect; OSError if the port is closed."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, method: str, path: str, body: Any, *, keep: bool = True) -> None:
        """Send one whole request."""
        self.send_bytes(request_bytes(method, path, body, keep=keep))

    def send_bytes(self, data: bytes) -> None:
        """Send a part of a request."""
        self._writer.write(data)

    async def answer(self) -> tuple[int, Any]:
        """Status and document of the next answer.

        Raises:
            NoAnswer: If there is no whole one.
        """
        received = b""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while not (length := _length(received)) or len(received) < length:
                    if not (data := await self._reader.read(65_536)):
                        raise NoAnswer("the connection was closed", len(received))
                    received += data
        except (OSError, TimeoutError) as error:
            raise NoAnswer(repr(error), len(received)) from error
        head, _, body = received.partition(b"\r\n\r\n")
        self.num_answers += 1
        self.is_kept = b"\r\nconnection: close" not in head.lower()
        return int(head[9:12]), json.loads(body)

    def close(self) -> None:
        """End it."""
        self._writer.close()


def request_bytes(method: str, path: str, body: Any, *, keep: bool = True) -> bytes:
    """One request as it is sent."""
    document = json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: rheos\r\nContent-Type: application/json\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\nContent-Length: {len(document)}\r\n"
    )
    return head.encode() + b"\r\n" + document


def _length(received: bytes) -> int:
    """Bytes of the answer that begins so, or 0 while its headers are not there."""
    head, end, _ = received.partition(b"\r\n\r\n")
    if not end:
        return 0
    [length] = [
        line[15:] for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
    ]
    return len(head) + 4 + int(length)
