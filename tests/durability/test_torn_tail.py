"""The end of the open segment, cut or left blank at any byte, costs only what was not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_disk import Tree, picked_up, put_down
from crash_runs import scratch_folder
from log_oracle import SHARD, LogLedger, open_log, rows_of

from actors.event_log import LOG_SCHEMA

_SEGMENT = f"{SHARD}/open/{0:020d}.arrow"
_SIZES = (2, 1, 3, 2)


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Tree, str, list[int], LogLedger]:
    """A disk after `kill -9`, its open segment, where each batch of it ends, and the ledger."""
    ledger = LogLedger()
    ends = [LOG_SCHEMA.serialize().size]
    with open_log(tmp_path / "data") as log:
        for size in _SIZES:
            ledger.append(log, size)
            ends.append((tmp_path / "data" / _SEGMENT).stat().st_size)
        tree = picked_up(tmp_path / "data")
    return tree, _SEGMENT, ends, ledger


@pytest.mark.parametrize("is_blank", [False, True])
def test_a_tail_torn_at_any_byte_of_the_last_three_batches_is_cut_at_the_last_whole_one(
    crashed: tuple[Tree, str, list[int], LogLedger],
    capsys: pytest.CaptureFixture[str],
    is_blank: bool,
) -> None:
    tree, name, ends, ledger = crashed
    whole = tree[name]
    assert whole is not None
    [rows] = ledger.outcomes(1)
    cuts = range(ends[1], ends[-1] + 1)
    for cut in cuts:
        data = whole[:cut].ljust(len(whole), b"\0") if is_blank else whole[:cut]
        num_whole = max(place for place, end in enumerate(ends) if whole[:end] == data[:end])
        with scratch_folder() as folder:
            put_down({**tree, name: data}, folder / "data")
            with open_log(folder / "data") as log:
                assert rows_of(log) == rows[: sum(_SIZES[:num_whole])]
                assert log.cut_bytes == len(data) - ends[num_whole]
                assert (folder / "data" / name).stat().st_size == ends[num_whole]
    with capsys.disabled():
        print(
            f"\ntorn tail: {len(cuts)} cuts, blank behind them: {is_blank}; all whole batches kept"
        )
