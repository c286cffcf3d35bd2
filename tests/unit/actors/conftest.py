"""A disk that takes no time, and openings that are waited for."""

from __future__ import annotations

import os

import pytest

from actors import opening


@pytest.fixture(autouse=True)
def fast_and_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit test pulls the plug: the page cache is disk enough, and slow machines may be slow."""
    monkeypatch.setattr(os, "fsync", os.fstat)
    monkeypatch.setattr(opening, "_WAIT_S", 30.0)
