"""Which version is served: publish, promote, roll back, keep and prune. Blocking, no threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.messages import (
    CorruptStorage,
    Head,
    Manifest,
    StorageError,
    StorageFull,
    UnknownVersion,
    VersionInfo,
)
from actors.version_files import MODEL, Arrays, HeadRecord, VersionFiles

logger = logging.getLogger(__name__)


class ServedVersions:
    """Moves the head over the versions on disk. One caller at a time.

    The record on disk moves first, then `head` and `payload`; a failure leaves all as they were.

    Attributes:
        record: As `head.json` has it.
        head: The version that is served, None before the first.
        payload: What `put` gave for the head's arrays; None if there was no room on opening.
        warning: What was found damaged when the head was loaded; empty if nothing was.
    """

    def __init__(
        self, files: VersionFiles, *, keep_versions: int, put: Callable[[Any], Any]
    ) -> None:
        """Load the head; if it is damaged, the one before it, or else the newest that is not.

        Args:
            files: Where versions are.
            keep_versions: Newest versions kept, besides the head and the pinned ones.
            put: Puts arrays where readers share them, and gives a reference.

        Raises:
            StorageError: If a move of the head could not be written, unless the disk is full.
        """
        self.record = HeadRecord()
        self.head: Head | None = None
        self.payload: Any = None
        self.warning = ""
        self._files = files
        self._keep_versions = keep_versions
        self._put = put
        self._recover()

    def publish(
        self, manifest: Manifest, model: Arrays, trainer: Arrays, promote: bool
    ) -> VersionInfo:
        """Store a version under the next number, perhaps as the head, and prune.

        Raises:
            VersionRefused: If an array is not finite or cannot be stored.
            StorageError: If writing failed; the head is as before, and there is no such version.
        """
        # Shared memory may be full too: better before anything is on disk.
        payload = self._put(dict(model)) if promote else None
        version = self.record.next_version
        # The number is used up before anything exists under it, whatever happens next.
        promoting = version if promote else 0
        self._save(replace(self.record, next_version=version + 1, promoting=promoting))
        manifest = self._files.write(replace(manifest, version=version), model, trainer)
        if promote:
            try:
                self._save(self.record.promoted(version, manifest.reason))
            except StorageError:
                self._take_back(version)
                raise
            self._serve(manifest, payload)
        self._prune()
        logger.info("published version=%d promoted=%s", version, promote)
        return self._info(manifest)

    def promote(self, version: int, reason: str) -> Head:
        """Make a version the head; nothing changes if it is.

        Raises:
            UnknownVersion: If there is no such version.
            CorruptStorage: If it is damaged.
            StorageError: If the move could not be written.
        """
        if self.head and self.head.manifest.version == version:
            return self.head
        return self._move_to(self.record.promoted(version, reason))

    def rollback(self, reason: str) -> Head:
        """Make the head before this one the head; raises as `promote`."""
        return self._move_to(self.record.rolled_back(self._files.numbers(), reason))

    def set_pinned(self, version: int, is_pinned: bool) -> VersionInfo:
        """Keep a version for ever, or no longer.

        Raises:
            UnknownVersion: If there is no such version.
            StorageError: If that could not be written.
        """
        manifest = self._files.manifest(version)
        others = {pinned for pinned in self.record.pinned if pinned != version}
        pinned = others | {version} if is_pinned else others
        self._save(replace(self.record, pinned=tuple(sorted(pinned))))
        info = self._info(manifest)
        self._prune()
        return info

    def list_versions(self) -> list[VersionInfo]:
        """Every version on disk whose manifest can be read, newest first."""
        versions = []
        for version in reversed(self._files.numbers()):
            try:
                versions.append(self._info(self._files.manifest(version)))
            except CorruptStorage as error:
                logger.error("version not listed version=%d error=%s", version, error)
        return versions

    def _recover(self) -> None:
        numbers = self._files.numbers()
        try:
            self.record = self._files.read_head()
        except CorruptStorage as error:
            self.warning = str(error)
        next_version = max([self.record.next_version, *(number + 1 for number in numbers)])
        self.record = replace(self.record, next_version=next_version)
        has_had_a_head = bool(self.record.version or self.warning)
        if self.record.promoting in numbers and self._finish_promotion():
            return
        # If versions were only stored, never promoted, then none is served by itself.
        served = [self.record.version, *reversed(self.record.previous)]
        candidates = [*served, *reversed(numbers)] if has_had_a_head else []
        for version in candidates:
            record = self.record
            if version != record.version:
                record = replace(
                    record,
                    sequence=record.sequence + 1,
                    version=version,
                    reason=f"recovered: {self.warning}",
                )
            try:
                self._move_to(record, is_opening=True)
            except (CorruptStorage, UnknownVersion) as error:
                self.warning = self.warning or f"{type(error).__name__}: {error}"
            else:
                break
        if self.warning:
            logger.error("head recovered version=%d error=%s", self.record.version, self.warning)

    def _finish_promotion(self) -> bool:
        """The end of a publish that a crash cut off; False if the version is damaged."""
        version = self.record.promoting
        try:
            reason = self._files.manifest(version).reason
            self._move_to(self.record.promoted(version, reason), is_opening=True)
        except (CorruptStorage, UnknownVersion) as error:
            self.warning = f"{type(error).__name__}: {error}"
            return False
        logger.warning("promotion finished version=%d", version)
        return True

    def _move_to(self, record: HeadRecord, *, is_opening: bool = False) -> Head:
        """Serve another version; on opening also where the disk has no room for the record.

        And where shared memory has none: readers hold the head, or can read it from disk.
        """
        manifest = self._files.manifest(record.version)
        arrays = self._files.read(record.version, MODEL)
        try:
            payload = self._put(arrays)
        except StorageFull as error:
            if not is_opening:
                raise
            logger.warning("head not shared version=%d error=%s", record.version, error)
            payload = None
        try:
            self._save(record)
        except StorageFull as error:
            if not is_opening:
                raise
            logger.warning("head not recorded version=%d error=%s", record.version, error)
            self.record = record  # the next move writes one
        return self._serve(manifest, payload)

    def _serve(self, manifest: Manifest, payload: Any) -> Head:
        """What the record says is served."""
        self.payload = payload
        self.head = Head(self.record.sequence, manifest, self.record.reason)
        logger.info("head version=%d reason=%s", self.record.version, self.record.reason)
        return self.head

    def _save(self, record: HeadRecord) -> None:
        self._files.write_head(record)
        self.record = record

    def _take_back(self, version: int) -> None:
        """Remove what should have become head, or training would take it for a rejected version."""
        try:
            self._save(self.record)  # the one on disk may name it
            self._files.delete(version)
        except StorageError as error:
            logger.error("version not taken back version=%d error=%s", version, error)

    def _prune(self) -> None:
        """Delete versions whose time is over. What cannot be deleted is tried again later."""
        numbers = self._files.numbers()
        for version in sorted(set(numbers) - self.record.kept(numbers, self._keep_versions)):
            try:
                self._files.delete(version)
            except StorageError as error:
                logger.warning("version not deleted version=%d error=%s", version, error)

    def _info(self, manifest: Manifest) -> VersionInfo:
        return VersionInfo(
            manifest=manifest,
            is_head=manifest.version == self.record.version,
            is_pinned=manifest.version in self.record.pinned,
            size_bytes=self._files.size_bytes(manifest.version),
        )
