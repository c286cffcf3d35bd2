"""Processes are killed under load, and the books balance: nothing lost, nothing twice.

The short form kills each kind of process that matters once. `make chaos KILLS=100 SEEDS=0,1,2` is
the long one: so many kills for each seed, among all kinds. Each run prints its seed, its books and
how long what was away after a kill of which part, and writes them as JSON where `RHEOS_CHAOS_OUT`
says. The next kill comes when the system has got over the one before.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from killer import Kill, Killer, schedule
from ledger import Ledger
from live_system import LiveSystem
from rich.console import Console
from training_watch import TrainingWatch
from under_load import KEEP_VERSIONS, play, show

GCS = "control store (GCS)"
KILLS = int(os.environ.get("RHEOS_CHAOS_KILLS", "0"))
SEEDS = [int(seed) for seed in os.environ.get("RHEOS_CHAOS_SEEDS", "0").split(",")]
SHORT = (
    *("EventBuffer", "ParameterStore", "Keeper", "replica"),
    *("Serve controller", "HAProxy", GCS, "train worker", "job driver"),
)
MAX_HAPROXY_OUTAGE_S = 20.0
"""The goal is 6 s; a busy machine must not turn the test red."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 60 * KILLS)]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_or_doubled_whatever_is_killed(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = LiveSystem(tmp_path, more_config=KEEP_VERSIONS)

    def kill_one_after_another(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        rng = random.Random(seed)
        parts = schedule(KILLS, rng) if KILLS else rng.sample(SHORT, len(SHORT))
        return list(Killer(system, ledger, watch, rng).run(parts))

    try:
        run = play(system, seed, kill_one_after_another)
    finally:
        system.down()
    with capsys.disabled():
        show(run, Console(width=120))
    if folder := os.environ.get("RHEOS_CHAOS_OUT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(run), indent=1)
        (Path(folder) / f"chaos-seed-{seed}.json").write_text(text, encoding="utf-8")
    assert run.books.faults() == {}
    assert [kill for kill in run.kills if not kill.has_recovered] == []
    assert run.answers.errors == 0, run.answers.by_status
    assert GCS not in run.outages or run.outages[GCS].failed[0] == 0
    haproxy = run.outages.get("HAProxy")
    assert haproxy is None or haproxy.unanswered[1] < MAX_HAPROXY_OUTAGE_S
