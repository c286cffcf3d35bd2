"""One local Ray for the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from actor_tools import Starter
from own_ray import own_ray

from actors.settings import StorageSettings


@pytest.fixture(scope="session", autouse=True)
def local_ray() -> Iterator[None]:
    """One node for all tests."""
    with own_ray(num_cpus=8):
        yield


@pytest.fixture
def storage(tmp_path: Path) -> StorageSettings:
    """An empty folder for durable data."""
    return StorageSettings(data_dir=tmp_path, min_free_bytes=0)


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts actors; they end with the test."""
    starter = Starter()
    yield starter
    starter.end_all()
