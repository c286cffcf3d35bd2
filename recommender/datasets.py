"""Streams of events from files: Parquet folders, MovieLens, CSV and JSON lines.

A legend of the axes: N events.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommender.event_tables import DatasetError, read_events, read_items, read_parquet
from recommender.events import Event, Item, feedback_codes
from recommender.movielens import is_movielens, read_movielens

__all__ = ["Dataset", "DatasetError", "Examples", "dataset_from", "read_dataset", "read_examples"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A finite stream of events in stable timestamp order, and the items it speaks of.

    Attributes:
        name: Prefix of the event ids.
        items: The catalogue; `rows_N` are indices into it. Holds every item with an event.
        user_ids: In order of first event; `users_N` are indices into it.
        users_N: int32 user codes.
        rows_N: int32 item rows.
        feedback_N: int8, see `events.feedback_code`.
        values_N: float32.
        event_types_N: Strings, each in `events.EVENT_TYPES`.
        timestamps_ms_N: int64, never falling.
    """

    name: str
    items: tuple[Item, ...]
    user_ids: tuple[str, ...]
    users_N: NDArray[np.int32]
    rows_N: NDArray[np.int32]
    feedback_N: NDArray[np.int8]
    values_N: NDArray[np.float32]
    event_types_N: NDArray[np.str_]
    timestamps_ms_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users_N)

    def events(self, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        """The events [start, stop) as records. The same index always has the same event id."""
        part = slice(start, stop)
        columns = (self.users_N, self.rows_N, self.event_types_N, self.values_N)
        indices = range(len(self))[part]
        rows = zip(
            indices,
            *(column[part].tolist() for column in columns),
            self.timestamps_ms_N[part].tolist(),
            strict=True,
        )
        for index, user, row, event_type, value, timestamp_ms in rows:
            yield Event(
                event_id=f"{self.name}-{index}",
                user_id=self.user_ids[user],
                item_id=self.items[row].item_id,
                event_type=event_type,
                value=value,
                timestamp_ms=timestamp_ms,
            )


@dataclass(frozen=True)
class Examples:
    """Labelled texts. `splits` says `train` throughout where the file does not split."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def read_dataset(path: Path) -> Dataset:
    """Read a stream of events; what kind of data it is shows in the path.

    - A folder with `interactions.parquet`, and `items.parquet` if there is one.
    - A MovieLens folder in any of its published layouts.
    - A `.csv`, `.jsonl` or `.parquet` file of events, and a file `items` with the same suffix
      beside it if there is one. Columns: user_id, item_id, timestamp_ms (or timestamp, in ms),
      event_type (click where there is none), value (1 where there is none).

    Raises:
        DatasetError: If there is no such data or it cannot be right.
    """
    if path.is_dir() and is_movielens(path):
        events, items = read_movielens(path)
        return dataset_from(path.resolve().name, events, items)
    if path.is_dir():
        file, name = path / "interactions.parquet", path.resolve().name
    else:
        file, name = path, path.stem
    if not file.is_file() or file.suffix not in (".parquet", ".csv", ".jsonl"):
        raise DatasetError(
            f"{path}: expected a folder with interactions.parquet, a MovieLens folder (u.data, "
            "ratings.dat or ratings.csv with its movies), or a .csv, .jsonl or .parquet file"
        )
    items_file = file.with_name(f"items{file.suffix}")
    return dataset_from(
        name, read_events(file), read_items(items_file) if items_file.is_file() else []
    )


def dataset_from(name: str, events: pd.DataFrame, items: list[Item]) -> Dataset:
    """A dataset from an event table (see `event_tables`) and a catalogue.

    Items with events but no entry in the catalogue are added at its end, their id as the text.
    """
    # A stable sort: tied timestamps keep their order in the file, else results would change.
    events = events.sort_values("timestamp_ms", kind="stable")
    users_N, user_ids = pd.factorize(events["user_id"])
    codes_N, item_ids = pd.factorize(events["item_id"])
    row_of = {item.item_id: row for row, item in enumerate(items)}
    unknown = [item_id for item_id in item_ids if item_id not in row_of]
    if items and unknown:
        logger.warning("items without text dataset=%s count=%d", name, len(unknown))
    row_of.update((item_id, len(items) + i) for i, item_id in enumerate(unknown))
    row_of_code = np.array([row_of[item_id] for item_id in item_ids], dtype=np.int32)
    event_types_N = events["event_type"].to_numpy(dtype=np.str_)
    values_N = events["value"].to_numpy(dtype=np.float32)
    return Dataset(
        name=name,
        items=(*items, *(Item(item_id, text=item_id) for item_id in unknown)),
        user_ids=tuple(user_ids),
        users_N=users_N.astype(np.int32),
        rows_N=row_of_code[codes_N],
        feedback_N=feedback_codes(event_types_N, values_N),
        values_N=values_N,
        event_types_N=event_types_N,
        timestamps_ms_N=events["timestamp_ms"].to_numpy(dtype=np.int64),
    )


def read_examples(path: Path) -> Examples:
    """Read labelled texts from a folder with `examples.parquet`.

    Raises:
        DatasetError: If the file is missing or lacks the columns text and label.
    """
    file = path / "examples.parquet"
    if not file.is_file():
        raise DatasetError(f"{path}: no examples.parquet there")
    table = read_parquet(file)
    missing = {"text", "label"} - set(table.column_names)
    if missing:
        raise DatasetError(f"{file}: no column {', '.join(sorted(missing))}")
    texts, labels = (tuple(table[name].to_pylist()) for name in ("text", "label"))
    has_split = "split" in table.column_names
    splits = tuple(table["split"].to_pylist()) if has_split else ("train",) * len(texts)
    return Examples(texts, labels, splits)
