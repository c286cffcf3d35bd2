"""What a running system takes, sampled from outside, and whether it keeps on taking more."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from background import Background
from killer import PARTS
from live_system import LiveSystem

from cluster.local_cluster import mark_of
from cluster.processes import marked_processes

PERIOD_S = 5.0
MIB = 1 << 20
MAX_MIB_PER_MINUTE = 1.0
MAX_CHANGE = 0.05
"""Of handles and threads, as a share; two more or less are always allowed."""
BYTES_PER_EVENT: Mapping[str, int] = {"EventBuffer": 300}
"""Parts that remember events: an id of about 190 bytes, 24 in a history, the newest events."""
RAYS_OWN: Mapping[str, str] = {
    "raylet": r"\S+/raylet ",
    "control store (GCS)": PARTS["control store (GCS)"],
    "dashboard": PARTS["dashboard"],
    "dashboard agent": r"(\S*python\S* \S+/dashboard/agent\.py|ray::DashboardAgent)",
}
"""Sampled as well; told, not judged."""


@dataclass(frozen=True)
class Sample:
    """One look at one process. `at_s` is since the start."""

    at_s: float
    part: str
    pid: int
    rss_bytes: int
    num_handles: int
    num_threads: int


@dataclass(frozen=True)
class DiskSample:
    """One look at the folders."""

    at_s: float
    store_bytes: int
    num_versions: int
    version_bytes: int
    log_bytes: int
    ray_log_bytes: int


@dataclass(frozen=True)
class Line:
    """One process from its first sample to its last.

    Attributes:
        part: What it is.
        pid: Its process.
        is_judged: It is ours, and lived from before the judged time to the end.
        mib: Resident at the end.
        mib_per_minute: How fast that grew, without what its part may remember of events.
        handles: Open files and sockets at the beginning of the judged time and at its end.
        threads: The same of threads.
    """

    part: str
    pid: int
    is_judged: bool
    mib: float
    mib_per_minute: float
    handles: tuple[int, int]
    threads: tuple[int, int]

    @property
    def faults(self) -> list[str]:
        """What it takes more and more of."""
        if not self.is_judged:
            return []
        faults = [
            f"{self.part} {self.pid}: {before} {what} became {after}"
            for what, (before, after) in (("handles", self.handles), ("threads", self.threads))
            if abs(after - before) > max(2.0, MAX_CHANGE * before)
        ]
        if self.mib_per_minute > MAX_MIB_PER_MINUTE:
            faults.append(f"{self.part} {self.pid}: {self.mib_per_minute:.2f} MiB more a minute")
        return faults


class VitalSigns(Background):
    """Samples processes and folders until the block is left."""

    def __init__(self, system: LiveSystem) -> None:
        watch = threading.Thread(target=self._watch, name="vital-signs")
        super().__init__([watch], wait_s=60.0)
        self.samples: list[Sample] = []
        self.disk: list[DiskSample] = []
        self._system = system
        self._started_s = time.monotonic()

    def _watch(self) -> None:
        mark = mark_of(self._system.data_dir)
        while not self._stopped.wait(PERIOD_S):
            at_s = time.monotonic() - self._started_s
            for process in marked_processes(mark):
                if sample := _sample(process, at_s):
                    self.samples.append(sample)
            self.disk.append(_disk_sample(self._system.data_dir, Path(mark), at_s))


def lines(
    samples: Sequence[Sample], settle_s: float, end_s: float, events_per_minute: float
) -> list[Line]:
    """Each process in words.

    Args:
        samples: In the order of time.
        settle_s: From when on growth counts: who just started still grows.
        end_s: When the last samples were taken.
        events_per_minute: How many events were stored in a minute, over all processes of a part.
    """
    by_process: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.part, sample.pid].append(sample)
    return [
        _line(found, settle_s, end_s, events_per_minute) for _, found in sorted(by_process.items())
    ]


def _line(
    samples: Sequence[Sample], settle_s: float, end_s: float, events_per_minute: float
) -> Line:
    first, last = samples[0], samples[-1]
    lived_on = first.at_s < settle_s and last.at_s > end_s - 2 * PERIOD_S
    judged = [sample for sample in samples if sample.at_s >= settle_s] or samples
    third = max(1, len(judged) // 3)
    growth = _slope([s.at_s / 60 for s in judged], [s.rss_bytes for s in judged])
    remembered = BYTES_PER_EVENT.get(first.part, 0) * events_per_minute
    return Line(
        part=first.part,
        pid=first.pid,
        is_judged=lived_on and first.part not in RAYS_OWN,
        mib=last.rss_bytes / MIB,
        mib_per_minute=(growth - remembered) / MIB,
        handles=_ends([s.num_handles for s in judged], third),
        threads=_ends([s.num_threads for s in judged], third),
    )


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 2 else 0.0


def _ends(values: Sequence[int], number: int) -> tuple[int, int]:
    """Medians of the first and of the last values."""
    return int(np.median(values[:number])), int(np.median(values[-number:]))


def store_faults(disk: Sequence[DiskSample], keep_versions: int) -> list[str]:
    """When the store took more than its versions may.

    Besides the newest ones there may be the head, a pinned one, and one being written or removed.
    """
    return [
        f"after {d.at_s:.0f} s: {d.num_versions} versions, {d.store_bytes / MIB:.1f} MiB"
        for d in disk
        if d.num_versions > keep_versions + 3
        or d.store_bytes > (keep_versions + 3) * d.version_bytes + MIB
    ]


def _sample(process: psutil.Process, at_s: float) -> Sample | None:
    """None for what is no part, or has just ended."""
    try:
        command = " ".join(process.cmdline())
        part = next(
            (p for p, seen in {**PARTS, **RAYS_OWN}.items() if re.match(seen, command)), None
        )
        if part is None:
            return None
        with process.oneshot():
            rss_bytes, threads = process.memory_info().rss, process.num_threads()
        return Sample(at_s, part, process.pid, rss_bytes, process.num_fds(), threads)
    except psutil.NoSuchProcess:
        return None


def _disk_sample(data_dir: Path, mark: Path, at_s: float) -> DiskSample:
    versions = list((data_dir / "models" / "versions").glob("*/"))
    return DiskSample(
        at_s=at_s,
        store_bytes=_size_bytes(data_dir / "models"),
        num_versions=len(versions),
        version_bytes=max((_size_bytes(folder) for folder in versions), default=0),
        log_bytes=_size_bytes(data_dir / "events"),
        ray_log_bytes=_size_bytes(mark / "ray"),
    )


def _size_bytes(folder: Path) -> int:
    """Of all files below a folder that changes meanwhile."""
    size_bytes = 0
    for root, _, names in os.walk(folder):  # which leaves out what is removed just now
        for name in names:
            with suppress(FileNotFoundError):
                size_bytes += os.lstat(os.path.join(root, name)).st_size
    return size_bytes
