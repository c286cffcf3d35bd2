"""What a demo or an evaluation found: tables, a JSON file, and whether the sums add up.

A report is a JSON object. Every section may be missing; `evaluate` has `quality` and what
`report_quality` shows.

    events             sent, acknowledged (new ones), duplicates, refused, logged
    read_your_writes   checked, violations; degraded answers, which claim nothing; examples
    freshness_s        counters and learning, each p50 and p99
    quality            by ranking: ndcg_at_10, hit_rate_at_10, mrr, ndcg_at_10_by_quarter
    versions           published, rejected, rolled_back, adapted (drifts), quarantined (events)
    requests           ok, failed, p50_ms, p99_ms
    environment        what it ran on, as plain values
    drift_at           first event after the drift, in a simulated stream
    timeline           see `report_picture`
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cluster.report_picture import draw_report
from cluster.report_quality import number, quality_table

__all__ = ["count_errors", "draw_report", "quality_table", "summary_table", "write_report"]

Report = Mapping[str, Any]

FRESHNESS_BOUNDS_S = {"counters": 1.0, "learning": 15.0}
"""Within which time (p99) every replica counts an event, and answers with what learned from it."""


def summary_table(report: Report) -> Table:
    """What happened and whether the promises held, one line each."""
    table = Table(title="What happened")
    for heading in ("", "measured", "promise"):
        table.add_column(heading)
    for name, measured, promise in _summary(report):
        table.add_row(name, measured, promise)
    return table


def count_errors(report: Report) -> list[str]:
    """What does not add up or must not have happened; empty if all is well. Judges no times."""
    errors: list[str] = []

    def expect(is_right: bool, message: str) -> None:
        if not is_right:
            errors.append(message)

    if events := report.get("events"):
        sent, new, duplicates = (events[key] for key in ("sent", "acknowledged", "duplicates"))
        refused = events.get("refused", 0)
        expect(
            sent == new + duplicates + refused,
            f"events: sent {sent}, but acknowledged {new} + duplicates {duplicates} "
            f"+ refused {refused} = {new + duplicates + refused}",
        )
        logged = events["logged"]
        expect(logged == new, f"events: acknowledged {new}, but the log holds {logged}")
    if reads := report.get("read_your_writes"):
        violations, checked = reads["violations"], reads["checked"]
        expect(checked > 0, "read your writes: never checked")
        expect(violations == 0, f"read your writes: violated in {violations} of {checked} reads")
    for name, count in report.get("unfinished", {}).items():
        expect(count == 0, f"{name}: {count} acknowledged batches never reached every replica")
    if requests := report.get("requests"):
        failed, total = requests["failed"], requests["ok"] + requests["failed"]
        expect(failed == 0, f"requests: {failed} of {total} failed")
    if versions := report.get("versions"):
        expect(versions["published"] > 0, "versions: none was published")
    for name, row in report.get("quality", {}).items():
        value = row.get("ndcg_at_10")
        is_share = value is not None and 0.0 <= value <= 1.0
        expect(is_share, f"quality: NDCG@10 of {name} is {value}, must be in [0, 1]")
    return errors


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON; a reader sees the old file or the whole new one.

    Numbers that are not finite become null, which JSON has, and NumPy scalars plain numbers.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")
    part.replace(path)


def _summary(report: Report) -> Iterator[tuple[str, str, str]]:
    if events := report.get("events"):
        counts = ", ".join(f"{key} {value:,}" for key, value in events.items())
        yield "events", counts, "logged = acknowledged"
    if reads := report.get("read_your_writes"):
        measured = f"{reads['violations']:,} violations in {reads['checked']:,} checks"
        yield "read your writes", measured, "0 violations"
    for name, bound_s in FRESHNESS_BOUNDS_S.items():
        if times := report.get("freshness_s", {}).get(name):
            p50, p99 = (number(times.get(key), 2) for key in ("p50", "p99"))
            is_kept = times.get("p99") is not None and times["p99"] <= bound_s
            promise = f"p99 at most {bound_s:g} s: {'kept' if is_kept else 'missed'}"
            yield f"{name} freshness", f"p50 {p50} s, p99 {p99} s", promise
    if versions := report.get("versions"):
        told = {
            key.replace("_", " "): value
            for key, value in versions.items()
            if value or key in ("published", "rejected")
        }
        measured = ", ".join(f"{key} {value:,}" for key, value in told.items())
        yield "versions", measured, ""
    if requests := report.get("requests"):
        p50, p99 = (number(requests.get(key), 1) for key in ("p50_ms", "p99_ms"))
        counts = f"{requests['ok']:,} ok, {requests['failed']:,} failed"
        yield "requests", f"{counts}, p50 {p50} ms, p99 {p99} ms", "0 failed"
    if (drift_at := report.get("drift_at")) is not None:
        yield "drift", f"at event {drift_at:,}", ""
    for key, value in report.get("environment", {}).items():
        yield str(key), str(value), ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
