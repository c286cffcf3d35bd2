"""Something on the node takes memory without end, and Ray ends processes until there is enough."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from killer import RECOVERY_S, Kill, went_on
from ledger import Ledger
from live_system import LiveSystem, wait_until
from rich.console import Console
from training_watch import TrainingWatch
from under_load import KEEP_VERSIONS, ONLY_LONG, play, show

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400), ONLY_LONG]

ROOM = 0.15
"""Share of the machine's memory that may be taken before Ray acts."""
LEAK = """
import sys
import time
from pathlib import Path

from cluster.local_cluster import attach, find_cluster

attach(find_cluster(Path(sys.argv[1])))
import numpy as np
import ray


@ray.remote(max_retries=0)
def leak():
    kept = []
    while True:
        kept.append(np.ones(1 << 24))
        time.sleep(0.05)


ray.get(leak.remote())
"""


def test_memory_runs_out_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = LiveSystem(tmp_path, more_config=KEEP_VERSIONS)

    def take_memory(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        time.sleep(3.0)  # some load first
        at_s = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", LEAK, str(system.data_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as leaker:
            try:
                said = leaker.communicate(timeout=RECOVERY_S)[0]
            finally:
                leaker.kill()
        assert "memory" in said, said
        ended_s = time.monotonic()
        wait_until(lambda: None not in went_on(ledger, watch, ended_s), RECOVERY_S, "all goes on")
        back_s = ended_s - at_s
        return [Kill("what leaks", leaker.pid, at_s, back_s, *went_on(ledger, watch, ended_s))]

    used = psutil.virtual_memory().percent / 100
    # A system takes some 5 GB itself.
    threshold = used + 5e9 / psutil.virtual_memory().total + ROOM
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{min(threshold, 0.95):.2f}")
    try:
        run = play(system, 0, take_memory)
    finally:
        system.down()
    with capsys.disabled():
        show(run, Console(width=120))
    assert run.books.faults() == {}
