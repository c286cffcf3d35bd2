"""An fsync that fails acknowledges nothing, costs nothing, and is not tried again.

The disk is one that has lost the data of the failed fsync, whatever a later fsync says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crash_disk import Operation, Sync
from crash_runs import Tally, scratch_folder
from log_oracle import LogLedger, open_log
from recorder import Recording, fail_with_eio, recorded
from store_oracle import Store, StoreLedger, open_store
from work import compact_all

from actors.messages import StorageError

pytestmark = pytest.mark.timeout(180)


def write_log(data_dir: Path, ledger: LogLedger) -> None:
    """Appends, a new segment and a compaction, by a client that sends again what is refused."""
    for _ in range(2):
        with open_log(data_dir) as log:
            for size in (3, 10, 10, 10, 2):
                ledger.insist(log, size)
            with suppress(StorageError):
                compact_all(log)
            ledger.insist(log, 1)
            compact_all(log)


def write_versions(data_dir: Path, ledger: StoreLedger) -> None:
    """Publish, prune, roll back and promote, by a publisher that tries again."""
    with open_store(data_dir) as store:
        for _ in range(4):
            _insist(lambda: ledger.publish(store))
        _insist(lambda: _roll_back(ledger, store))
        _insist(lambda: _promote_the_newest(ledger, store))
        ledger.publish(store)


def _roll_back(ledger: StoreLedger, store: Store) -> None:
    ledger.change(store, lambda: store.versions.rollback("back"))


def _promote_the_newest(ledger: StoreLedger, store: Store) -> None:
    ledger.change(store, lambda: store.versions.promote(store.files.numbers()[-1], "again"))


def _insist(change: Callable[[], None]) -> None:
    try:
        change()
    except StorageError:
        change()


def with_a_failing_fsync(
    recording: Recording, fail_at: int, work: Callable[[Path, Any], None], ledger: Any
) -> Sync | None:
    """Do the work while the `fail_at`-th fsync fails; which that was, None if there are fewer."""
    failed: list[Sync] = []
    num_syncs = 0

    def fail(operation: Operation) -> None:
        nonlocal num_syncs
        if isinstance(operation, Sync):
            num_syncs += 1
            if num_syncs == fail_at + 1:
                failed.append(operation)
                fail_with_eio()

    recording.before = fail
    try:
        work(recording.root, ledger)
    except StorageError:  # it could not be opened, or what is written has to be read again
        assert failed
        work(recording.root, ledger)
    return failed[0] if failed else None


def check_every_failing_fsync(
    tally: Tally, work: Callable[[Path, Any], None], new_ledger: Callable[[], Any]
) -> int:
    """Let each fsync fail, and then lose power at any operation; how many fsyncs there are."""
    fail_at = 0
    while not tally.is_done:
        with scratch_folder() as folder, recorded(folder / "data") as recording:
            ledger = new_ledger()
            ledger.now = lambda recording=recording: len(recording)
            failed = with_a_failing_fsync(recording, fail_at, work, ledger)
            recording.check_complete()
        if failed is None:
            return fail_at
        place = next(
            n for n, op in enumerate(recording.operations) if isinstance(op, Sync) and op.failed
        )
        later = recording.operations[place + 1 :]
        if any(isinstance(op, Sync) and op.opened == failed.opened for op in later):
            tally.violations.append(f"fsync {fail_at}: the descriptor was fsynced again")
        for moment, disk in recording.disks():
            if moment > place:
                tally.check(disk.lost(), ledger, moment, f"fsync {fail_at} failed")
                tally.check(disk.seen(), ledger, moment, f"fsync {fail_at} failed")
        fail_at += 1
    return fail_at


@pytest.mark.parametrize(
    ("work", "new_ledger"), [(write_log, LogLedger), (write_versions, StoreLedger)]
)
def test_one_failing_fsync_wherever_it_is_loses_nothing_acknowledged(
    work: Callable[[Path, Any], None],
    new_ledger: Callable[[], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = Tally()
    num_syncs = check_every_failing_fsync(tally, work, new_ledger)
    with capsys.disabled():
        print(
            f"\n{work.__name__}: each of {num_syncs} fsyncs failed once, then power was lost: "
            f"{tally.num_states} states, {len(tally.violations)} violations"
        )
    assert tally.violations == []
    assert num_syncs > 50
