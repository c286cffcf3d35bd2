import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_fakes import FailingFsync

from actors.messages import CorruptStorage, Manifest, StorageError, UnknownVersion, VersionRefused
from actors.version_files import MODEL, TRAINER, HeadRecord, VersionFiles


def manifest(version: int) -> Manifest:
    return Manifest(
        version=version,
        parent=version - 1,
        created_ms=1,
        trained_through=(3, -1),
        num_items=2,
        step=7,
        reason="trained",
        settings={"dim": 64},
        metrics={"ndcg": 0.1},
        encoder="minilm",
    )


MODEL_ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(4)}


def test_what_was_written_is_read_with_shapes_and_types(tmp_path: Path) -> None:
    written = VersionFiles(tmp_path).write(manifest(1), MODEL_ARRAYS, {"t": np.ones(2)})
    files = VersionFiles(tmp_path)
    assert files.numbers() == [1]
    assert files.manifest(1) == written
    assert replace(written, checksums={}) == manifest(1)
    model = files.read(1, MODEL)
    assert {name: (a.shape, a.dtype) for name, a in model.items()} == {
        name: (a.shape, a.dtype) for name, a in MODEL_ARRAYS.items()
    }
    assert all(np.array_equal(model[name], array) for name, array in MODEL_ARRAYS.items())
    assert files.read(1, TRAINER)["t"].tolist() == [1.0, 1.0]


def test_an_array_that_is_not_contiguous_is_stored_as_it_looks(tmp_path: Path) -> None:
    files = VersionFiles(tmp_path)
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    files.write(manifest(1), {"w": array}, {})
    assert np.array_equal(files.read(1, MODEL)["w"], array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    files = VersionFiles(tmp_path)
    with pytest.raises(VersionRefused, match="'bad' is not finite"):
        files.write(manifest(1), {"good": np.ones(2), "bad": np.array([1.0, value])}, {})
    with pytest.raises(VersionRefused, match="'bad' is not finite"):
        files.write(manifest(1), {"good": np.ones(2)}, {"bad": np.array(value)})
    assert files.numbers() == []


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="cannot be stored"):
        VersionFiles(tmp_path).write(manifest(1), {"w": np.array([None])}, {})


def test_a_number_is_not_written_twice(tmp_path: Path) -> None:
    files = VersionFiles(tmp_path)
    files.write(manifest(1), MODEL_ARRAYS, {})
    with pytest.raises(VersionRefused, match="exists already"):
        files.write(manifest(1), MODEL_ARRAYS, {})


@pytest.mark.parametrize("file", [MODEL, TRAINER, "manifest.json"])
def test_no_flipped_bit_is_read_silently(tmp_path: Path, file: str) -> None:
    files = VersionFiles(tmp_path)
    written = files.write(manifest(1), MODEL_ARRAYS, {"t": np.ones(2)})
    path = tmp_path / "versions" / "00000001" / file
    whole = path.read_bytes()
    num_detected = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        try:
            files.read(1, MODEL)
            files.read(1, TRAINER)
        except CorruptStorage:
            num_detected += 1
    num_blanks = sum(map(whole.count, (b" ", b"\n"))) if file == "manifest.json" else 0
    assert num_detected >= len(whole) - num_blanks
    path.write_bytes(whole)
    assert files.manifest(1) == written


def test_a_write_that_fails_at_any_fsync_leaves_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = VersionFiles(tmp_path)
    for version, num_good in enumerate(range(5), 1):
        fsync = FailingFsync(monkeypatch)

        def fail_later(descriptor: int, fsync: FailingFsync = fsync, good: int = num_good) -> None:
            fsync.fail_next = fsync.num_calls == good
            fsync(descriptor)

        monkeypatch.setattr("os.fsync", fail_later)
        with pytest.raises(StorageError):
            files.write(manifest(version), MODEL_ARRAYS, {"t": np.ones(2)})
        monkeypatch.undo()
        assert files.numbers() == []
        assert not list((tmp_path / "versions").iterdir())


def test_what_a_crash_left_is_removed_and_never_listed(tmp_path: Path) -> None:
    files = VersionFiles(tmp_path)
    files.write(manifest(1), MODEL_ARRAYS, {})
    half = tmp_path / "versions" / "00000002.tmp"
    half.mkdir()
    (half / MODEL).write_bytes(b"half")
    assert files.numbers() == [1]
    VersionFiles(tmp_path)
    assert not half.exists()


def test_a_deleted_version_is_unknown(tmp_path: Path) -> None:
    files = VersionFiles(tmp_path)
    files.write(manifest(1), MODEL_ARRAYS, {})
    files.delete(1)
    with pytest.raises(UnknownVersion, match="1"):
        files.read(1, MODEL)


def test_the_head_record_survives_and_damage_to_it_is_noticed(tmp_path: Path) -> None:
    files = VersionFiles(tmp_path)
    assert files.read_head() == HeadRecord()
    record = HeadRecord(5, 3, "why", (1, 2), (1,), 9)
    files.write_head(record)
    assert VersionFiles(tmp_path).read_head() == record
    (tmp_path / "head.json").write_text(json.dumps({"sequence": 1}))
    with pytest.raises(CorruptStorage, match=r"head\.json"):
        files.read_head()


@given(st.lists(st.integers(1, 6) | st.none(), max_size=30))
def test_rollback_walks_back_through_the_heads_and_the_sequence_only_rises(
    moves: list[int | None],
) -> None:
    record = HeadRecord()
    stack: list[int] = []
    for move in moves:
        sequence = record.sequence
        if move is not None:
            if move != record.version:
                record = record.promoted(move, "promoted")
                stack.append(move)
        else:
            earlier = [v for v in stack[:-1] if v != record.version]
            if not earlier:
                with pytest.raises(UnknownVersion):
                    record.rolled_back(range(1, 7), "back")
                continue
            record = record.rolled_back(range(1, 7), "back")
            stack = earlier
        assert record.version == (stack[-1] if stack else 0)
        assert record.sequence == sequence + (record.sequence != sequence)


@given(
    st.sets(st.integers(1, 40), min_size=1),
    st.integers(2, 5),
    st.sets(st.integers(1, 40)),
    st.integers(1, 40),
)
def test_the_newest_the_pinned_the_head_and_the_one_before_are_kept(
    existing: set[int], keep: int, pinned: set[int], head: int
) -> None:
    record = HeadRecord(version=head, previous=(2, 7), pinned=tuple(pinned))
    kept = record.kept(existing, keep)
    assert kept == {*sorted(existing)[-keep:], *pinned, head, 7}
