"""A disk of a few megabytes that a test can fill: the errors are the kernel's own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class SmallDisk:
    """A file system of its own, with room for the data of a test and for a file that fills it."""

    path: Path

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return shutil.disk_usage(self.path).free

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all space but `leave_bytes`."""
        with self._filler.open("ab") as file:
            taken_bytes = file.tell()
            os.posix_fallocate(file.fileno(), taken_bytes, self.free_bytes - leave_bytes)

    def empty(self) -> None:
        """Give the space back."""
        self._filler.unlink()

    def fill_inodes(self) -> None:
        """Take every inode, and next to no space."""
        folder = self._inode_filler
        folder.mkdir()
        with suppress(OSError):
            for number in itertools.count():
                (folder / str(number)).touch()

    def empty_inodes(self) -> None:
        """Give the inodes back."""
        shutil.rmtree(self._inode_filler)

    def temporaries(self) -> list[Path]:
        """Files that somebody began and did not finish."""
        return sorted(self.path.rglob("*.tmp"))

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    @property
    def _inode_filler(self) -> Path:
        return self.path / "inode-filler"


@contextmanager
def small_disk(path: Path, size_mib: int, num_inodes: int = 10_000) -> Iterator[SmallDisk]:
    """Mount it at a new folder; skips the test where that is not allowed."""
    path.mkdir()
    options = f"size={size_mib}m,nr_inodes={num_inodes},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
