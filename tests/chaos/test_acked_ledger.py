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
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from books import Answers, Books, Outage, balance, outages
from clients import Clients
from killer import PARTS, Kill, Killer
from ledger import Ledger
from live_system import LiveSystem, simulated_stream, wait_until
from rich.console import Console
from rich.table import Table
from training_watch import TrainingWatch

from actors.log_export import export_log
from actors.storage_check import check_storage
from cluster.http_client import event_body

KILLS = int(os.environ.get("RHEOS_CHAOS_KILLS", "0"))
SEEDS = [int(seed) for seed in os.environ.get("RHEOS_CHAOS_SEEDS", "0").split(",")]
SHORT = (
    *("EventBuffer", "ParameterStore", "Keeper", "replica"),
    *("Serve controller", "HAProxy", "train worker", "job driver"),
)
MAX_HAPROXY_OUTAGE_S = 20.0
"""The goal is 6 s; a busy machine must not turn the test red."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 60 * KILLS)]


@dataclass(frozen=True)
class Run:
    """What came of one run."""

    seed: int
    seconds: float
    books: Books
    answers: Answers
    kills: list[Kill]
    outages: dict[str, Outage]
    counts: dict[str, int]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_or_doubled_whatever_is_killed(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = LiveSystem(tmp_path, more_config="[store]\nkeep_versions = 20\n")
    try:
        run = play(system, seed, tuple(PARTS) if KILLS else SHORT, KILLS or len(SHORT))
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
    haproxy = run.outages.get("HAProxy")
    assert haproxy is None or haproxy.unanswered[1] < MAX_HAPROXY_OUTAGE_S


def play(system: LiveSystem, seed: int, parts: Sequence[str], num_kills: int) -> Run:
    """Start a system, kill under load, stop it, and balance the books."""
    ledger = Ledger()
    system.up()
    ingest(system, ledger)
    system.wait_for_version(1)
    items = [item.item_id for item in simulated_stream().items]
    started_s = time.monotonic()
    with TrainingWatch(system.url) as watch:
        with Clients(system.url, items, ledger, seed=seed) as clients:
            killer = Killer(system, ledger, watch, random.Random(seed))
            kills = list(killer.run(parts, num_kills))
        seconds = time.monotonic() - started_s
        last = {s: o for a in ledger.acknowledgements for s, o in a.offsets.items()}
        wait_until(lambda: watch.learned_s(last), 60.0, "the end of the log is learned")
    head = system.model()["head"]
    versions = system.request("GET", "/v1/model/versions")["versions"]
    watch.add([head, *(version["manifest"] for version in versions)])
    system.down()
    return Run(
        seed=seed,
        seconds=round(seconds, 1),
        books=balance(ledger, export(system), watch.versions, watch.versions[head["version"]]),
        answers=Answers.of(clients.replies),
        kills=kills,
        outages=outages(kills, ledger, clients.replies),
        counts=dict(sorted(ledger.counts.items())),
    )


def ingest(system: LiveSystem, ledger: Ledger) -> None:
    """Let the system learn a stream, and write it into the ledger."""
    dataset = system.ingest_simulated()
    events = [event_body(event) for event in dataset.events()]
    ledger.send(events)
    offsets = {"offsets": {}, "accepted": len(events)}
    ledger.acknowledge(events, offsets, time.monotonic(), time.monotonic())


def export(system: LiveSystem) -> Path:
    """Check every file of a stopped system, and export its log."""
    assert [report for report in check_storage(system.data_dir) if report.is_damaged] == []
    folder = system.folder / "export"
    for _ in export_log(system.data_dir, folder):
        pass
    return folder


def show(run: Run, console: Console) -> None:
    """Print the books and the outages."""
    books, answers = run.books, run.answers
    console.print(
        f"\nseed {run.seed}: {len(run.kills)} kills in {run.seconds:.0f} s\n"
        f"  events           sent {books.sent}, acknowledged {books.acknowledged}, "
        f"stored {books.stored}, learned {books.learned}, quarantined {books.quarantined}\n"
        f"  must be 0        lost {books.lost}, stored twice {books.doubled}, "
        f"never sent {books.invented}, changed {books.changed}, untrained {books.untrained}, "
        f"learned twice {len(books.learned_twice)}, violations {len(books.violations)}\n"
        f"  recommendations  asked {answers.asked}, failed {answers.failed}, failed again at once "
        f"{answers.failed_twice}, longest gap {answers.longest_gap_s} s\n"
        f"  counts           {run.counts}",
        highlight=False,
    )
    table = Table(title="seconds after a kill: median (longest)")
    for heading in ("killed", "kills", "back", "no recommendation", "batch waited", "learning"):
        table.add_column(heading)
    for part, outage in run.outages.items():
        pairs = (outage.back, outage.unanswered, outage.unwritten, outage.learning)
        cells = [f"{middle:.1f} ({longest:.1f})" for middle, longest in pairs]
        table.add_row(part, str(outage.num_kills), *cells)
    console.print(table)
    for fault in (*books.learned_twice, *books.violations)[:20]:
        console.print(f"  {fault}", highlight=False, markup=False)
