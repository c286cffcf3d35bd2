"""What the catalogue keeps on disk: every change of an item, and the text vectors made so far."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.checked_segment import SegmentWriter, read_segment
from actors.durable_files import (
    fsync_folder,
    remove_file,
    sha256_of,
    storage_error,
    truncate_file,
)
from actors.high_water import HighWater
from actors.messages import CorruptStorage, StorageError
from recommender.events import Item

logger = logging.getLogger(__name__)

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        pa.field("attributes", pa.string(), nullable=False),
    ]
)
"""`attributes` is a JSON object."""

VECTOR_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)


def item_batch(items: Sequence[Item]) -> pa.RecordBatch:
    """Items as columns.

    Raises:
        ValueError: If a text is not valid Unicode.
    """
    columns = [
        [item.item_id for item in items],
        [item.text for item in items],
        [item.title for item in items],
        [list(item.categories) for item in items],
        [json.dumps(dict(item.attributes)) for item in items],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, ITEM_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ITEM_SCHEMA)


def items_of(batch: pa.RecordBatch) -> list[Item]:
    """The reverse of `item_batch`."""
    return [
        Item(
            row["item_id"],
            row["text"],
            row["title"],
            tuple(row["categories"]),
            json.loads(row["attributes"]),
        )
        for row in batch.to_pylist()
    ]


class AppendOnlyFile:
    """One checked Arrow file that only grows. `offset` counts its rows.

    A torn tail is cut when it is opened; any other damage is `CorruptStorage`.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        epoch: int = 0,
        high_water: HighWater | None = None,
    ) -> None:
        """Name the file; `open` reads it.

        Args:
            path: Made at the first append.
            schema: What it holds.
            epoch: Written into each batch.
            high_water: Where its length is noted, so that a lost end is noticed.
        """
        self.offset = 0
        self.cut_bytes = 0
        self._path = path
        self._schema = schema
        self._high_water = high_water
        self._epoch = epoch
        self._writer: SegmentWriter | None = None
        self._size_bytes = 0

    def open(self) -> list[pa.RecordBatch]:
        """Read and check what is there.

        Raises:
            CorruptStorage: If it is not what was written.
            StorageError: If it cannot be opened.
        """
        batches = self._read() if self._path.exists() else []
        if self._high_water:
            reached = self._high_water.read(has_rows=False)  # older catalogues have none
            if self.offset < reached:
                raise CorruptStorage(
                    f"{self._path} has {self.offset} rows, expected {reached} or more"
                )
            self._high_water.save_on_opening(self.offset)
        return batches

    def _read(self) -> list[pa.RecordBatch]:
        num_certain = self._high_water.read(has_rows=False) if self._high_water else 0
        contents = read_segment(self._path, self._schema, 0, is_last=True, num_certain=num_certain)
        self.cut_bytes = contents.cut_bytes
        try:
            if not contents.num_rows:
                remove_file(self._path)
                return []
            # Also where nothing is cut: the last batch may be in the page cache alone.
            truncate_file(self._path, contents.size_bytes)
            fsync_folder(self._path.parent)
        except OSError as error:
            raise storage_error(f"cut {self._path}", error) from error
        self.offset = contents.num_rows
        self._size_bytes = contents.size_bytes
        return list(contents.batches)

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch and fsync.

        Raises:
            StorageError: If that failed; then nothing of it is in the file.
        """
        if self._writer is None:
            self._writer = SegmentWriter(self._path, self._schema, self._size_bytes, self._epoch)
            if self._high_water and not self._size_bytes:
                self._high_water.set_due()
        elif self._writer.is_closed:
            raise StorageError(f"{self._path}: an earlier write could not be taken back")
        try:
            self._writer.append(batch, self.offset)
        except StorageError:
            if self._writer.is_repaired:
                self._writer = None  # the next append opens the file anew
            raise
        self.offset += batch.num_rows
        self._size_bytes = self._writer.size_bytes
        if self._high_water:
            self._high_water.save_if_due(self.offset)

    def close(self) -> None:
        """Close the file and note its end; everything in it is durable already."""
        if self._writer:
            self._writer.close()
            if self._high_water:
                self._high_water.save_if_possible(self.offset)


class VectorCache:
    """Text vectors on disk, so that a restart encodes nothing again. A damaged one is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = AppendOnlyFile(path, VECTOR_SCHEMA)

    def read(self) -> dict[str, NDArray[np.float32]]:
        """Every finite vector by its key; the text of another has to be read again."""
        try:
            batches = self._file.open()
        except CorruptStorage as error:
            logger.warning("text vectors are encoded again error=%s", error)
            remove_file(self._path)
            self._file = AppendOnlyFile(self._path, VECTOR_SCHEMA)
            return {}
        vectors: dict[str, NDArray[np.float32]] = {}
        for batch in batches:
            keys = batch.column("key").to_pylist()
            values = batch.column("vector").flatten().to_numpy()
            vectors_ND = values.reshape(len(keys), -1)
            finite_N = np.isfinite(vectors_ND).all(axis=1)
            vectors.update((keys[n], vectors_ND[n]) for n in np.flatnonzero(finite_N).tolist())
        return vectors

    def add(self, keys: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
        """Keep vectors.

        Raises:
            StorageError: If that failed.
        """
        dim = vectors_ND.shape[1]
        splits = pa.array(np.arange(0, len(keys) * dim + 1, dim, dtype=np.int32))
        values = pa.array(vectors_ND.astype(np.float32).ravel())
        columns = [pa.array(keys, pa.string()), pa.ListArray.from_arrays(splits, values)]
        self._file.append(pa.RecordBatch.from_arrays(columns, schema=VECTOR_SCHEMA))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def vector_key(encoder_name: str, text: str) -> str:
    """What a vector is kept under: equal keys mean equal vectors."""
    return sha256_of(f"{encoder_name}\0{text}".encode())
