"""The client of the parameter store."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfDiskError

from actors.asking import ask
from actors.messages import Head, Manifest, ShardUnavailable, VersionInfo
from actors.naming import PARAMETER_STORE, find_actor
from actors.parameter_store import StoreStatus
from actors.shared_memory import put_arrays
from actors.version_files import Arrays

logger = logging.getLogger(__name__)


class ParameterStoreClient:
    """Every call is bounded by `timeout_s`, plus what it asks to wait."""

    def __init__(self, store: Any, timeout_s: float = 30.0) -> None:
        self._store = store
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, timeout_s: float = 30.0) -> ParameterStoreClient:
        """A client of the running store.

        Raises:
            ValueError: If there is none.
        """
        return cls(find_actor(PARAMETER_STORE), timeout_s)

    async def publish(
        self, manifest: Manifest, payload: Arrays, trainer: Arrays, promote: bool = True
    ) -> VersionInfo:
        """Store a new version; the store gives its number.

        If the store dies meanwhile, it is asked for the version once it is back, and sent it again
        only if it does not have it: a mere repeat could store it twice.

        Raises:
            VersionRefused: If an array is not finite or cannot be stored.
            StorageError: If it could not be written; the head is as before.
            ShardUnavailable: If the store did not answer.
        """
        references = [await asyncio.to_thread(put_arrays, arrays) for arrays in (payload, trainer)]
        try:
            return await self._publish(manifest, references, promote)
        except ShardUnavailable as error:
            logger.warning("is the version stored? step=%d error=%r", manifest.step, error)
        stored = await self._stored_as(manifest)
        if stored is None:
            return await self._publish(manifest, references, promote)
        if promote:  # it may have died between the two
            await self.promote(stored.manifest.version, manifest.reason)
        return stored

    async def wait_after(self, sequence: int, wait_s: float) -> tuple[Head, Arrays] | None:
        """The head and its arrays once it is not the one of `sequence`; None after `wait_s`.

        The arrays are read-only views of shared memory. If the store's copy is lost, or there was
        no room for one, they come from its disk.
        """
        answer = await self._ask("wait_after", sequence, wait_s, wait_s=wait_s, retry=True)
        if answer is None:
            return None
        head, [reference] = answer
        if reference is None:
            return head, await self.read(head.manifest.version)
        try:
            async with asyncio.timeout(self._timeout_s):
                payload: Arrays = await reference
        except (ObjectLostError, OutOfDiskError, GetTimeoutError, TimeoutError):
            payload = await self.read(head.manifest.version)
        return head, payload

    async def head(self) -> Head | None:
        """The version that is served, None before the first."""
        answer: Head | None = await self._ask("head", retry=True)
        return answer

    async def read(self, version: int) -> Arrays:
        """A version's arrays from the store's disk; raises `UnknownVersion` or `CorruptStorage`."""
        answer: Arrays = await self._ask("read", version, retry=True)
        return answer

    async def read_trainer(self, version: int) -> Arrays:
        """The arrays with which training goes on from a version; raises as `read`."""
        answer: Arrays = await self._ask("read_trainer", version, retry=True)
        return answer

    async def promote(self, version: int, reason: str) -> Head:
        """Make a version the head; raises `UnknownVersion` or `CorruptStorage`."""
        answer: Head = await self._ask("promote", version, reason, retry=True)
        return answer

    async def rollback(self, reason: str) -> Head:
        """Make the head before this one the head; raises `UnknownVersion` if there is none."""
        answer: Head = await self._ask("rollback", reason)
        return answer

    async def pin(self, version: int) -> VersionInfo:
        """Keep a version for ever; raises `UnknownVersion`."""
        answer: VersionInfo = await self._ask("pin", version, retry=True)
        return answer

    async def unpin(self, version: int) -> VersionInfo:
        """Let a version go when its time comes; raises `UnknownVersion`."""
        answer: VersionInfo = await self._ask("unpin", version, retry=True)
        return answer

    async def list_versions(self) -> list[VersionInfo]:
        """Every version that is kept, newest first."""
        answer: list[VersionInfo] = await self._ask("list_versions", retry=True)
        return answer

    async def status(self) -> StoreStatus:
        """How the store is."""
        answer: StoreStatus = await self._ask("status", retry=True)
        return answer

    async def recover(self) -> StoreStatus:
        """Let a failed store try to open its folder again."""
        answer: StoreStatus = await self._ask("recover")
        return answer

    async def _publish(
        self, manifest: Manifest, references: list[Any], promote: bool
    ) -> VersionInfo:
        answer: VersionInfo = await self._ask("publish", manifest, references, promote)
        return answer

    async def _stored_as(self, manifest: Manifest) -> VersionInfo | None:
        """The version that was stored from a manifest, if it was."""
        for info in await self.list_versions():
            # Metrics may be NaN, which is not even equal to itself.
            told = replace(info.manifest, version=0, checksums={}, metrics=manifest.metrics)
            if told == manifest:
                return info
        return None

    async def _ask(self, method: str, *args: Any, wait_s: float = 0.0, retry: bool = False) -> Any:
        timeout_s = self._timeout_s + wait_s
        return await ask(self._store, method, *args, timeout_s=timeout_s, retry=retry)
