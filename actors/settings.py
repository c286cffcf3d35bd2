"""Settings of the actors. Each is a section of `rheos.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from recommender.settings import Section


class BufferSettings(Section):
    """The event buffer: one named actor a shard, a user always in the same one."""

    num_shards: int = Field(default=2, ge=1, le=256)
    """Shards. Fixed for the life of a storage folder."""
    history_length: int = Field(default=1_000, ge=51, le=100_000)
    """Latest items kept in memory for each user."""
    recent_window: int = Field(default=200_000, ge=1_000)
    """Latest events of a shard kept in memory for training and counters."""
    reservoir_size: int = Field(default=50_000, ge=0)
    """Uniform sample of the events older than that, kept for replay."""
    max_pending_events: int = Field(default=20_000, ge=1)
    """Events that may wait for the disk; beyond it appends are refused with `BufferFull`."""
    max_memory_bytes: int = Field(default=4 * 1024**3, ge=1_048_576)
    """What a shard may remember of users, items and ids; beyond it appends are `MemoryFull`."""
    segment_bytes: int = Field(default=64 * 1024 * 1024, ge=4_096)
    """Size at which the open log segment is closed and compacted to Parquet."""
    dedup_window_days: float = Field(default=7.0, gt=0.0)
    """How long an `event_id` is remembered."""


class StoreSettings(Section):
    """The parameter store."""

    keep_versions: int = Field(default=5, ge=2, le=1_000)
    """Newest versions kept on disk, besides the head and the pinned ones."""


class LoopSettings(Section):
    """The continuous training loop."""

    num_workers: int = Field(default=1, ge=1, le=1_024)
    """Workers of the Ray Train group (distributed data parallel)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes GPUs if the cluster has one for each worker."""
    cpus_per_worker: float = Field(default=1.0, gt=0.0)
    """Logical CPUs each worker reserves."""
    threads: int = Field(default=1, ge=1, le=256)
    """Torch threads of each worker on a CPU."""
    round_events: int = Field(default=500, ge=1)
    """Fresh events that start a round at once."""
    round_interval_s: float = Field(default=1.0, gt=0.0)
    """A round starts this long after the last one if there is any fresh event at all."""
    warmup_events: int = Field(default=1_000, ge=1)
    """Events in the log before the first version is trained."""
    scored_per_round: int = Field(default=100, ge=0)
    """Fresh events of a round that are predicted before they are learned."""


class KeeperSettings(Section):
    """The supervisor."""

    interval_s: float = Field(default=1.0, gt=0.0)
    """Time between two looks at every actor."""
    hang_timeout_s: float = Field(default=15.0, gt=0.0)
    """An actor that does not answer for this long is killed and restarted."""
    job_backoff_s: float = Field(default=2.0, gt=0.0)
    """Pause before a dead training job is submitted again; doubles up to a minute."""


class StorageSettings(Section):
    """Where everything durable lives."""

    data_dir: Path = Path("rheos-data")
    """Folder of the log, the catalogue and the versions. Made if missing."""
    min_free_bytes: int = Field(default=512 * 1024 * 1024, ge=0)
    """Free disk space below which start-up and writes are refused, compaction and versions too."""
    installation: str = ""
    """Id of the installation in `data_dir`; a folder that is emptied or of another is refused."""
