from __future__ import annotations

import logging

import pytest

from actors.messages import Manifest, StorageError, StorageFull, VersionInfo
from actors.teacher import when_there_is_space

STORED = VersionInfo(Manifest(7, 6, 0, (0,), 0, 0, "round"), True, False, 100)


def test_learning_waits_while_the_disk_is_full_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    num_refusals = 2

    def publish() -> VersionInfo:
        nonlocal num_refusals
        num_refusals -= 1
        if num_refusals >= 0:
            raise StorageFull("1 byte is free")
        return STORED

    with caplog.at_level(logging.WARNING):
        assert when_there_is_space(publish, pause_s=0.0) is STORED
    assert [record.getMessage() for record in caplog.records] == [
        "learning waits for disk space error=1 byte is free"
    ]


def test_another_failure_of_the_store_is_not_waited_out() -> None:
    def publish() -> VersionInfo:
        raise StorageError("fsync failed")

    with pytest.raises(StorageError, match="fsync failed"):
        when_there_is_space(publish)
