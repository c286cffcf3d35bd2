"""`rheos verify` finds damage where it is, and `rheos repair` keeps all that can be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from crash_disk import Tree, picked_up, put_down
from crash_runs import scratch_folder
from log_oracle import SEGMENT_BYTES, SHARD, open_log, rows_of
from store_oracle import open_store
from test_bit_rot import faults
from whole_storage import contents_of, read_back, storage

from actors.log_scan import gaps
from actors.storage_check import check_storage
from actors.storage_repair import repair_storage

__all__ = ["storage"]

pytestmark = pytest.mark.timeout(180)


def test_a_whole_folder_has_no_damage_and_nothing_to_repair(storage: Tree) -> None:
    with scratch_folder() as folder:
        put_down(storage, folder / "data")
        reports = list(check_storage(folder / "data"))
        assert [report for report in reports if report.is_damaged] == []
        reported = {str(report.path.relative_to(folder / "data")) for report in reports}
        silent = {name for name, data in storage.items() if data} - reported
        assert {name for name in silent if "/manifests/" not in name} == {"items/high_water.json"}
        assert list(repair_storage(folder / "data", SEGMENT_BYTES)) == []
        assert picked_up(folder / "data") == storage, "nothing was written"


def test_every_fault_is_found_in_its_file_and_repaired_without_losing_more(
    storage: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = read_back(storage)
    assert whole is not None
    outcomes: Counter[str] = Counter()
    for name, at, tree in faults(storage, seed=7, num_faults=400):
        with scratch_folder() as folder:
            data_dir = folder / "data"
            put_down(tree, data_dir)
            damaged = [report for report in check_storage(data_dir) if report.is_damaged]
            lost = [span for report in damaged for span in report.lost]
            if not damaged:
                assert contents_of(data_dir) == whole, (name, at)
                outcomes["harmless"] += 1
                continue
            assert any(_is_about(report.path, data_dir / name) for report in damaged), (name, at)
            if name.endswith(".arrow"):
                assert any("damaged at byte" in report.detail for report in damaged), (name, at)
            repairs = list(repair_storage(data_dir, SEGMENT_BYTES))
            assert sorted(span for done in repairs for span in done.lost) == sorted(lost)
            assert [r for r in check_storage(data_dir) if r.is_damaged] == [], (name, at)
            kept = picked_up(data_dir / "damaged")
            assert tree[name] in kept.values() or name == "installation.json", (name, at)
            _check_events(data_dir, whole["events"], lost)
            with open_store(data_dir) as store:
                assert store.versions.warning == ""
                assert store.versions.record.next_version >= whole["head"]["next_version"]
            outcomes["repaired, some events lost" if lost else "repaired, nothing lost"] += 1
    with capsys.disabled():
        print(f"\nverify and repair, 400 faults, seed 7: {dict(outcomes)}")
    assert outcomes["repaired, some events lost"] > 50
    assert outcomes["repaired, nothing lost"] > 50


def test_a_missing_segment_costs_its_own_events_and_no_others(storage: Tree) -> None:
    whole, _ = read_back(storage)
    assert whole is not None
    segments = [name for name in storage if name.endswith((".parquet", "0.arrow"))]
    segments = [name for name in segments if name.startswith(SHARD)]
    assert len(segments) > 2
    for name in segments:
        with scratch_folder() as folder:
            put_down({path: storage[path] for path in storage if path != name}, folder / "data")
            reports = check_storage(folder / "data")
            lost = [span for report in reports for span in report.lost]
            assert len(lost) == 1, name
            assert lost[0][0] == int(Path(name).stem)
            list(repair_storage(folder / "data", SEGMENT_BYTES))
            _check_events(folder / "data", whole["events"], lost)


def test_a_repair_that_is_cut_short_anywhere_is_taken_up_by_the_next(storage: Tree) -> None:
    whole, _ = read_back(storage)
    assert whole is not None
    [name] = [n for n in storage if n.startswith(SHARD) and n.endswith(f"{0:020d}.parquet")]
    num_steps = 0
    real = Path.rename
    while True:
        with scratch_folder() as folder, pytest.MonkeyPatch.context() as patch:
            data_dir = folder / "data"
            put_down({**storage, name: (storage[name] or b"")[:-9]}, data_dir)
            lost = [span for report in check_storage(data_dir) for span in report.lost]
            left = num_steps

            def rename(path: Path, target: Path) -> Path:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return real(path, target)

            patch.setattr(Path, "rename", rename)
            try:
                list(repair_storage(data_dir, SEGMENT_BYTES))
                is_done = True
            except KeyboardInterrupt:
                is_done = False
            patch.undo()
            list(repair_storage(data_dir, SEGMENT_BYTES))
            _check_events(data_dir, whole["events"], lost)
        if is_done:
            break
        num_steps += 1
    assert num_steps > 10


def test_the_head_is_published_again_with_the_offset_that_its_last_event_has_now(
    storage: Tree,
) -> None:
    name = next(n for n in storage if n.startswith(f"{SHARD}/closed/"))
    with scratch_folder() as folder:
        data_dir = folder / "data"
        put_down({path: storage[path] for path in storage if path != name}, data_dir)
        [(first, stop)] = [span for report in check_storage(data_dir) for span in report.lost]
        assert first == 0
        with open_store(data_dir) as store:
            before = store.versions.record
            [through] = store.files.manifest(before.version).trained_through
            assert through < stop, "all that the version learned is lost"
        list(repair_storage(data_dir, SEGMENT_BYTES))
        with open_store(data_dir) as store:
            record = store.versions.record
            assert record.version == before.next_version
            assert store.files.manifest(record.version).trained_through == (-1,)
            assert store.files.manifest(record.version).parent == before.version


def _is_about(reported: Path, damaged: Path) -> bool:
    return reported == damaged or damaged.stem == reported.stem or damaged.parent == reported.parent


def _check_events(
    data_dir: Path, rows: list[tuple[object, ...]], lost: list[tuple[int, int]]
) -> None:
    kept = [row for first, stop in gaps(lost, len(rows)) for row in rows[first:stop]]
    with open_log(data_dir) as log:
        found = rows_of(log)
    assert [row[:-2] for row in found] == [row[:-2] for row in kept]
    assert [row[-2] for row in found] == list(range(len(kept)))
