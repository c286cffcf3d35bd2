"""What of a shard's log can be read, file by file, whatever is wrong with the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.checked_json import read_checked_json
from actors.checked_segment import batches_behind, parse_segment
from actors.event_log import LOG_SCHEMA, Segment
from actors.high_water import HighWater
from actors.messages import CorruptStorage
from actors.parquet_segment import read_parquet

_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, LookupError)

Span = tuple[int, int]
"""A first offset, and the one behind the last."""


@dataclass(frozen=True)
class LogFile:
    """A segment as it was found.

    Attributes:
        path: Its file.
        spans: Offsets whose events can be read, rising.
        reason: What is wrong with it; empty if nothing is.
        torn_bytes: Bytes of a batch that was never acknowledged, which opening the log cuts off.
    """

    path: Path
    spans: tuple[Span, ...]
    reason: str = ""
    torn_bytes: int = 0

    @property
    def first_offset(self) -> int:
        """Offset that its name says it begins with."""
        return int(self.path.stem)

    @property
    def is_parquet(self) -> bool:
        """Whether it is a closed segment."""
        return self.path.suffix == ".parquet"


@dataclass(frozen=True)
class LogScan:
    """A shard's log.

    Attributes:
        files: Its segments, by first offset; a closed one before an Arrow file of the same events.
        manifests: Reasons of the manifests that cannot be used, by path.
        reached: Where the log ended for certain.
        high_water_reason: What is wrong with the note of that.
    """

    files: tuple[LogFile, ...]
    manifests: dict[Path, str]
    reached: int
    high_water_reason: str

    def lost(self) -> list[Span]:
        """Offsets, of those that the log surely had, whose events are in no file."""
        return gaps([span for file in self.files for span in file.spans], self.end())

    def end(self) -> int:
        """The offset behind the last event that the log surely had."""
        stops = [stop for file in self.files for _, stop in file.spans]
        return max([self.reached, *stops, *(file.first_offset for file in self.files)])


def gaps(spans: Sequence[Span], end: int) -> list[Span]:
    """What of [0, end) no span covers."""
    missing = []
    covered_to = 0
    for first, stop in sorted(spans):
        if first > covered_to:
            missing.append((covered_to, first))
        covered_to = max(covered_to, stop)
    if covered_to < end:
        missing.append((covered_to, end))
    return missing


def scan_log(shard: Path) -> LogScan:
    """Read everything in the folder of a shard."""
    reached, high_water_reason = _reached(shard)
    manifests = _manifests(shard)
    closed = sorted((shard / "closed").glob("*.parquet"))
    arrows = sorted((shard / "open").glob("*.arrow"))
    files = [_scan_parquet(path, manifests.get(path.stem)) for path in closed]
    last = max((int(path.stem) for path in (*closed, *arrows)), default=0)
    files += [_scan_arrow(path, reached, is_last=int(path.stem) == last) for path in arrows]
    reasons = {
        shard / "manifests" / f"{stem}.json": segment
        for stem, segment in manifests.items()
        if isinstance(segment, str)
    }
    for stem, segment in manifests.items():
        if isinstance(segment, Segment) and shard / "closed" / f"{stem}.parquet" not in closed:
            reasons[shard / "manifests" / f"{stem}.json"] = (
                f"its file closed/{stem}.parquet is gone"
            )
            reached = max(reached, segment.first_offset + segment.num_events)
    files.sort(key=lambda file: (file.first_offset, not file.is_parquet))
    return LogScan(tuple(files), reasons, reached, high_water_reason)


def read_events(scan: LogScan) -> Iterator[pa.RecordBatch]:
    """Every event that can be read, once, in the order of offsets (`event_log.LOG_SCHEMA`)."""
    next_offset = 0
    for file in scan.files:
        for batch in readable_batches(file):
            offsets = batch.column("offset").to_numpy()
            start = int(np.searchsorted(offsets, next_offset))
            if start < batch.num_rows:
                yield batch.slice(start)
                next_offset = int(offsets[-1]) + 1


def readable_batches(file: LogFile) -> Iterator[pa.RecordBatch]:
    """What can be read of one file."""
    if not file.spans:
        return
    data = file.path.read_bytes()
    if file.is_parquet:
        yield from pq.read_table(pa.BufferReader(data)).cast(LOG_SCHEMA).to_batches()
    else:
        for found in batches_behind(data, 0, LOG_SCHEMA):
            yield found.batch


def _reached(shard: Path) -> tuple[int, str]:
    has_rows = any((shard / "open").glob("*.arrow")) or any((shard / "closed").glob("*.parquet"))
    try:
        return HighWater(shard / "high_water.json").read(has_rows=has_rows), ""
    except CorruptStorage as error:
        return 0, str(error)


def _manifests(shard: Path) -> dict[str, Segment | str]:
    """Manifests by their stem; what is wrong, where one cannot be used."""
    manifests: dict[str, Segment | str] = {}
    for path in sorted((shard / "manifests").glob("*.json")):
        try:
            segment = Segment(**read_checked_json(path))
        except (CorruptStorage, TypeError) as error:
            manifests[path.stem] = str(error)
        else:
            is_its = segment.stem == path.stem
            manifests[path.stem] = segment if is_its else f"{path} is of another segment"
    return manifests


def _scan_parquet(path: Path, manifest: Segment | str | None) -> LogFile:
    reason = "it has no manifest that can be used"
    if isinstance(manifest, Segment):
        try:
            for _ in read_parquet(path, LOG_SCHEMA, manifest.sha256):
                pass
            reason = ""
        except CorruptStorage as error:
            reason = str(error)
    place, spans = _whole_pages(path)
    if reason and place is not None:
        reason = f"damaged at byte {place}: {reason}"
    elif reason and spans:
        reason = f"{reason}, but every page of it is whole"
    if isinstance(manifest, Segment) and spans:
        expected = (manifest.first_offset, manifest.first_offset + manifest.num_events)
        if spans != (expected,):
            reason = reason or f"{path} does not hold the events of its manifest"
    return LogFile(path, spans, reason)


def _whole_pages(path: Path) -> tuple[int | None, tuple[Span, ...]]:
    """Where a Parquet file is damaged, as its pages tell; and its offsets if they all are whole."""
    data = path.read_bytes()
    footer_byte = max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))
    place: int | None = footer_byte
    first = int(path.stem)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        for group in range(file.metadata.num_row_groups):
            for number, name in enumerate(LOG_SCHEMA.names):
                column = file.metadata.row_group(group).column(number)
                starts = (column.dictionary_page_offset, column.data_page_offset)
                place = min(start for start in starts if start is not None)
                file.read_row_group(group, columns=[name])
        place = footer_byte
        offsets = file.read().cast(LOG_SCHEMA).column("offset").to_numpy()
    except _UNREADABLE:
        return place, ()
    if not len(offsets) or not np.array_equal(offsets, np.arange(first, first + len(offsets))):
        return footer_byte, ()
    return None, ((first, first + len(offsets)),)


def _scan_arrow(path: Path, reached: int, *, is_last: bool) -> LogFile:
    data = path.read_bytes()
    first = int(path.stem)
    try:
        contents = parse_segment(
            data, LOG_SCHEMA, first, is_last=is_last, num_certain=reached - first, name=str(path)
        )
    except CorruptStorage as error:
        return _scan_damaged_arrow(path, data, str(error))
    spans = ((first, first + contents.num_rows),) if contents.num_rows else ()
    return LogFile(path, spans, torn_bytes=contents.cut_bytes)


def _scan_damaged_arrow(path: Path, data: bytes, reason: str) -> LogFile:
    spans: list[Span] = []
    for found in batches_behind(data, 0, LOG_SCHEMA):
        stop = found.first_offset + found.batch.num_rows
        if spans and spans[-1][1] == found.first_offset:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((found.first_offset, stop))
    return LogFile(path, tuple(spans), reason)
