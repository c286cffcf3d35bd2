"""Who owns a folder of durable data: one installation, one part of it, one process at a time."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from actors.checked_json import checked_json, read_checked_json
from actors.durable_files import make_folder, replace_file
from actors.messages import CorruptStorage, FolderInUse, OtherDisk, StorageError, StorageFull

FORMAT_VERSION = 1
_IDENTITY = "identity.json"
_EPOCH = "epoch.json"
_LOCK = "lock"
_INSTALLATION = "installation.json"
_LOCK_POLL_S = 0.1


class StorageFolder:
    """A locked folder that knows which installation and which part it belongs to.

    Promises that no two processes hold it at once, that a folder of another installation or another
    part is refused, and that one which was in use before and is now empty is refused too: starting
    afresh there would forget what was acknowledged and look healthy. On a disk without a byte left
    the lock is enough to read; the epoch rises before the first write.

    Attributes:
        path: The folder.
        epoch: One more than at the claim before; `check_is_ours` compares it with the one on disk,
            for file systems without locks.
    """

    def __init__(self, path: Path, epoch: int, lock: int) -> None:
        self.path = path
        self.epoch = epoch
        self._lock: int | None = lock
        self._is_raised = False

    @classmethod
    def claim(
        cls,
        data_dir: Path,
        name: str,
        identity: Mapping[str, Any],
        *,
        installation: str = "",
        lock_wait_s: float = 1.0,
    ) -> StorageFolder:
        """Lock `data_dir / name`, make it if it is new, and check that it is what it should be.

        Args:
            data_dir: Root of the installation.
            name: Relative path of the folder, such as `events/shard-0`.
            identity: What must be the same at every claim, such as the number of shards.
            installation: Id that `data_dir` must have; whatever it has, or gets now, if empty.
            lock_wait_s: How long another process may still hold the lock.

        Raises:
            CorruptStorage: If the folder is emptied or foreign.
            OtherDisk: If `data_dir` is.
            FolderInUse: If it is locked by another process.
            StorageError: If it cannot be written.
        """
        path = data_dir / name
        try:
            make_folder(path)
            lock = _lock(path / _LOCK, lock_wait_s)
        except OSError as error:
            raise StorageError(f"claim {path}: {error}") from error
        try:
            _settle(data_dir, name)
            _check_identity(data_dir, name, identity, installation)
            folder = cls(path, _epoch(path) + 1, lock)
            with suppress(StorageFull):
                folder._raise_epoch()
        except BaseException:
            os.close(lock)
            raise
        return folder

    def check_is_ours(self) -> None:
        """Before each write.

        Raises:
            StorageFull: If the epoch, which had no space when the folder was claimed, has none yet.
            StorageError: If another process claimed the folder since, or may have.
        """
        self._check_epoch()
        if not self._is_raised:
            self._raise_epoch()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _raise_epoch(self) -> None:
        replace_file(self.path / _EPOCH, checked_json({"epoch": self.epoch}))
        self._is_raised = True

    def _check_epoch(self) -> None:
        try:
            epoch = _epoch(self.path)
        except CorruptStorage as error:
            if isinstance(error.__cause__, OSError):
                raise StorageError(f"whether {self.path} is still ours: {error}") from error
            raise
        if epoch != self.epoch - (not self._is_raised):
            raise StorageError(
                f"{self.path} was claimed by another process: epoch {epoch}, ours is {self.epoch}"
            )


def found_installation(data_dir: Path, install_id: str = "") -> str:
    """The id of the installation in a folder; a new one if there is none and none is expected.

    Raises:
        OtherDisk: If it is another than the one expected.
    """
    make_folder(data_dir)
    with _installation(data_dir, install_id) as installation:
        found: str = installation["install_id"]
        return found


@contextmanager
def hold_all(data_dir: Path) -> Iterator[None]:
    """Lock every part of an installation at once, and change nothing.

    Raises:
        StorageError: If a process is at work on one of them.
    """
    with ExitStack() as held:
        for lock in sorted(data_dir.glob("*/**/" + _LOCK)):
            held.callback(os.close, _lock(lock, wait_s=0.0))
        yield


def _settle(data_dir: Path, name: str) -> None:
    """Make durable what the last owner did to names, now that it is surely gone."""
    try:
        for folder in (data_dir, (data_dir / name).parent, data_dir / name):
            make_folder(folder)
    except OSError as error:
        raise StorageError(f"claim {data_dir / name}: {error}") from error


def _lock(path: Path, wait_s: float) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise FolderInUse(f"{path.parent} is in use by another process") from error
            time.sleep(_LOCK_POLL_S)
        else:
            return descriptor


def _check_identity(
    data_dir: Path, name: str, identity: Mapping[str, Any], install_id: str
) -> None:
    with _installation(data_dir, install_id) as installation:
        path = data_dir / name / _IDENTITY
        wanted = {
            "install_id": installation["install_id"],
            "name": name,
            "format_version": FORMAT_VERSION,
            **identity,
        }
        if path.exists():
            found = read_checked_json(path)
            if found != wanted:
                raise CorruptStorage(f"{path} says {found}, expected {wanted}")
        elif name in installation["initialised"]:
            raise CorruptStorage(
                f"{path.parent} was in use before and its {_IDENTITY} is gone: restore the folder"
            )
        else:
            replace_file(path, checked_json(wanted))
        if name not in installation["initialised"]:
            installation["initialised"].append(name)
            replace_file(data_dir / _INSTALLATION, checked_json(installation))


@contextmanager
def _installation(data_dir: Path, install_id: str) -> Iterator[dict[str, Any]]:
    """The registry of the installation, locked, so that parts may start at the same time."""
    lock = _lock(data_dir / "installation.lock", wait_s=10.0)
    try:
        path = data_dir / _INSTALLATION
        if not path.exists():
            if install_id:
                raise OtherDisk(
                    f"{data_dir} is empty and installation {install_id} is expected: it was "
                    "emptied, or this node has another disk; restore it, or share one folder"
                )
            replace_file(path, checked_json({"install_id": uuid.uuid4().hex, "initialised": []}))
        _settle(data_dir, ".")  # a part that died may have replaced it just now
        found = read_checked_json(path)
        if install_id not in ("", found["install_id"]):
            raise OtherDisk(
                f"{data_dir} is of installation {found['install_id']}, expected {install_id}"
            )
        yield found
    finally:
        os.close(lock)


def _epoch(folder: Path) -> int:
    path = folder / _EPOCH
    epoch: int = read_checked_json(path)["epoch"] if path.exists() else 0
    return epoch
