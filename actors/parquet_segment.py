"""Full segments of a log as Parquet files with checksums, which anyone can read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.durable_files import TEMPORARY, fsync_file, fsync_folder, sha256_of
from actors.messages import CorruptStorage

_BATCH_ROWS = 10_000


def write_parquet(path: Path, table: pa.Table) -> str:
    """Write a file, whole or not at all, durably; gives its SHA-256.

    Raises:
        OSError: If that failed.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        fsync_file(temporary)
        sha256 = sha256_of(temporary.read_bytes())
        temporary.rename(path)
        fsync_folder(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return sha256


def read_parquet(path: Path, schema: pa.Schema, sha256: str) -> Iterator[pa.RecordBatch]:
    """The batches of a file, unpacked a part at a time: as a whole it is many times its size.

    Raises:
        CorruptStorage: If it is not what was written; before the first batch, unless both file and
            checksum were forged.
    """
    try:
        data = path.read_bytes()
        if sha256_of(data) != sha256:
            raise CorruptStorage(f"{path} does not have the checksum of its manifest")
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if not file.schema_arrow.equals(schema):
            raise CorruptStorage(f"{path} has another schema")
        yield from file.iter_batches(_BATCH_ROWS, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStorage(f"{path} cannot be read: {error}") from error
