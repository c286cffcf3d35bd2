"""A whole system for the end-to-end tests, started by the very command that people use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_system import LiveSystem


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSystem]:
    """A running system with a simulated stream ingested and a first version served."""
    live = LiveSystem(tmp_path_factory.mktemp("system"))
    try:
        live.up()
        live.ingest_simulated()
        live.wait_for_version(1)
        yield live
    finally:
        live.down()


@pytest.fixture
def empty_dir(tmp_path: Path) -> Path:
    """A storage folder with nothing in it."""
    return tmp_path / "data"
