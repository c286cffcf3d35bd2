"""What travels between the parts: frozen records and typed errors, nothing that runs.

A `trained_through` or `counters_through` is a watermark: one log offset per shard, the last event
that is inside; -1 where none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.events import Item

Watermark = tuple[int, ...]


class ActorsError(Exception):
    """Base of every error that crosses an actor."""


class ShardUnavailable(ActorsError):
    """A shard (or another actor) did not answer in time, or is not able to serve."""


class Recovering(ShardUnavailable):
    """An actor still reads what is on disk; it is worth asking again."""


class BufferFull(ActorsError):
    """The shard has as many events waiting for the disk as it may; try again later."""


class MemoryFull(ActorsError):
    """What the shard remembers has reached its bound; it shrinks as `event_id`s expire."""


class StorageError(ActorsError):
    """A write or fsync failed: nothing of that commit group was acknowledged."""


class StorageFull(StorageError):
    """Too little space is left, on the disk or in shared memory."""


class FolderInUse(StorageError):
    """Another process holds the folder; it is worth trying again."""


class CorruptStorage(ActorsError):
    """Bytes on disk are not what was written: names the file and the place."""


class OtherDisk(CorruptStorage):
    """The storage folder is not that of this installation: emptied, or of a node's own."""


class UnknownVersion(ActorsError):
    """There is no such version in the store."""


class VersionRefused(ActorsError):
    """The store refuses a publish: not finite, wrong shapes, or a number already used."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of a batch of events.

    `offsets` is the last offset of each shard that took part; everything up to it is on disk.
    """

    accepted: int
    duplicates: int
    offsets: Mapping[int, int]
    failed_shards: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserHistory:
    """A user's items as the shard knows them now, oldest first, ordered by (timestamp, offset)."""

    item_ids: tuple[str, ...]
    feedback: NDArray[np.int8]
    timestamps_ms: NDArray[np.int64]
    shard: int
    through_offset: int


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """How a shard is: `state` is one of recovering, ready, failed.

    `warning` is what does not work and costs no event, such as compaction; empty if all does.
    `memory_bytes` is the process's, `counted_bytes` the part of it that has a bound.
    """

    shard: int
    state: str
    reason: str
    boot_id: str
    next_offset: int
    num_events: int
    num_duplicates: int
    num_users: int
    num_items: int
    pending_events: int
    memory_bytes: int
    recovered_events: int
    cut_bytes: int
    warning: str = ""
    counted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """Rows that are new or changed after a revision.

    Attributes:
        revision: The catalogue's revision that this brings a follower to.
        num_items: Rows in the whole catalogue at that revision.
        rows: int64 row numbers, rising; a row never changes its item.
        items: The items of those rows.
        vectors: float32 [len(rows), text_dim], mean-pooled BERT vectors, not standardised.
    """

    revision: int
    num_items: int
    rows: NDArray[np.int64]
    items: tuple[Item, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PutItemsResult:
    """`revision` is the catalogue's after the write; rows at or below it are retrievable."""

    created: int
    updated: int
    unchanged: int
    revision: int
    num_items: int


@dataclass(frozen=True, slots=True)
class CounterUpdates:
    """Counted events after a sequence number, in the order they were counted.

    Attributes:
        boot_id: Changes when the actor restarted: a follower then takes a whole snapshot again.
        sequence: Sequence number this brings a follower to (number of events counted).
        rows_N: int32 catalogue row of each event's item.
        previous_NP: int32 [N, P] the user's previous items, newest first, -1 where there are none.
        through: Watermark this brings a follower to.
        acknowledged_ms: When each shard's event at `through` was acknowledged, 0 if none.
    """

    boot_id: str
    sequence: int
    rows_N: NDArray[np.int32]
    previous_NP: NDArray[np.int32]
    through: Watermark
    acknowledged_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """The whole state of the counters (`Counters.state()`), at `sequence`."""

    boot_id: str
    sequence: int
    state: Mapping[str, NDArray[Any]]
    through: Watermark
    acknowledged_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is and where it came from. Stored as JSON beside the weights.

    `quarantined` are spans (shard, first offset, last offset) inside `trained_through` that this
    version did not learn and none after it will.
    """

    version: int
    parent: int
    created_ms: int
    trained_through: Watermark
    num_items: int
    step: int
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    encoder: str = ""
    quarantined: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """The version that is served. `sequence` rises with every move of the head, also backwards."""

    sequence: int
    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One line of the list of versions."""

    manifest: Manifest
    is_head: bool
    is_pinned: bool
    size_bytes: int
