"""A local Ray of the tests' own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.naming import NAMESPACE


@contextmanager
def own_ray(num_cpus: int, **options: Any) -> Iterator[None]:
    """A node with so many logical CPUs; its folder has a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            namespace=NAMESPACE,
            _temp_dir=folder,
            log_to_driver=False,
            **options,
        )
        yield
        ray.shutdown()
