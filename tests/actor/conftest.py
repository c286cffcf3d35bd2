"""One local Ray for the session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from actor_tools import Starter

from actors.naming import NAMESPACE
from actors.settings import StorageSettings


@pytest.fixture(scope="session", autouse=True)
def local_ray() -> Iterator[None]:
    """A local node with logical CPUs; its folder has a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            namespace=NAMESPACE,
            _temp_dir=folder,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


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
