from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from small_disk import small_disk
from storage_fakes import FailingFsync, event

from actors.checked_json import read_checked_json
from actors.event_log import EventLog, event_batch
from actors.messages import CorruptStorage, StorageError, StorageFull


def log_of(folder: Path, segment_bytes: int = 1 << 20) -> EventLog:
    return EventLog(folder, segment_bytes=segment_bytes)


def fill(log: EventLog, num_batches: int, size: int = 10) -> None:
    for _ in range(num_batches):
        first = log.next_offset
        log.append(event_batch([event(n) for n in range(first, first + size)]), 5_000 + first)


def ids(log: EventLog, first_offset: int = 0) -> list[str]:
    return [i for batch in log.read(first_offset) for i in batch.column("event_id").to_pylist()]


def expected(first: int, stop: int) -> list[str]:
    return [f"e-{n}" for n in range(first, stop)]


def compact_all(log: EventLog) -> int:
    segments = log.compactable()
    for segment in segments:
        log.compact(segment)
    return len(segments)


def test_appended_events_are_there_when_the_log_is_opened_again(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    fill(log, 3)
    log.close()
    again = log_of(tmp_path)
    assert ids(again) == expected(0, 30)
    fill(again, 1)
    assert ids(again) == expected(0, 40)
    row = next(again.read(25)).to_pylist()[0]
    assert row == {
        "event_id": "e-25",
        "user_id": "u",
        "item_id": "i-4",
        "event_type": "click",
        "value": 1.0,
        "timestamp_ms": 25_000,
        "request_id": "r-25",
        "offset": 25,
        "acknowledged_ms": 5_020,
    }


def test_reading_may_start_anywhere_in_open_and_closed_segments(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 12)
    assert compact_all(log) > 1
    fill(log, 1)
    for first in range(131):
        assert ids(log, first) == expected(first, 130)


def test_compaction_keeps_every_event_and_pandas_reads_the_folder(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 12)
    log.close()
    log = log_of(tmp_path, segment_bytes=4_096)
    num_compacted = compact_all(log)
    assert len(list((tmp_path / "open").iterdir())) == 1
    assert len(list((tmp_path / "closed").iterdir())) == num_compacted
    log.close()
    assert ids(log_of(tmp_path)) == expected(0, 120)
    frame = pd.read_parquet(tmp_path / "closed")
    assert frame["event_id"].tolist() == expected(0, len(frame))
    assert frame["offset"].tolist() == list(range(len(frame)))


def test_a_closed_segment_is_unpacked_a_part_at_a_time(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=2 << 20)
    fill(log, 12, size=5_000)
    assert compact_all(log) == 1
    before_bytes = pa.total_allocated_bytes()
    held_bytes, num_events, whole_bytes = 0, 0, 0
    for batch in log.read():
        held_bytes = max(held_bytes, pa.total_allocated_bytes() - before_bytes)
        num_events += batch.num_rows
        whole_bytes += batch.nbytes
    assert num_events == 60_000
    assert held_bytes < whole_bytes


@pytest.mark.parametrize("step", range(8))
def test_a_compaction_cut_short_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 8)
    fsync = FailingFsync(monkeypatch)

    def die(descriptor: int) -> None:
        if fsync.num_calls == step:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", die)
    with suppress(KeyboardInterrupt):
        compact_all(log)
    monkeypatch.undo()
    log.close()
    again = log_of(tmp_path)
    assert ids(again) == expected(0, 80)
    compact_all(again)
    assert ids(again) == expected(0, 80)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_fsync_accepts_nothing_and_the_next_append_has_the_same_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path)
    fill(log, 2)
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next = 1
    with pytest.raises(StorageError):
        fill(log, 1)
    assert log.next_offset == 20
    fill(log, 1)
    assert ids(log) == expected(0, 30)
    assert len(list((tmp_path / "open").iterdir())) == 2, "the failed segment is left alone"
    log.close()
    assert ids(log_of(tmp_path)) == expected(0, 30)


def test_a_write_that_cannot_be_taken_back_closes_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path)
    fill(log, 1)
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next = 2
    with pytest.raises(StorageError):
        fill(log, 1)
    num_calls = fsync.num_calls
    with pytest.raises(StorageError, match="restart"):
        fill(log, 1)
    assert "taken back" in log.failure
    assert fsync.num_calls == num_calls, "nothing is fsynced after that"


