"""Writing files so that they are still there, and whole, after a crash.

The rules: data is fsynced before it counts, a rename counts once its folder is fsynced, what a dead
process left is fsynced before it is believed, and a descriptor whose fsync failed is never fsynced
again (Linux reports a lost page once, then forgets).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from actors.messages import StorageError, StorageFull

TEMPORARY = ".tmp"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MODE = 0o600


def storage_error(action: str, error: OSError) -> StorageError:
    """The typed error for an operating system error: `StorageFull` where space ran out."""
    kind = StorageFull if error.errno in _NO_SPACE else StorageError
    return kind(f"{action}: {error}")


def require_free_space(folder: Path, min_free_bytes: int, needed_bytes: int = 0) -> None:
    """Raise `StorageFull` unless `min_free_bytes` stay free after writing `needed_bytes`."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes - needed_bytes < min_free_bytes:
        raise StorageFull(
            f"{free_bytes} bytes are free in {folder}; {needed_bytes} are needed and "
            f"{min_free_bytes} must stay free"
        )


def open_new(path: Path) -> int:
    """A descriptor of a file that did not exist, readable by its owner alone."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE)


def open_to_append(path: Path) -> int:
    """A descriptor that writes at the end of a file."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, also where the system takes only some at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable: new files, renames and removals."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make what another library wrote to `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, open to their owner alone, durably.

    One that is there is made durable with the names in it: a process that died may have got no
    further than to change them, and what the next one sees it must be able to rely on.
    """
    is_new = not folder.is_dir()
    if is_new:
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        fsync_folder(folder.parent)
    except PermissionError:
        if is_new:
            raise  # otherwise it was not us who made it
    fsync_folder(folder)


def write_new(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file and fsync it; its name is durable once its folder is."""
    descriptor = open_new(path)
    try:
        for chunk in chunks:
            write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new contents: after a crash it has either the old ones or the new, whole.

    Raises:
        StorageError: If anything failed. The file may have either contents; no other is left.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)
        write_new(temporary, [data])
        temporary.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk it would take space for nothing
        raise storage_error(f"replace {path}", error) from error


def truncate_file(path: Path, size_bytes: int) -> None:
    """Cut a file to `size_bytes`, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file, durably; one that is not there is fine."""
    path.unlink(missing_ok=True)
    fsync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left unfinished under temporary names."""
    for leftover in folder.glob(f"*{TEMPORARY}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def sha256_of(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()
