"""Every event of the log as Parquet files that anyone can read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.event_log import LOG_SCHEMA
from actors.log_scan import read_events, scan_log
from actors.messages import CorruptStorage, StorageError
from actors.storage_check import check_shard, shard_folders

EXPORT_SCHEMA = LOG_SCHEMA.append(pa.field("shard", pa.int32(), nullable=False))
"""What an exported file holds."""


def export_log(data_dir: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write one file for each shard, its events in the order of their offsets.

    Yields:
        Each file and how many events it has.

    Raises:
        CorruptStorage: If a log is damaged; then nothing of that shard is written.
        StorageError: If a file is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shard_folders(data_dir):
        for report in check_shard(shard):
            if report.is_damaged:
                raise CorruptStorage(f"{report.path}: {report.detail}; see `rheos verify`")
        path = folder / f"{shard.name}.parquet"
        if path.exists():
            raise StorageError(f"{path} is there already: name another folder")
        number = pa.scalar(int(shard.name.removeprefix("shard-")), pa.int32())
        num_events = 0
        with path.open("xb") as file, pq.ParquetWriter(file, EXPORT_SCHEMA) as writer:
            for batch in read_events(scan_log(shard)):
                shards = pa.repeat(number, batch.num_rows)
                columns = [*batch.columns, shards]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=EXPORT_SCHEMA))
                num_events += batch.num_rows
        yield path, num_events
