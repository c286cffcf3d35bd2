"""The books do not balance when they should not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from books import balance, learned_twice
from ledger import Ledger
from training_watch import Version

HEAD = Version(
    number=2, parent=1, trained_through=(9,), step=14, steps_per_500_events=8, quarantined=()
)
FIRST = replace(HEAD, number=1, parent=0, trained_through=(3,), step=13)


def event(number: int) -> dict[str, Any]:
    return {
        "event_id": f"e-{number}",
        "user_id": "anna",
        "item_id": f"film-{number}",
        "event_type": "click",
        "timestamp_ms": number,
    }


@pytest.fixture
def ledger() -> Ledger:
    """Ten events, all of them acknowledged."""
    ledger = Ledger()
    events = [event(number) for number in range(10)]
    ledger.send(events)
    ledger.acknowledge(events, {"accepted": 10, "offsets": {"0": 9}}, 0.0, 1.0)
    return ledger


def stored() -> list[dict[str, Any]]:
    return [{**event(number), "shard": 0, "offset": number} for number in range(10)]


def faults(ledger: Ledger, rows: list[dict[str, Any]], folder: Path) -> dict[str, object]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-0.parquet")
    return balance(ledger, folder, {1: FIRST, 2: HEAD}, HEAD).faults()


def test_what_was_stored_as_it_was_sent_balances(ledger: Ledger, tmp_path: Path) -> None:
    assert faults(ledger, stored(), tmp_path) == {}


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda rows: rows[:9], "lost"),
        (lambda rows: [*rows, rows[4]], "doubled"),
        (lambda rows: [*rows, {**rows[4], "event_id": "nobody's"}], "invented"),
        (lambda rows: [*rows[:9], {**rows[9], "item_id": "film-0"}], "changed"),
        (lambda rows: [*rows[:9], {**rows[9], "offset": 10}], "untrained"),
    ],
)
def test_each_kind_of_harm_to_the_log_is_a_fault_of_its_own(
    ledger: Ledger,
    tmp_path: Path,
    harm: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    fault: str,
) -> None:
    assert faults(ledger, harm(stored()), tmp_path) == {fault: 1}


def test_an_event_that_is_accepted_again_is_a_violation(ledger: Ledger) -> None:
    ledger.acknowledge([event(3)], {"accepted": 1, "offsets": {"0": 10}}, 1.0, 2.0)
    assert len(ledger.violations) == 1


def test_a_version_that_learned_more_or_less_than_its_span_is_found() -> None:
    assert learned_twice({1: FIRST, 2: HEAD}) == []
    assert len(learned_twice({1: FIRST, 2: replace(HEAD, step=15)})) == 1
    assert len(learned_twice({1: FIRST, 2: replace(HEAD, trained_through=(2,))})) == 1
    late = replace(HEAD, trained_through=(203,), step=17)
    assert learned_twice({1: FIRST, 2: late}) == []
    assert len(learned_twice({1: FIRST, 2: replace(late, quarantined=((0, 50, 150),))})) == 1
