"""A system with clients on it while harm is done, and its books afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from books import Answers, Books, Outage, balance, outages
from clients import Clients
from killer import Kill
from ledger import Ledger
from live_system import LiveSystem, simulated_stream, wait_until
from rich.console import Console
from rich.table import Table
from training_watch import TrainingWatch

from actors.log_export import export_log
from actors.storage_check import check_storage
from cluster.http_client import event_body

ONLY_LONG = pytest.mark.skipif(
    "RHEOS_CHAOS_KILLS" not in os.environ, reason="long form: make chaos KILLS=100"
)
KEEP_VERSIONS = "[store]\nkeep_versions = 20\n"
"""More than the default, so that who asks four times a second sees every one."""
Harm = Callable[[Ledger, TrainingWatch], list[Kill]]
"""Does something to the system; returns what it killed, to be reported."""


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


def play(system: LiveSystem, seed: int, harm: Harm) -> Run:
    """Start a system, do harm under load, stop it, and balance the books."""
    ledger = Ledger()
    system.up()
    ingest(system, ledger)
    system.wait_for_version(1)
    items = [item.item_id for item in simulated_stream().items]
    started_s = time.monotonic()
    with TrainingWatch(system.url) as watch:
        with Clients(system.url, items, ledger, seed=seed) as clients:
            kills = harm(ledger, watch)
        seconds = time.monotonic() - started_s
        last = {s: o for a in ledger.acknowledgements for s, o in a.offsets.items()}
        wait_until(lambda: watch.learned_s(last), 60.0, "the end of the log is learned")
    head = system.model()["head"]
    versions = system.request("GET", "/v1/model/versions")["versions"]
    watch.add([head, *(version["manifest"] for version in versions)])
    system.down()
    exported = export(system)
    return Run(
        seed=seed,
        seconds=round(seconds, 1),
        books=balance(ledger, exported, watch.versions, watch.versions[head["version"]]),
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
    now_s = time.monotonic()
    ledger.acknowledge(events, {"offsets": {}, "accepted": len(events)}, now_s, now_s)


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
        f"{answers.failed_twice}, longest gap {answers.longest_gap_s} s, "
        f"longest wait {answers.longest_wait_s} s\n"
        f"  counts           {run.counts}",
        highlight=False,
    )
    table = Table(title="seconds after a kill: median (longest)")
    headings = ("no recommendation", "batch waited", "learning")
    for heading in ("killed", "kills", "failed (again)", "back", *headings):
        table.add_column(heading)
    for part, outage in run.outages.items():
        pairs = (outage.back, outage.unanswered, outage.unwritten, outage.learning)
        cells = [f"{middle:.1f} ({longest:.1f})" for middle, longest in pairs]
        failed = "{} ({})".format(*outage.failed)
        table.add_row(part, str(outage.num_kills), failed, *cells)
    console.print(table)
    for fault in (*books.learned_twice, *books.violations)[:20]:
        console.print(f"  {fault}", highlight=False, markup=False)
