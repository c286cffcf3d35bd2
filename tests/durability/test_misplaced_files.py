"""A file of the log that is missing, that is another one, or that is as it was once, is noticed."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from crash_disk import Tree
from crash_runs import scratch_folder
from log_oracle import SHARD, LogLedger
from recorder import recorded
from whole_storage import read_back, storage
from work import write_log

__all__ = ["storage"]

_MADE_AGAIN = ("epoch.json", "items/high_water.json")
_FOLDERS = ("open", "closed", "manifests")


def files_of_the_log(tree: Tree) -> list[str]:
    """Its segments and manifests."""
    return [name for name, data in tree.items() if data and Path(name).parent.name in _FOLDERS]


def test_a_missing_file_is_noticed_whichever_it_is(storage: Tree) -> None:
    for name in [name for name, data in storage.items() if data]:
        found, reason = read_back({path: storage[path] for path in storage if path != name})
        may_be_made_again = name.endswith(_MADE_AGAIN)
        assert found is None or may_be_made_again, name
        assert reason or may_be_made_again


def test_files_that_changed_places_are_noticed(storage: Tree) -> None:
    files = files_of_the_log(storage)
    num_swaps = 0
    for one, other in combinations(files, 2):
        if Path(one).parent == Path(other).parent:
            num_swaps += 1
            found, reason = read_back({**storage, one: storage[other], other: storage[one]})
            assert found is None, (one, other)
            assert Path(one).stem in reason or Path(other).stem in reason
    assert num_swaps > 5


def test_a_segment_that_is_as_it_was_once_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = LogLedger()
    with scratch_folder() as folder, recorded(folder / "data") as recording:
        ledger.now = lambda: len(recording)
        write_log(folder / "data", ledger)
    now: Tree = {}
    earlier: dict[str, set[bytes]] = {}
    for _, disk in recording.disks():
        now = disk.seen()
        for name in files_of_the_log(now):
            earlier.setdefault(name, set()).add(now[name] or b"")
    whole, _ = read_back(now)
    assert whole is not None
    num_stale = 0
    for name, versions in earlier.items():
        for data in versions - {now.get(name)}:
            num_stale += 1
            found, _ = read_back({**now, name: data})
            assert found is None or found["events"] == whole["events"], (name, len(data))
    with capsys.disabled():
        print(f"\n{num_stale} stale or returned files of the log: refused, or without effect")
    assert num_stale > 10
    assert SHARD in next(iter(earlier))
