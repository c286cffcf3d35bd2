import errno
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_fakes import FailingFsync

from actors.checked_segment import SegmentWriter, parse_segment, read_segment
from actors.messages import CorruptStorage, StorageError, StorageFull

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("number", pa.int64(), nullable=False),
    ]
)


def batch(first: int, size: int) -> pa.RecordBatch:
    numbers = range(first, first + size)
    columns = [
        [f"text-{n}" for n in numbers],
        ["note" if n % 2 else None for n in numbers],
        list(numbers),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def write(path: Path, sizes: list[int]) -> list[int]:
    """Write batches of these sizes; where each ends in the file."""
    writer = SegmentWriter(path, SCHEMA)
    ends = [writer.size_bytes]
    first = 0
    for size in sizes:
        writer.append(batch(first, size), first)
        ends.append(writer.size_bytes)
        first += size
    writer.close()
    return ends


def numbers(data: bytes, *, is_last: bool) -> tuple[list[int], int]:
    contents = parse_segment(data, SCHEMA, 0, is_last=is_last, name="s.arrow")
    return [n for b in contents.batches for n in b.column("number").to_pylist()], contents.cut_bytes


def test_what_was_appended_is_read_and_plain_arrow_reads_it_too(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    write(path, [3, 1, 5])
    assert numbers(path.read_bytes(), is_last=False) == (list(range(9)), 0)
    assert pa.ipc.open_stream(path.read_bytes()).read_all().column("number").to_pylist() == list(
        range(9)
    )


def test_a_tail_torn_at_any_byte_of_the_last_batches_is_cut_at_the_last_whole_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.arrow"
    ends = write(path, [4, 2, 3, 1])
    whole = path.read_bytes()
    for cut in range(ends[1], ends[4]):
        num_batches = sum(end <= cut for end in ends[1:])
        rows = list(range([0, 4, 6, 9, 10][num_batches]))
        assert numbers(whole[:cut], is_last=True) == (rows, cut - ends[num_batches])
        if cut not in ends:
            with pytest.raises(CorruptStorage, match=rf"s\.arrow.*byte {ends[num_batches]}"):
                numbers(whole[:cut], is_last=False)


def test_a_tail_of_zeros_is_cut_and_not_taken_for_a_clean_end(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    ends = write(path, [4, 2])
    whole = path.read_bytes()
    zeros = bytes(ends[2] - ends[1])
    assert numbers(whole[: ends[1]] + zeros, is_last=True) == ([0, 1, 2, 3], len(zeros))
    with pytest.raises(CorruptStorage):
        numbers(whole + bytes(16), is_last=False)


def test_a_hole_before_a_whole_batch_is_damage_also_in_the_last_segment(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    ends = write(path, [4, 2, 3])
    data = bytearray(path.read_bytes())
    data[ends[1] : ends[2]] = bytes(ends[2] - ends[1])
    with pytest.raises(CorruptStorage, match=f"byte {ends[1]}, offset 4"):
        numbers(bytes(data), is_last=True)


def test_no_flipped_bit_changes_data_silently(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    ends = write(path, [3, 2, 2])
    whole = path.read_bytes()
    num_detected = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        try:
            rows, cut_bytes = numbers(bytes(data), is_last=True)
        except CorruptStorage:
            num_detected += 1
            continue
        if cut_bytes:
            assert place >= ends[2], "only the last batch may look like a torn tail"
            assert rows == [0, 1, 2, 3, 4]
            num_detected += 1
        else:
            assert rows == list(range(7))
            assert place < ends[0], "only padding of the schema may differ"
    assert num_detected > len(whole) - ends[0]


def test_a_batch_left_out_is_noticed_by_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    ends = write(path, [4, 2, 3])
    whole = path.read_bytes()
    with pytest.raises(CorruptStorage, match=r"offset .*6.* instead of 4"):
        numbers(whole[: ends[1]] + whole[ends[2] :], is_last=True)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    write(path, [2])
    other = pa.schema([pa.field("text", pa.string())])
    with pytest.raises(CorruptStorage, match="another schema"):
        read_segment(path, other, 0, is_last=False)


def test_a_failed_fsync_takes_the_batch_back_and_its_descriptor_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.arrow"
    writer = SegmentWriter(path, SCHEMA)
    writer.append(batch(0, 2), 0)
    before = path.read_bytes()
    fsync = FailingFsync(monkeypatch)
    fsync.fail_next = 1
    with pytest.raises(StorageError, match="on purpose"):
        writer.append(batch(2, 2), 2)
    assert (writer.is_closed, writer.is_repaired) == (True, True)
    assert path.read_bytes() == before


def test_no_space_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path / "s.arrow", SCHEMA)
    fsync = FailingFsync(monkeypatch)
    fsync.error, fsync.fail_next = errno.ENOSPC, 1
    with pytest.raises(StorageFull):
        writer.append(batch(0, 2), 0)
    assert not (tmp_path / "s.arrow").exists()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=5), max_size=5))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_back_as_it_was(
    tmp_path: Path, groups: list[list[tuple[str, str | None]]]
) -> None:
    path = tmp_path / "s.arrow"
    path.unlink(missing_ok=True)
    writer = SegmentWriter(path, SCHEMA)
    first = 0
    for group in groups:
        columns = [[t for t, _ in group], [n for _, n in group], list(range(len(group)))]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        writer.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), first)
        first += len(group)
    writer.close()
    read = read_segment(path, SCHEMA, 0, is_last=False).batches
    rows = [(row["text"], row["note"]) for b in read for row in b.to_pylist()]
    assert rows == [row for group in groups for row in group]
