"""Versions of the model on disk, and which of them is the head.

```
versions/00000012/model.safetensors     what is served
versions/00000012/trainer.safetensors   what training needs to go on exactly
versions/00000012/manifest.json         where it came from, and the SHA-256 of both
head.json                               the head, the heads before it, pins, the next number
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from actors.checked_json import checked_json, read_checked_json
from actors.durable_files import (
    TEMPORARY,
    fsync_folder,
    make_folder,
    remove_leftovers,
    replace_file,
    sha256_of,
    storage_error,
    write_new,
)
from actors.messages import CorruptStorage, Manifest, UnknownVersion, VersionRefused

Arrays = Mapping[str, NDArray[Any]]
MODEL = "model.safetensors"
TRAINER = "trainer.safetensors"
_MANIFEST = "manifest.json"
_MAX_PREVIOUS = 100


@dataclass(frozen=True)
class HeadRecord:
    """What `head.json` holds. Version 0 means that there is no head.

    Attributes:
        sequence: Rises with every move of the head.
        version: The head.
        reason: Why it is the head.
        previous: Heads before it, oldest first, as `rollback` goes back through them.
        pinned: Versions that are never deleted.
        next_version: Number of the next version; numbers are never used twice.
        promoting: Version that becomes head as soon as it is on disk; 0 if none does. It is said
            before the version is written, so a crash between the two does not undo the promotion.
    """

    sequence: int = 0
    version: int = 0
    reason: str = ""
    previous: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    next_version: int = 1
    promoting: int = 0

    def promoted(self, version: int, reason: str) -> HeadRecord:
        """The record after a version became head."""
        before = (*self.previous, self.version) if self.version else ()
        return replace(
            self,
            sequence=self.sequence + 1,
            version=version,
            reason=reason,
            previous=before[-_MAX_PREVIOUS:],
            promoting=0,
        )

    def rolled_back(self, existing: Iterable[int], reason: str) -> HeadRecord:
        """The record after the head went back to the newest of its predecessors that exists.

        Raises:
            UnknownVersion: If there is none.
        """
        left = [v for v in self.previous if v in set(existing) and v != self.version]
        if not left:
            raise UnknownVersion(f"there is no head before version {self.version}")
        return replace(
            self,
            sequence=self.sequence + 1,
            version=left[-1],
            reason=reason,
            previous=tuple(left[:-1]),
            promoting=0,
        )

    def kept(self, existing: Iterable[int], keep_versions: int) -> set[int]:
        """Versions that must not be deleted: the newest, the pinned, the head, the one before."""
        newest = sorted(existing)[-keep_versions:]
        return {*newest, *self.pinned, self.version, *self.previous[-1:]}


class VersionFiles:
    """Reads and writes versions. A version is on disk whole or not at all, and never changes."""

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        """Open the folder; unless it is only read, what a crash left unfinished is removed.

        Raises:
            StorageError: If it cannot be written.
        """
        self._versions = folder / "versions"
        self._head = folder / "head.json"
        if is_read_only:
            return
        try:
            make_folder(self._versions)
            remove_leftovers(self._versions)
        except OSError as error:
            raise storage_error(f"open {folder}", error) from error

    def numbers(self) -> list[int]:
        """The versions on disk, rising."""
        return sorted(int(path.name) for path in self._versions.glob("*") if path.name.isdecimal())

    def write(self, manifest: Manifest, model: Arrays, trainer: Arrays) -> Manifest:
        """Write version `manifest.version`; gives its manifest with the checksums.

        Raises:
            VersionRefused: If the number is in use, or an array is not finite or cannot be stored.
            StorageError: If writing failed; then there is no such version.
        """
        folder = self._folder(manifest.version)
        if folder.exists():
            raise VersionRefused(f"version {manifest.version} exists already")
        files = {MODEL: _encoded(model), TRAINER: _encoded(trainer)}
        checksums = {name: sha256_of(data) for name, data in files.items()}
        manifest = replace(manifest, checksums=checksums)
        temporary = folder.with_name(folder.name + TEMPORARY)
        try:
            temporary.mkdir(mode=0o700)
            for name, data in {**files, _MANIFEST: _manifest_json(manifest)}.items():
                write_new(temporary / name, [data])
            fsync_folder(temporary)
            temporary.rename(folder)
            fsync_folder(self._versions)
        except OSError as error:
            with suppress(OSError):
                folder.rename(temporary)  # it was named, if only its name is not durable
            shutil.rmtree(temporary, ignore_errors=True)
            raise storage_error(f"write version {manifest.version}", error) from error
        return manifest

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version.

        Raises:
            UnknownVersion: If there is no such version.
            CorruptStorage: If it cannot be read.
        """
        path = self._folder(version) / _MANIFEST
        if not path.parent.exists():
            raise UnknownVersion(f"there is no version {version}")
        try:
            fields = read_checked_json(path)
            fields["trained_through"] = tuple(fields["trained_through"])
            fields["quarantined"] = tuple(map(tuple, fields.get("quarantined", ())))
            manifest = Manifest(**fields)
        except (TypeError, KeyError) as error:
            raise CorruptStorage(f"{path} cannot be read: {error}") from error
        if manifest.version != version:
            raise CorruptStorage(f"{path} is of version {manifest.version}")
        return manifest

    def read(self, version: int, file: str) -> dict[str, NDArray[Any]]:
        """The arrays of `MODEL` or `TRAINER`, checked against the manifest.

        Raises:
            UnknownVersion: If there is no such version.
            CorruptStorage: If they are not what was written.
        """
        expected = self.manifest(version).checksums.get(file)
        path = self._folder(version) / file
        try:
            data = path.read_bytes()
            if sha256_of(data) != expected:
                raise CorruptStorage(f"{path} does not have the checksum of its manifest")
            arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
        except (OSError, SafetensorError) as error:
            raise CorruptStorage(f"{path} cannot be read: {error}") from error
        return arrays

    def size_bytes(self, version: int) -> int:
        """Bytes of a version's files."""
        return sum(path.stat().st_size for path in self._folder(version).iterdir())

    def delete(self, version: int) -> None:
        """Delete a version; after a crash it is there whole or not at all.

        Raises:
            StorageError: If that failed.
        """
        folder = self._folder(version)
        temporary = folder.with_name(folder.name + TEMPORARY)
        try:
            folder.rename(temporary)
            fsync_folder(self._versions)
            shutil.rmtree(temporary)
        except OSError as error:
            raise storage_error(f"delete version {version}", error) from error

    def read_head(self) -> HeadRecord:
        """The record of the head; the empty one if nothing was published.

        Raises:
            CorruptStorage: If it cannot be read, or is gone while there are versions.
        """
        if not self._head.exists() and not self.numbers():
            return HeadRecord()
        try:
            fields = read_checked_json(self._head)
            lists = {name: tuple(fields[name]) for name in ("previous", "pinned")}
            return HeadRecord(**{**fields, **lists})
        except (TypeError, KeyError) as error:
            raise CorruptStorage(f"{self._head} cannot be read: {error}") from error

    def write_head(self, record: HeadRecord) -> None:
        """Replace the record of the head.

        Raises:
            StorageError: If that failed.
        """
        replace_file(self._head, checked_json(asdict(record)))

    def _folder(self, version: int) -> Path:
        return self._versions / f"{version:08d}"


def _encoded(arrays: Arrays) -> bytes:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise VersionRefused(f"array {name!r} is not finite")
    try:
        # Not `ascontiguousarray`, which gives scalars an axis.
        data: bytes = safetensors.numpy.save(
            {name: np.asarray(array, order="C") for name, array in arrays.items()}
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VersionRefused(f"arrays cannot be stored: {error}") from error
    return data


def _manifest_json(manifest: Manifest) -> bytes:
    try:
        return checked_json(asdict(manifest))
    except TypeError as error:
        raise VersionRefused(f"the manifest cannot be stored: {error}") from error
