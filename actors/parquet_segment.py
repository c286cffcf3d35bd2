"""Full segments of a log as Parquet files with checksums, which anyone can read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.durable_files import TEMPORARY, fsync_file, fsync_folder, sha256_of
from actors.messages import CorruptStorage


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


def read_parquet(path: Path, schema: pa.Schema, sha256: str) -> pa.Table:
    """The table in a file.

    Raises:
        CorruptStorage: If it is not what was written.
    """
    try:
        data = path.read_bytes()
        if sha256_of(data) != sha256:
            raise CorruptStorage(f"{path} does not have the checksum of its manifest")
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStorage(f"{path} cannot be read: {error}") from error
    if not table.schema.equals(schema):
        raise CorruptStorage(f"{path} has another schema")
    return table
