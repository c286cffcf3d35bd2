"""Writes a damaged log again from the events of it that can be read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.checked_json import checked_json, read_checked_json
from actors.durable_files import fsync_folder, make_folder, replace_file
from actors.event_log import EVENT_SCHEMA, EventLog
from actors.log_scan import read_events, scan_log
from actors.set_aside import Aside, Repair, damaged
from actors.storage_check import check_shard

_REPAIRED = "repaired"
_DONE = "done.json"
_GROUP_EVENTS = 5_000
_GROUP_MS = 1_000


def repair_log(shard: Path, aside: Aside, segment_bytes: int) -> Iterator[Repair]:
    """Write a new log of everything that can be read, then put it in the place of the old one."""
    repaired = shard / _REPAIRED
    if not (repaired / _DONE).exists():
        shutil.rmtree(repaired, ignore_errors=True)  # of a repair that was cut short
        if not damaged(check_shard(shard)):
            return
        lost = scan_log(shard).lost()
        make_folder(repaired)
        _write_again(shard, repaired, segment_bytes)
        replace_file(repaired / _DONE, checked_json({"lost": lost}))
    spans = tuple((first, stop) for first, stop in read_checked_json(repaired / _DONE)["lost"])
    for name in ("open", "closed", "manifests", "high_water.json"):
        if (repaired / name).exists():
            aside.take(shard / name)
            (repaired / name).rename(shard / name)
            fsync_folder(shard)
    shutil.rmtree(repaired)
    detail = "events behind a gap have new offsets" if spans else "no event is lost"
    yield Repair(shard, f"log written again from what can be read; {detail}", spans)


def _write_again(shard: Path, repaired: Path, segment_bytes: int) -> None:
    log = EventLog(repaired, segment_bytes=segment_bytes)
    for batch in read_events(scan_log(shard)):
        times = batch.column("acknowledged_ms").to_numpy()
        start = 0
        while start < batch.num_rows:
            near = np.abs(times[start : start + _GROUP_EVENTS] - times[start]) <= _GROUP_MS
            size = len(near) if near.all() else int(near.argmin())
            columns = batch.select(EVENT_SCHEMA.names).slice(start, size).columns
            events = pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)
            log.append(events, int(times[start]))
            start += size
    for segment in log.compactable():
        log.compact(segment)
    log.close()
