"""The whole node dies under load; `rheos up` brings everything back, and nothing by hand."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from killer import PARTS, Kill, processes_of, went_on
from ledger import Ledger
from live_system import LiveSystem, wait_until
from rich.console import Console
from training_watch import TrainingWatch
from under_load import KEEP_VERSIONS, play, show

from cluster.local_cluster import find_cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

ALL_BUT_HAPROXY = f"(?!{PARTS['HAProxy']})"
MAX_START_S = 180.0
"""The goal is 90 s; a busy machine must not turn the test red."""


def test_after_the_node_died_up_serves_what_was_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = LiveSystem(tmp_path, more_config=KEEP_VERSIONS)

    def kill_node(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        time.sleep(3.0)  # some load first
        psutil.Process(system.record.pid).kill()
        said = system.rheos("status")
        assert (said.returncode, "watches over Ray" in said.stdout) == (0, True), said
        victims = processes_of(system, ALL_BUT_HAPROXY)
        at_s = time.monotonic()
        for process in victims:
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: find_cluster(system.data_dir) is None, 60.0, "the node is gone")
        assert processes_of(system, PARTS["HAProxy"]), "an orphan holds the port"
        orphans = processes_of(system, "")
        system.up()
        up_s = time.monotonic() - at_s
        assert not psutil.wait_procs(orphans, timeout=5.0)[1], "what was left is ended"
        wait_until(lambda: None not in went_on(ledger, watch, at_s), 60.0, "all goes on")
        return [Kill("node", victims[0].pid, at_s, up_s, *went_on(ledger, watch, at_s))]

    try:
        run = play(system, 0, kill_node)
    finally:
        system.down()
    with capsys.disabled():
        show(run, Console(width=120))
    assert run.books.faults() == {}
    assert run.answers.longest_gap_s < MAX_START_S
