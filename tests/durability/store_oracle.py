"""Publishing to the version store, what the publisher was told, and whether a disk agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import Manifest
from actors.served_versions import ServedVersions
from actors.storage_folder import StorageFolder
from actors.version_files import MODEL, TRAINER, HeadRecord, VersionFiles

KEEP_VERSIONS = 2

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Store:
    """The opened store."""

    files: VersionFiles
    versions: ServedVersions


@contextmanager
def open_store(data_dir: Path) -> Iterator[Store]:
    """The store, opened and closed as its actor does."""
    folder = StorageFolder.claim(data_dir, "models", {}, lock_wait_s=0.0)
    try:
        files = VersionFiles(folder.path)
        yield Store(files, ServedVersions(files, keep_versions=KEEP_VERSIONS, put=lambda x: x))
    finally:
        folder.close()


def arrays(content: int) -> Arrays:
    """Weights that a number determines."""
    return {"w": np.full((2, 3), content, np.float32), "b": np.array(content)}


def manifest(content: int) -> Manifest:
    """A manifest that a number determines."""
    return Manifest(
        version=0,
        parent=0,
        created_ms=content,
        trained_through=(content,),
        num_items=2,
        step=content,
        reason=f"content {content}",
    )


@dataclass
class Change:
    """A change of the store: the record after it; times are numbers of operations on the disk.

    Attributes:
        candidates: Heads that the change may make, where it died before it told.
    """

    sent_at: int
    record: HeadRecord | None = None
    acknowledged_at: int | None = None
    candidates: tuple[int, ...] = ()


@dataclass
class StoreLedger:
    """What the publisher asked for and was told, kept where no crash reaches.

    Attributes:
        contents: Content by version number, of every publish that was begun.
    """

    now: Callable[[], int] = lambda: 0
    changes: list[Change] = field(default_factory=list)
    contents: dict[int, list[int]] = field(default_factory=dict)
    next_content: int = 1

    def publish(self, store: Store, promote: bool = True) -> None:
        """Publish new weights."""
        content = self.next_content
        self.next_content += 1
        self.contents.setdefault(store.versions.record.next_version, []).append(content)
        weights = arrays(content)
        self.change(
            store, lambda: store.versions.publish(manifest(content), weights, weights, promote)
        )

    def change(self, store: Store, change: Callable[[], object]) -> None:
        """Change something; it is acknowledged when this returns."""
        numbers = range(1, store.versions.record.next_version + 1)
        entry = Change(self.now(), candidates=tuple(numbers))
        self.changes.append(entry)
        change()
        entry.record = store.versions.record
        entry.acknowledged_at = self.now()

    def go_on(self, store: Store) -> None:
        """What was read from the store counts as acknowledged from now on."""
        self.changes.append(Change(self.now(), store.versions.record, self.now()))

    def position(self, moment: int) -> Any:
        """As `Ledger.position`: the record acknowledged last, and the heads that may be."""
        done = HeadRecord()
        heads: set[int] = set()
        for change in self.changes:
            if change.acknowledged_at is not None and change.acknowledged_at <= moment:
                assert change.record is not None
                done = change.record
                heads.clear()
            elif change.sent_at <= moment:
                heads.update([change.record.version] if change.record else change.candidates)
        return done, sorted({*heads, done.version})

    def check(self, data_dir: Path, moment: int) -> None:
        """Open a disk after a crash at a moment; raise if it breaks a promise.

        The head is the acknowledged one or that of the change under way, it and every version are
        what was published under their numbers, and the next number is new.
        """
        done, heads = self.position(moment)
        with open_store(data_dir) as store:
            record = store.versions.record
            assert not store.versions.warning, store.versions.warning
            assert record.version in heads, f"head {record.version} instead of {heads}"
            assert record.sequence >= done.sequence, "the sequence of heads went back"
            assert record.next_version >= done.next_version, "version numbers went back"
            numbers = store.files.numbers()
            lost = set(done.pinned) - set(numbers)
            if record.version == done.version:
                lost |= {done.version, *done.previous[-1:]} - {0} - set(numbers)
            assert not lost, f"versions {lost} were to be kept"
            for number in numbers:
                self._check_content(store, number)
            content = self.next_content
            store.versions.publish(manifest(content), arrays(content), arrays(content), True)
            published = store.versions.record.version
            assert published > max([0, *numbers]), f"number {published} was used before"
        with open_store(data_dir) as store:
            assert store.versions.record.version == published
            assert store.versions.payload["b"] == content, "the head is not what was published"
        left = [str(path) for path in (data_dir / "models").rglob("*.tmp")]
        assert not left, f"left behind: {left}"

    def _check_content(self, store: Store, number: int) -> None:
        content = store.files.manifest(number).step
        assert content in self.contents[number], f"version {number} is not what was published"
        for file in (MODEL, TRAINER):
            found = store.files.read(number, file)
            for name, array in arrays(content).items():
                assert np.array_equal(found[name], array), f"{file} of {number} is changed"
