"""The parameter store: versions on disk before they are served, and one copy in shared memory."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from ray.exceptions import RayError

from actors.durable_files import require_free_space
from actors.long_poll import LongPoll
from actors.messages import (
    Head,
    Manifest,
    VersionInfo,
    VersionRefused,
)
from actors.opening import Opening
from actors.served_versions import ServedVersions
from actors.settings import StorageSettings, StoreSettings
from actors.shared_memory import put_arrays
from actors.storage_folder import StorageFolder
from actors.version_files import MODEL, TRAINER, Arrays, VersionFiles

logger = logging.getLogger(__name__)

R = TypeVar("R")
_PAYLOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the store is: `state` as in `ShardStatus`; `warning` names damage that was survived."""

    state: str
    reason: str
    warning: str
    boot_id: str
    head: Head | None
    num_versions: int
    next_version: int
    memory_bytes: int


@dataclass(frozen=True)
class Store:
    """The opened store."""

    folder: StorageFolder
    files: VersionFiles
    versions: ServedVersions


class ParameterStore:
    """Keeps versions of the model and says which one is served.

    Promises that a version is on disk before it can become head, that it never changes, and that
    its number is never used again. Numbers, head and pins are the same after a restart. The object
    reference it hands out is its own, of a copy it put itself; it dies with the store, and `read`
    gives the arrays from disk.
    """

    def __init__(
        self,
        storage: StorageSettings,
        settings: StoreSettings,
        put: Callable[[Any], Any] = put_arrays,
    ) -> None:
        """Begin to open the folder.

        Args:
            storage: Where versions are kept.
            settings: How many.
            put: Puts arrays where readers share them, and gives a reference.
        """
        self.boot_id = uuid.uuid4().hex
        self._data_dir = Path(storage.data_dir)
        self._installation = storage.installation
        self._min_free_bytes = storage.min_free_bytes
        self._keep_versions = settings.keep_versions
        self._put = put
        self._changing = asyncio.Lock()
        self._moved = LongPoll()
        self._opening = Opening("parameter store", self._open)

    async def recover(self) -> StoreStatus:
        """Try again to open a store that failed to; does nothing to one that is well."""
        if self._opening.state()[0] == "failed":
            self._opening.again()
        return await self.status()

    async def publish(
        self, manifest: Manifest, references: Sequence[Any], promote: bool
    ) -> VersionInfo:
        """Store a new version and perhaps make it the head. One after the other.

        Args:
            manifest: Its `version` is replaced by the next number, its checksums are filled in.
            references: Awaitables of the arrays of the model and of the trainer.
            promote: Whether the version becomes head.

        Raises:
            VersionRefused: If an array is not finite, cannot be stored, or was lost on the way.
            StorageFull: If the disk or the shared memory has too little space.
            StorageError: If writing failed; the head is as before.
            ShardUnavailable: If the store is recovering or failed.
        """
        async with self._changing:
            store = await self._opening.ready()
            model, trainer = await _arrays(references)
            self._check_there_is_space(model, trainer)
            publish = store.versions.publish
            return await self._change(store, publish, manifest, model, trainer, promote)

    async def promote(self, version: int, reason: str) -> Head:
        """Make a version the head; nothing changes if it is the head.

        Raises:
            UnknownVersion: If there is no such version.
            CorruptStorage: If it is damaged.
        """
        async with self._changing:
            store = await self._opening.ready()
            return await self._change(store, store.versions.promote, version, reason)

    async def rollback(self, reason: str) -> Head:
        """Make the head before this one the head.

        Raises:
            UnknownVersion: If there is none.
            CorruptStorage: If it is damaged.
        """
        async with self._changing:
            store = await self._opening.ready()
            return await self._change(store, store.versions.rollback, reason)

    async def pin(self, version: int) -> VersionInfo:
        """Keep a version for ever. Raises `UnknownVersion`."""
        async with self._changing:
            store = await self._opening.ready()
            return await self._change(store, store.versions.set_pinned, version, True)

    async def unpin(self, version: int) -> VersionInfo:
        """Let a version go when its time comes. Raises `UnknownVersion`."""
        async with self._changing:
            store = await self._opening.ready()
            return await self._change(store, store.versions.set_pinned, version, False)

    async def head(self) -> Head | None:
        """The version that is served, None before the first."""
        return (await self._opening.ready()).versions.head

    async def wait_after(self, sequence: int, wait_s: float) -> tuple[Head, list[Any]] | None:
        """The head, with a reference to its arrays, once it is not the one of `sequence`.

        None if it does not move within `wait_s`. The reference is in a list, so that Ray hands it
        over as it is; it is None if there was no room in shared memory when the store was opened.
        """
        versions = (await self._opening.ready()).versions
        await self._moved.wait_until(
            lambda: versions.head is not None and versions.head.sequence != sequence, wait_s
        )
        if versions.head is None or versions.head.sequence == sequence:
            return None
        return versions.head, [versions.payload]

    async def read(self, version: int) -> Arrays:
        """The model's arrays from disk. Raises `UnknownVersion` or `CorruptStorage`."""
        store = await self._opening.ready()
        return await asyncio.to_thread(store.files.read, version, MODEL)

    async def read_trainer(self, version: int) -> Arrays:
        """The trainer's arrays from disk. Raises `UnknownVersion` or `CorruptStorage`."""
        store = await self._opening.ready()
        return await asyncio.to_thread(store.files.read, version, TRAINER)

    async def list_versions(self) -> list[VersionInfo]:
        """Every version on disk whose manifest can be read, newest first."""
        store = await self._opening.ready()
        async with self._changing:
            return await self._opening.write(store.versions.list_versions)

    async def status(self) -> StoreStatus:
        """How the store is; answers in every state."""
        state, reason = self._opening.state()
        store = self._opening.opened
        return StoreStatus(
            state=state,
            reason=reason,
            warning=store.versions.warning if store else "",
            boot_id=self.boot_id,
            head=store.versions.head if store else None,
            num_versions=len(store.files.numbers()) if store else 0,
            next_version=store.versions.record.next_version if store else 0,
            memory_bytes=psutil.Process().memory_info().rss,
        )

    async def close(self) -> None:
        """Finish what is being written and give the folder back; the end of the store."""
        async with self._changing:
            self._opening.shutdown()
            if store := self._opening.opened:
                store.folder.close()

    async def _change(self, store: Store, work: Callable[..., R], *args: Any) -> R:
        """Run one change on the writer thread, then let everyone know."""

        def change() -> R:
            store.folder.check_is_ours()
            return work(*args)

        result = await self._opening.write(change)
        self._moved.notify()
        return result

    def _open(self) -> Store:
        """Claim the folder and load the head. Runs on the writer thread."""
        folder = StorageFolder.claim(self._data_dir, "models", {}, installation=self._installation)
        try:
            files = VersionFiles(folder.path)
            versions = ServedVersions(files, keep_versions=self._keep_versions, put=self._put)
        except BaseException:
            folder.close()
            raise
        return Store(folder, files, versions)

    def _check_there_is_space(self, model: Arrays, trainer: Arrays) -> None:
        needed_bytes = sum(array.nbytes for part in (model, trainer) for array in part.values())
        require_free_space(self._data_dir, self._min_free_bytes, needed_bytes)


async def _arrays(references: Sequence[Any]) -> list[Arrays]:
    try:
        async with asyncio.timeout(_PAYLOAD_TIMEOUT_S):
            return [await reference for reference in references]
    except (RayError, TimeoutError) as error:
        raise VersionRefused(f"the arrays were lost on the way: {error}") from error
