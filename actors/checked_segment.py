"""Arrow IPC stream files whose every batch is checked: append, read, find where damage begins.

Arrow IPC has no checksums, and a batch of zeros reads as a clean end of the stream. So each batch
carries its first offset and a CRC-32 in the custom metadata, offsets follow each other without a
gap, and no end-of-stream mark is ever written: any is damage. The CRC is of every byte of the
message, with a placeholder in its own place. Everyone else reads the file with
`pyarrow.ipc.open_stream`.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.durable_files import (
    fsync_folder,
    open_new,
    open_to_append,
    remove_file,
    storage_error,
    truncate_file,
    write_all,
)
from actors.messages import CorruptStorage

_CRC = b"checksum"
_NO_CRC = b"crc32:--------"
_FIRST = b"first_offset"
_EPOCH = b"epoch"
_CONTINUATION = b"\xff\xff\xff\xff"
_MAX_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class SegmentContents:
    """The whole batches of a segment.

    Attributes:
        batches: Checked batches, in order.
        size_bytes: Where the last whole batch ends.
        cut_bytes: How many bytes behind it are not a whole batch.
    """

    batches: tuple[pa.RecordBatch, ...]
    size_bytes: int
    cut_bytes: int

    @property
    def num_rows(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in self.batches)


@dataclass(frozen=True)
class FoundBatch:
    """A whole batch in a damaged file: the offset of its first row, and where it ends."""

    batch: pa.RecordBatch
    first_offset: int
    end_byte: int


class SegmentWriter:
    """Appends batches to one file, each durable before `append` returns.

    The first error ends the writer: its descriptor is closed, never fsynced again, and what it had
    begun is cut off. `is_closed` says so, and `is_repaired` whether the cut worked.
    """

    def __init__(self, path: Path, schema: pa.Schema, size_bytes: int = 0, epoch: int = 0) -> None:
        """Make the file, or go on at `size_bytes` of it.

        Raises:
            StorageError: If the file cannot be made or opened.
        """
        self.size_bytes = size_bytes
        self.is_closed = False
        self.is_repaired = True
        self._path = path
        self._schema = schema
        self._epoch = epoch
        try:
            self._descriptor = open_to_append(path) if size_bytes else open_new(path)
        except OSError as error:
            raise storage_error(f"open {path}", error) from error
        if not size_bytes:
            self._write(schema.serialize().to_pybytes())
            self._durably(lambda: fsync_folder(path.parent))

    def append(self, batch: pa.RecordBatch, first_offset: int) -> None:
        """Write one batch and fsync.

        Raises:
            StorageError: If that failed; then nothing of the batch is in the file.
        """
        metadata = {_CRC: _NO_CRC, _FIRST: str(first_offset), _EPOCH: str(self._epoch)}
        stream = io.BytesIO()
        with pa.ipc.new_stream(stream, self._schema) as writer:
            writer.write_batch(batch, custom_metadata=metadata)
            message = stream.getvalue()[self._schema.serialize().size :]
        # Metadata comes before data, so the first place is the right one.
        self._write(message.replace(_NO_CRC, _crc(message), 1))

    def close(self) -> None:
        """Close the file; everything in it is durable already."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        def write_and_fsync() -> None:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)

        self._durably(write_and_fsync)
        self.size_bytes += len(data)

    def _durably(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.close()
            self._cut()
            raise storage_error(f"write {self._path}", error) from error

    def _cut(self) -> None:
        """Take back what is not acknowledged, through a descriptor that never failed."""
        try:
            if self.size_bytes <= self._schema.serialize().size:
                remove_file(self._path)
            else:
                truncate_file(self._path, self.size_bytes)
        except OSError:
            self.is_repaired = False


def read_segment(
    path: Path, schema: pa.Schema, first_offset: int, *, is_last: bool, num_certain: int = 0
) -> SegmentContents:
    """Every batch of a file, checked; see `parse_segment`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptStorage(f"{path} cannot be read: {error}") from error
    return parse_segment(
        data, schema, first_offset, is_last=is_last, num_certain=num_certain, name=str(path)
    )


def parse_segment(
    data: bytes,
    schema: pa.Schema,
    first_offset: int,
    *,
    is_last: bool,
    num_certain: int = 0,
    name: str,
) -> SegmentContents:
    """Every batch of a segment, checked.

    Args:
        data: The whole file.
        schema: What its schema must be, exactly.
        first_offset: Offset of its first row.
        is_last: Whether the file was being written: then a torn tail is no error.
        num_certain: Rows that it has for certain: none of them can be in a torn tail.
        name: What errors call the file.

    Raises:
        CorruptStorage: If bytes are not what was written, other than a torn tail of the last
            segment. A tail is torn if no whole batch follows it.
    """
    batches, end, reason = _read_batches(data, schema, first_offset)
    num_rows = sum(batch.num_rows for batch in batches)
    may_be_torn = is_last and num_rows >= num_certain
    if reason and not (may_be_torn and not _a_batch_follows(data, end, schema)):
        next_offset = first_offset + num_rows
        raise CorruptStorage(f"{name} is damaged at byte {end}, offset {next_offset}: {reason}")
    return SegmentContents(tuple(batches), end, len(data) - end)


def batches_behind(data: bytes, start: int, schema: pa.Schema) -> Iterator[FoundBatch]:
    """Every whole batch that begins at or behind byte `start`, whatever lies between them."""
    header = schema.serialize().to_pybytes()
    place = data.find(_CONTINUATION, start)
    while place >= 0:
        found = _batch_at(header, data, place)
        if found:
            yield found
        place = data.find(_CONTINUATION, found.end_byte if found else place + 1)


def _read_batches(
    data: bytes, schema: pa.Schema, next_offset: int
) -> tuple[list[pa.RecordBatch], int, str]:
    """The whole batches from the start, where they end, and what is wrong there ('' if nothing)."""
    batches: list[pa.RecordBatch] = []
    source = pa.BufferReader(data)
    end = 0
    try:
        reader = pa.ipc.open_stream(source)
        if not reader.schema.equals(schema, check_metadata=True):
            return [], 0, "another schema"
        end = source.tell()
        while end < len(data):
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            reason = _complaint(data[end : source.tell()], metadata, next_offset)
            if reason:
                return batches, end, reason
            batches.append(batch)
            next_offset += batch.num_rows
            end = source.tell()
    except StopIteration:
        return batches, end, "end of stream before the end of the file"
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        return batches, end, str(error)
    return batches, end, ""


def _crc(message: bytes) -> bytes:
    return b"crc32:%08x" % zlib.crc32(message)


def _is_whole(message: bytes, metadata: Any) -> bool:
    crc = metadata.get(_CRC) if metadata is not None else None
    return crc is not None and crc == _crc(message.replace(crc, _NO_CRC, 1))


def _complaint(message: bytes, metadata: Any, next_offset: int) -> str:
    if not _is_whole(message, metadata):
        return "checksum mismatch"
    if metadata.get(_FIRST) != str(next_offset).encode():
        return f"offset {metadata.get(_FIRST)!r} instead of {next_offset}"
    return ""


def _a_batch_follows(data: bytes, start: int, schema: pa.Schema) -> bool:
    """Whether a whole batch lies behind `start`: then the damage is not a torn tail."""
    return next(batches_behind(data, start, schema), None) is not None


def _batch_at(header: bytes, data: bytes, place: int) -> FoundBatch | None:
    length = int.from_bytes(data[place + 4 : place + 8], "little")
    if not 0 < length < _MAX_METADATA_BYTES:
        return None
    source = pa.BufferReader(header + data[place:])
    try:
        batch, metadata = pa.ipc.open_stream(source).read_next_batch_with_custom_metadata()
        end = place + source.tell() - len(header)
        if not _is_whole(data[place:end], metadata):
            return None
        return FoundBatch(batch, int(metadata[_FIRST]), end)
    except (StopIteration, pa.ArrowException, OSError, ValueError, MemoryError, KeyError):
        return None