def test_a_torn_tail_is_cut_and_counted(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    fill(log, 3)  # and the process dies, so that nobody says where the log ends
    [path] = (tmp_path / "open").iterdir()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    again = log_of(tmp_path)
    assert ids(again) == expected(0, 20)
    assert again.cut_bytes + path.stat().st_size == size - 100
    fill(again, 1)
    again.close()
    assert ids(log_of(tmp_path)) == expected(0, 30)


def test_a_tail_cut_after_a_clean_stop_is_damage_and_left_as_it_is(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    fill(log, 3)
    log.close()
    [path] = (tmp_path / "open").iterdir()
    data = path.read_bytes()[:-100]
    path.write_bytes(data)
    with pytest.raises(CorruptStorage, match=rf"{path.name} is damaged at byte \d+, offset 20"):
        log_of(tmp_path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_missing_last_segment_is_noticed_also_after_a_crash(
    tmp_path: Path, is_closed: bool
) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    while len(list((tmp_path / "open").glob("*.arrow"))) < 2:
        fill(log, 1)
    if is_closed:
        log.close()
    max((tmp_path / "open").iterdir()).unlink()
    with pytest.raises(CorruptStorage, match="expected up to"):
        log_of(tmp_path)


def test_a_lost_note_of_the_end_is_refused_and_a_changed_digit_in_it_too(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    fill(log, 3)
    log.close()
    path = tmp_path / "high_water.json"
    whole = path.read_text()
    path.write_text(whole.replace("30", "20"))
    with pytest.raises(CorruptStorage, match="checksum"):
        log_of(tmp_path)
    path.unlink()
    with pytest.raises(CorruptStorage, match="is gone"):
        log_of(tmp_path)
    path.write_text(whole)
    assert ids(log_of(tmp_path)) == expected(0, 30)


def test_an_end_that_cannot_be_noted_refuses_no_event_and_is_noted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path)
    num_failures = 1

    def fail(path: Path, data: bytes) -> None:
        nonlocal num_failures
        num_failures -= 1
        if num_failures >= 0:
            raise StorageError("failed on purpose")
        path.write_bytes(data)

    monkeypatch.setattr("actors.high_water.replace_file", fail)
    fill(log, 1)
    assert read_checked_json(tmp_path / "high_water.json") == {"next_offset": 0}
    fill(log, 1)
    assert read_checked_json(tmp_path / "high_water.json") == {"next_offset": 20}


def test_the_arrow_file_goes_only_when_its_parquet_is_whole(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 8)
    [segment, *_] = log.compactable()
    arrow = tmp_path / "open" / f"{segment.stem}.arrow"
    data = arrow.read_bytes()
    log.compact(segment)
    log.close()
    arrow.write_bytes(data)  # as a crash before its removal leaves it
    parquet = tmp_path / "closed" / f"{segment.stem}.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-1])
    with pytest.raises(CorruptStorage, match=parquet.name):
        log_of(tmp_path)
    assert arrow.read_bytes() == data


def test_compaction_is_refused_before_it_writes_where_space_is_short(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 8)
    [segment, *_] = log.compactable()
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageFull, match="must stay free"):
        log.compact(segment, min_free_bytes=1 << 60)
    assert sorted(tmp_path.rglob("*")) == files
    log.compact(segment)
    assert ids(log) == expected(0, 80)


def test_a_compaction_that_runs_out_of_space_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.event_log.require_free_space", lambda *_: None)
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        log = log_of(disk.path, segment_bytes=4_096)
        fill(log, 8)
        [segment, *_] = log.compactable()
        disk.fill()
        with pytest.raises(StorageFull):
            log.compact(segment)
        assert disk.temporaries() == []
        assert ids(log) == expected(0, 80)
        disk.empty()
        log.compact(segment)
        assert ids(log) == expected(0, 80)
        log.close()


def test_a_torn_tail_before_another_segment_is_damage(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 8)
    log.close()
    first = min((tmp_path / "open").iterdir())
    data = first.read_bytes()
    first.write_bytes(data[:-100])
    with pytest.raises(CorruptStorage, match=first.name):
        log_of(tmp_path)
    assert first.stat().st_size == len(data) - 100, "damage is left as it is"


@pytest.mark.parametrize("folder", ["open", "closed", "manifests"])
def test_a_missing_file_is_noticed(tmp_path: Path, folder: str) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 10)
    compact_all(log)
    log.close()
    log_of(tmp_path, segment_bytes=4_096).close()
    max((tmp_path / folder).iterdir()).unlink()
    with pytest.raises(CorruptStorage):
        log_of(tmp_path)


def test_a_flipped_bit_in_parquet_is_noticed(tmp_path: Path) -> None:
    log = log_of(tmp_path, segment_bytes=4_096)
    fill(log, 10)
    compact_all(log)
    path = min((tmp_path / "closed").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStorage, match=path.name):
        ids(log)


def test_a_process_that_lost_the_folder_appends_nothing(tmp_path: Path) -> None:
    def lost() -> None:
        raise StorageError("claimed by another process")

    log = EventLog(tmp_path, segment_bytes=4_096, check_is_ours=lost)
    with pytest.raises(StorageError, match="claimed"):
        fill(log, 1)
    assert log.next_offset == 0


def test_a_process_that_loses_the_folder_amid_a_write_acknowledges_nothing_more(
    tmp_path: Path,
) -> None:
    answers = iter([None, StorageError("claimed by another process")])

    def lost_in_between() -> None:
        if answer := next(answers):
            raise answer

    log = EventLog(tmp_path, segment_bytes=4_096, check_is_ours=lost_in_between)
    for reason in ("^claimed", "not ours to make: claimed"):
        with pytest.raises(StorageError, match=reason):
            fill(log, 1)
    assert log.next_offset == 0
    assert "not ours to make" in log.failure


def test_a_process_that_lost_the_folder_leaves_its_full_segments_alone(tmp_path: Path) -> None:
    is_lost = False

    def check_is_ours() -> None:
        if is_lost:
            raise StorageError("claimed by another process")

    log = EventLog(tmp_path, segment_bytes=4_096, check_is_ours=check_is_ours)
    fill(log, 10)
    before = sorted(tmp_path.rglob("*"))
    is_lost = True
    with pytest.raises(StorageError, match="claimed"):
        log.compact(log.compactable()[0])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused_before_it_comes_near_the_log(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        event_batch([event(1), event(2, user=text)])
