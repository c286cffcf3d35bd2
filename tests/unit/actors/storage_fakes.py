"""Disks that fail, and small things that the tests of durable parts share."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from actors import opening
from recommender.events import Event


def fast_and_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit test pulls the plug, so the page cache is disk enough; slow machines may be slow."""
    monkeypatch.setattr(os, "fsync", os.fstat)
    monkeypatch.setattr(opening, "_WAIT_S", 30.0)


class FailingFsync:
    """Stands in for `os.fsync`: counts, and fails when and as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = 0
        self.fail_next = 0
        self.succeed_before = 0
        self.error = errno.EIO
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.num_calls += 1
        # `asyncio.to_thread` compacts; what is tested is the writer.
        if threading.current_thread().name.startswith("asyncio"):
            return
        if self.succeed_before:
            self.succeed_before -= 1
        elif self.fail_next:
            self.fail_next -= 1
            raise OSError(self.error, "fsync failed on purpose")


class LengthEncoder:
    """An encoder whose vector is the length of the text. Counts the texts it encoded."""

    def __init__(self, name: str = "length") -> None:
        self.name = name
        self.num_encoded = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.num_encoded += len(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def event(number: int, user: str = "u", item: str | None = None) -> Event:
    """An event that its number determines."""
    return Event(
        event_id=f"e-{number}",
        user_id=user,
        item_id=item or f"i-{number % 7}",
        event_type="click",
        value=1.0,
        timestamp_ms=1_000 * number,
        request_id=f"r-{number}" if number % 2 else None,
    )
