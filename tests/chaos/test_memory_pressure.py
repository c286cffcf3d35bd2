"""Something on the node takes memory without end, and Ray ends processes until there is enough.

Ray ends first what it may start again, the newest of it first, and takes no account of how much it
holds, nor of `memory=`. So of a leak that may be retried it ends the leak; before one that may not
come all our actors.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
from killer import RECOVERY_S, Kill, went_on
from ledger import Ledger
from live_system import LiveSystem, wait_until
from rich.console import Console
from training_watch import TrainingWatch
from under_load import KEEP_VERSIONS, ONLY_LONG, play, show

from cluster.local_cluster import mark_of

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600), ONLY_LONG]

_MOST_BYTES = 9_000_000_000
"""What system and leak may take together; less if that were more than half of what is free."""
_LEAST_BYTES = 7_000_000_000
"""A system takes some 4 GB itself."""
_LEAK_S = 120.0
_ENDS = {-1: 2, 0: 1}
"""By how often Ray may retry what leaks: how often we let Ray end it."""
_LEAK = """
import sys
from pathlib import Path

from cluster.local_cluster import attach, find_cluster

attach(find_cluster(Path(sys.argv[1])))
import numpy as np
import ray


@ray.remote(max_retries=int(sys.argv[2]))
def leak():
    kept = []
    while True:
        kept.append(np.ones(1 << 23))


ray.get(leak.remote())
"""


def test_memory_runs_out_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = LiveSystem(tmp_path, more_config=KEEP_VERSIONS)
    ended: dict[str, Counter[str]] = {}

    def take_memory(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        kills = []
        for max_retries, num_ends in _ENDS.items():
            what = "a leak, not retried" if max_retries == 0 else "a leak, retried"
            time.sleep(3.0)  # some load first
            before = Counter(ended_by_ray(system))
            at_s = time.monotonic()
            pid = leak_until_ended(system, max_retries, num_ends)
            ended_s = time.monotonic()
            ended[what] = Counter(ended_by_ray(system)) - before
            goes_on = partial(has_gone_on, ledger, watch, ended_s)
            wait_until(goes_on, RECOVERY_S, "all goes on")
            kills.append(Kill(what, pid, at_s, ended_s - at_s, *went_on(ledger, watch, ended_s)))
        return kills

    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold():.3f}")
    try:
        run = play(system, 0, take_memory)
    finally:
        system.down()
    with capsys.disabled():
        show(run, Console(width=120))
        for what, workers in ended.items():
            print(f"  {what}: Ray ended {dict(workers)}")
    assert [workers["leak"] for workers in ended.values()] == list(_ENDS.values())
    assert run.books.faults() == {}


def has_gone_on(ledger: Ledger, watch: TrainingWatch, at_s: float) -> bool:
    """Whether every shard has written since then, and training has learned of it."""
    return None not in went_on(ledger, watch, at_s)


def threshold() -> float:
    """The share of the machine's memory from which on Ray ends processes."""
    memory = psutil.virtual_memory()
    room_bytes = min(_MOST_BYTES, memory.available // 2)
    if room_bytes < _LEAST_BYTES:
        pytest.skip(f"{memory.available / 1e9:.0f} GB of memory are free, 14 are needed")
    return (memory.total - memory.available + room_bytes) / memory.total


def leak_until_ended(system: LiveSystem, max_retries: int, num_ends: int) -> int:
    """Let a task take memory until Ray has ended it so often; the id of its driver."""
    before = ended_by_ray(system).count("leak")
    with subprocess.Popen(
        [sys.executable, "-c", _LEAK, str(system.data_dir), str(max_retries)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        try:
            wait_until(
                lambda: ended_by_ray(system).count("leak") >= before + num_ends,
                _LEAK_S,
                "Ray ends what leaks",
            )
        finally:
            driver.kill()
    return driver.pid


def ended_by_ray(system: LiveSystem) -> list[str]:
    """What Ray's memory monitor has ended so far, by its log: names of classes and tasks."""
    # Not by `session_latest`: each driver that comes makes that link anew.
    [log] = Path(mark_of(system.data_dir), "ray").glob("session_2*/logs/raylet.out")
    text = log.read_text(encoding="utf-8", errors="replace")
    return re.findall(r"^Selected to kill: .*?task name=[^,]*?(\w+)(?:\.__init__)?,", text, re.M)
