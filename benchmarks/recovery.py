"""How fast a shard is ready again: a log of many events is opened, in a new process each time.

`events/s` counts all from the start of `EventBuffer` to its state `ready`: the folder is claimed,
every byte of the log checked, histories, vocabularies, event ids and the replay memory rebuilt.
`counted` is what `buffer.max_memory_bytes` bounds, `resident` what the process grew by, `peak` at
its highest; the difference is what reading segments left, not more for a longer log. Prints a table
and writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from actors.event_buffer import EventBuffer
from actors.settings import BufferSettings, StorageSettings
from benchmarks.measured import save
from recommender.events import Event

MIN_EVENTS_PER_S = 200_000
MAX_READY_S = 15.0
_MODULE = "benchmarks.recovery"
_START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Opened:
    """One opening of one log."""

    num_events: int
    ready_s: float
    cpu_s: float
    counted_bytes: int
    resident_bytes: int
    peak_bytes: int

    @property
    def events_per_s(self) -> float:
        """Events in the log for each second until the shard was ready."""
        return self.num_events / self.ready_s


def main() -> None:
    """Write a log for each batch size and open it several times."""
    arguments = _arguments()
    if arguments.open:
        print(json.dumps(asdict(asyncio.run(_open(arguments.open)))))
        return
    rows: dict[int, list[Opened]] = {}
    for batch in arguments.batches:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_write(Path(folder), arguments, batch))
            rows[batch] = [_opened_elsewhere(Path(folder)) for _ in range(arguments.opens)]
    console = Console(width=140)
    console.print(_table(rows))
    results = {
        "rows": [
            {"events_per_write": batch, "opens": [asdict(opened) for opened in opens]}
            for batch, opens in rows.items()
        ],
    }
    save(_MODULE, results, arguments.out, console)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument(
        "--batches", type=int, nargs="*", default=[1_000], help="events in one write"
    )
    parser.add_argument("--opens", type=int, default=5, help="of each log")
    parser.add_argument("--open", type=Path, help="only open this one, once")
    parser.add_argument("--out", type=Path, default=Path("demo-out/recovery.json"))
    return parser.parse_args()


def _buffer(folder: Path) -> EventBuffer:
    return EventBuffer(0, StorageSettings(data_dir=folder), BufferSettings(num_shards=1))


async def _until_ready(buffer: EventBuffer) -> None:
    while (status := await buffer.status()).state != "ready":
        if status.state == "failed":
            raise RuntimeError(status.reason)
        await asyncio.sleep(0.005)


async def _write(folder: Path, arguments: argparse.Namespace, batch: int) -> None:
    """Through the shard itself, so that segments are closed and compacted as they always are."""
    rng = np.random.default_rng(0)
    buffer = _buffer(folder)
    await _until_ready(buffer)
    for first in range(0, arguments.events, 5_000):
        events = _events(rng, first, min(5_000, arguments.events - first), arguments)
        for start in range(0, len(events), batch):
            await buffer.append(events[start : start + batch])
    await buffer.close()


def _events(
    rng: np.random.Generator, first: int, number: int, arguments: argparse.Namespace
) -> list[Event]:
    """Users evenly, items by a power law."""
    users = rng.integers(arguments.users, size=number).tolist()
    items = (rng.pareto(1.1, number) * 20).astype(np.int64) % arguments.items
    return [
        Event(
            f"event-{first + n:012d}",
            f"user-{user}",
            f"item-{item}",
            "click",
            1.0,
            _START_MS + 40 * (first + n),
        )
        for n, (user, item) in enumerate(zip(users, items.tolist(), strict=True))
    ]


def _opened_elsewhere(folder: Path) -> Opened:
    command = [sys.executable, "-m", _MODULE, "--open", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Opened(**json.loads(done.stdout))


async def _open(folder: Path) -> Opened:
    process = psutil.Process()
    pa.default_memory_pool().release_unused()
    before_bytes = process.memory_info().rss
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    buffer = _buffer(folder)
    await _until_ready(buffer)
    ready_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
    status = await buffer.status()
    opened = Opened(
        num_events=status.num_events,
        ready_s=ready_s,
        cpu_s=cpu_s,
        counted_bytes=status.counted_bytes,
        resident_bytes=status.memory_bytes - before_bytes,
        peak_bytes=_peak_bytes() - before_bytes,
    )
    await buffer.close()
    return opened


def _peak_bytes() -> int:
    """The most this process had resident; `ru_maxrss` begins with that of who started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1_024


def _table(rows: dict[int, list[Opened]]) -> Table:
    table = Table(
        title=f"A shard opens its log; goals: {MIN_EVENTS_PER_S:,} events/s, {MAX_READY_S:g} s for "
        "a million; median (lowest-highest)"
    )
    table.add_column("a write", justify="right")
    for heading in ("events", "ready s", "events/s", "CPU s", "counted MB", "resident MB"):
        table.add_column(heading, justify="right")
    table.add_column("peak MB", justify="right")
    for batch, opens in rows.items():
        table.add_row(
            f"{batch:,}",
            f"{opens[0].num_events:,}",
            _spread([opened.ready_s for opened in opens], ".2f"),
            _spread([opened.events_per_s for opened in opens], ",.0f"),
            _spread([opened.cpu_s for opened in opens], ".2f"),
            f"{opens[0].counted_bytes / 1e6:.0f}",
            _spread([opened.resident_bytes / 1e6 for opened in opens], ".0f"),
            _spread([opened.peak_bytes / 1e6 for opened in opens], ".0f"),
        )
    return table


def _spread(values: list[float], form: str) -> str:
    """Median, and the lowest and highest."""
    return f"{np.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


if __name__ == "__main__":
    main()
