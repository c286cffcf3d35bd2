"""Each promise broken on purpose in the code turns the test that guards it red."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crash_disk import Tree
from crash_runs import Tally, kills, power_losses
from log_oracle import LogLedger
from store_oracle import StoreLedger
from test_bit_rot import faults
from test_fsync_error import check_every_failing_fsync
from test_fsync_error import write_log as write_log_bravely
from whole_storage import read_back, storage
from work import (
    GroupLedger,
    go_on_with_log,
    write_groups,
    write_log,
    write_versions,
)

from actors import (
    checked_segment,
    durable_files,
    event_buffer,
    event_log,
    item_log,
    parquet_segment,
    version_files,
)
from actors.checked_segment import SegmentWriter

__all__ = ["storage"]

pytestmark = pytest.mark.timeout(180)

Patch = pytest.MonkeyPatch
Check = Callable[[Callable[[Patch], None], Tree], str]


def skip_fsync_of_files(patch: Patch) -> None:
    """Data is written and not fsynced."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            real(descriptor)

    patch.setattr(os, "fsync", fsync)


def skip_fsync_of_folders(patch: Patch) -> None:
    """Files are made and renamed, their folders not fsynced."""
    for module in (durable_files, checked_segment, parquet_segment, version_files, item_log):
        patch.setattr(module, "fsync_folder", lambda _: None)


def believe_what_a_dead_process_left(patch: Patch) -> None:
    """What is read on opening is not fsynced before it is believed."""
    patch.setattr(event_log, "truncate_file", lambda path, size: os.truncate(path, size))


def ignore_the_checksums_of_batches(patch: Patch) -> None:
    """A batch counts as whole if Arrow can read it."""
    patch.setattr(checked_segment, "_is_whole", lambda *_: True)


def ignore_the_checksums_of_files(patch: Patch) -> None:
    """Parquet and weights count as whole if their libraries can read them."""
    anything: Any = type("Anything", (), {"__ne__": lambda *_: False})()
    patch.setattr(parquet_segment, "sha256_of", lambda _: anything)
    patch.setattr(version_files, "sha256_of", lambda _: anything)
    patch.setattr(pq, "read_table", lambda source, **_: pq.ParquetFile(source).read())


def acknowledge_before_the_write(patch: Patch) -> None:
    """Each write to the log is done with the next one."""
    real_write, real_close = SegmentWriter._write, SegmentWriter.close
    waiting: dict[int, bytes] = {}

    def write(writer: SegmentWriter, data: bytes) -> None:
        if late := waiting.get(id(writer)):
            real_write(writer, late)
        waiting[id(writer)] = data

    def close(writer: SegmentWriter) -> None:
        if (late := waiting.pop(id(writer), None)) and not writer.is_closed:
            real_write(writer, late)
        real_close(writer)

    patch.setattr(SegmentWriter, "_write", write)
    patch.setattr(SegmentWriter, "close", close)


def try_a_failed_fsync_again(patch: Patch) -> None:
    """An fsync that failed is repeated, and believed when it says yes."""

    def durably(writer: SegmentWriter, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError:
            os.fsync(writer._descriptor)

    patch.setattr(SegmentWriter, "_durably", durably)


def count_duplicates(patch: Patch) -> None:
    """An event that was sent twice is kept twice."""

    def all_of_them(requests: Sequence[pa.RecordBatch], _: object) -> list[pa.RecordBatch]:
        return list(requests)

    patch.setattr(event_buffer, "_without_duplicates", all_of_them)


def while_broken(breakage: Callable[[Patch], None], work: Callable[..., None]) -> Any:
    """The work, done by broken code; what checks it afterwards is whole."""

    def broken(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            breakage(patch)
            work(*arguments)

    return broken


def power_lost_in_the_log(breakage: Callable[[Patch], None], _: Tree) -> str:
    tally = Tally(max_violations=1)
    for _state in power_losses(tally, while_broken(breakage, write_log), LogLedger()):
        pass
    return "".join(tally.violations)


def power_lost_in_the_store(breakage: Callable[[Patch], None], _: Tree) -> str:
    tally = Tally(max_violations=1)
    for _state in power_losses(tally, while_broken(breakage, write_versions), StoreLedger()):
        pass
    return "".join(tally.violations)


def killed_then_power_lost(breakage: Callable[[Patch], None], _: Tree) -> str:
    tally = Tally(max_violations=1)
    kills(tally, write_log, while_broken(breakage, go_on_with_log), LogLedger)
    return "".join(tally.violations)


def many_clients(breakage: Callable[[Patch], None], _: Tree) -> str:
    tally = Tally(max_violations=1)
    for _state in power_losses(tally, while_broken(breakage, write_groups), GroupLedger()):
        pass
    return "".join(tally.violations)


def failing_fsync(breakage: Callable[[Patch], None], _: Tree) -> str:
    tally = Tally(max_violations=1)
    check_every_failing_fsync(tally, while_broken(breakage, write_log_bravely), LogLedger)
    return "".join(tally.violations)


def bit_rot(breakage: Callable[[Patch], None], storage: Tree) -> str:
    whole, _ = read_back(storage)
    for name, at, tree in faults(storage, seed=6, num_faults=400):
        with pytest.MonkeyPatch.context() as patch:
            breakage(patch)
            try:
                found, _ = read_back(tree)
            except Exception as error:  # noqa: BLE001 - what is not a refusal is as bad
                return f"{name}, byte {at}: {type(error).__name__}, not a refusal"
        if found is not None and found != whole:
            return f"{name}, byte {at}: silently different"
    return ""


@dataclass(frozen=True)
class Sabotage:
    """A way to break the code, and the test that must notice."""

    breakage: Callable[[Patch], None]
    check: Check


SABOTAGES = [
    Sabotage(skip_fsync_of_files, power_lost_in_the_log),
    Sabotage(skip_fsync_of_files, power_lost_in_the_store),
    Sabotage(skip_fsync_of_folders, power_lost_in_the_log),
    Sabotage(skip_fsync_of_folders, power_lost_in_the_store),
    Sabotage(believe_what_a_dead_process_left, killed_then_power_lost),
    Sabotage(acknowledge_before_the_write, power_lost_in_the_log),
    Sabotage(try_a_failed_fsync_again, failing_fsync),
    Sabotage(ignore_the_checksums_of_batches, bit_rot),
    Sabotage(ignore_the_checksums_of_files, bit_rot),
    Sabotage(count_duplicates, many_clients),
]


def nothing(_: Patch) -> None:
    """Break nothing."""


def test_each_sabotage_turns_its_test_red(
    storage: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    unnoticed = []
    for sabotage in SABOTAGES:
        names = f"{sabotage.breakage.__name__:34}{sabotage.check.__name__:26}"
        violation = sabotage.check(sabotage.breakage, storage)
        lines.append(f"{names}{'red' if violation else 'NOT NOTICED'}  {violation[:90]}")
        if not violation:
            unnoticed.append(names)
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert unnoticed == []


@pytest.mark.parametrize("check", [power_lost_in_the_log, many_clients, bit_rot])
def test_whole_code_is_green_in_the_same_checks(check: Check, storage: Tree) -> None:
    assert check(nothing, storage) == ""
