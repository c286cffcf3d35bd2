"""A crash at every operation on files, in every state that it may leave, loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crash_runs import Tally, crashes_of_recovery, kills, power_losses
from item_oracle import ItemLedger, open_items
from log_oracle import LogLedger, open_log
from store_oracle import StoreLedger, open_store
from work import (
    GroupLedger,
    go_on_with_items,
    go_on_with_log,
    go_on_with_versions,
    write_groups,
    write_items,
    write_log,
    write_versions,
)

pytestmark = pytest.mark.timeout(180)

_RECOVERIES = 60


@dataclass(frozen=True)
class Part:
    """A durable part: a piece of work on it, how the next process goes on, and how it is opened."""

    work: Callable[[Path, Any], None]
    go_on: Callable[[Path, Any], None]
    ledger: Callable[[], Any]
    open_it: Callable[[Path], AbstractContextManager[Any]]
    min_states: int


PARTS = {
    "event log": Part(write_log, go_on_with_log, LogLedger, open_log, 1_000),
    "version store": Part(write_versions, go_on_with_versions, StoreLedger, open_store, 2_000),
    "item log": Part(write_items, go_on_with_items, ItemLedger, open_items, 300),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_crash_at_any_operation_loses_nothing_acknowledged(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part = PARTS[name]
    tally = Tally()
    ledger = part.ledger()
    states = list(power_losses(tally, part.work, ledger))
    num_first = tally.num_states
    for moment, tree in states[:: max(1, len(states) // _RECOVERIES)]:
        crashes_of_recovery(tally, tree, moment, ledger, part.open_it)
    num_second = tally.num_states - num_first
    kills(tally, part.work, part.go_on, part.ledger)
    num_killed = tally.num_states - num_first - num_second
    with capsys.disabled():
        print(
            f"\n{name}: {tally.num_states} states: {num_first} after a loss of power, {num_second} "
            f"after another during recovery, {num_killed} after kill -9 and then a loss of power; "
            f"{len(tally.violations)} violations"
        )
    assert tally.violations == []
    assert tally.num_states >= part.min_states


def test_a_crash_while_many_clients_share_commits_loses_nothing_acknowledged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = Tally()
    for _ in power_losses(tally, write_groups, GroupLedger()):
        pass
    with capsys.disabled():
        print(f"\ngroup commit: {tally.num_states} states, {len(tally.violations)} violations")
    assert tally.violations == []
    assert tally.num_states >= 100
