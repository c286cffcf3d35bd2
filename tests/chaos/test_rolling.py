"""Replicas come, go and are replaced, and the system stops, while 50 requests a second go on.

A request fails if anything but a whole answer of success comes back, see `steady_load`. When the
system stops, one that was sent before the port was closed must succeed as well; from then on it is
refused, or still answered if its connection was kept.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from books import balance
from http_wire import request_bytes
from ledger import Ledger
from live_system import LiveSystem, simulated_stream, wait_until
from steady_load import REFUSED, SteadyLoad
from training_watch import Version
from under_load import export, ingest

from actors.storage_folder import hold_all
from cluster.local_cluster import mark_of
from cluster.processes import port_holder

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

PATIENT = """\
header_timeout_s = 30.0
max_ongoing_requests = 500
"""
"""Slow bodies are waited for longer than `rheos down` takes to close the port. And what a busy
machine is slow to answer shall queue rather than be refused; the deadline is the default, or an
outage of seconds would look like patience."""
MOST = max(2, min(4, os.cpu_count() or 1))
"""Replicas that start at once take a core each for seconds; two cores leave nothing for answers."""
NUM_SLOW = 8
MAX_STOP_S = 40.0


@dataclass
class Stage:
    """A system and what its clients know."""

    system: LiveSystem
    ledger: Ledger = field(default_factory=Ledger)

    def load(self) -> SteadyLoad:
        """The clients."""
        items = [item.item_id for item in simulated_stream().items]
        return SteadyLoad(self.system.port, items, self.ledger, prefix=f"{len(self.ledger.sent)}")

    def deploy(self, *, min_replicas: int, max_replicas: int, serving: str = "") -> set[str]:
        """`rheos deploy` with these settings; names of the replicas that answer then."""
        system = self.system
        system.min_replicas, system.max_replicas = min_replicas, max_replicas
        system.serving = PATIENT + serving
        done = system.rheos("deploy")
        assert done.returncode == 0, done.stdout + done.stderr
        names: set[str] = wait_until(
            lambda: len(found := system.replicas()) == min_replicas and found,
            60.0,
            f"{min_replicas} replicas and no answer of those before",
        )
        return names


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("rolling")
    live = LiveSystem(folder, min_replicas=1, max_replicas=1, serving=PATIENT)
    stage = Stage(live)
    try:
        live.up()
        ingest(live, stage.ledger)
        live.wait_for_version(1)
        yield stage
    finally:
        live.down()


def test_replicas_are_added_replaced_and_taken_away_without_a_failed_request(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    system = stage.system
    first = system.replicas()
    with stage.load() as load:
        wait_until(lambda: len(load.outcomes) > 100, 30.0, "some load")
        system.recommend("anna", k=60)
        second = stage.deploy(min_replicas=1, max_replicas=1, serving="max_k = 50")
        system.request("POST", "/v1/recommend", {"user_id": "anna", "k": 60}, expect=422)
        more = stage.deploy(min_replicas=MOST, max_replicas=MOST)
        others = stage.deploy(min_replicas=MOST, max_replicas=MOST)
        last = stage.deploy(min_replicas=1, max_replicas=1)
    tell(capsys, f"one replica replaced, 1 to {MOST}, all replaced, {MOST} to 1", load)
    failed = [outcome for outcome in load.outcomes if not outcome.is_good]
    assert [len(names) for names in (first, second, more, others, last)] == [1, 1, MOST, MOST, 1]
    assert len(first | second | more | others | last) == 3 + 2 * MOST
    assert failed == []
    assert stage.ledger.violations == []
    for replica in load.first_answers.keys() - first:
        version, newest = load.first_answers[replica]
        # A version is head a moment before each replica has swapped to it.
        assert version >= newest - 1, f"{replica} began with {version} when {newest} was served"


def test_a_setting_of_another_part_is_not_deployed(stage: Stage) -> None:
    before, system = stage.system.replicas(), stage.system
    system.more_config = "[buffer]\nnum_shards = 3\n"
    done = system.rheos("deploy")
    system.more_config = ""
    assert done.returncode == 2
    assert "buffer.num_shards" in done.stderr
    assert system.replicas() == before


def test_down_answers_what_it_has_taken_and_leaves_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    system, ledger = stage.system, stage.ledger
    head = Version.of(system.model()["head"])
    with stage.load() as load:
        wait_until(lambda: len(load.outcomes) > 100, 30.0, "some load")
        slow = [SlowClick(system.port, number, ledger) for number in range(NUM_SLOW)]
        started_s = time.monotonic()
        with subprocess.Popen(system.command("down"), stdout=subprocess.PIPE) as process:
            wait_until(lambda: REFUSED in load.results(), 30.0, "the port is closed")
            answers = [click.finish() for click in slow]
            process.communicate(timeout=MAX_STOP_S)
        stop_s = time.monotonic() - started_s
        wait_until(lambda: load.results()[REFUSED] > 100, 30.0, "some that are refused")
    tell(capsys, f"down within {stop_s:.1f} s, slow bodies answered {answers}", load)
    assert process.returncode == 0
    assert stop_s < MAX_STOP_S
    assert answers == [202] * NUM_SLOW
    closed_s = min(outcome.sent_s for outcome in load.outcomes if outcome.result == REFUSED)
    failed = [outcome for outcome in load.outcomes if not outcome.is_good]
    assert [outcome for outcome in failed if outcome.sent_s < closed_s] == []
    assert {outcome.result for outcome in failed} == {REFUSED}
    assert_nothing_is_left(system)
    books = balance(ledger, export(system), {}, head)
    assert (books.lost, books.doubled, books.invented, books.changed) == (0, 0, 0, 0)
    assert books.violations == ()


class SlowClick:
    """A click of which the service has got the headers and half of the body."""

    def __init__(self, port: int, number: int, ledger: Ledger) -> None:
        self._event = {
            "event_id": f"slow-{number}",
            "user_id": f"slow-{number}",
            "item_id": simulated_stream().items[number].item_id,
            "event_type": "click",
            "timestamp_ms": time.time_ns() // 1_000_000,
        }
        self._ledger = ledger
        self._request = request_bytes("POST", "/v1/events", self._event, keep=False)
        self._connection = socket.create_connection(("127.0.0.1", port), 10.0)
        self._connection.sendall(self._request[:-40])
        ledger.send([self._event])

    def finish(self) -> int:
        """Send the rest; the status of the answer, or 0 if none came."""
        with closing(self._connection), self._connection.makefile("rb") as answer:
            self._connection.sendall(self._request[-40:])
            head, _, document = answer.read().partition(b"\r\n\r\n")
        if head[9:12] == b"202":
            self._ledger.acknowledge([self._event], json.loads(document), 0.0, time.monotonic())
        return int(head[9:12] or 0)


def assert_nothing_is_left(system: LiveSystem) -> None:
    """No process, no socket, no lock."""
    assert system.processes() == []
    assert port_holder(system.port) is None
    assert not Path(mark_of(system.data_dir)).exists()
    with hold_all(system.data_dir):
        assert not (system.data_dir / "cluster.json").exists()


def tell(capsys: pytest.CaptureFixture[str], what: str, load: SteadyLoad) -> None:
    """Print what came of it."""
    with capsys.disabled():
        print(
            f"\n{what}: {load.results()}, slowest answer {load.longest_s:.2f} s, "
            f"sent again on a new connection: {load.num_resent}"
        )
