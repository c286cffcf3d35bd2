"""A whole system under load for half an hour, a process killed every 20 seconds: nothing leaks.

`make soak` runs it. Killed are shards, replicas, HAProxy, the keeper and Serve's controller, and of
several processes of a part the newest one, so that others live through all of it: what lives on
must not keep anything of the dead. Prints a table, and leaves the samples and a picture where
`RHEOS_CHAOS_OUT` says.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from killer import Kill, Killer
from ledger import Ledger
from live_system import LiveSystem
from rich.console import Console
from rich.table import Table
from soak_picture import draw_soak
from training_watch import TrainingWatch
from under_load import Run, play, show
from vital_signs import MIB, DiskSample, Line, VitalSigns, lines, store_faults

SOAK_S = float(os.environ.get("RHEOS_SOAK_S", "0"))
SETTLE_S = min(300.0, SOAK_S / 3)
KILLED = ("EventBuffer", "replica", "HAProxy", "Keeper", "Serve controller")
KILL_PERIOD_S = 20.0
KEEP_VERSIONS = 20

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600 + SOAK_S),
    pytest.mark.skipif(not SOAK_S, reason="takes half an hour: make soak"),
]


def test_nothing_grows_while_it_serves_learns_and_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = LiveSystem(tmp_path, more_config=f"[store]\nkeep_versions = {KEEP_VERSIONS}\n")
    signs = VitalSigns(system)
    started_s = 0.0

    def kill_at_a_pace(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        nonlocal signs, started_s
        started_s = time.monotonic()
        rng = random.Random(0)
        with VitalSigns(system) as signs:
            killer = Killer(system, ledger, watch, rng, spares_oldest=True)
            return list(killer.run(_victims(rng)))

    try:
        run = play(system, 0, kill_at_a_pace)
    finally:
        system.down()
    end_s = signs.disk[-1].at_s
    found = lines(signs.samples, SETTLE_S, end_s, 60.0 * run.books.stored / run.seconds)
    with capsys.disabled():
        _show(run, found, signs.disk)
    if folder := os.environ.get("RHEOS_CHAOS_OUT"):
        kills_s = [kill.at_s - started_s for kill in run.kills]
        _save(signs, kills_s, Path(folder))
    assert run.books.faults() == {}
    assert [kill for kill in run.kills if not kill.has_recovered] == []
    assert store_faults(signs.disk, KEEP_VERSIONS) == []
    assert [fault for line in found for fault in line.faults] == []


def _victims(rng: random.Random) -> Iterator[str]:
    """A part every `KILL_PERIOD_S`, or as soon as the last one is back."""
    started_s = time.monotonic()
    due_s = KILL_PERIOD_S
    while due_s < SOAK_S:
        time.sleep(max(0.0, started_s + due_s - time.monotonic()))
        yield rng.choice(KILLED)
        due_s = max(due_s + KILL_PERIOD_S, time.monotonic() - started_s)
    time.sleep(max(0.0, started_s + SOAK_S - time.monotonic()))


def _show(run: Run, found: Sequence[Line], disk: Sequence[DiskSample]) -> None:
    console = Console(width=120)
    show(run, console)
    table = Table(title=f"processes after {SETTLE_S:.0f} s; judged are ours that lived through it")
    for heading in ("part", "pid", "judged", "MiB", "MiB more a minute", "handles", "threads"):
        table.add_column(heading)
    for line in found:
        table.add_row(
            *(line.part, str(line.pid), "yes" if line.is_judged else ""),
            *(f"{line.mib:.0f}", f"{line.mib_per_minute:+.2f}"),
            *("{} to {}".format(*line.handles), "{} to {}".format(*line.threads)),
        )
    console.print(table)
    first, last = disk[0], disk[-1]
    console.print(
        f"  on disk          store {last.store_bytes / MIB:.1f} MiB at most "
        f"{max(d.store_bytes for d in disk) / MIB:.1f}, {last.num_versions} versions of up to "
        f"{last.version_bytes / MIB:.1f} MiB; log {first.log_bytes / MIB:.1f} to "
        f"{last.log_bytes / MIB:.1f} MiB; Ray's folder {first.ray_log_bytes / MIB:.1f} to "
        f"{last.ray_log_bytes / MIB:.1f} MiB",
        highlight=False,
    )


def _save(signs: VitalSigns, kills_s: Sequence[float], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    processes = pd.DataFrame([asdict(sample) for sample in signs.samples])
    processes.to_csv(folder / "soak-processes.csv", index=False)
    disk = pd.DataFrame([asdict(sample) for sample in signs.disk])
    disk.to_csv(folder / "soak-disk.csv", index=False)
    draw_soak(signs.samples, signs.disk, kills_s, folder / "soak.png")
