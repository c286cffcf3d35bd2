"""A stream in memory as files that `rheos ingest` and `rheos evaluate` read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recommender.datasets import Dataset


def write_stream(dataset: Dataset, folder: Path) -> Path:
    """Write `events.jsonl` and `items.jsonl`; returns the first."""
    events = (
        {
            "user_id": event.user_id,
            "item_id": event.item_id,
            "event_type": event.event_type,
            "value": event.value,
            "timestamp_ms": event.timestamp_ms,
        }
        for event in dataset.events()
    )
    items = (
        {
            "item_id": item.item_id,
            "text": item.text,
            "title": item.title,
            "categories": item.categories,
        }
        for item in dataset.items
    )
    _write_lines(folder / "items.jsonl", items)
    return _write_lines(folder / "events.jsonl", events)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
