"""Reads events and items from Parquet, CSV and JSON lines, and refuses what cannot be right.

An event table is a data frame with the columns `user_id`, `item_id`, `event_type`, `value` and
`timestamp_ms`, in file order; its index is the place of each event in the file, for messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from recommender.events import EVENT_TYPES, Attribute, Item

MIN_TIMESTAMP_MS = 100_000_000_000
"""March 1973. A smaller number is a time in seconds, which would put all events into 1970."""
MAX_TIMESTAMP_MS = 10_000_000_000_000
"""November 2286. A larger number is a time in micro- or nanoseconds."""
MAX_VALUE = 1e9
_TIMESTAMP_NAMES = ("timestamp_ms", "timestamp")
_EVENT_COLUMNS = ("user_id", "item_id", "event_type", "value", *_TIMESTAMP_NAMES)
_ITEM_COLUMNS = ("item_id", "text", "title", "categories")


class DatasetError(Exception):
    """A data set cannot be read. The message names the file, the place, the value and the bound."""


@dataclass(frozen=True)
class Source:
    """Where a table comes from. `unit` is `line` (the first is 1) or `row` (the first is 0)."""

    file: Path
    unit: str

    def refuse(self, column: pd.Series[Any], is_bad_N: ArrayLike, problem: str) -> None:
        """Raise a DatasetError that names the first bad entry, if there is one."""
        bad = np.flatnonzero(is_bad_N)
        if len(bad):
            raise DatasetError(
                f"{self.file}, {self.unit} {column.index[bad[0]]}, column {column.name}: "
                f"{column.iloc[bad[0]]!r} {problem}; in all {len(bad)} of {len(column)} events"
            )


def read_events(path: Path) -> pd.DataFrame:
    """The checked events of a .parquet, .csv or .jsonl file, in file order."""
    if path.suffix == ".parquet":
        raw, unit = _parquet_columns(path, _EVENT_COLUMNS), "row"
    elif path.suffix == ".csv":
        raw, unit = read_csv(path), "line"
    else:
        raw, unit = _json_lines_frame(path, _EVENT_COLUMNS), "line"
    return check_events(raw, Source(path, unit))


def check_events(raw: pd.DataFrame, source: Source) -> pd.DataFrame:
    """An event table from raw columns; `event_type` defaults to click, `value` to 1.

    Raises:
        DatasetError: If a column is missing, or an entry is empty, not finite or out of bounds.
    """
    time_name = next((name for name in _TIMESTAMP_NAMES if name in raw), "timestamp_ms")
    missing = {"user_id", "item_id", time_name} - set(raw.columns)
    if missing:
        raise DatasetError(
            f"{source.file}: no column {', '.join(sorted(missing))}; found {', '.join(raw.columns)}"
        )
    if raw.empty:
        raise DatasetError(f"{source.file}: holds no events")
    events = pd.DataFrame(index=raw.index)
    events["user_id"] = _ids(raw["user_id"], source)
    events["item_id"] = _ids(raw["item_id"], source)
    events["event_type"] = _event_types(raw, source)
    events["value"] = (
        _numbers(raw["value"], source, -MAX_VALUE, MAX_VALUE) if "value" in raw else 1.0
    )
    timestamps = _numbers(raw[time_name], source, MIN_TIMESTAMP_MS, MAX_TIMESTAMP_MS)
    events["timestamp_ms"] = timestamps.astype(np.int64)
    return events


def read_items(path: Path) -> list[Item]:
    """The items of a .parquet, .csv or .jsonl file, in file order.

    `text` defaults to the title, and that to the id. In CSV, categories are separated by `|`.
    Scalar columns other than the known ones become attributes.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for place, fields in _item_records(path):
        item = _item(fields, place)
        if item.item_id in seen:
            raise DatasetError(f"{place}, column item_id: {item.item_id!r} stands there twice")
        seen.add(item.item_id)
        items.append(item)
    return items


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file as strings, indexed by line number; empty lines are skipped but counted."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (ValueError, OSError) as error:  # ParserError and UnicodeDecodeError are ValueErrors
        raise DatasetError(f"{path}: cannot be read as CSV: {error}") from error
    frame = frame.fillna("")  # lines that are too short
    frame.index += 2  # line 1 is the header
    has_content: pd.Series[bool] = (frame != "").any(axis=1)
    return frame.loc[has_content]


def read_parquet(path: Path) -> pa.Table:
    """All columns of a Parquet file."""
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet: {error}") from error


def _parquet_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    table = read_parquet(path)
    present = [name for name in table.column_names if name in names]
    frame: pd.DataFrame = table.select(present or table.column_names).to_pandas()
    return frame.reset_index(drop=True)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise DatasetError(f"{path}, line {number}: not a JSON object")
                yield number, record
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {number}: not JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _json_lines_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    for number, record in _json_lines(path):
        lines.append(number)
        records.append({name: record[name] for name in names if name in record})
    return pd.DataFrame(records, index=lines)


def _ids(column: pd.Series[Any], source: Source) -> pd.Series[str]:
    source.refuse(column, column.isna(), "is no id")
    if column.dtype == object:
        is_id = column.map(lambda value: isinstance(value, str | int))
        source.refuse(column, ~is_id, "is neither a string nor a whole number")
    elif column.dtype.kind in "fb":
        source.refuse(column, column.notna(), "is neither a string nor a whole number")
    ids = column.astype(str)
    source.refuse(column, ids == "", "is no id")
    return ids


def _numbers(column: pd.Series[Any], source: Source, low: float, high: float) -> pd.Series[Any]:
    numbers = pd.to_numeric(column, errors="coerce")
    source.refuse(column, ~np.isfinite(numbers.astype(np.float64)), "is no finite number")
    outside = (numbers < low) | (numbers > high)
    source.refuse(column, outside, f"is outside [{low:.0f}, {high:.0f}]")
    return numbers


def _event_types(raw: pd.DataFrame, source: Source) -> pd.Series[str] | str:
    if "event_type" not in raw:
        return "click"
    column = raw["event_type"]
    source.refuse(column, ~column.isin(EVENT_TYPES), f"is none of {', '.join(EVENT_TYPES)}")
    return column.astype(str)


def _item_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        for row, fields in enumerate(read_parquet(path).to_pylist()):
            yield f"{path}, row {row}", fields
    elif path.suffix == ".csv":
        frame = read_csv(path)
        for line, fields in zip(frame.index, frame.to_dict("records"), strict=True):
            yield f"{path}, line {line}", {str(key): value for key, value in fields.items()}
    else:
        for line, fields in _json_lines(path):
            yield f"{path}, line {line}", fields


def _item(fields: Mapping[str, Any], place: str) -> Item:
    item_id = fields.get("item_id")
    if item_id is None or item_id == "" or isinstance(item_id, float | bool):
        raise DatasetError(f"{place}, column item_id: {item_id!r} is no id")
    title = str(fields.get("title") or "")
    categories = fields.get("categories") or ()
    if isinstance(categories, str):
        categories = categories.split("|")
    return Item(
        item_id=str(item_id),
        text=str(fields.get("text") or title or item_id),
        title=title,
        categories=tuple(str(category) for category in categories),
        attributes=dict(_attributes(fields)),
    )


def _attributes(fields: Mapping[str, Any]) -> Iterator[tuple[str, Attribute]]:
    for name, value in fields.items():
        if name in _ITEM_COLUMNS or value == "":
            continue
        if isinstance(value, str | bool):
            yield name, value
        elif isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)
