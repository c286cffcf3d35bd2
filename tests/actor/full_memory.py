"""A Ray of its own whose shared memory can be filled until `ray.put` fails.

With room on the disk, Ray spills there or maps a file, and nothing ever fails: only when the disk
counts as full too, `ray.put` raises. This Ray takes a disk for full of which 1 % is in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from own_ray import own_ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

_STORE_BYTES = 80 << 20
_SIZES = (1 << 20, 1 << 17, 1 << 14, 1 << 11, 1 << 8)


@contextmanager
def ray_on_a_full_disk() -> Iterator[None]:
    """80 MiB of shared memory, and nothing behind it."""
    limits = {"local_fs_capacity_threshold": 0.01, "automatic_object_spilling_enabled": False}
    with own_ray(num_cpus=4, object_store_memory=_STORE_BYTES, _system_config=limits):
        yield


class Hog:
    """Holds references to so much that nobody else's objects find room."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def fill(self) -> int:
        """Take all there is, down to the last hundreds of bytes; how many bytes that were."""
        taken_bytes = 0
        for size in _SIZES:
            try:
                while True:
                    self._held.append(ray.put(np.ones(size, np.uint8)))
                    taken_bytes += size
            except (ObjectStoreFullError, OutOfDiskError):
                continue
        return taken_bytes

    def empty(self) -> None:
        """Give all of it back."""
        self._held.clear()


def start_hog() -> Any:
    """In a process of its own."""
    return ray.remote(num_cpus=0)(Hog).remote()
