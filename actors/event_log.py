"""The durable log of a shard: Arrow IPC while it grows, Parquet once a segment is full.

```
open/00000000000000000000.arrow        segments being written, named by their first offset
closed/00000000000000000000.parquet    full segments; `pandas.read_parquet("closed")` reads the log
manifests/00000000000000000000.json    SHA-256 and number of events of each
high_water.json                        an offset the log reached for certain, see `HighWater`
```
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.checked_json import checked_json, read_checked_json
from actors.checked_segment import SegmentWriter, read_segment
from actors.durable_files import (
    make_folder,
    remove_file,
    remove_leftovers,
    replace_file,
    require_free_space,
    storage_error,
    truncate_file,
)
from actors.high_water import HighWater
from actors.messages import CorruptStorage, StorageError
from actors.parquet_segment import read_parquet, write_parquet
from recommender.events import Event

_EVENT_FIELDS = [
    pa.field("event_id", pa.string(), nullable=False),
    pa.field("user_id", pa.string(), nullable=False),
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("event_type", pa.string(), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
    pa.field("timestamp_ms", pa.int64(), nullable=False),
    pa.field("request_id", pa.string()),
]
EVENT_SCHEMA = pa.schema(_EVENT_FIELDS)
"""What a client sends."""

LOG_SCHEMA = pa.schema(
    [
        *_EVENT_FIELDS,
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("acknowledged_ms", pa.int64(), nullable=False),
    ]
)
"""What the log holds."""


@dataclass(frozen=True)
class Segment:
    """One file of the log. `sha256` is set once it is Parquet."""

    first_offset: int
    num_events: int
    sha256: str = ""

    @property
    def stem(self) -> str:
        """File name without its ending."""
        return f"{self.first_offset:020d}"


def event_batch(events: Sequence[Event]) -> pa.RecordBatch:
    """Events as columns.

    Raises:
        ValueError: If a text is not valid Unicode, or a number does not fit or is not finite.
    """
    for index, event in enumerate(events):
        if not math.isfinite(event.value):
            raise ValueError(f"not an event: number {index} of the batch has value {event.value}")
    try:
        columns = [
            pa.array([getattr(event, field.name) for event in events], field.type)
            for field in EVENT_SCHEMA
        ]
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"not an event: {error}") from error
    return pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)


class EventLog:
    """Every accepted event of a shard, in the order of their offsets, from 0 without a gap.

    Promises that an `append` which returned is on disk, that damage is refused by name and place,
    and that only a torn tail of the last segment (never acknowledged) is cut. One thread appends;
    `read` and `compact` may run in others.

    Attributes:
        cut_bytes: Size of the torn tail that was cut when the log was opened.
        failure: Why nothing can be appended any more; empty while all is well.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        epoch: int = 0,
        check_is_ours: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the log, or start one in an empty folder.

        Args:
            folder: Held by this process alone, see `StorageFolder`.
            segment_bytes: Size at which a segment is closed.
            epoch: Written into each batch.
            check_is_ours: Called before and after each write; raises if another process took over.

        Raises:
            CorruptStorage: If bytes are not what was written.
            StorageError: If the folder cannot be written.
        """
        self.cut_bytes = 0
        self._open = folder / "open"
        self._closed = folder / "closed"
        self._manifests = folder / "manifests"
        self._high_water = HighWater(folder / "high_water.json")
        self._segment_bytes = segment_bytes
        self._epoch = epoch
        self._check_is_ours = check_is_ours
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._writer: SegmentWriter | None = None
        self.failure = ""
        try:
            for sub in (self._open, self._closed, self._manifests):
                make_folder(sub)
                remove_leftovers(sub)
            self._recover()
            self._high_water.save_on_opening(self.next_offset)
        except OSError as error:
            raise storage_error(f"open the log in {folder}", error) from error

    @property
    def next_offset(self) -> int:
        """Offset of the next event, which is also how many there are."""
        with self._lock:
            last = self._segments[-1] if self._segments else Segment(0, 0)
            return last.first_offset + last.num_events

    def append(self, events: pa.RecordBatch, acknowledged_ms: int) -> pa.RecordBatch:
        """Write events (`EVENT_SCHEMA`) and fsync; gives them with their offsets (`LOG_SCHEMA`).

        Raises:
            StorageError: If that failed; then none of them is in the log, unless another process
                took over meanwhile.
        """
        if self.failure:
            raise StorageError(self.failure)
        self._check_is_ours()
        first = self.next_offset
        offsets = pa.array(np.arange(first, first + events.num_rows))
        times = pa.array(np.full(events.num_rows, acknowledged_ms, np.int64))
        batch = pa.RecordBatch.from_arrays([*events.columns, offsets, times], schema=LOG_SCHEMA)
        writer = self._writer_at(first)
        try:
            writer.append(batch, first)
        except StorageError:
            self._give_up(writer)
            raise
        self._check_was_ours()
        with self._lock:
            last = self._segments[-1]
            self._segments[-1] = replace(last, num_events=last.num_events + batch.num_rows)
        self._high_water.save_if_due(self.next_offset)
        return batch

    def read(self, first_offset: int = 0) -> Iterator[pa.RecordBatch]:
        """Batches from `first_offset` to what was on disk when its segment was read.

        Raises:
            CorruptStorage: If bytes are not what was written.
        """
        while True:
            segment = self._segment_of(first_offset)
            if segment is None:
                return
            for batch in self._load(segment):
                last_offset = batch.column("offset")[-1].as_py()
                if last_offset >= first_offset:
                    skip = max(0, first_offset - batch.column("offset")[0].as_py())
                    yield batch.slice(skip)
                    first_offset = last_offset + 1

    def compactable(self) -> list[Segment]:
        """Full segments that are not Parquet yet."""
        with self._lock:
            full = self._segments if self._writer is None else self._segments[:-1]
            return [segment for segment in full if not segment.sha256 and segment.num_events]

    def compact(self, segment: Segment, min_free_bytes: int = 0) -> None:
        """Turn a full segment into Parquet; its Arrow file goes once that is on disk.

        Args:
            segment: One of `compactable()`.
            min_free_bytes: Disk space that must stay free while both files are there.

        Raises:
            CorruptStorage: If the segment is damaged.
            StorageFull: If there is too little space; then nothing was read or written.
            StorageError: If writing failed, or another process took over; then the segment stays
                as it is.
        """
        self._check_is_ours()
        require_free_space(self._closed, min_free_bytes, self._size_bytes(segment))
        table = pa.Table.from_batches(self._load(segment), LOG_SCHEMA)
        path = self._closed / f"{segment.stem}.parquet"
        try:
            closed = replace(segment, sha256=write_parquet(path, table))
            manifest = self._manifests / f"{segment.stem}.json"
            replace_file(manifest, checked_json(asdict(closed)))
            with self._lock:
                self._segments[self._segments.index(segment)] = closed
            remove_file(self._arrow_path(segment))
        except OSError as error:
            raise storage_error(f"compact {path}", error) from error

    def close(self) -> None:
        """Close the open segment and note its end; everything is on disk already."""
        if self._writer:
            self._writer.close()
        if not self.failure and self._is_ours():
            self._high_water.save_if_possible(self.next_offset)

    def _check_was_ours(self) -> None:
        """After a write. Who took over before it may have read the log without it."""
        try:
            self._check_is_ours()
        except (StorageError, CorruptStorage) as error:
            self.failure = f"a write was not ours to make: {error}"
            raise

    def _is_ours(self) -> bool:
        try:
            self._check_is_ours()
        except (StorageError, CorruptStorage):
            return False  # whose it is now notes its end
        return True

    def _arrow_path(self, segment: Segment) -> Path:
        return self._open / f"{segment.stem}.arrow"

    def _writer_at(self, next_offset: int) -> SegmentWriter:
        """The writer of the open segment; a new segment if there is none or it is full."""
        if self._writer and self._writer.size_bytes >= self._segment_bytes:
            self._writer.close()
            self._writer = None
            self._high_water.save(next_offset)
        if self._writer is None:
            segment = Segment(next_offset, 0)
            writer = SegmentWriter(self._arrow_path(segment), LOG_SCHEMA, epoch=self._epoch)
            with self._lock:
                self._writer = writer
                self._segments.append(segment)
            self._high_water.set_due()
        return self._writer

    def _give_up(self, writer: SegmentWriter) -> None:
        """Leave a segment whose write failed; if it could not be cut, refuse all that comes."""
        if not writer.is_repaired:
            self.failure = "a failed write could not be taken back: restart the shard"
        with self._lock:
            self._writer = None
            if not self._segments[-1].num_events:
                self._segments.pop()

    def _size_bytes(self, segment: Segment) -> int:
        try:
            return self._arrow_path(segment).stat().st_size
        except FileNotFoundError:
            return 0  # reading it says so

    def _segment_of(self, offset: int) -> Segment | None:
        with self._lock:
            for segment in reversed(self._segments):
                if segment.first_offset <= offset < segment.first_offset + segment.num_events:
                    return segment
        return None

    def _load(self, segment: Segment) -> Iterable[pa.RecordBatch]:
        """The batches of a segment up to its `num_events`, checked."""
        if not segment.sha256:
            try:
                batches = read_segment(
                    self._arrow_path(segment), LOG_SCHEMA, segment.first_offset, is_last=True
                ).batches
            except CorruptStorage:
                compacted = self._segment_of(segment.first_offset)
                if compacted is None or not compacted.sha256:
                    raise
                segment = compacted  # it became Parquet while we looked
            else:
                return self._whole(segment, batches)
        return self._load_parquet(segment)

    def _whole(self, segment: Segment, batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
        """The batches of `num_events`; what is behind them is being written."""
        num_left = segment.num_events
        kept = []
        for batch in batches:
            if num_left < batch.num_rows:
                break
            kept.append(batch)
            num_left -= batch.num_rows
        if num_left:
            path = self._arrow_path(segment)
            raise CorruptStorage(f"{path} lacks its last {num_left} of {segment.num_events} events")
        return kept

    def _load_parquet(self, segment: Segment) -> Iterator[pa.RecordBatch]:
        path = self._closed / f"{segment.stem}.parquet"
        next_offset = segment.first_offset
        for batch in read_parquet(path, LOG_SCHEMA, segment.sha256):
            expected = np.arange(next_offset, next_offset + batch.num_rows)
            if not np.array_equal(batch.column("offset").to_numpy(), expected):
                raise CorruptStorage(f"{path} does not hold the events of its manifest")
            yield batch
            next_offset += batch.num_rows
        if next_offset != segment.first_offset + segment.num_events:
            raise CorruptStorage(f"{path} does not hold the events of its manifest")

    def _recover(self) -> None:
        closed = {segment.first_offset: segment for segment in self._read_manifests()}
        for path in sorted(self._closed.glob("*.parquet")):
            if int(path.stem) not in closed:
                if not (self._open / f"{path.stem}.arrow").exists():
                    raise CorruptStorage(f"{path} has no manifest")
                remove_file(path)  # its compaction was cut short and will be done again
        arrows = []
        for path in sorted(self._open.glob("*.arrow")):
            if int(path.stem) in closed:
                for _ in self._load_parquet(closed[int(path.stem)]):
                    pass  # every batch of it is well before the other copy goes
                remove_file(path)  # the last step of its compaction
            else:
                arrows.append(int(path.stem))
        first_offsets = sorted([*closed, *arrows])
        reached = self._high_water.read(has_rows=bool(first_offsets))
        for first_offset in first_offsets:
            self._check_reaches(first_offset)
            if first_offset in closed:
                self._segments.append(closed[first_offset])
            else:
                is_last = first_offset == first_offsets[-1]
                self._recover_arrow(first_offset, reached, is_last=is_last)
        self._check_reaches(reached, or_more=True)

    def _check_reaches(self, offset: int, *, or_more: bool = False) -> None:
        reached = self.next_offset
        if reached < offset or (reached > offset and not or_more):
            raise CorruptStorage(
                f"{self._open.parent} has events up to {reached - 1}, expected up to {offset - 1}"
            )

    def _recover_arrow(self, first_offset: int, reached: int, *, is_last: bool) -> None:
        segment = Segment(first_offset, 0)
        path = self._arrow_path(segment)
        contents = read_segment(
            path, LOG_SCHEMA, first_offset, is_last=is_last, num_certain=reached - first_offset
        )
        self.cut_bytes += contents.cut_bytes
        if not contents.num_rows:
            remove_file(path)
            return
        # Also where nothing is cut: the last batch may be in the page cache alone.
        truncate_file(path, contents.size_bytes)
        self._segments.append(replace(segment, num_events=contents.num_rows))
        if is_last:
            self._writer = SegmentWriter(path, LOG_SCHEMA, contents.size_bytes, self._epoch)

    def _read_manifests(self) -> Iterator[Segment]:
        for path in sorted(self._manifests.glob("*.json")):
            try:
                segment = Segment(**read_checked_json(path))
            except TypeError as error:
                raise CorruptStorage(f"{path} cannot be read: {error}") from error
            if segment.stem != path.stem or not (self._closed / f"{path.stem}.parquet").exists():
                raise CorruptStorage(f"{path} does not fit a file in {self._closed}")
            yield segment
