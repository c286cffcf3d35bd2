"""Writes down every change that this process makes to a folder, and can stop or fail any of them.

The code under test runs as it is, on real files: `os` is watched. What it cannot see is a change
made otherwise; `Recording.check_complete` compares the record with the folder.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from crash_disk import (
    ROOT,
    Disk,
    Link,
    Operation,
    Sync,
    Truncate,
    Unlink,
    Write,
    picked_up,
)


class Killed(BaseException):
    """The process dies here, as with `kill -9`: no handler for errors may see it."""


class Recording:
    """The operations on a folder, in order.

    Attributes:
        operations: What was done.
        before: Called with each operation before it is done; may raise `Killed`, or `OSError`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self.before: Callable[[Operation], None] = lambda _: None
        self.lock = threading.RLock()
        self._start = Disk()
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._num_nodes = 1
        self._num_opened = 0
        self._descriptors: dict[int, tuple[int, int]] = {}
        self._take_in(root, ROOT)

    def __len__(self) -> int:
        with self.lock:
            return len(self.operations)

    def disk(self) -> Disk:
        """The disk before the first operation; each call gives a new one."""
        disk = Disk()
        disk.folders = {node: dict(names) for node, names in self._start.folders.items()}
        disk.files = dict(self._start.files)
        return disk

    def disks(self) -> Iterator[tuple[int, Disk]]:
        """The disk after each number of operations, from none to all: one object that changes."""
        disk = self.disk()
        yield 0, disk
        for place, operation in enumerate(self.operations, 1):
            disk.apply(operation)
            yield place, disk

    def check_complete(self) -> None:
        """Raise if the folder is not what the operations make of it."""
        *_, (_, disk) = self.disks()
        assert disk.seen() == picked_up(self.root), "a change escaped the recorder"

    def release(self) -> None:
        """Close what a killed process had open, which also gives its locks back."""
        for descriptor in list(self._descriptors):
            os.close(descriptor)

    # What follows is called by the watched functions, under the lock.

    def new_node(self) -> int:
        """A number for a new file or folder."""
        self._num_nodes += 1
        return self._num_nodes - 1

    def locate(self, path: Any, folder_descriptor: int | None) -> tuple[int, str] | None:
        """Folder and name of a path; None if it is not below the root."""
        if folder_descriptor is not None:
            opened = self._descriptors.get(folder_descriptor)
            return (opened[0], os.fspath(path)) if opened else None
        if isinstance(path, int):
            return None
        try:
            parts = Path(os.path.abspath(os.fspath(path))).relative_to(self.root).parts
        except (ValueError, TypeError):
            return None
        node = ROOT
        for part in parts[:-1]:
            node = self._names[node][part]
        return (node, parts[-1]) if parts else (ROOT, ".")

    def node_at(self, place: tuple[int, str]) -> int | None:
        """The node of a name, None if there is none."""
        folder, name = place
        return folder if name == "." else self._names[folder].get(name)

    def node_of(self, descriptor: int) -> tuple[int, int] | None:
        """Node and number of an open descriptor of ours."""
        return self._descriptors.get(descriptor)

    def opened(self, descriptor: int, node: int) -> None:
        """A descriptor was opened."""
        self._descriptors[descriptor] = (node, self._num_opened)
        self._num_opened += 1

    def closed(self, descriptor: int) -> None:
        """A descriptor is closed."""
        self._descriptors.pop(descriptor, None)

    def do(self, operation: Operation, real: Callable[[], Any]) -> Any:
        """Do an operation and write it down."""
        self.before(operation)
        result = real()
        self.write_down(operation)
        return result

    def write_down(self, operation: Operation) -> None:
        """Add an operation that was done."""
        self.operations.append(operation)
        if isinstance(operation, Link):
            self._names[operation.folder].pop(operation.old, None)
            self._names[operation.folder][operation.name] = operation.node
            if operation.is_folder:
                self._names.setdefault(operation.node, {})
        elif isinstance(operation, Unlink):
            del self._names[operation.folder][operation.name]

    def _take_in(self, folder: Path, node: int) -> None:
        self._start.folders[node] = self._names[node]
        for path in sorted(folder.iterdir()):
            child = self._names[node][path.name] = self.new_node()
            if path.is_dir():
                self._names[child] = {}
                self._take_in(path, child)
            else:
                self._start.files[child] = path.read_bytes()
        self._start.folders[node] = dict(self._names[node])


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Record what is done to a folder within the context."""
    root.mkdir(exist_ok=True)
    recording = Recording(root.resolve())
    with pytest.MonkeyPatch.context() as patch:
        _watch_files(recording, patch)
        _watch_names(recording, patch)
        _watch_parquet(recording, patch)
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=1))  # so that equal states are equal
        yield recording


def fail_with_eio() -> None:
    """What a bad disk does."""
    raise OSError(errno.EIO, "failed on purpose")


def _watch_files(recording: Recording, patch: pytest.MonkeyPatch) -> None:
    real_open, real_close, real_write, real_truncate = os.open, os.close, os.write, os.ftruncate

    def watched_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with recording.lock:
            place = recording.locate(path, dir_fd)
            if place is None:
                return real_open(path, flags, mode, dir_fd=dir_fd)
            assert not flags & os.O_TRUNC, "not modelled"
            node = recording.node_at(place)
            if node is None and flags & os.O_CREAT:
                node = recording.new_node()
                descriptor = recording.do(
                    Link(*place, node), lambda: real_open(path, flags, mode, dir_fd=dir_fd)
                )
            else:
                descriptor = real_open(path, flags, mode, dir_fd=dir_fd)
            assert node is not None
            recording.opened(descriptor, node)
            return int(descriptor)

    def watched_close(descriptor: int) -> None:
        with recording.lock:
            recording.closed(descriptor)
            real_close(descriptor)

    def watched_write(descriptor: int, data: Any) -> int:
        with recording.lock:
            opened = recording.node_of(descriptor)
            if opened is None:
                return real_write(descriptor, data)
            recording.before(Write(opened[0], -1, bytes(data)))
            size = real_write(descriptor, data)
            at = os.lseek(descriptor, 0, os.SEEK_CUR) - size
            recording.write_down(Write(opened[0], at, bytes(data[:size])))
            return size

    def watched_fsync(descriptor: int) -> None:
        with recording.lock:
            opened = recording.node_of(descriptor)
            if opened is None:
                return  # no test pulls the plug, so nothing outside the record needs the disk
            try:
                recording.do(Sync(*opened), lambda: None)
            except OSError:
                recording.write_down(Sync(*opened, failed=True))
                raise

    def watched_truncate(descriptor: int, size_bytes: int) -> None:
        with recording.lock:
            opened = recording.node_of(descriptor)
            assert opened is not None
            operation = Truncate(opened[0], size_bytes)
            recording.do(operation, lambda: real_truncate(descriptor, size_bytes))

    patch.setattr(os, "open", watched_open)
    patch.setattr(os, "close", watched_close)
    patch.setattr(os, "write", watched_write)
    patch.setattr(os, "fsync", watched_fsync)
    patch.setattr(os, "ftruncate", watched_truncate)


def _watch_names(recording: Recording, patch: pytest.MonkeyPatch) -> None:
    real_mkdir, real_rename = os.mkdir, os.rename

    def watched_mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with recording.lock:
            place = recording.locate(path, dir_fd)
            if place is None or recording.node_at(place) is not None:
                real_mkdir(path, mode, dir_fd=dir_fd)
                return
            operation = Link(*place, recording.new_node(), is_folder=True)
            recording.do(operation, lambda: real_mkdir(path, mode, dir_fd=dir_fd))

    def watched_rename(old: Any, new: Any, **folders: Any) -> None:
        with recording.lock:
            source, target = recording.locate(old, None), recording.locate(new, None)
            if source is None or target is None:
                real_rename(old, new, **folders)
                return
            assert source[0] == target[0], "not modelled: a rename to another folder"
            node = recording.node_at(source)
            if node is None:
                real_rename(old, new)  # which raises
            assert node is not None
            is_folder = Path(old).is_dir()
            operation = Link(*target, node, is_folder=is_folder, old=source[1])
            recording.do(operation, lambda: real_rename(old, new))

    def watching_removal(real: Callable[..., None]) -> Callable[..., None]:
        def watched_removal(path: Any, *, dir_fd: int | None = None) -> None:
            with recording.lock:
                place = recording.locate(path, dir_fd)
                if place is None or recording.node_at(place) is None:
                    real(path, dir_fd=dir_fd)
                    return
                recording.do(Unlink(*place), lambda: real(path, dir_fd=dir_fd))

        return watched_removal

    patch.setattr(os, "mkdir", watched_mkdir)
    patch.setattr(os, "rename", watched_rename)
    for name in ("unlink", "remove", "rmdir"):
        patch.setattr(os, name, watching_removal(getattr(os, name)))


def _watch_parquet(recording: Recording, patch: pytest.MonkeyPatch) -> None:
    """PyArrow writes past `os`: a new file, in two pieces, never fsynced."""
    real = pq.write_table

    def watched_write_table(table: Any, where: Any, **options: Any) -> None:
        with recording.lock:
            place = recording.locate(where, None)
            assert place is not None
            node = recording.node_at(place)
            if node is None:
                node = recording.new_node()
                recording.do(Link(*place, node), lambda: Path(where).touch())
            recording.do(Truncate(node, 0), lambda: None)
            recording.before(Write(node, 0, b""))
            real(table, where, **options)
            data = Path(where).read_bytes()
            half = len(data) // 2
            recording.write_down(Write(node, 0, data[:half]))
            recording.write_down(Write(node, half, data[half:]))

    patch.setattr(pq, "write_table", watched_write_table)
